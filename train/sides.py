# SPDX-License-Identifier: Apache-2.0
"""The inputs that a network may take beside the waveform: what they are, and where each comes from.

All are int8 codes; the network sees code * `one` in float. Numpy only.

    rr      features of one beat, see template.py
    beats   the last 16 beats, see rhythm.py; of a window, those whose R is decided before its end
    age     years, 0..127; -1 unknown
    sex     1 male, 2 female; 0 unknown
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train import rhythm, rpeak, template


@dataclass(frozen=True)
class Side:
    """One kind of input: manifest kind, shape without batch, unit, value of a code in the unit and in the network."""

    kind: str
    shape: tuple[int, ...]
    unit: str
    lsb: float
    one: float


SIDES = {"rr": Side("rr", (len(template.BEAT_NAMES),), "1/32", 1.0, 1 / 32),
         "beats": Side("beats", (rhythm.STEPS, len(rhythm.NAMES)), "1/32", 1.0, 1 / 32),
         "age": Side("age", (1,), "year", 1.0, 1.0),
         "sex": Side("sex", (1,), "code", 1.0, 1.0)}


def of_windows(shards, i: int, names: Sequence[str], ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """Side inputs of windows of record i that end before the samples `ends`: int8 (window, *shape) for each name.

    A beat is known once the detector's latency has passed behind its R. A record shorter than a window has the beats
    of one pass.
    """
    def beats() -> np.ndarray:
        peaks, rows = _found(shards, i)
        return rhythm.sequences(rows, np.searchsorted(peaks + rpeak.Detector(shards.fs).latency, ends))
    return _chosen(names, {"beats": beats, **_about(shards, i, len(ends))})


def of_beats(shards, i: int, names: Sequence[str], peaks: np.ndarray, rr: np.ndarray | None = None):
    """Side inputs of beats at `peaks` of record i: int8 (beat, *shape) for each name.

    `rr` are the beat features where prepared records hold them; else they are computed from the first lead. The last
    beat of a sequence is the one classified.
    """
    def own() -> np.ndarray:
        return template.beat_features(shards.signal(i)[0], peaks, shards.fs) if rr is None else rr

    def beats() -> np.ndarray:
        rows = rhythm.features(shards.signal(i)[0], peaks, shards.fs)
        return rhythm.sequences(rows, np.arange(1, len(peaks) + 1))
    return _chosen(names, {"rr": own, "beats": beats, **_about(shards, i, len(peaks))})


def age_code(age: float | None) -> int:
    """Whole years as the network takes them, -1 for unknown."""
    return -1 if age is None or math.isnan(age) or age < 0 else min(int(age), 127)


def sex_code(sex: str | None) -> int:
    """M 1, F 2, else 0."""
    return {"M": 1, "F": 2}.get(sex or "", 0)


def _chosen(names: Sequence[str], makers: dict) -> tuple[np.ndarray, ...]:
    return tuple(np.ascontiguousarray(makers[name]()) for name in names)


def _about(shards, i: int, count: int) -> dict:
    """What is known of the patient, the same for every window or beat."""
    record = shards.records[i]

    def repeated(code: int) -> np.ndarray:
        return np.full((count, 1), code, np.int8)
    return {"age": lambda: repeated(age_code(record.get("age"))), "sex": lambda: repeated(sex_code(record.get("sex")))}


_HELD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _found(shards, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(R positions, features) of record i's first lead; computed once for each Shards, kilobytes a record."""
    held = _HELD.setdefault(shards, {})
    if i not in held:
        x = shards.signal(i)[0]
        peaks = rpeak.detect(x, shards.fs)
        held[i] = peaks, rhythm.features(x, peaks, shards.fs)
    return held[i]
