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
    return Rhythm(fs).beats(x, peaks)


class Rhythm:
    """Features of one lead's beats in any portions. Peaks count from x[0]; `moved` says where that has gone."""

    def __init__(self, fs: int):
        self.fs, self.waves = fs, pwave.Delineator(fs)
        self.last, self.usual_rr, self.usual_size = None, Usual(), Usual()

    def moved(self, samples: int) -> None:
        """x[0] of the next portion lies so many samples later."""
        self.waves.moved(samples)
        self.last = None if self.last is None else self.last - samples

    def beats(self, x: np.ndarray, peaks: np.ndarray) -> np.ndarray:
        """Features of further beats, int8 (n, 9)."""
        peaks = np.asarray(peaks, np.int64)
        waves = self.waves.beats(x, peaks)
        fs, known = self.fs, int(self.last is None)       # the first beat of all has no interval
        rr = np.minimum(np.diff(peaks) if known else np.diff(peaks, prepend=self.last), 10 * fs)
        size = waves["size"] + 1
        there = waves["height"] != 0
        rows = np.zeros((len(peaks), len(NAMES)), np.int64)
        rows[:, 0] = 32
        rows[:known, 0] = -32
        rows[known:, 1] = (1000 * rr // fs - 800) // 8
        rows[known:, 2] = 64 * rr // self.usual_rr.before(rr) - 64
        rows[:, 3] = 32 * size // self.usual_size.before(size) - 32
        rows[:, 4] = np.where(there, 32, -32)
        rows[:, 5] = 256 * np.abs(waves["height"]) // size
        rows[:, 6] = 256 * np.abs(waves["usual"]) // size
        rows[:, 7] = np.where(there, 250 * (peaks - waves["onset"]) // fs, 0)
        rows[:, 8] = np.where(there, 250 * (waves["end"] - waves["onset"]) // fs, 0)
        self.last = int(peaks[-1]) if len(peaks) else self.last
        return np.clip(rows, -128, 127).astype(np.int8)


class Usual:
    """A running mean of positive integers."""

    def __init__(self):
        self.mean = None

    def before(self, values: np.ndarray) -> np.ndarray:
        """The mean before each of further values; the first one's is itself."""
        means = np.empty_like(values)
        for i, value in enumerate(values.tolist()):
            self.mean = value << _GUARD if self.mean is None else self.mean
            means[i] = max(self.mean >> _GUARD, 1)
            self.mean += ((value << _GUARD) - self.mean) >> 3
        return means


def sequences(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The last STEPS of the first `known` rows, for each number in known (m,): (m, STEPS, feature)."""
    padded = np.concatenate([np.zeros((STEPS, rows.shape[1]), rows.dtype), rows])
    return padded[np.asarray(known, np.int64)[:, None] + np.arange(STEPS)]
