# SPDX-License-Identifier: Apache-2.0
"""The drivers of front-end chips against chips that keep their registers, modes and frames as the data sheets say."""

import ctypes

import numpy as np
import pytest

from targets import firmware_image, toolchain, twin

SENSORS = firmware_image.FIRMWARE / "sensors"
OK, ABSENT, DEAF, SETTING = 0, -1, -2, -3
TRANSFER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_uint32)
WAIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)


class Bus(ctypes.Structure):
    """sensor_bus."""

    _fields_ = (("transfer", TRANSFER), ("wait", WAIT), ("bus", ctypes.c_void_p))


class AdsSetup(ctypes.Structure):
    """ads1292r_setup."""

    _fields_ = (("rate", ctypes.c_uint16), ("gain", ctypes.c_uint8))


class AdsFrame(ctypes.Structure):
    """ads1292r_frame."""

    _fields_ = (("code", ctypes.c_int32 * 2), ("uv", ctypes.c_int32 * 2), ("lead_off", ctypes.c_uint8))


class MaxSetup(ctypes.Structure):
    """max30003_setup."""

    _fields_ = (("rate", ctypes.c_uint16), ("gain", ctypes.c_uint8), ("batch", ctypes.c_uint8))


class MaxSample(ctypes.Structure):
    """max30003_sample."""

    _fields_ = (("code", ctypes.c_int32), ("uv", ctypes.c_int32), ("lead_off", ctypes.c_uint8),
                ("fast", ctypes.c_uint8))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if toolchain.missing("host"):
        pytest.skip(toolchain.missing("host"))
    path = tmp_path_factory.mktemp("sensors") / "sensors.so"
    twin.cc(("-std=c99", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion",
             "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
            SENSORS / "ads1292r.c", SENSORS / "max30003.c", "-o", path)
    return ctypes.CDLL(str(path))


def bus_of(chip) -> Bus:
    """A bus with this chip at its end; time passes only where the driver waits. chip.wrong: what it did not like."""
    chip.wrong = []

    def transfer(_, data, n):
        try:
            ctypes.memmove(data, chip.transfer(ctypes.string_at(data, n)), n)
        except AssertionError as error:         # it does not pass through C
            chip.wrong.append(str(error))

    def wait(_, us):
        chip.now += us
    return Bus(TRANSFER(transfer), WAIT(wait), None)


class Ads1292r:
    """The chip of SBAS502: opcodes, registers with their reset values and fixed bits, RDATAC, the status word."""

    RESET = bytes([0x73, 0x02, 0x80, 0x10, 0, 0, 0, 0, 0, 0, 0x02, 0x0C])
    WRITABLE = bytes([0, 0x87, 0x7B, 0xED, 0xFF, 0xFF, 0xFF, 0x3F, 0x40, 0xFD, 0x86, 0x0F])

    def __init__(self, identity: int = 0x73, stuck: int | None = None):
        self.now, self.identity, self.stuck = 0, identity, stuck
        self.frame, self.started = bytes(9), False
        self.reset()

    def reset(self) -> None:
        self.registers = bytearray(self.RESET)
        self.registers[0] = self.identity
        self.continuous, self.ready_at = True, self.now + 9     # it wakes up in RDATAC; 18 clocks

    def transfer(self, out: bytes) -> bytes:
        if self.identity == 0:
            return bytes(len(out))                              # nobody there
        if self.now < 1_000_000:
            return b"\xff" * len(out)                           # the oscillator is not up yet
        if self.continuous and out[0] not in (0x06, 0x08, 0x11):
            if out == b"\x10":
                return b"\0"
            assert self.started and not any(out), "a command while data are sent"
            return (self.frame + bytes(len(out)))[:len(out)]
        return self.command(out)

    def command(self, out: bytes) -> bytes:
        assert self.now >= self.ready_at, "too early after the reset"
        code = out[0]
        if code & 0xE0 in (0x20, 0x40) and not self.continuous:
            first, count = code & 0x1F, out[1] + 1
            assert len(out) == 2 + count and first + count <= 12
            if code & 0x20:
                return bytes(2) + self.registers[first:first + count]
            for at, value in enumerate(out[2:], first):
                self.write(at, value)
        elif code == 0x06:
            self.reset()
        elif code == 0x08:
            self.started = True
        elif code in (0x10, 0x11):
            self.continuous = code == 0x10
        return bytes(len(out))

    def write(self, at: int, value: int) -> None:
        mask = self.WRITABLE[at]
        fixed = {2: 0x80, 3: 0x10, 9: 0x02, 10: 0x01}.get(at, 0)     # bits that are 1 whatever is written
        if at != self.stuck:
            self.registers[at] = self.registers[at] & ~mask & 0xFF | value & mask | fixed

    def convert(self, codes: tuple[int, int], off: int = 0) -> None:
        """A conversion is ready: DRDY falls."""
        status = (0xC << 20 | off << 15).to_bytes(3, "big")
        self.frame = status + b"".join((c & 0xFFFFFF).to_bytes(3, "big") for c in codes)


def start_ads(library, chip, rate=250, gain=6):
    bus, state = bus_of(chip), ctypes.c_uint32()
    error = library.ads1292r_start(ctypes.byref(state), ctypes.byref(bus), ctypes.byref(AdsSetup(rate, gain)))
    assert not chip.wrong
    return error, bus, state


def read_ads(library, bus, state) -> AdsFrame | None:
    frame = AdsFrame()
    return frame if library.ads1292r_read(ctypes.byref(state), ctypes.byref(bus), ctypes.byref(frame)) else None


@pytest.mark.parametrize("identity", [0x73, 0x53])
@pytest.mark.parametrize("rate,code", [(125, 0), (250, 1), (500, 2), (1000, 3)])
def test_the_ads1292r_is_set_up_and_sends(library, identity, rate, code):
    chip = Ads1292r(identity)
    error, _, _ = start_ads(library, chip, rate)
    assert error == OK and chip.started and chip.continuous
    assert chip.registers[1] == code and chip.registers[2] & 0xE0 == 0xE0       # comparators and reference are on
    assert chip.registers[7] == 0x0F and chip.registers[4] == chip.registers[5] == 0


@pytest.mark.parametrize("gain,code", [(1, 1), (2, 2), (3, 3), (4, 4), (6, 0), (8, 5), (12, 6)])
def test_codes_of_the_ads1292r_become_microvolts_at_every_gain(library, gain, code):
    chip = Ads1292r()
    error, bus, state = start_ads(library, chip, 250, gain)
    assert error == OK and chip.registers[5] >> 4 == code
    for value in (0, 1, -1, 1000, -1000, 0x7FFFFF, -0x800000, 123456, -654321):
        chip.convert((value, -value if value > -0x800000 else 0))
        frame = read_ads(library, bus, state)
        exact = value * 2.42e6 / gain / (2 ** 23 - 1)
        assert frame.code[0] == value and abs(frame.uv[0] - exact) <= 0.501 + abs(value) * 2.0 ** -33


@pytest.mark.parametrize("status,lead_off", [(0, 0), (1, 1), (2, 1), (4, 2), (8, 2), (16, 3), (5, 3)])
def test_lead_off_bits_of_the_ads1292r_name_the_channel(library, status, lead_off):
    chip = Ads1292r()
    _, bus, state = start_ads(library, chip)
    chip.convert((5, 6), status)
    assert read_ads(library, bus, state).lead_off == lead_off


def test_a_frame_without_its_mark_is_none(library):
    chip = Ads1292r()
    _, bus, state = start_ads(library, chip)
    chip.frame = bytes(9)
    assert read_ads(library, bus, state) is None


@pytest.mark.parametrize("chip,options,error", [
    (Ads1292r(0), {}, ABSENT), (Ads1292r(0x51), {}, ABSENT), (Ads1292r(stuck=5), {"gain": 12}, DEAF),
    (Ads1292r(), {"rate": 300}, SETTING), (Ads1292r(), {"gain": 5}, SETTING)])
def test_what_is_wrong_with_an_ads1292r_is_told(library, chip, options, error):
    assert start_ads(library, chip, **options)[0] == error


class Max30003:
    """The chip of 19-7797: registers of 24 bits, a FIFO of 32 with tags, interrupts by EFIT."""

    REGISTERS = ((0x02, 0x3), (0x04, 0x4), (0x05, 0x3F0000), (0x10, 0x080000), (0x12, 0x4800), (0x14, 0),
                 (0x15, 0x805000))

    def __init__(self, info: int = 0x512345, stuck: int | None = None):
        self.now, self.info, self.stuck = 0, info, stuck
        self.registers = {k: 0xAAAAAA for k, _ in self.REGISTERS}
        self.fifo, self.overflow, self.off, self.synced = [], False, 0, 0

    def transfer(self, out: bytes) -> bytes:
        assert len(out) == 4, "an access takes 32 clocks"
        address, value = out[0] >> 1, int.from_bytes(out[1:], "big")
        if out[0] & 1:
            return b"\xff" + self.read(address).to_bytes(3, "big")
        if address == 0x08 and value == 0:
            self.registers = dict(self.REGISTERS)
        elif address == 0x0A:
            self.fifo, self.overflow = [], False
        elif address == 0x09:
            self.synced += 1
        elif address in self.registers and address != self.stuck:
            self.registers[address] = value
        return b"\xff" * 4

    def read(self, address: int) -> int:
        if address == 0x0F:
            return self.info
        if address == 0x01:
            return (len(self.fifo) > self.registers[0x04] >> 19) << 23 | self.overflow << 22 | self.off
        if address == 0x21:
            if self.overflow:
                return 7 << 3
            if not self.fifo:
                return 6 << 3
            code, fast = self.fifo.pop(0)
            return (code & 0x3FFFF) << 6 | (fast | (not self.fifo) << 1) << 3
        return self.registers[address]

    def convert(self, code: int, fast: int = 0) -> bool:
        """A sample; True when INTB falls."""
        self.overflow |= len(self.fifo) == 32
        if not self.overflow:
            self.fifo.append((code, fast))
        return self.overflow or len(self.fifo) > self.registers[0x04] >> 19


def start_max(library, chip, rate=250, gain=20, batch=8):
    bus, state = bus_of(chip), ctypes.c_uint32()
    error = library.max30003_start(ctypes.byref(state), ctypes.byref(bus), ctypes.byref(MaxSetup(rate, gain, batch)))
    assert not chip.wrong
    return error, bus, state


def read_max(library, bus, state, room=32):
    samples, overflow = (MaxSample * 32)(), ctypes.c_int()
    count = library.max30003_read(ctypes.byref(state), ctypes.byref(bus), samples, room, ctypes.byref(overflow))
    return samples[:count], bool(overflow.value)


@pytest.mark.parametrize("rate,fmstr,code", [(512, 0, 0), (256, 0, 1), (128, 0, 2), (500, 1, 0), (250, 1, 1),
                                             (125, 1, 2)])
def test_the_max30003_is_set_up(library, rate, fmstr, code):
    chip = Max30003()
    error, _, _ = start_max(library, chip, rate, batch=8)
    general, ecg = chip.registers[0x10], chip.registers[0x15]
    assert error == OK and chip.synced == 1
    assert (general >> 20 & 3, general >> 19 & 1, general >> 12 & 3, ecg >> 22) == (fmstr, 1, 1, code)
    assert chip.registers[0x04] >> 19 == 7 and chip.registers[0x02] == 0xC00003


@pytest.mark.parametrize("gain,code", [(20, 0), (40, 1), (80, 2), (160, 3)])
def test_codes_of_the_max30003_become_microvolts_at_every_gain(library, gain, code):
    chip = Max30003()
    _, bus, state = start_max(library, chip, gain=gain)
    assert chip.registers[0x15] >> 16 & 3 == code
    values = [0, 1, -1, -1685, 131071, -131072, 4242, -77]
    assert [chip.convert(v) for v in values].index(True) == 7
    samples, overflow = read_max(library, bus, state)
    assert [s.code for s in samples] == values and not overflow and not any(s.fast or s.lead_off for s in samples)
    exact = np.array(values) * 1e6 / (2 ** 17 * gain)
    assert np.abs(np.array([s.uv for s in samples]) - exact).max() <= 0.5
    assert gain != 20 or samples[3].uv == -643          # -0.642 mV is the maker's own example


def test_a_fifo_that_ran_over_is_started_anew(library):
    chip = Max30003()
    _, bus, state = start_max(library, chip)
    for value in range(40):
        chip.convert(value)
    assert read_max(library, bus, state) == ([], True) and chip.synced == 2
    chip.convert(7, fast=1)
    chip.off = 0b0100
    samples, overflow = read_max(library, bus, state)
    assert not overflow and [(s.code, s.fast, s.lead_off) for s in samples] == [(7, 1, 1)]
    assert read_max(library, bus, state) == ([], False)


def test_no_more_samples_are_read_than_there_is_room(library):
    chip = Max30003()
    _, bus, state = start_max(library, chip)
    for value in range(10):
        chip.convert(value)
    got = [[s.code for s in read_max(library, bus, state, 4)[0]] for _ in range(4)]
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


@pytest.mark.parametrize("chip,options,error", [
    (Max30003(0), {}, ABSENT), (Max30003(0xFFFFFF), {}, ABSENT), (Max30003(stuck=0x10), {}, DEAF),
    (Max30003(), {"rate": 1000}, SETTING), (Max30003(), {"gain": 10}, SETTING), (Max30003(), {"batch": 33}, SETTING)])
def test_what_is_wrong_with_a_max30003_is_told(library, chip, options, error):
    assert start_max(library, chip, **options)[0] == error
