# SPDX-License-Identifier: Apache-2.0
"""The inputs that a network may take beside the waveform: what they are, and where each comes from.

All are int8 codes; the network sees code * `one` in float. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train import template


@dataclass(frozen=True)
class Side:
    """One kind of input: manifest kind, shape without batch, unit, value of a code in the unit and in the network."""

    kind: str
    shape: tuple[int, ...]
    unit: str
    lsb: float
    one: float


SIDES = {"rr": Side("rr", (len(template.BEAT_NAMES),), "1/32", 1.0, 1 / 32)}


def of_windows(shards, i: int, names: Sequence[str], ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """Side inputs of windows of record i that end before the samples `ends`: int8 (window, *shape) for each name."""
    return ()


def of_beats(shards, i: int, names: Sequence[str], peaks: np.ndarray, rr: np.ndarray | None = None):
    """Side inputs of beats at `peaks` of record i: int8 (beat, *shape) for each name.

    `rr` are the beat features where prepared records hold them; else they are computed from the first lead.
    """
    if rr is None:
        rr = template.beat_features(shards.signal(i)[0], peaks, shards.fs)
    return tuple(np.ascontiguousarray({"rr": rr}[name]) for name in names)
