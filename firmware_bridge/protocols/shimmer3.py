# SPDX-License-Identifier: Apache-2.0
"""Shimmer3 with its ECG board, over a Bluetooth serial port: the dialogue; its frames are in shimmer3_frames.py.

Commands after Shimmer's firmware (ShimmerResearch/log-and-stream-common), BrainFlow's driver and seemoo-lab/pyshimmer,
which both speak to the simulator below; registers after the data sheet of the ADS1292R. A command is acknowledged with
0xFF, then answered when it asks; with a CRC switched on, both together end in it.
"""

from __future__ import annotations

import numpy as np

from firmware_bridge.profiles import Profile
from firmware_bridge.protocols.shimmer3_frames import (
    IDS,
    PROFILES,
    SENSORS,
    TICKS,
    TURN,
    Decoder,
    Layout,
    crc,
    nv_per_count,
    profile_of,
)
from firmware_bridge.wire import Line
from train.say import MissingError, UserError

__all__ = ["PROFILES", "Decoder", "Server", "Talk"]

GAINS = {6: 0, 1: 1, 2: 2, 3: 3, 4: 4, 8: 5, 12: 6}     # gain -> its code in a channel's register
SPEEDS = (125, 250, 500, 1000, 2000, 4000, 8000)        # conversions a second, codes 0 .. 6
ACK, NACK = 0xFF, 0xFE
ANSWER_S, QUIET_S, TRIES = 1.0, 0.2, 2
ECG = {1: bytes.fromhex("02a01040402d00000203"), 2: bytes.fromhex("02a01040470000000201")}     # registers, as delivered
SENSE = {1: 0x07, 2: 0x04}                  # electrodes of each chip that are watched: LL, RA, LA; the chest's
COMPARE = 0x40                              # in the second register: power for that


def registers(chip: int, had: bytes, gain: int, fs: float) -> bytes:
    """Ten registers of a chip: ECG, one gain, as fast as the frames or faster, electrodes watched; what a board's
    revision needs in the second one (its clock's output) stays."""
    speed = next(k for k, s in enumerate(SPEEDS) if s >= fs or s == SPEEDS[-1])
    out = bytearray(ECG[chip])
    out[0], out[1], out[6] = speed, out[1] | COMPARE | had[1] & 0x08, SENSE[chip]
    out[3], out[4] = out[3] & 0x0F | GAINS[gain] << 4, out[4] & 0x0F | GAINS[gain] << 4
    return bytes(out)


