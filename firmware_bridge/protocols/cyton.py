# SPDX-License-Identifier: Apache-2.0
"""OpenBCI Cyton: 33-byte frames of eight 24-bit channels at 250 Hz, started by single-letter commands.

Format and commands after OpenBCI's documentation (Cyton_Data_Format, OpenBCI_Cyton_SDK) and BrainFlow's driver, which
speaks to the simulator below:

    0 start 0xA0 | 1 sample number, 0 .. 255 | 2 eight channels, i24 big-endian | 26 six bytes of auxiliary data
    32 stop byte 0xC0 .. 0xCF, which says what the auxiliary bytes are

There is no CRC. A frame counts when a stop byte stands where it belongs and either its number is one of the next or
another frame begins right behind; a channel that leaps and at once leaps back is marked as suspect.
"""

from __future__ import annotations

import re

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Line, Note, Stats
from train.say import MissingError

LENGTH, CHANNELS, START = 33, 8, 0xA0
GAINS = (1, 2, 4, 6, 8, 12, 24)                     # codes 0 .. 6 of the channel setting command
FULL = (1 << 23) - 1
REFERENCE_NV = 4.5e9                                # of the converter, nV
NEAR = 4                                            # frames lost in a row that a number alone may bridge
LEAP_NV = 10e6                                      # 10 mV in a moment: no heart does that
ANSWER_S, TRIES = 2.0, 3
ENDS = b"$$$"


def nv_per_count(gain: int) -> float:
    """Nanovolts of a count at a gain of 1 to 24."""
    return REFERENCE_NV / FULL / gain


def _profile(gains=(24,) * CHANNELS) -> Profile:
    channels = tuple(Channel(f"ch{k + 1}", nv_per_count(g), -FULL - 1, FULL) for k, g in enumerate(gains))
    return Profile("cyton", "cyton", "OpenBCI Cyton", channels, 250.0, (115200,), boot_s=4.0, counter=256)


PROFILES = {"cyton": _profile()}


class Decoder:
    """Bytes -> Blocks of frames that follow each other."""

    def __init__(self, profile: Profile = PROFILES["cyton"]):
        self.profile, self.stats = profile, Stats()
        self._held = b""
        self._next: int | None = None               # number that should come
        self._last: np.ndarray | None = None        # (channel,), of the last sound frame
        self._leap = np.array([LEAP_NV / c.nv_per_count for c in profile.channels])

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        buffer, at, frames = self._held + data, 0, []
        while len(buffer) - at >= LENGTH:
            if self._frame(buffer, at):
                frames.append(buffer[at:at + LENGTH])
                self._next = buffer[at + 1] + 1 & 255
                at += LENGTH
                continue
            behind = buffer.find(START, at + 1)
            skipped = (len(buffer) if behind < 0 else behind) - at
            if buffer[at] == START and len(buffer) - at < LENGTH + 1 and buffer[at + LENGTH - 1] & 0xF0 == 0xC0:
                break                               # a frame out of order: the byte behind it decides
            self._noise(buffer[at:at + skipped])
            at += skipped
        self._held = buffer[at:]
        return [self._block(frames, now)] if frames else []

    def _frame(self, buffer: bytes, at: int) -> bool:
        """Start and stop are in place, and the neighbour or the number says so too."""
        if not _fits(buffer, at):
            return False
        if buffer[at + LENGTH:at + LENGTH + 1] == bytes([START]):
            return True
        # a frame that lost two bytes ends in the number of the next one, which looks like a stop byte 16 times in 256
        return self._near(buffer, at) and not any(
            _fits(buffer, k) and self._near(buffer, k)
            for k in range(at + 1, min(at + LENGTH, len(buffer) - LENGTH + 1)))

    def _near(self, buffer: bytes, at: int) -> bool:
        """The number is one of the next."""
        return self._next is not None and (buffer[at + 1] - self._next & 255) <= NEAR

    def _noise(self, data: bytes) -> None:
        self.stats.noise += len(data)
        self.stats.text += sum(32 <= b < 127 or b in (9, 10, 13) for b in data)
        if data[:1] == bytes([START]):
            self.stats.refuse("trailer")

    def _block(self, frames: list[bytes], now: float) -> Block:
        raw = np.frombuffer(b"".join(frames), np.uint8).reshape(-1, LENGTH)
        parts = raw[:, 2:26].reshape(-1, CHANNELS, 3).astype(np.int32)
        counts = (parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]) << 8 >> 8
        before = counts[:1] if self._last is None else self._last[None]
        leaps = np.abs(np.diff(np.concatenate([before, counts]), axis=0)) > self._leap
        self._last = counts[-1]
        self.stats.frames += len(frames)
        # a spike goes there and back: a step that stays is the signal's own
        suspect = leaps & np.concatenate([leaps[1:], np.ones((1, CHANNELS), bool)])
        return Block(counts, raw[:, 1].astype(np.int64), np.zeros(len(raw), np.uint32), now, suspect)


