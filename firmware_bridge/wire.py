# SPDX-License-Identifier: Apache-2.0
"""What a protocol module offers: a decoder, the talk that starts a device, and the device's side for the simulator.

    PROFILES: dict[str, Profile]
    Decoder(profile)        bytes in any portions -> Blocks; never raises on what a line can bring, memory bounded
    Talk(profile)           what the host says to find, set up, start and stop the device
    Server(profile, fs)     the device's end: obeys the same commands and encodes samples, for simulate.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from firmware_bridge.profiles import Profile


@dataclass(frozen=True)
class Block:
    """Consecutive moments as one frame, or several frames in a row, brought them.

    counts: int32 (moment, channel). counter: int64 (moment,), the device's own numbers as they came; where it has none,
    the decoder's: one more a moment, and more where bytes say that frames were damaged; None when nothing can be said.
    lead_off: uint32 (moment,), bit c for channel c. arrived: host seconds (monotonic) of the portion they ended in.
    suspect: bool (moment, channel), values that passed a weak check but are implausible (a leap there and back); only
    channels that become leads are judged by it, an open input may leap as it likes. None when the check is strong.
    """

    counts: np.ndarray
    counter: np.ndarray | None
    lead_off: np.ndarray
    arrived: float
    suspect: np.ndarray | None = None


@dataclass(frozen=True)
class Note:
    """Something a device said that is not a sample: text, a status, an overrun it reports. level: debug to error.
    reset: it began anew, and so do its counters in what follows."""

    text: str
    level: str = "info"
    arrived: float = 0.0
    reset: bool = False


@dataclass
class Stats:
    """What became of every byte. bytes = those of frames + noise + pending.

    frames: sound ones. damaged: frames recognised and refused, by reason ("crc", "trailer", "length", ...). unknown:
    sound frames of a type that the profile does not know. noise: bytes that belong to no sound frame. text: bytes of
    them that were readable text. overruns: that the device reports.
    """

    bytes: int = 0
    frames: int = 0
    unknown: int = 0
    noise: int = 0
    text: int = 0
    overruns: int = 0
    damaged: dict[str, int] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        """Count a damaged frame."""
        self.damaged[reason] = self.damaged.get(reason, 0) + 1


class Decoder(Protocol):
    """Bytes -> what they hold."""

    profile: Profile
    stats: Stats

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`, which came at `now` (host seconds, monotonic)."""


class LineLost(OSError):
    """The line went down: pulled out, closed at the other end, or stuck."""


class LineEnded(LineLost):
    """It was a recording and is over: it will not come back."""


class Line(Protocol):
    """An open port, see ports.py; its methods raise LineLost when it goes down."""

    def write(self, data: bytes) -> None:
        """Send all of it."""

    def read(self, seconds: float) -> bytes:
        """What has come in, at once if something has, after `seconds` at the latest; b"" when nothing came."""

    def clock(self) -> float:
        """Host seconds, monotonic."""


class Talk(Protocol):
    """The host's words. A protocol that only listens has empty ones."""

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """Set the device up and start it: (the profile as the device says it is, bytes read too far).

        MissingError when it does not answer, UserError when it cannot do what the profile wants.
        """

    def keep(self, line: Line) -> None:
        """Called about every second: heartbeats."""

    def end(self, line: Line) -> None:
        """Stop the device; never raises when the line is gone."""


class Server(Protocol):
    """A device for the simulator."""

    profile: Profile
    streaming: bool         # the host has started it (at once for a device that only talks)

    def hear(self, data: bytes) -> bytes:
        """Bytes from the host -> the device's answer."""

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """One element per frame: int32 (moment, channel), uint32 (moment,), the number of the first moment."""
