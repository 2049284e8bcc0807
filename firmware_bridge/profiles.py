# SPDX-License-Identifier: Apache-2.0
"""A front-end as data: what it sends, how fast, on which line, and what one count is worth.

A protocol (a module of `protocols/`) decodes bytes; a profile says which device speaks it, and a protocol may have
several.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from train.say import choose

# protocol -> module; each has PROFILES: name -> Profile, Decoder, Talk and Server (see wire.py)
PROTOCOLS = {name: f"firmware_bridge.protocols.{name}"
             for name in ("cyton", "openview", "lines", "bitalino", "shimmer3", "edgelink")}


@dataclass(frozen=True)
class Channel:
    """One column of the samples.

    nv_per_count: nanovolts at the electrodes of one count; None when the device's scale is unknown (the user must say).
    zero: the count of 0 V. low, high: the counts of the rails. kind: "ecg", or what else it measures; only an ECG can
    become a lead. lead: the usual lead, "" when it depends on the wiring.
    """

    name: str
    nv_per_count: float | None
    low: int
    high: int
    zero: int = 0
    kind: str = "ecg"
    lead: str = ""


@dataclass(frozen=True)
class Profile:
    """A kind of front-end.

    fs: nominal moments a second, 0 when the device does not say. bauds: the usual one first; empty for USB. dtr: what
    the line must do with DTR, "assert" (the device is silent without), "hold" (a change resets it) or "any". boot_s:
    seconds after opening in which silence means nothing. counter: modulus of the device's own number of a moment, None
    without one. ticks: the counter counts so many a second instead of moments, None when it counts moments. lead_off:
    where lead-off comes from, "frame" or "signal". check: what makes a frame certain ("crc32c", "crc16", "crc4",
    "trailer", "text"). per_frame: moments in a usual frame. scale: counts are the numbers sent times this, where text
    has fractions.
    """

    name: str
    protocol: str
    title: str
    channels: tuple[Channel, ...]
    fs: float
    bauds: tuple[int, ...] = (115200,)
    dtr: str = "any"
    boot_s: float = 0.0
    counter: int | None = None
    ticks: int | None = None
    lead_off: str = "signal"
    check: str = "trailer"
    per_frame: int = 1
    scale: int = 1

    @property
    def ecg(self) -> tuple[int, ...]:
        """Places of the channels that may become leads."""
        return tuple(i for i, c in enumerate(self.channels) if c.kind == "ecg")


def module(protocol: str):
    """The module of a protocol; a misspelt name is a UserError."""
    return importlib.import_module(PROTOCOLS[choose(protocol, PROTOCOLS, "protocol")])


def profiles(protocol: str | None = None) -> dict[str, Profile]:
    """Profiles by name, of one protocol or of all."""
    names = PROTOCOLS if protocol is None else (choose(protocol, PROTOCOLS, "protocol"),)
    return {name: p for each in names for name, p in module(each).PROFILES.items()}


def find(name: str) -> Profile:
    """A profile by its name, or by its protocol's when that has only one; UserError with the names near by."""
    known = profiles()
    if name in PROTOCOLS and name not in known:
        first = next(iter(module(name).PROFILES.values()))
        return first
    return known[choose(name, known, "profile")]
