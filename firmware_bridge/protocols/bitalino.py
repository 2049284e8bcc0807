# SPDX-License-Identifier: Apache-2.0
"""BITalino: frames of 3 to 8 bytes with one to six analogue channels, at 1, 10, 100 or 1000 Hz, over Bluetooth or USB.

Format and commands after PLUX's own client (BITalinoWorld/revolution-python-api, bitalino.py); scale of the ECG sensor
after its data sheet (gain 1100 at 3.3 V). Bytes are packed from the end:

    last    sequence number << 4 | CRC4            last-1   I1 I2 O1 O2 << 4 | six high bits ... of the first channel
    then the channels, downwards: four of 10 bits, whichever they are, then two of 6 bits

There is no start marker, and four bits of CRC let one touched frame in sixteen through, so alignment, sequence and
neighbours have to say the rest. Sound frames that follow each other are taken as they come, each once the next one
agrees. Around damage the likeliest path of sound frames is sought between the last one and the next three in a row:
every frame is evidence, every byte that slipped, every frame that is missing and every leap of the values a cost. So a
flipped bit costs its frame and a dropped byte too, but not the frames beside them. What the CRC's sixteenth leaves is
small: flips of one bit never pass; of the frames that were touched by a byte in a hundred flipped or dropped 0.4 % come
through with wrong values, and of those into which a byte was put 2 % (six channels) to 4 % (one channel), by less than
a twentieth of the range, which nothing in three bytes tells from the signal. What leaps there and back is marked as
suspect. The tests measure it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Line, Note, Stats
from train.say import MissingError, UserError, choose

NAMES = ("A1", "A2", "A3", "A4", "A5", "A6")
ECG = "A2"                                  # where the kit has its ECG sensor
FINE, COARSE = 10, 6                        # bits of the first four channels and of the others
NV = 3.3e9 / 1100 / 1024                    # of a count of 10 bits
RATES = (1, 10, 100, 1000)                  # Hz, codes 0 .. 3
ROW = 3                                     # sound frames in a row that are believed without a past
WINDOW = 16                                 # frames that a search may span: then the sequence number is all there is
LEAP_SHARE = 0.05                           # of the range in a millisecond, 0.15 mV: no heart goes there and back
PAUSE_S = 0.1                               # the device needs so long between two bytes of command
ANSWER_S, TRIES = 1.0, 2
# bits of evidence for a sound frame; costs of a frame that is missing, of a byte that slipped, the most of both, and of
# values that leap
SOUND, MISSING, SLIP, MISSING_MOST, SLIP_MOST, LEAP = 8, 3, 3, 15, 12, 6


def _table() -> np.ndarray:
    """uint8 (16, 256): the CRC's register, shifted by eight bits."""
    state = np.tile(np.arange(16)[:, None], (1, 256))
    for bit in range(7, -1, -1):
        state = state << 1 & 15 ^ np.where(state & 8, 3, 0) ^ np.arange(256) >> bit & 1
    return state.astype(np.uint8)


TABLE = _table()


def frame_size(channels: int) -> int:
    """Bytes of a frame."""
    return (12 + FINE * channels + 7) // 8 if channels <= 4 else (52 + COARSE * (channels - 4) + 7) // 8


def _profile(name: str, title: str, places: tuple[int, ...], fs: float = 1000.0) -> Profile:
    def channel(slot: int, place: int) -> Channel:
        if slot >= 4:
            return Channel(NAMES[place], NV * 16, 0, 63, 32, kind="analogue")     # too coarse for an ECG
        return Channel(NAMES[place], NV, 0, 1023, 512, lead="I" if NAMES[place] == ECG else "")
    return Profile(name, "bitalino", title, tuple(channel(s, p) for s, p in enumerate(places)), fs, (115200,),
                   boot_s=2.0, check="crc4")


PROFILES = {p.name: p for p in (_profile("bitalino", "BITalino", tuple(range(6))),
                                _profile("bitalino-ecg", "BITalino, its ECG sensor alone", (1,)))}


