# SPDX-License-Identifier: Apache-2.0
"""The decision rule: int8 logits of one or more windows to a class, in integers, fitted on out-of-fold scores.

sums (n, class) are int8 logits added over the windows of a recording, counts (n,) how many there were.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.manifest import Decision

UNIT = 256              # offsets count 1/256 of a logit LSB
RESAMPLES = 24


def decide(rule: Decision, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """argmax: class index (n,); threshold: bool (n, class). Ties go to the first class."""
    score = np.asarray(sums, np.int64) * UNIT + np.asarray(counts, np.int64)[:, None] * np.array(rule.offsets, np.int64)
    return score.argmax(1) if rule.rule == "argmax" else score >= 0


def probabilities(rule: Decision, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Calibrated probabilities (n, class): softmax, or sigmoid for a threshold rule, of the tempered mean logit."""
    nats = sums / np.asarray(counts)[:, None] * rule.nats_per_lsb_q16 / 65536
    if rule.rule == "threshold":
        return 1 / (1 + np.exp(-nats))
    e = np.exp(nats - nats.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def fit(sums: np.ndarray, counts: np.ndarray, truth: np.ndarray, gain: Callable, scale: float, vote: int,
        seed: int = 0) -> Decision:
    """An argmax rule from out-of-fold scores.

    gain(truth, predicted) is maximised over the offsets by coordinate ascent; the median over bootstrap resamples of
    the recordings keeps a few lucky ones from deciding. `scale` is the value of one logit LSB (nats before tempering).
    """
    mean = sums / counts[:, None] * UNIT
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        pick = generator.integers(0, len(truth), len(truth))
        found.append(_ascend(mean[pick], truth[pick], gain))
    offsets = np.rint(np.median(found, axis=0)).astype(int)
    temperature = _temperature(mean / UNIT * scale, truth)
    return Decision("argmax", tuple(int(o) for o in offsets), max(1, round(scale / temperature * 65536)), vote)


def _ascend(mean: np.ndarray, truth: np.ndarray, gain: Callable) -> np.ndarray:
    """Offsets by coordinate ascent over a grid that narrows; class 0 stays at 0, only differences matter."""
    offsets = np.zeros(mean.shape[1])
    best = gain(truth, mean.argmax(1))
    width = 64 * UNIT
    while width >= UNIT / 2:
        moved = False
        for c in range(1, len(offsets)):
            for step in (-width, width):
                trial = offsets.copy()
                trial[c] += step
                value = gain(truth, (mean + trial).argmax(1))
                if value > best + 1e-9:
                    best, offsets, moved = value, trial, True
        if not moved:
            width /= 2
    return offsets


def _temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature that minimises the negative log likelihood, by golden-section search over 0.1 .. 10."""
    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        z = z - z.max(1, keepdims=True)
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), truth]).mean())
    low, high, ratio = np.log(0.1), np.log(10.0), (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))