def _fits(buffer: bytes, at: int) -> bool:
    """A start byte with a stop byte where it belongs."""
    return at + LENGTH <= len(buffer) and buffer[at] == START and buffer[at + LENGTH - 1] & 0xF0 == 0xC0


class Talk:
    """Reset, defaults, one gain for all channels where it is not 24, start."""

    def __init__(self, profile: Profile = PROFILES["cyton"], gain: int = 24):
        self.profile, self.gain = profile, gain

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """The board answers `v` with text that ends in $$$; a dongle without a board says Failure."""
        line.write(b"s")                            # one that still streams would drown the answer
        _drain(line)
        for _ in range(TRIES):
            line.write(b"v")
            text = _answer(line)
            if text.endswith(ENDS):
                break
            if b"Failure" in text:
                raise MissingError("the dongle does not find its board", "a Cyton that is switched on to PC",
                                   "switch it off and on, dongle first")
        else:
            raise MissingError("no Cyton answers", "its banner, which ends in $$$", "check port and switch")
        gains = (24,) * CHANNELS
        if self.gain != 24:
            for k in range(CHANNELS):
                line.write(f"x{k + 1}0{GAINS.index(self.gain)}0110X".encode())
                _answer(line)
            gains = (self.gain,) * CHANNELS
        line.write(b"b")
        return _profile(gains), b""

    def keep(self, line: Line) -> None:
        """The board needs no heartbeat."""

    def end(self, line: Line) -> None:
        """Stop the stream."""
        try:
            line.write(b"s")
        except OSError:
            pass


def _answer(line: Line) -> bytes:
    """Text up to $$$, or what came in time."""
    until, text = line.clock() + ANSWER_S, b""
    while not text.endswith(ENDS) and line.clock() < until:
        text += line.read(0.1)
    return text


def _drain(line: Line, quiet_s: float = 0.2) -> None:
    """Read until nothing comes."""
    until = line.clock() + ANSWER_S
    while line.read(quiet_s) and line.clock() < until:
        pass


_COMMAND = re.compile(rb"x([1-8QWERTYUI])(.)(.)(.)(.)(.)(.)X|[vdbs?D]", re.S)


class Server:
    """The board's end, as its firmware answers."""

    def __init__(self, profile: Profile = PROFILES["cyton"], fs: float = 250.0):
        self.profile, self.streaming = profile, False
        self.gains = [24] * CHANNELS
        self._heard = b""

    def hear(self, data: bytes) -> bytes:
        """Commands -> answers; letters it does not know are passed over, as on the board."""
        self._heard = (self._heard + data)[-64:]
        out, end = b"", 0
        for found in _COMMAND.finditer(self._heard):
            out += self._obey(found)
            end = found.end()
        rest = self._heard[end:]
        self._heard = rest if b"x" in rest else b""
        return out

    def _obey(self, found) -> bytes:
        word = found.group()
        if word in (b"b", b"s"):
            self.streaming = word == b"b"
            return b""
        if word == b"v":
            self.streaming, self.gains = False, [24] * CHANNELS
            return b"OpenBCI V3 8-16 channel\nOn Board ADS1299 Device ID: 0x3E\nLIS3DH Device ID: 0x33\n" \
                   b"Firmware: v3.1.2\n$$$"
        if word == b"d":
            self.gains = [24] * CHANNELS
            return b"updating channel settings to default$$$"
        if word in (b"?", b"D"):
            return b"060110$$$"
        channel, gain = b"12345678QWERTYUI".index(found.group(1)), found.group(3)
        if channel < CHANNELS and gain in b"0123456":
            self.gains[channel] = GAINS[int(gain)]
        return f"Success: Channel set for {channel + 1}$$$".encode()

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """Frames of int32 (moment, channel), counts at gain 24, on the gains that were set; spare channels are 0."""
        out = []
        scale = np.array(self.gains) / 24
        for k, row in enumerate(counts):
            wide = np.zeros(CHANNELS, np.int64)
            wide[:len(row)] = np.clip(np.rint(row * scale[:len(row)]), -FULL - 1, FULL)
            body = b"".join(int(v).to_bytes(3, "big", signed=True) for v in wide)
            out.append(bytes([START, (index + k) & 255]) + body + bytes(6) + b"\xc0")
        return out
