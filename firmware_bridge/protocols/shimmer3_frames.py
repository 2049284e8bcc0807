# SPDX-License-Identifier: Apache-2.0
"""The frames of a Shimmer3 with its ECG board, which carry a clock of 32768 Hz; the dialogue is in shimmer3.py.

After Shimmer's firmware (ShimmerResearch/log-and-stream-common) and BrainFlow's driver:

    0 0x00 | 1 clock, u24 little-endian | for each chip: status u8, two channels i24 (or i16) big-endian | CRC-16

The device says in what order its channels come. A status byte is 1 0 0 and five bits for the electrodes that are off
(right-leg drive, 2N, 2P, 1N, 1P), its top bit is 0 when a value is older than its moment. The firmware appends a CRC-16
when asked, and it is asked: then nothing damaged comes through. Older ones do not know it (`shimmer3-plain`): start
byte, status and clock say where frames begin, and a frame counts when another begins right behind it, or, beside
damage, when its values lie near those of the frame before. Flips inside of a value stay: of the frames that flips
touched 45 % come through with wrong values, of those that got a byte 8 %, of those that lost one 1 %; what leaps 1 mV
in a millisecond there and back is marked as suspect. The tests measure it.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Note, Stats

TICKS, TURN = 32768, 1 << 24                # a second of the clock; where it wraps
FULL = (1 << 23) - 1
REFERENCE_NV = 2.42e9                       # of the converter
LEADS = {(1, 1): "II", (1, 2): "I"}         # LL-RA and LA-RA; the second chip's are LL-LA and the chest's electrode
IDS = {24: {1: (0x1D, 0x1E, 0x1F), 2: (0x20, 0x21, 0x22)}, 16: {1: (0x1D, 0x23, 0x24), 2: (0x20, 0x25, 0x26)}}
SENSORS = {24: {1: 0x10, 2: 0x08}, 16: {1: 0x100000, 2: 0x080000}}
OFF = {1: (0x03, 0x0E), 2: (0x03, 0x0C)}    # bits of a chip's status that say a channel is off; 1N is RA, of both leads
IDLE_BITS = 0x60                            # of a status byte, always 0
JITTER = 2                                  # ticks that a clock may be late
ROW, WINDOW = 3, 16                         # frames in a row that are believed without a past; that a search may span
CALM_NV, LEAP_NV = 0.5e6, 1e6               # in a millisecond: near enough beside damage; more than any heart
CRC_START = 0xB0CA


def nv_per_count(gain: int, bits: int = 24) -> float:
    """Nanovolts of a count: 16 bits are the middle ones of 24."""
    return REFERENCE_NV / FULL / gain * (1 if bits == 24 else 128)


def crc(data: bytes) -> bytes:
    """The two bytes behind `data`; an odd number of bytes is filled up with a zero."""
    return crc_hqx(data + bytes(len(data) % 2), CRC_START).to_bytes(2, "little")


def profile_of(name: str = "shimmer3", fs: float = 512.0, chips: tuple[int, ...] = (1, 2), bits: int = 24,
               gains: tuple[tuple[int, int], ...] = ((4, 4), (4, 4)), checked: bool = True) -> Profile:
    """A Shimmer3 as it is set up. chips: in the order of the frame; gains: of the channels of chips 1 and 2."""
    high = (1 << bits - 1) - 1
    channels = tuple(Channel(f"exg{chip}-ch{k}", nv_per_count(gains[chip - 1][k - 1], bits), -high - 1, high,
                             lead=LEADS.get((chip, k), "")) for chip in chips for k in (1, 2))
    return Profile(name, "shimmer3", "Shimmer3 ECG" + ("" if checked else ", without CRC"), channels, fs, (115200,),
                   boot_s=1.0, counter=TURN, ticks=TICKS, lead_off="frame", check="crc16" if checked else "trailer")


PROFILES = {"shimmer3": profile_of(), "shimmer3-plain": profile_of("shimmer3-plain", checked=False)}


@dataclass(frozen=True)
class Layout:
    """Where things are in a frame. chips: in order; width: bytes of a channel; size: with the CRC; status: places."""

    chips: tuple[int, ...]
    width: int
    size: int
    checked: bool

    @classmethod
    def of(cls, profile: Profile) -> Layout:
        """What a profile's channels and check imply."""
        chips = tuple(int(c.name[3]) for c in profile.channels[::2])
        width, checked = 3 if profile.channels[0].high > 1 << 15 else 2, profile.check == "crc16"
        return cls(chips, width, 4 + len(chips) * (1 + 2 * width) + 2 * checked, checked)

    @property
    def status(self) -> tuple[int, ...]:
        """Places of the status bytes."""
        return tuple(4 + k * (1 + 2 * self.width) for k in range(len(self.chips)))

    def clock(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (frame, size or more) -> int64 (frame,)."""
        return rows[:, 1].astype(np.int64) | rows[:, 2].astype(np.int64) << 8 | rows[:, 3].astype(np.int64) << 16

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (frame, size) -> int32 (frame, channel)."""
        columns = []
        for at in (s + 1 + k * self.width for s in self.status for k in range(2)):
            value = rows[:, at].astype(np.int8).astype(np.int32)
            for k in range(1, self.width):
                value = value << 8 | rows[:, at + k]
            columns.append(value)
        return np.stack(columns, 1)

    def off(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (frame, size) -> uint32 (frame,), bit c where channel c is off."""
        masks = np.zeros(len(rows), np.uint32)
        for k, (chip, at) in enumerate(zip(self.chips, self.status, strict=True)):
            for ch in range(2):
                masks |= (rows[:, at] & OFF[chip][ch] > 0).astype(np.uint32) << np.uint32(2 * k + ch)
        return masks


class Decoder:
    """Bytes -> Blocks. Clocks that are a tick or two late are set right."""

    def __init__(self, profile: Profile = PROFILES["shimmer3"]):
        self.profile, self.stats, self.layout = profile, Stats(), Layout.of(profile)
        self.step = round(TICKS / profile.fs)
        self._held, self._clock, self._locked = b"", None, False        # clock of the last frame, set right
        self._last: np.ndarray | None = None
        nv = np.array([c.nv_per_count for c in profile.channels])
        self._calm, self._leap = (limit * 1000 / profile.fs / nv for limit in (CALM_NV, LEAP_NV))

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        buffer = self._held + data
        frames, end = self._checked(buffer) if self.layout.checked else self._plain(buffer)
        self._held = buffer[end:]
        return [self._block(frames, now)] if frames else []

    # ---- with a CRC

    def _checked(self, buffer: bytes) -> tuple[list[bytes], int]:
        """(frames, bytes that were used)."""
        size, at, frames = self.layout.size, 0, []
        while True:
            start = buffer.find(0, at)
            self._noise(buffer[at:] if start < 0 else buffer[at:start])
            at = len(buffer) if start < 0 else start
            if len(buffer) - at < size:
                return frames, at
            frame = buffer[at:at + size]
            idle = not any(frame[k] & IDLE_BITS for k in self.layout.status)
            if idle and crc(frame[:-2]) == frame[-2:]:
                frames.append(frame)
                at += size
                continue
            if idle and self._clock is not None and self._steps(int.from_bytes(frame[1:4], "little")) == 1:
                self.stats.refuse("crc")
            self._noise(frame[:1])
            at += 1

    # ---- without

    def _plain(self, buffer: bytes) -> tuple[list[bytes], int]:
        """(frames, bytes that were used). A frame is taken once it is known where the next one begins."""
        size, at, frames = self.layout.size, 0, []
        raw = np.frombuffer(buffer, np.uint8)
        heads, clocks = self._heads(raw)
        row = self._in_row(heads, clocks)
        while True:
            if not self._locked:
                found = np.flatnonzero(row[at:])
                end = at + int(found[0]) if len(found) else max(len(row), at)
                self._noise(buffer[at:end])
                at = end
                if not len(found):
                    return frames, at
                self._locked = True
            behind = self._next(heads, clocks, row, at)
            if behind is None:
                if len(buffer) - at <= WINDOW * size:
                    return frames, at           # it may still come
                behind, self._locked = at + size, False
            self._judge(buffer, clocks, at, behind, frames)
            at = behind

    def _heads(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool (offset,): a frame may begin here; int64 (offset,): its clock."""
        n = max(len(raw) - self.layout.status[-1], 0)
        heads = raw[:n] == 0
        for k in self.layout.status:
            heads &= raw[k:k + n] & IDLE_BITS == 0
        bytes_ = [raw[k:k + n].astype(np.int64) for k in (1, 2, 3)]
        return heads, bytes_[0] | bytes_[1] << 8 | bytes_[2] << 16

    def _in_row(self, heads: np.ndarray, clocks: np.ndarray) -> np.ndarray:
        """bool (offset,): frames begin here and where the next ones should, each a step later."""
        size = self.layout.size
        n = max(len(heads) - (ROW - 1) * size, 0)
        out = heads[:n].copy()
        for k in range(1, ROW):
            late = clocks[k * size:k * size + n] - clocks[(k - 1) * size:(k - 1) * size + n] - self.step
            out &= heads[k * size:k * size + n] & (np.abs((late + TURN // 2) % TURN - TURN // 2) <= JITTER)
        return out

    def _next(self, heads: np.ndarray, clocks: np.ndarray, row: np.ndarray, at: int) -> int | None:
        """Where the next frame begins after the one at `at`: with one of the next clocks, or the first of a row."""
        size = self.layout.size
        usual = at + size
        if usual < len(heads) and heads[usual] and _steps(clocks[usual] - clocks[at], self.step) == 1:
            return usual
        for k in (np.flatnonzero(heads[at + 4:at + WINDOW * size]) + at + 4).tolist():
            steps = _steps(clocks[k] - clocks[at], self.step)
            if 1 <= steps <= (k - at) / size + 2 or (k < len(row) and row[k]):
                return k
        return None

    def _judge(self, buffer: bytes, clocks: np.ndarray, at: int, behind: int, frames: list[bytes]) -> None:
        """Take the frame at `at`, or refuse it; the bytes up to the next one are used."""
        size = self.layout.size
        frame, length = buffer[at:at + size], behind - at
        steps = _steps(clocks[behind] - clocks[at], self.step) if behind < len(clocks) else 0
        # where bytes are missing or too many beside it, the values have to say whose: its own, or the next ones'
        if (steps and length == steps * size) or length == size or (length > size and self._near(frame, frames)):
            frames.append(frame)
            self._noise(buffer[at + size:behind])
        else:
            self.stats.refuse("length")
            self._noise(buffer[at:behind])

    def _near(self, frame: bytes, frames: list[bytes]) -> bool:
        """The values lie near those of the frame before."""
        here = self.layout.counts(np.frombuffer(frame, np.uint8)[None])[0]
        before = self.layout.counts(np.frombuffer(frames[-1], np.uint8)[None])[0] if frames else self._last
        return before is not None and bool((np.abs(here.astype(np.int64) - before) <= self._calm).all())

    # ---- both

    def _steps(self, clock: int) -> int:
        """Moments since the last frame, 0 when the clock fits none."""
        return _steps(clock - self._clock, self.step)

    def _noise(self, data: bytes) -> None:
        self.stats.noise += len(data)
        self.stats.text += sum(32 <= b < 127 or b in (9, 10, 13) for b in data)

    def _block(self, frames: list[bytes], now: float) -> Block:
        rows = np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), -1)
        counts = self.layout.counts(rows)
        before = counts[:1] if self._last is None else self._last[None]
        leaps = np.abs(np.diff(np.concatenate([before, counts]).astype(np.int64), axis=0)) > self._leap
        suspect = leaps & np.concatenate([leaps[1:], np.ones((1, counts.shape[1]), bool)])
        self._last = counts[-1]
        self.stats.frames += len(frames)
        return Block(counts, self._set_right(self.layout.clock(rows)), self.layout.off(rows), now,
                     None if self.layout.checked else suspect)

    def _set_right(self, clocks: np.ndarray) -> np.ndarray:
        """Clocks on the grid of the first one; one that is nowhere near it begins a grid of its own."""
        out = np.empty_like(clocks)
        for k, clock in enumerate(clocks.tolist()):
            since = 0 if self._clock is None else (clock - self._clock) % TURN
            late = (since + self.step // 2) % self.step - self.step // 2
            self._clock = (clock - (late if abs(late) <= JITTER else 0)) % TURN
            out[k] = self._clock
        return out


def _steps(ticks: int, step: int) -> int:
    """Moments that so many ticks are, 0 when they are none."""
    ticks = int(ticks) % TURN
    steps = round(ticks / step)
    return steps if abs(ticks - steps * step) <= JITTER else 0