class Talk:
    """Find out what it is, set rate, registers and sensors, ask for a CRC, start. gain: of all channels; fs: Hz, as
    near as a whole number of ticks allows, by default the profile's."""

    def __init__(self, profile: Profile = PROFILES["shimmer3"], gain: int = 4, fs: float | None = None):
        self.profile, self.gain, self.layout = profile, gain, Layout.of(profile)
        wanted = fs or profile.fs
        most = max(profile.bauds, default=115200) / 10 / self.layout.size
        if gain not in GAINS or not 1 <= wanted <= most:
            raise UserError(f"a Shimmer3 cannot send at gain {gain} and {wanted:g} Hz",
                            f"a gain of {', '.join(map(str, sorted(GAINS)))} and 1 to {most:.0f} Hz on this line")
        self.divider = round(TICKS / wanted)
        self._read = b""

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """Raises MissingError when nothing answers, UserError when it is another device or has no ECG board."""
        bits, chips = 8 * self.layout.width, self.layout.chips
        self._wake(line)
        fs = TICKS / self.divider
        self._ask(line, b"\x05" + self.divider.to_bytes(2, "little"))
        for chip in chips:
            had = self._registers(line, chip)
            wanted = registers(chip, had, self.gain, fs)
            self._ask(line, bytes([0x61, chip - 1, 0, 10]) + wanted)
            if (have := self._registers(line, chip))[3:5] != wanted[3:5]:
                raise UserError(f"the ECG board keeps {have.hex()} where {wanted.hex()} was set", "a Shimmer3 ECG unit")
        self._ask(line, b"\x08" + sum(SENSORS[bits][c] for c in chips).to_bytes(3, "little"))
        chips = self._order(line, bits)
        checked = self.layout.checked and self._crc(line)
        self._ask(line, b"\x07", trailer=2 * checked)
        rest, self._read = self._read, b""
        gains = ((self.gain, self.gain),) * 2
        return profile_of(self.profile.name, fs, chips, bits, gains, checked), rest

    def keep(self, line: Line) -> None:
        """The device needs no heartbeat."""

    def end(self, line: Line) -> None:
        """Stop the stream."""
        try:
            line.write(b"\x20")
        except OSError:
            pass

    def _wake(self, line: Line) -> None:
        """Stop it, make sure that it is a Shimmer3, switch a CRC off."""
        for _ in range(TRIES):
            line.write(b"\x20")
            self._drain(line)
            try:
                kind = self._ask(line, b"\x3f", 0x25, 1)[0]
            except MissingError:
                continue
            if kind != 3:
                raise UserError(f"a Shimmer of kind {kind} answers", "a Shimmer3 (kind 3)")
            self._drain(line)                               # the CRC of that answer, where there still is one
            self._ask(line, b"\x8b\x00", patient=False)
            self._ask(line, b"\xa3\x00", patient=False)     # no acknowledgement in front of what it says by itself
            return
        raise MissingError("no Shimmer3 answers", "an acknowledgement, 0xff", "check port, pairing and switch")

    def _drain(self, line: Line) -> None:
        """Read until nothing comes."""
        until, self._read = line.clock() + ANSWER_S, b""
        while line.read(QUIET_S) and line.clock() < until:
            pass

    def _registers(self, line: Line, chip: int) -> bytes:
        return self._ask(line, bytes([0x63, chip - 1, 0, 10]), 0x62, 11)[1:]

    def _order(self, line: Line, bits: int) -> tuple[int, ...]:
        """Chips in the order of the frame, as the device tells it."""
        head = self._ask(line, b"\x01", 0x02, 8)
        ids = tuple(self._take(line, head[6]))
        names = {IDS[bits][chip]: chip for chip in (1, 2)}
        chips = tuple(names.get(ids[k:k + 3], 0) for k in range(0, len(ids), 3))
        if sorted(chips) != sorted(self.layout.chips) or head[7] != 1 or int.from_bytes(head[:2], "little") != \
                self.divider:
            raise UserError(f"the device sends channels {bytes(ids).hex(' ')} in {head[7]} moments a frame",
                            f"those of its ECG board, one moment a frame, every {self.divider} ticks")
        return chips

    def _crc(self, line: Line) -> bool:
        """Whether the device appends a CRC from now on, its acknowledgement included."""
        return self._ask(line, b"\x8b\x02", trailer=2, patient=False) is not None

    def _ask(self, line: Line, command: bytes, answer: int | None = None, length: int = 0, trailer: int = 0,
             patient: bool = True) -> bytes | None:
        """The answer's bytes behind its code. MissingError without one; None when `patient` is False."""
        line.write(command)
        try:
            while (byte := self._take(line, 1)[0]) != ACK:
                if byte == NACK:
                    raise MissingError(f"the Shimmer3 refuses command 0x{command[0]:02x}", "an acknowledgement")
            if answer is not None and self._take(line, 1)[0] != answer:
                raise MissingError(f"the Shimmer3 answers command 0x{command[0]:02x} with something else",
                                   f"0x{answer:02x}")
            found = self._take(line, length)
            self._take(line, trailer)
            return found
        except MissingError:
            if patient:
                raise
            return None

    def _take(self, line: Line, count: int) -> bytes:
        until = line.clock() + ANSWER_S
        while len(self._read) < count:
            if line.clock() > until:
                raise MissingError("the Shimmer3 does not answer", f"{count} bytes", "check port, pairing and switch")
            self._read += line.read(0.1)
        out, self._read = self._read[:count], self._read[count:]
        return out


# how many bytes follow a command; -1: one that says how many
ARGUMENTS = {0x05: 2, 0x08: 3, 0x61: 3, 0x63: 3, 0x79: -1, 0x7C: -1, 0x85: -1, 0x8B: 1, 0x8F: 8, 0xA3: 1}
ARGUMENTS |= dict.fromkeys((0x01, 0x03, 0x07, 0x20, 0x24, 0x2C, 0x2E, 0x3F, 0x72, 0x7B, 0x7E, 0x87, 0x91, 0x92, 0x93,
                            0x95, 0x96), 0)


