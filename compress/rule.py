# SPDX-License-Identifier: Apache-2.0
"""Fits the decision rule (offsets and temperature, as integers) on out-of-fold int8 logits; score.decide applies it.

sums (n, class) are int8 logits added over the windows of a recording, counts (n,) how many there were; for beats n
counts beats and counts is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train import score
from train.manifest import Decision

RESAMPLES = 25      # bootstrap draws whose median offset is taken: a few lucky records do not decide
REACH = 6.0         # nats that an offset may move a class
FALSE_S = 0.008     # of the beats that are not S; the published operating points allow 1 %


def goal(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """What the offsets of a task maximise: confusion (..., truth, predicted) -> (...)."""
    return {"cinc2017": _rhythms, "mitbih": _beats}.get(task, score.f1_mean)


def _rhythms(conf: np.ndarray) -> np.ndarray:
    """CinC 2017: mean F1 of N, A and O (Clifford et al. 2017)."""
    return score.f1_mean(conf, (0, 1, 2))


def _beats(conf: np.ndarray) -> np.ndarray:
    """AAMI beats: F1 of V plus Se of S, as long as no more than FALSE_S of the other beats are called S."""
    scores = score.per_class(conf, score.AAMI_FORGIVEN)
    excess = np.maximum(score.false_share(conf, 1) - FALSE_S, 0)
    return np.nan_to_num(scores.f1[..., 2]) + np.nan_to_num(scores.se[..., 1]) - 200 * excess


def fit(sums: np.ndarray, counts: np.ndarray, truth: np.ndarray, units: np.ndarray, task: str, scale: float, vote: int,
        seed: int = 0) -> Decision:
    """An argmax rule from out-of-fold scores of `units` (record or patient of each row).

    Rows of a truth beyond the model's classes (AAMI F, Q) count against the offsets but not in the temperature.
    `scale` is the value of one logit LSB in nats before tempering.
    """
    mean = sums / counts[:, None] * scale
    classes = max(int(truth.max()) + 1, mean.shape[1])
    generator = np.random.default_rng(seed)
    names, place = np.unique(units, return_inverse=True)
    found = []
    for _ in range(RESAMPLES):
        weight = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))[place]
        pick = np.repeat(np.arange(len(truth)), weight)
        found.append(score.fit_offsets(mean[pick], truth[pick], classes, goal(task), REACH))
    offsets = np.rint(np.median(found, axis=0) / scale * score.OFFSET_ONE).astype(int)
    known = truth < mean.shape[1]
    temperature = _temperature(mean[known], truth[known])
    return Decision("argmax", tuple(int(o) for o in offsets), max(1, round(scale / temperature * 65536)), vote)


def probabilities(rule: Decision, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Calibrated probabilities (n, class): softmax, or sigmoid for a threshold rule, of the tempered mean logit."""
    nats = sums / np.asarray(counts)[:, None] * rule.nats_per_lsb_q16 / 65536
    if rule.rule == "threshold":
        return 1 / (1 + np.exp(-nats))
    e = np.exp(nats - nats.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


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
