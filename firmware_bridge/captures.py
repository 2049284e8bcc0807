# SPDX-License-Identifier: Apache-2.0
"""Raw bytes of a line in a file, with their times beside them, and such a file as a line.

PATH holds the bytes as they came. PATH.times holds a line "seconds count" for each portion: when it came, and how many
bytes it was. With both, what was heard can be heard again, gaps and bursts included. Files are for their owner only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from firmware_bridge import profiles
from firmware_bridge.profiles import Profile
from firmware_bridge.wire import Block, Line, LineEnded
from train.say import UserError, warn

PORTION_S = 0.04            # without times: what comes at once
UNTIMED = 512               # bytes of a portion, where not even the front-end is known
JUDGED = 1 << 16            # bytes at the start from which the rate of a file without times is found


class Capture:
    """The two files, opened anew. A full disk ends the capture with a warning, not the session."""

    def __init__(self, path: str | Path):
        self.path, self._began = Path(path), None
        self.failed = ""
        self._files = [_private(self.path), _private(self.path.with_name(self.path.name + ".times"))]

    def take(self, data: bytes, seconds: float) -> None:
        """A portion that came at `seconds` (monotonic)."""
        if self.failed:
            return
        self._began = seconds if self._began is None else self._began
        try:
            self._files[0].write(data)
            self._files[1].write(b"%.6f %d\n" % (seconds - self._began, len(data)))
        except OSError as error:
            self.failed = f"{self.path}: {error.strerror}; nothing more of the raw bytes is kept"
            warn(self.failed)
            self.close()

    def close(self) -> None:
        """Flush and close; never raises."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


def _private(path: Path):
    """A new file that only its owner reads, unbuffered: a process that is killed leaves all that it heard."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.chmod(path, 0o600)           # one that was there before keeps its mode otherwise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "a file in a folder that exists") from error
    return os.fdopen(descriptor, "wb", buffering=0)


class Teed:
    """A line whose incoming bytes are copied into a capture."""

    def __init__(self, line: Line, capture: Capture):
        self.line, self.capture, self.name = line, capture, line.name

    def read(self, seconds: float) -> bytes:
        """As the line's."""
        data = self.line.read(seconds)
        if data:
            self.capture.take(data, self.line.clock())
        return data

    def write(self, data: bytes) -> None:
        """As the line's."""
        self.line.write(data)

    def set_baud(self, baud: int) -> None:
        """As the line's."""
        self.line.set_baud(baud)

    def clock(self) -> float:
        """As the line's."""
        return self.line.clock()

    def close(self) -> None:
        """Close the line; the capture goes on with the next one."""
        self.line.close()


class FileLine:
    """A capture as a line. Its clock is the capture's: it runs `speed` times as fast, at 0 as fast as bytes are read.

    A file without times is handed out evenly at the rate that `profile` says its moments come at; without a profile it
    can be listened to, but as fast as it goes only.
    """

    live = False            # its portions are as they came; nothing more comes while one waits

    def __init__(self, path: str | Path, speed: float = 0.0, profile: Profile | None = None):
        self.name, self.speed = f"file:{path}", speed
        try:
            self._data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", "a file of raw bytes") from error
        beside = Path(f"{path}.times")
        self._portions = _times(beside, len(self._data)) if beside.is_file() else _even(self._data, path, profile)
        self._began = time.monotonic()
        self._at, self._next, self._now = 0, 0, 0.0      # byte, portion, seconds of the capture

    def set_baud(self, baud: int) -> None:
        """Bytes in a file have none."""

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    def read(self, seconds: float) -> bytes:
        """The next portion; LineEnded after the last."""
        if self._next == len(self._portions):
            raise LineEnded(errno.EIO, f"{self.name} is over")
        due, size = self._portions[self._next]
        if self.speed:
            wait = due / self.speed - (time.monotonic() - self._began)
            if wait > 0:
                time.sleep(min(wait, seconds))
            if wait > seconds:
                return b""
        self._now, self._next, self._at = due, self._next + 1, self._at + size
        return self._data[self._at - size:self._at]

    def clock(self) -> float:
        """Seconds: those of the portion that was read last, or of a clock that runs at the given speed."""
        if not self.speed:
            return self._began + self._now
        return self._began + (time.monotonic() - self._began) * self.speed

    def close(self) -> None:
        """Nothing is open."""


def _times(path: Path, total: int) -> list[tuple[float, int]]:
    """(seconds, bytes) of each portion; what the times do not cover comes with the last of them."""
    try:
        rows = [(float(s), int(n)) for s, n in (line.split() for line in path.read_text().splitlines())]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "lines of seconds and a number of bytes",
                        "take it away: the file is then read at an even rate") from error
    kept, left = [], total
    for seconds, size in rows:
        kept.append((seconds, min(size, left)))
        left -= kept[-1][1]
    if left:            # killed between the two writes
        kept.append((kept[-1][0] if kept else 0.0, left))
    return [row for row in kept if row[1]]


def _even(data: bytes, path, profile: Profile | None) -> list[tuple[float, int]]:
    """Portions of PORTION_S at the rate at which the profile's moments would come."""
    if profile is None:
        return [(0.0, len(data[at:at + UNTIMED])) for at in range(0, len(data), UNTIMED)]
    decoder = profiles.module(profile.protocol).Decoder(profile)
    head = data[:JUDGED]
    moments = sum(len(b.counts) for b in decoder.feed(head, 0.0) if isinstance(b, Block))
    if not moments or not profile.fs:
        raise UserError(f"{path} holds nothing that {profile.title} sends with a known rate",
                        f"bytes of {profile.title} in its first {len(head)}", "--protocol names another front-end")
    rate = len(head) / moments * profile.fs
    size = max(round(rate * PORTION_S), 1)
    return [(min(at + size, len(data)) / rate, len(data[at:at + size])) for at in range(0, len(data), size)]