class Server:
    """The device's end, as its firmware (LogAndStream 0.15.4) answers; of its sensors it has the ECG board."""

    def __init__(self, profile: Profile = PROFILES["shimmer3"], fs: float = 512.0):
        self.profile, self.streaming = profile, False
        self.divider = round(TICKS / fs)
        self.regs = {chip: bytearray(ECG[chip]) for chip in (1, 2)}
        layout = Layout.of(profile)
        self.sensors = sum(SENSORS[8 * layout.width][chip] for chip in layout.chips)
        self.crc = 0                                # bytes of it
        self.texts = {0x7B: b"Shimmer_0000", 0x7E: b"DefaultTrial", 0x87: b"0"}
        self._heard = b""

    @property
    def fs(self) -> float:
        """Moments a second."""
        return TICKS / self.divider

    @property
    def channels(self) -> list[tuple[int, int]]:
        """(chip, bits) in the order of the frame."""
        return [(chip, bits) for chip in (1, 2) for bits in (24, 16) if self.sensors & SENSORS[bits][chip]]

    def hear(self, data: bytes) -> bytes:
        """Commands -> answers; bytes that are none are passed over."""
        self._heard, out = self._heard + data, b""
        while self._heard:
            need = ARGUMENTS.get(self._heard[0])
            if need is None:
                self._heard = self._heard[1:]
                continue
            if need == -1 or self._heard[0] == 0x61:
                place = 1 if need == -1 else 3
                need = 256 if len(self._heard) <= place else place + self._heard[place]
            if len(self._heard) <= need:
                break
            command, self._heard = self._heard[:need + 1], self._heard[need + 1:]
            said = bytes([ACK]) + self._obey(command[0], command[1:])
            out += said + crc(said)[:self.crc]
        return out

    def _obey(self, code: int, args: bytes) -> bytes:
        if code in (0x07, 0x20):
            self.streaming = code == 0x07
        elif code == 0x05:
            self.divider = int.from_bytes(args, "little") or self.divider
        elif code == 0x08:
            self.sensors = int.from_bytes(args, "little")
        elif code == 0x8B and args[0] <= 2:
            self.crc = args[0]                      # the acknowledgement has it already
        elif code == 0x61 and args[0] < 2 and args[1] + args[2] <= 10:
            self.regs[args[0] + 1][args[1]:args[1] + args[2]] = args[3:]
        elif code in (0x79, 0x7C, 0x85):
            self.texts[code + 2] = args[1:]
        return self._tell(code, args)

    def _tell(self, code: int, args: bytes) -> bytes:
        """What follows the acknowledgement of a command that asks."""
        divider = self.divider.to_bytes(2, "little")
        if code == 0x01:
            ids = b"".join(bytes(IDS[bits][chip]) for chip, bits in self.channels)
            return b"\x02" + divider + bytes.fromhex("02ff0108") + bytes([len(ids), 1]) + ids
        if code == 0x63 and args[0] < 2 and args[1] + args[2] <= 10:
            return bytes([0x62, args[2]]) + bytes(self.regs[args[0] + 1][args[1]:args[1] + args[2]])
        if code in self.texts:
            return bytes([code - 1, len(self.texts[code])]) + self.texts[code]
        return {0x03: b"\x04" + divider, 0x24: b"\x25\x03", 0x3F: b"\x25\x03", 0x2C: b"\x2d" + bytes(84),
                0x2E: b"\x2f" + bytes([3, 0, 0, 0, 15, 4]), 0x91: b"\x90" + bytes(8), 0x95: b"\x8a\x94\x90\x0b\x80",
                0x72: bytes([0x8A, 0x71, 0x12 if self.streaming else 0])}.get(code, b"")

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """Frames of int32 (moment, channel), counts of the profile, on the gains and sensors that were set."""
        names = [c.name for c in self.profile.channels]
        n = len(counts)
        clock = (index + np.arange(n, dtype=np.int64)) * self.divider % TURN
        columns = [np.zeros(n, np.int64), clock, clock >> 8, clock >> 16]
        for chip, bits in self.channels:
            columns.append(self._status(chip, names, lead_off))
            for ch in (1, 2):
                name, wide = f"exg{chip}-ch{ch}", np.zeros(n, np.int64)
                if name in names:
                    wide = self._rescaled(counts[:, names.index(name)], names.index(name), chip, ch, bits)
                columns += [wide >> shift for shift in range(bits - 8, -8, -8)]
        rows = (np.stack(columns, 1) & 255).astype(np.uint8)
        return [bytes(row) + crc(bytes(row))[:self.crc] for row in rows]

    def _rescaled(self, counts: np.ndarray, place: int, chip: int, ch: int, bits: int) -> np.ndarray:
        gain = {code: g for g, code in GAINS.items()}.get(self.regs[chip][2 + ch] >> 4 & 7, 6)
        c, nv = self.profile.channels[place], nv_per_count(gain, bits)
        wide = counts if np.isclose(c.nv_per_count, nv, rtol=1e-9) else np.rint(counts * (c.nv_per_count / nv))
        return np.clip(wide, -(1 << bits - 1), (1 << bits - 1) - 1).astype(np.int64)

    def _status(self, chip: int, names: list[str], lead_off: np.ndarray) -> np.ndarray:
        """The status bytes; an electrode counts when it is watched."""
        watched = self.regs[chip][6] if self.regs[chip][1] & COMPARE else 0
        out = np.full(len(lead_off), 0x80, np.int64)
        for ch, bit in ((1, 0x01), (2, 0x04)):
            if f"exg{chip}-ch{ch}" in names:
                off = lead_off.astype(np.int64) >> names.index(f"exg{chip}-ch{ch}") & 1
                out |= off * (bit & watched)
        return out
