# SPDX-License-Identifier: Apache-2.0
"""Sessions for the tests of what keeps them: made by hand, moment k always the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from firmware_bridge.sinks.recorder import Recorder

FS = 250
RANGES = {16: (-32767, 32767), 24: (-131072, 131071), 32: (-1 << 23, (1 << 23) - 1)}


def profile(width: int = 16) -> Profile:
    """Two electrodes and a belt."""
    low, high = RANGES[width]
    channels = (Channel("ch1", 500.0, low, high), Channel("ch2", 250.0, 0, 1023, 512),
                Channel("belt", 1.0, -100, 100, kind="respiration"))
    return Profile("plain", "test", "a test board", channels, FS)


def session(width: int = 16, **fields) -> Session:
    """Started at a time that is known. Lead II is turned over."""
    return Session(profile(width), FS, ("I", "II"), None, 1_700_000_000.25,
                   {"leads": "ch1=I,ch2=-II", "target": "host", "port": "/home/someone/port"} | fields)


def counts(first: int, n: int, width: int = 16) -> np.ndarray:
    """int32 (moment, 3): what the board measures at these moments, both rails of the first channel among it."""
    k = np.arange(first, first + n, dtype=np.int64)
    low, high = RANGES[width]
    ch1 = low + k * 7919 % (high - low + 1)
    ch1[k % 97 == 0], ch1[k % 101 == 0] = low, high
    return np.stack([ch1, 512 + k * 31 % 500, k % 100], 1).astype(np.int32)


def stretch(first: int, n: int, width: int = 16, off=()) -> Stretch:
    """Moments first to first + n; lead II is off at those in `off`."""
    mask = 2 * np.isin(np.arange(first, first + n), list(off)).astype(np.uint32)
    return Stretch(first, counts(first, n, width), np.zeros((2, n), np.int32), mask, first / FS, first / FS)


def decision(index: int, present=("AF",), why: str = "", beat=None) -> Decision:
    """One that a model of three classes made."""
    return Decision(index, () if why else tuple(present), np.array([index % 100 - 50, -128, 127], np.int8), why, beat)


def items(seconds: int, width: int = 16) -> list:
    """Ten portions a second, a beat and a grade a second, a decision every two, and 30 missing moments at 5 s."""
    out = []
    for first in range(0, seconds * FS, 25):
        if first == 5 * FS:
            out.append(Gap(first, 30, "lost"))
        skip = 30 if first == 5 * FS else 5 if first == 5 * FS + 25 else 0
        if 25 - skip > 0:
            out.append(stretch(first + skip, 25 - skip, width, range(2 * FS, 2 * FS + 40)))
        after = first + 25
        if after % FS == 0:
            second = after // FS
            out += [Beat(after - 100, 71.6 if second > 1 else None),
                    Quality(after, ("A", "C" if second == 3 else "B"), ("", "lead-off" if second == 3 else "noise"))]
            if second % 2 == 0:
                out.append(decision(after, ("AF", "PVC") if second % 4 else (), "gap" if second == 6 else "",
                                    after - 50))
    return out


def forked(what, *args) -> int:
    """The process in which `what` runs; it never comes back into the tests."""
    child = os.fork()
    if not child:
        try:
            what(*args)
        finally:
            os._exit(1)
    return child


def record(folder: Path, what: list, one: Session | None = None, end: bool = True) -> Recorder:
    """Everything through a recorder that is ticked as in a session."""
    recorder = Recorder(folder)
    recorder.begin(one or session())
    recorder.take(Event(0, "device", "hello, Zoë"))
    for item in what:
        recorder.take(item)
        if isinstance(item, Stretch):
            recorder.tick(item.arrived)
    if end:
        recorder.end()
    return recorder