class Decoder:
    """Bytes -> Blocks. Numbers are the decoder's: the count nearest to the bytes that were lost that the sequence
    number, which is known modulo 16, allows."""

    def __init__(self, profile: Profile = PROFILES["bitalino"]):
        self.profile, self.stats = profile, Stats()
        self.size = frame_size(len(profile.channels))
        self._held, self._lost = b"", 0             # bytes that no frame took since the last one
        self._next: int | None = None               # sequence number that should come; None while out of step
        self._seen, self._number = -1, 0            # of the last frame: sequence number; number of the next moment
        self._last: np.ndarray | None = None
        slow = 1000 / profile.fs if profile.fs else 1.0
        self._leap = np.array([LEAP_SHARE * slow * (c.high - c.low) for c in profile.channels])

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        buffer, at, taken = np.frombuffer(self._held + data, np.uint8), 0, []
        while True:
            if self._next is not None:
                at, whole = self._run(buffer, at, taken)
                if whole:
                    break
            at, found = self._mend(buffer, at, taken)
            if not found:
                break
        self._held = buffer[at:].tobytes()
        return [self._block(taken, now)] if taken else []

    # ---- which bytes are frames

    def _run(self, buffer: np.ndarray, at: int, taken: list) -> tuple[int, bool]:
        """Take frames in step, but for the last one: (where it is, whether the buffer ends there)."""
        n = (len(buffer) - at) // self.size
        rows = buffer[at:at + n * self.size].reshape(n, self.size)
        good = _sequences(rows.reshape(-1), self.size, self.size) == (self._next + np.arange(n)) & 15
        sound = n if good.all() else int(good.argmin())
        if sound > 1:
            self._take(rows[:sound - 1], taken)
        return at + max(sound - 1, 0) * self.size, sound == n

    def _mend(self, buffer: np.ndarray, at: int, taken: list) -> tuple[int, bool]:
        """Find the way to the next frames in a row: (where they begin, True), else (from where on to search when more
        has come, False)."""
        size = self.size
        found = _sequences(buffer[at:], size)
        rows = len(found) - (ROW - 1) * size
        in_row = np.zeros(max(rows, 0), bool)
        if rows > 0:
            in_row = found[:rows] >= 0
            for k in range(1, ROW):
                in_row &= found[k * size:k * size + rows] == (found[:rows] + k) & 15
        anchor = int(in_row.argmax()) if in_row.any() else None
        if self._next is not None and (len(in_row) if anchor is None else anchor) > WINDOW * size:
            held = found[0] == self._next           # too far: the past says nothing any more
            if held:
                self._take(buffer[at:at + size][None], taken)
            self._next = None
            return self._mend(buffer, at + size * held, taken)
        if anchor is None:
            give_up = 0 if self._next is not None else max(rows, 0)
            self._noise(buffer[at:at + give_up])
            return at + give_up, False
        end = 0
        if self._next is not None:
            # the first of the row may be a false one: the way goes to its last one, which is left to _run
            *path, anchor = self._path(buffer[at:], found[:anchor + (ROW - 1) * size + 1])
            for place in path:
                self._noise(buffer[at + end:at + place])
                self._take(buffer[at + place:at + place + size][None], taken)
                end = place + size
        self._noise(buffer[at + end:at + anchor])
        self._next = int(found[anchor])
        return at + anchor, True

    def _path(self, data: np.ndarray, found: np.ndarray) -> list[int]:
        """Places of sound frames on the likeliest way to the last one. found: int8 (offset,), the sequence number of a
        frame with a right CRC there, else -1."""
        places = np.flatnonzero(found >= 0)
        fine = unpack(data[places[:, None] + np.arange(self.size)], len(self.profile.channels))[:, :4]
        # of each place: (score, minus the sum of the places before it, the place before it). Where a byte is lost, the
        # bytes up to the end of its frame fit the CRC once in sixteen times: of two ways as likely the earlier is right
        best: list[tuple[int, int, int]] = []
        for j, place in enumerate(places.tolist()):
            ways = [(-self._cost(place, int(found[place]) - self._next & 15), 0, -1)]
            for i, (score, early, _) in enumerate(best):
                gap = place - int(places[i]) - self.size
                if gap >= 0:
                    missing = int(found[place] - found[places[i]]) - 1 & 15
                    leaps = (np.abs(fine[j] - fine[i]) > self._leap[:4] * (missing + 1)).any()
                    ways.append((score - self._cost(gap, missing) - LEAP * bool(leaps), early - int(places[i]), i))
            score, early, i = max(ways)
            best.append((score + SOUND, early, i))
        path, j = [], len(best) - 1
        while j >= 0:
            path.append(int(places[j]))
            j = best[j][2]
        return path[::-1]

    def _cost(self, gap: int, missing: int) -> int:
        """Of `gap` bytes without a frame where `missing` ones should be, modulo 16."""
        if not gap:
            return MISSING * bool(missing) + min(MISSING * missing, MISSING_MOST)
        slipped = abs(gap - self._count(gap, missing) * self.size)
        return min(MISSING * missing, MISSING_MOST) + min(SLIP * slipped, SLIP_MOST)

    def _count(self, gap: int, missing: int) -> int:
        """Missing frames: `missing` modulo 16, as near to `gap` bytes as can be."""
        return max(missing + 16 * round((gap / self.size - missing) / 16), missing)

    # ---- frames

    def _take(self, frames: np.ndarray, taken: list) -> None:
        """uint8 (frame, size) that follow each other, with their numbers."""
        if self.stats.frames:
            missing = self._count(self._lost, int(frames[0, -1] >> 4) - self._seen - 1 & 15)
            if self._lost and missing:
                self.stats.damaged["crc"] = self.stats.damaged.get("crc", 0) + missing
            self._number += missing
        taken.append((frames, self._number + np.arange(len(frames))))
        self._number += len(frames)
        self.stats.frames += len(frames)
        self._seen, self._lost = int(frames[-1, -1] >> 4), 0
        self._next = self._seen + 1 & 15

    def _noise(self, data: np.ndarray) -> None:
        text = int((((data >= 32) & (data < 127)) | np.isin(data, (9, 10, 13))).sum())
        self.stats.noise += len(data)
        self.stats.text += text
        if text < len(data) or len(data) < self.size:       # words were no frames
            self._lost += len(data)

    def _block(self, taken: list, now: float) -> Block:
        counts = unpack(np.concatenate([f for f, _ in taken]), len(self.profile.channels))
        before = counts[:1] if self._last is None else self._last[None]
        leaps = np.abs(np.diff(np.concatenate([before, counts]), axis=0)) > self._leap
        self._last = counts[-1]
        suspect = leaps & np.concatenate([leaps[1:], np.ones((1, counts.shape[1]), bool)])
        numbers = np.concatenate([n for _, n in taken])
        return Block(counts, numbers, np.zeros(len(counts), np.uint32), now, suspect)


