# SPDX-License-Identifier: Apache-2.0
"""Fits the decision rule (offsets and temperature, as integers) on out-of-fold int8 logits; score.decide applies it.

sums (n, class) are int8 logits added over the windows of a recording, counts (n,) how many there were; for beats n
counts beats and counts is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train import challenge, metrics, score, tasks
from train.manifest import Decision

RESAMPLES = 25      # bootstrap draws whose median offset is taken: a few lucky records do not decide
REACH = 6.0         # nats that an offset may move a class
FALSE_S = 0.008     # of the beats that are not S; the published operating points allow 1 %
RARE = 5            # cases below which a class's threshold only matches how often it is there
SHIFTS = np.linspace(-3, 3, 49)     # nats that the challenge score may move all thresholds


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
    """A rule from out-of-fold scores of `units` (record or patient of each row).

    truth (n,) gives an argmax rule; rows of a truth beyond the model's classes (AAMI F, Q) count against the offsets
    but not in the temperature. truth (n, class) gives a threshold rule. `scale` is the value of one logit LSB in nats
    before tempering.
    """
    mean = sums / counts[:, None] * scale
    weight = _draws(units, seed)
    if truth.ndim == 2:
        name, offsets, temperature = "threshold", thresholds(mean, truth, weight, task), _temperature(mean, truth)
    else:
        name, offsets = "argmax", _offsets(mean, truth, weight, task)
        known = truth < mean.shape[1]
        temperature = _temperature(mean[known], truth[known])
    steps = np.rint(offsets / scale * score.OFFSET_ONE).astype(int)
    return Decision(name, tuple(int(o) for o in steps), max(1, round(scale / temperature * 65536)), vote)


def _draws(units: np.ndarray, seed: int) -> np.ndarray:
    """How often each row is in each bootstrap draw of units: int64 (draw, row)."""
    generator = np.random.default_rng(seed)
    names, place = np.unique(units, return_inverse=True)
    return np.stack([np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))[place]
                     for _ in range(RESAMPLES)])


def _offsets(mean: np.ndarray, truth: np.ndarray, weight: np.ndarray, task: str) -> np.ndarray:
    """Offsets in nats that make the argmax best by the task's goal, median over the draws."""
    classes = max(int(truth.max()) + 1, mean.shape[1])
    rows = [np.repeat(np.arange(len(truth)), w) for w in weight]
    return np.median([score.fit_offsets(mean[r], truth[r], classes, goal(task), REACH) for r in rows], axis=0)


# ---- several classes on one record

def thresholds(mean: np.ndarray, truth: np.ndarray, weight: np.ndarray, task: str) -> np.ndarray:
    """Thresholds in nats (class,): best F1 of each class, median over the draws, shifted together for the challenge.

    A class with fewer than RARE cases is called as often as it is there, because the F1 of so few says nothing; one
    that is not there at all is called by what reaches the highest score seen.
    """
    best = np.array([_by_f1(x, t, weight) if t.sum() >= RARE else _by_number(x, int(t.sum()))
                     for x, t in zip(mean.T, truth.T, strict=True)])
    return best + _shift(mean, truth, weight, task, best) if task in challenge.TASKS else best


def _by_f1(x: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Halfway from the last score (n,) worth calling to the next below, median over the draws (draw, n)."""
    order, last = metrics.ends(x)
    w = weight[:, order]
    tp, called = np.cumsum(w * truth[order], 1)[:, last], np.cumsum(w, 1)[:, last]
    levels = x[order][last]
    best = np.nan_to_num(score.ratio(2 * tp, called + tp[:, -1:])).argmax(1)
    return float(np.median((levels[best] + levels[np.minimum(best + 1, len(levels) - 1)]) / 2))


def _by_number(x: np.ndarray, cases: int) -> float:
    """The threshold that the `cases` highest scores reach."""
    down = -np.sort(-x)
    return float(down[0] if cases == 0 else down[cases - 1:cases + 1].mean())


def _shift(mean: np.ndarray, truth: np.ndarray, weight: np.ndarray, task: str, level: np.ndarray) -> float:
    """What to add to all thresholds for the best challenge score, median over the draws; the score rewards near
    misses, so that a class may be called earlier than its own F1 would have it."""
    labels = tasks.find(task).classes
    tried = [challenge.figure(labels, truth, mean >= level + shift) for shift in SHIFTS]
    value = np.stack([f.of(weight @ f.each) for f in tried])                    # (shift, draw)
    near = np.where(value >= value.max(0) - 1e-12, np.abs(SHIFTS)[:, None], np.inf)
    return float(np.median(SHIFTS[near.argmin(0)]))


# ---- probabilities

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
        if truth.ndim == 2:
            return float(np.logaddexp(0, np.where(truth, -z, z)).mean())
        z = z - z.max(1, keepdims=True)
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), truth]).mean())
    low, high, ratio = np.log(0.1), np.log(10.0), (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))
