# SPDX-License-Identifier: Apache-2.0
"""What flows through the bridge once time is straight: stretches without a hole, gaps, beats, decisions; and sinks.

Every moment of a session has an index: how many moments of the nominal rate lie between it and the first one, missing
ones included. Nothing is ever re-timed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from firmware_bridge.profiles import Profile
from train.manifest import Manifest

GAPS = ("lost", "damaged", "unplugged", "reset", "overrun", "paused")       # why moments are missing


@dataclass(frozen=True)
class Session:
    """What a sink must know before the first sample. id: random, 16 hex digits; no names, no places.

    fs: moments a second that indices count. leads: what the manifest asked for, in its order, or the channels' own.
    """

    profile: Profile
    fs: float
    leads: tuple[str, ...]
    manifest: Manifest | None
    started: float                                      # seconds since 1970
    settings: dict = field(default_factory=dict)        # lead map, scale, target, how the port was found
    id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Stretch:
    """Moments first, first + 1, ... without a hole. counts: int32 (moment, channel); uv: int32 (lead, moment), the
    mapped leads in microvolts; lead_off: uint32 (moment,), bit l for lead l; time: seconds since the session began of
    the first moment, by the fitted clock; arrived: host seconds (monotonic) when its last moment came in."""

    first: int
    counts: np.ndarray
    uv: np.ndarray
    lead_off: np.ndarray
    time: float
    arrived: float


@dataclass(frozen=True)
class Gap:
    """`length` moments from `first` on are missing; reason is one of GAPS."""

    first: int
    length: int
    reason: str


@dataclass(frozen=True)
class Beat:
    """An R peak at moment `index`; bpm: heart rate over the last beats, None until it is known."""

    index: int
    bpm: float | None


@dataclass(frozen=True)
class Quality:
    """Of one second that ends before moment `index`: for each lead "A" (whole wave), "B" (QRS only) or "C" (unusable),
    with the reasons ("lead-off", "rail", "flat", "noise")."""

    index: int
    grades: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What the classifier says of the window that ends before moment `index`, or of the beat at `beat`.

    present: names of the classes, none when nothing reaches its threshold. logits: int8 (class,). unreliable: why it is
    not classified ("settling", "gap", "lead-off", "signal"), and then present is empty; "" when it counts. latency_ms:
    from the arrival of the last sample that it needed. agrees: in shadow mode, whether the twin found the same logits.
    """

    index: int
    present: tuple[str, ...]
    logits: np.ndarray
    unreliable: str = ""
    beat: int | None = None
    latency_ms: float = 0.0
    agrees: bool | None = None


@dataclass(frozen=True)
class Event:
    """What a person should know: kind is "unplugged", "back", "clock", "lead-off", "inverted", "device", "disk", ..."""

    index: int
    kind: str
    text: str
    level: str = "info"


class Sink(Protocol):
    """Where things go. A sink that fails says so in an Event and is taken out; it never stops the classification."""

    def begin(self, session: Session) -> None:
        """Before anything else."""

    def take(self, item: Stretch | Gap | Beat | Quality | Decision | Event) -> None:
        """In order of their index. Must return quickly: slow ones (disk, net) queue for themselves, bounded."""

    def tick(self, now: float) -> None:
        """About ten times a second (host seconds, monotonic): flush, draw."""

    def end(self) -> None:
        """Nothing comes after. Called once, also after an error."""