def _sequences(data: np.ndarray, size: int, step: int = 1) -> np.ndarray:
    """int8: of the `size` bytes at every `step`-th place their sequence number, -1 where the CRC is wrong."""
    n = (len(data) - size) // step + 1
    if n <= 0:
        return np.zeros(0, np.int8)
    state = np.zeros(n, np.uint8)
    for k in range(size):
        byte = data[k:k + (n - 1) * step + 1:step]
        state = TABLE[state, byte & 0xF0 if k == size - 1 else byte]
    last = data[size - 1:size + (n - 1) * step:step]
    return np.where(state == last & 15, last >> 4, -1).astype(np.int8)


def unpack(frames: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (frame, size) -> int32 (frame, channel)."""
    b = frames.astype(np.int32)[:, ::-1]                    # b[:, 0] is the last byte
    wide = np.pad(b, ((0, 0), (0, 8 - b.shape[1])))
    columns = ((wide[:, 1] & 15) << 6 | wide[:, 2] >> 2, (wide[:, 2] & 3) << 8 | wide[:, 3],
               wide[:, 4] << 2 | wide[:, 5] >> 6, (wide[:, 5] & 63) << 4 | wide[:, 6] >> 4,
               (wide[:, 6] & 15) << 2 | wide[:, 7] >> 6, wide[:, 7] & 63)
    return np.stack(columns[:channels], 1)


def pack(counts: np.ndarray, first: int) -> np.ndarray:
    """int32 (moment, channel) -> uint8 (moment, size), with the number of the first moment; inputs and outputs low."""
    n, channels = counts.shape
    v = np.pad(counts, ((0, 0), (0, 6 - channels))).T
    b = np.zeros((n, 8), np.int32)                          # from the end, as above
    b[:, 0] = (first + np.arange(n) & 15) << 4
    b[:, 1], b[:, 2], b[:, 3] = v[0] >> 6, (v[0] & 63) << 2 | v[1] >> 8, v[1] & 255
    b[:, 4], b[:, 5], b[:, 6] = v[2] >> 2, (v[2] & 3) << 6 | v[3] >> 4, (v[3] & 15) << 4 | v[4] >> 2
    b[:, 7] = (v[4] & 3) << 6 | v[5]
    out = np.ascontiguousarray(b[:, :frame_size(channels)][:, ::-1]).astype(np.uint8)
    return _signed_off(out)


def _signed_off(frames: np.ndarray) -> np.ndarray:
    """uint8 (frame, size) with a low nibble of 0 at the end -> with the CRC there."""
    state = np.zeros(len(frames), np.uint8)
    for k in range(frames.shape[1]):
        state = TABLE[state, frames[:, k]]
    frames[:, -1] |= state
    return frames


class Talk:
    """Ask for the version, set the rate, start. channels: names, all of the profile by default; fs: Hz, the profile's
    by default or the fastest that the line carries."""

    def __init__(self, profile: Profile = PROFILES["bitalino"], channels: tuple[str, ...] | None = None,
                 fs: int | None = None):
        self.profile = profile
        names = channels or tuple(c.name for c in profile.channels)
        places = sorted({NAMES.index(choose(name, NAMES, "channel of a BITalino")) for name in names})
        self.mask = sum(1 << p for p in places)
        most = max(profile.bauds, default=115200) / 10 / frame_size(len(places))
        self.fs = fs or max(r for r in RATES if r <= min(profile.fs, most))
        if self.fs not in RATES or self.fs > most:
            raise UserError(f"a BITalino cannot send {len(places)} channels {self.fs:g} times a second",
                            f"one of {', '.join(map(str, RATES))}, up to {most:.0f} on this line")
        known = tuple(places) == tuple(NAMES.index(c.name) for c in profile.channels)
        self.found = replace(profile, fs=float(self.fs)) if known else \
            _profile(profile.name, profile.title, tuple(places), float(self.fs))

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """The device answers 7 with a line of text that names it."""
        _say(line, 0)                               # one that still streams would drown the answer
        for _ in range(TRIES):
            _say(line, 7)
            until, text = line.clock() + ANSWER_S, b""
            while line.clock() < until:
                text += line.read(0.1)
                if b"BITalino" in text and b"\n" in text[text.index(b"BITalino"):]:
                    _say(line, RATES.index(self.fs) << 6 | 3)
                    _say(line, self.mask << 2 | 1)
                    return self.found, b""
        raise MissingError("no BITalino answers", "a line with its version", "check port, pairing and switch")

    def keep(self, line: Line) -> None:
        """The device needs no heartbeat."""

    def end(self, line: Line) -> None:
        """Stop the stream."""
        try:
            line.write(b"\0")
        except OSError:
            pass


def _say(line: Line, byte: int) -> None:
    """A byte of command, after the pause that the device needs; what comes in meanwhile is of no use."""
    until = line.clock() + PAUSE_S
    while (left := until - line.clock()) > 0:
        line.read(left)
    line.write(bytes([byte]))


class Server:
    """The device's end, as firmware 5.2 answers."""

    VERSION = b"BITalino_v5.2\n"

    def __init__(self, profile: Profile = PROFILES["bitalino"], fs: float = 1000.0):
        self.profile, self.fs, self.streaming = profile, fs, False
        self.chosen = tuple(NAMES.index(c.name) for c in profile.channels)
        self.threshold, self._pwm = 0, False

    def hear(self, data: bytes) -> bytes:
        """Commands -> answers."""
        return b"".join(self._obey(byte) for byte in data)

    def _obey(self, byte: int) -> bytes:
        if self._pwm or byte == 0xA3:               # the byte behind this one is a duty cycle
            self._pwm = not self._pwm
        elif self.streaming:
            self.streaming = byte not in (0, 0xFF)
        elif byte == 7:
            return self.VERSION
        elif byte == 11:
            return self._state()
        elif byte & 0x3F == 3:
            self.fs = float(RATES[byte >> 6])
        elif byte & 3 == 1 and byte >> 2:
            self.chosen, self.streaming = tuple(k for k in range(6) if byte >> 2 + k & 1), True
        elif byte & 3 == 0:
            self.threshold = byte >> 2
        return b""

    def _state(self) -> bytes:
        """Six channels and the battery, u16 each, its threshold, a spare byte, inputs and outputs with the CRC."""
        values = [512] * 4 + [32 << 4] * 2 + [640]
        body = b"".join(v.to_bytes(2, "little") for v in values) + bytes([self.threshold, 0, 0])
        return _signed_off(np.frombuffer(body, np.uint8).copy()[None])[0].tobytes()

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """Frames of int32 (moment, channel) of the profile with the channels that were asked for; what the profile does
        not have stays in the middle. Lead-off is not told."""
        names = [c.name for c in self.profile.channels]
        out = np.full((len(counts), len(self.chosen)), 512, np.int32)
        for slot, place in enumerate(self.chosen):
            bits = COARSE if slot >= 4 else FINE
            if NAMES[place] in names:
                have = names.index(NAMES[place])
                kept = COARSE if self.profile.channels[have].high < 64 else FINE
                out[:, slot] = np.left_shift(counts[:, have], bits - kept) if bits >= kept else \
                    counts[:, have] >> kept - bits
            out[:, slot] = np.clip(out[:, slot], 0, (1 << bits) - 1)
        return [row.tobytes() for row in pack(out, index)]
