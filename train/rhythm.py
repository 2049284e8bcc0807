# SPDX-License-Identifier: Apache-2.0
"""The last 16 beats as a sequence of features: what an R-peak code and a P-wave code are made of. Integers only.

R positions (n,) and the lead x (time,) they were found in -> int8 (n, 9), order of NAMES, unit 1/32. Quotients are
floors; everything is clamped to -128..127.

    beat        32; -32 for the first beat, whose interval is unknown (the next two are 0 there)
    interval    (RR in ms - 800) / 8                    RR at most 10 s
    of usual    64 RR / usual RR - 64                   usual: moved by 1/8 of the difference with each beat
    size        32 size / usual size - 32               size of the QRS complex, see pwave
    P           32 with a P wave, -32 without           without, only `usual P` of what follows is not 0
    height      256 |height| / size                     of this P wave
    usual P     256 |usual| / size                      of the running mean at the same place
    PR          (onset of P to R in ms) / 4
    duration    (onset to end of P in ms) / 4

A sequence is the rows of the last STEPS beats, oldest first; where there are fewer, rows of zeros come first, which no
beat has. Ratios throughout: neither gain nor polarity of the P wave matters.
"""

from __future__ import annotations

import numpy as np

from train import pwave

R_NAMES = ("beat", "interval", "of usual", "size")
P_NAMES = ("P", "height", "usual P", "PR", "duration")
NAMES = (*R_NAMES, *P_NAMES)
STEPS = 16
_GUARD = 4          # fractional bits of the running means


def features(x: np.ndarray, peaks: np.ndarray, fs: int) -> np.ndarray:
    """Features of every beat, int8 (n, 9); x is int16 microvolts (time,)."""
    peaks = np.asarray(peaks, np.int64)
    waves = pwave.delineate(x, peaks, fs)
    rr = np.minimum(np.diff(peaks), 10 * fs)
    size = waves["size"] + 1
    there = waves["height"] != 0
    rows = np.zeros((len(peaks), len(NAMES)), np.int64)
    rows[:, 0] = 32
    rows[:1, 0] = -32
    rows[1:, 1] = (1000 * rr // fs - 800) // 8
    rows[1:, 2] = 64 * rr // _usual(rr) - 64
    rows[:, 3] = 32 * size // _usual(size) - 32
    rows[:, 4] = np.where(there, 32, -32)
    rows[:, 5] = 256 * np.abs(waves["height"]) // size
    rows[:, 6] = 256 * np.abs(waves["usual"]) // size
    rows[:, 7] = np.where(there, 250 * (peaks - waves["onset"]) // fs, 0)
    rows[:, 8] = np.where(there, 250 * (waves["end"] - waves["onset"]) // fs, 0)
    return np.clip(rows, -128, 127).astype(np.int8)


def _usual(values: np.ndarray) -> np.ndarray:
    """The running mean of positive integers before each of them; the first one's is itself."""
    means, mean = np.empty_like(values), None
    for i, value in enumerate(values.tolist()):
        mean = value << _GUARD if mean is None else mean
        means[i] = max(mean >> _GUARD, 1)
        mean += ((value << _GUARD) - mean) >> 3
    return means


def sequences(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The last STEPS of the first `known` rows, for each number in known (m,): (m, STEPS, feature)."""
    padded = np.concatenate([np.zeros((STEPS, rows.shape[1]), rows.dtype), rows])
    return padded[np.asarray(known, np.int64)[:, None] + np.arange(STEPS)]
