# SPDX-License-Identifier: Apache-2.0
"""ProtoCentral's OpenView frames: ADS1292R, ADS1293, MAX30003 and MAX30001 boards, HealthyPi v4 and 5.

Read in the boards' sketches and firmware (protocentral-ads1292r-arduino, -ads1293-arduino, protocentral_max30003,
protocentral_max30001_arduino_library, protocentral_healthypi_v4, protocentral_healthypi5_zephyr) and in OpenView 3:

    0 0x0A | 1 0xFA | 2 length of the payload, u16 little-endian | 4 type | 5 payload | 0x00 | 0x0B

No CRC, no counter, no escaping, and boards print text first, whose line ends are 0x0A too. A frame counts when start,
length, type and both trailing bytes fit the profile; if not, the search goes on one byte behind its start, so neither
`0A 0A FA` nor a damaged frame costs its neighbour. How many frames a damaged stretch held follows from its length.
Damage inside of a payload that leaves all that in place is only seen as a leap there and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Line, Note, Stats

HEAD, TAIL = 5, b"\x00\x0b"
LEAP_NV = 10e6              # 10 mV in a moment: no heart does that
LEAP_SHARE = 0.25           # of the range, for channels whose scale is not known
BAUDS = (57600, 115200, 230400, 9600)       # sketches and descriptors differ


@dataclass(frozen=True)
class Layout:
    """A packet type of a board. unpack: uint8 (frame, length) -> int32 (moment, channel); pack: its inverse, int32
    (channel, ...) of the moments of one frame -> payload; off: payload -> lead-off mask (moment,), None without one."""

    kind: int
    length: int
    unpack: Callable
    pack: Callable
    off: Callable | None = None


def _le(raw: np.ndarray, at: int, size: int, signed: bool = True) -> np.ndarray:
    """Little-endian integers of `size` bytes at a place of every payload."""
    return np.ascontiguousarray(raw[:, at:at + size]).view(f"<{'i' if signed else 'u'}{size}")[:, 0].astype(np.int64)


def _columns(*columns) -> np.ndarray:
    return np.stack(columns, 1).astype(np.int32)


def _integer(value: int, size: int) -> bytes:
    return int(value).to_bytes(size, "little", signed=True)


# ---- what each board sends

def _ads1292r(raw):
    return _columns(_le(raw, 0, 2), _le(raw, 2, 2))


def _ads1292r_pack(row):
    return _integer(row[0], 2) + _integer(row[1], 2) + bytes([15, 0, 72, 0, 0])


def _max30003(raw):
    # the library puts the two lowest bits of 18 at the bottom of a word whose upper half holds the others
    word = _le(raw, 0, 4)
    return _columns((word >> 16) << 2 | (word & 3))


def _max30003_pack(row):
    value = int(row[0])
    return _integer((value >> 2) << 16 | value & 3, 4) + (812).to_bytes(4, "little") + (73).to_bytes(4, "little")


def _max30001(raw):
    return _columns(_le(raw, 0, 4), _le(raw, 4, 4))


def _max30001_pack(row):
    return _integer(row[0], 4) + _integer(row[1], 4) + bytes(4)


def _ads1293(raw):
    # offset binary in 24 bits, whatever the sign that the library extends
    return _columns(*(_le(raw, at, 4) & 0xFFFFFF for at in (0, 4, 8)))


def _ads1293_pack(row):
    return b"".join(_integer(int(v) & 0xFFFFFF, 4) for v in row)


def _healthypi4(raw):
    return _columns(_le(raw, 0, 2), _le(raw, 2, 2))


def _healthypi4_pack(row):
    rest = (100_000).to_bytes(4, "little") + (120_000).to_bytes(4, "little") + (3650).to_bytes(2, "little")
    return _integer(row[0], 2) + _integer(row[1], 2) + rest + bytes([15, 97, 72, 80, 120, 0])


def _healthypi4_off(raw):
    return np.where(raw[:, 19] & 0x1F, 1, 0).astype(np.uint32)


def _healthypi5_old(raw):
    return _columns(_le(raw, 0, 4), _le(raw, 4, 4))


def _healthypi5_old_pack(row):
    return _integer(row[0], 4) + _integer(row[1], 4) + bytes(14)


def _healthypi5(raw):
    ecg = np.ascontiguousarray(raw[:, :32]).view("<i4")
    bioz = np.repeat(np.ascontiguousarray(raw[:, 32:48]).view("<i4"), 2, axis=1)   # 4 values beside 8
    return np.stack([ecg.ravel(), bioz.ravel()], 1).astype(np.int32)


def _healthypi5_pack(rows):
    return rows[:, 0].astype("<i4").tobytes() + rows[::2, 1].astype("<i4").tobytes() + bytes([72, 15])


def _adc(bits: int) -> tuple[int, int]:
    return -(1 << bits - 1), (1 << bits - 1) - 1


_18, _16, _32 = _adc(18), _adc(16), _adc(32)
_RESP = Channel("resp", 1.0, *_16, kind="respiration")
_BIOZ = Channel("bioz", 1.0, *_32, kind="bioimpedance")
_WIDE = Channel("ecg", 95.367 / 256, _18[0] * 256, _18[1] * 256)    # an 18-bit sample times 256, gain 80
_ADS1293 = 2 * 2.4e9 / 3.5 / 0xF30000                       # nV a count for the decimation of the sketch


def _ads1293_channel(name: str, lead: str) -> Channel:
    return Channel(name, _ADS1293, 0, 0xF30000, 0xF30000 // 2, lead=lead)


def _profile(name: str, title: str, channels: tuple[Channel, ...], fs: float, **more) -> Profile:
    return Profile(name, "openview", title, channels, fs, **({"bauds": BAUDS, "boot_s": 4.0, "dtr": "hold"} | more))


PROFILES = {p.name: p for p in (
    # its sketch filters, shifts and scales on the board: relative
    _profile("ads1292r", "ProtoCentral ADS1292R", (Channel("ecg", None, *_16), _RESP), 125.0),
    _profile("ads1293", "ProtoCentral ADS1293", (_ads1293_channel("ch1", "I"), _ads1293_channel("ch2", "II"),
                                                _ads1293_channel("ch3", "")), 100.0),
    _profile("max30003", "ProtoCentral MAX30003", (Channel("ecg", 381.47, *_18),), 128.0),
    _profile("max30001", "ProtoCentral MAX30001", (Channel("ecg", 95.367, *_18), _BIOZ), 128.0),
    _profile("healthypi4", "HealthyPi v4", (Channel("ecg", None, *_16), _RESP), 125.0, bauds=(115200, 57600),
             lead_off="frame"),
    _profile("healthypi5", "HealthyPi 5", (_WIDE, _BIOZ), 128.0, bauds=(), dtr="assert", per_frame=8),
    _profile("healthypi5-old", "HealthyPi 5, firmware before 1.0", (_WIDE, _BIOZ), 128.0, bauds=(), dtr="assert"),
)}
LAYOUTS = {
    "ads1292r": Layout(2, 9, _ads1292r, _ads1292r_pack),
    "ads1293": Layout(2, 12, _ads1293, _ads1293_pack),
    "max30003": Layout(2, 12, _max30003, _max30003_pack),
    "max30001": Layout(2, 12, _max30001, _max30001_pack),
    "healthypi4": Layout(2, 20, _healthypi4, _healthypi4_pack, _healthypi4_off),
    "healthypi5": Layout(3, 50, _healthypi5, _healthypi5_pack),
    "healthypi5-old": Layout(2, 22, _healthypi5_old, _healthypi5_old_pack),
}
OTHERS = {"healthypi5": {4: 19}}            # sound packets that hold no ECG: type -> length


class Decoder:
    """Bytes -> Blocks. Numbers are the decoder's: damaged stretches count as the frames that fit into them."""

    def __init__(self, profile: Profile):
        self.profile, self.stats = profile, Stats()
        self.layout = LAYOUTS[profile.name]
        self.lengths = {self.layout.kind: self.layout.length} | OTHERS.get(profile.name, {})
        self.size = HEAD + self.layout.length + len(TAIL)
        self._held, self._lost, self._number = b"", 0, 0    # bytes of damaged frames since the last sound one
        self._last: np.ndarray | None = None
        self._leap = np.array([LEAP_NV / c.nv_per_count if c.kind == "ecg" and c.nv_per_count
                               else LEAP_SHARE * (c.high - c.low) for c in profile.channels])

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        buffer, at, payloads, numbers = self._held + data, 0, [], []
        while True:
            start = buffer.find(b"\x0a\xfa", at)
            if start < 0:                           # nothing begins but, perhaps, with the last byte
                start = len(buffer) - buffer.endswith(b"\x0a")
            self._noise(buffer[at:start])
            at = start
            length = self._length(buffer, at)
            if length is None:                      # not whole yet
                break
            if length < 0:
                self._noise(buffer[at:at + 1])
                at += 1
                continue
            if buffer[at + 4] == self.layout.kind:
                payloads.append(buffer[at + HEAD:at + HEAD + length])
                numbers.append(self._numbered())
            else:
                self.stats.unknown += 1
            at += HEAD + length + len(TAIL)
        self._held = buffer[at:]
        return [self._block(payloads, numbers, now)] if payloads else []

    def _length(self, buffer: bytes, at: int) -> int | None:
        """Bytes of the payload of a sound frame; -1 when this is none, None when that cannot be told yet."""
        head = buffer[at:at + HEAD]
        if len(head) < HEAD:
            return None
        length = head[2] | head[3] << 8
        if self.lengths.get(head[4]) != length:
            return -1
        if len(buffer) < at + HEAD + length + len(TAIL):
            return None
        if buffer[at + HEAD + length:at + HEAD + length + len(TAIL)] != TAIL:
            self.stats.refuse("trailer")
            return -1
        return length

    def _numbered(self) -> int:
        """The number of the frame that was just found."""
        if self.stats.frames:
            self._number += 1 + round(self._lost / self.size)
        self._lost = 0
        self.stats.frames += 1
        return self._number

    def _noise(self, data: bytes) -> None:
        text = sum(32 <= b < 127 or b in (9, 10, 13) for b in data)
        self.stats.noise += len(data)
        self.stats.text += text
        if text < len(data) or len(data) < self.size:       # what a board says in words was no frame
            self._lost += len(data)

    def _block(self, payloads: list[bytes], numbers: list[int], now: float) -> Block:
        raw = np.frombuffer(b"".join(payloads), np.uint8).reshape(-1, self.layout.length)
        counts = self.layout.unpack(raw)
        before = counts[:1] if self._last is None else self._last[None]
        leaps = np.abs(np.diff(np.concatenate([before, counts]).astype(np.int64), axis=0)) > self._leap
        self._last = counts[-1]
        suspect = leaps & np.concatenate([leaps[1:], np.ones((1, counts.shape[1]), bool)])
        off = np.zeros(len(raw), np.uint32) if self.layout.off is None else self.layout.off(raw)
        each = len(counts) // len(raw)
        counter = (np.array(numbers)[:, None] * each + np.arange(each)).ravel()
        return Block(counts, counter, np.repeat(off, each), now, suspect)


class Talk:
    """The boards stream as soon as they run; nothing is said to them."""

    def __init__(self, profile: Profile):
        self.profile = profile

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """Nothing to set up."""
        return self.profile, b""

    def keep(self, line: Line) -> None:
        """Nothing to keep."""

    def end(self, line: Line) -> None:
        """Nothing to stop."""


class Server:
    """A board that talks from the start."""

    def __init__(self, profile: Profile, fs: float | None = None):
        self.profile, self.streaming, self.layout = profile, True, LAYOUTS[profile.name]

    def hear(self, data: bytes) -> bytes:
        """The boards do not listen."""
        return b""

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """Frames of int32 (moment, channel); a packet of several moments wants a multiple of them."""
        each, out = self.profile.per_frame, []
        for at in range(0, len(counts), each):
            part = counts[at:at + each]
            payload = bytearray(self.layout.pack(part if each > 1 else part[0]))
            if self.layout.off is not None:
                payload[19] = int(lead_off[at] & 1)
            out.append(bytes([0x0A, 0xFA]) + len(payload).to_bytes(2, "little") + bytes([self.layout.kind])
                       + bytes(payload) + TAIL)
        return out
