# SPDX-License-Identifier: Apache-2.0
"""How good a classifier is: confusion, sensitivity (Se), predictivity (+P), F1, intervals by record, voting.

numpy only, one class per case; records of several classes and areas under curves are in metrics.py. A confusion is
int64 (..., truth, predicted); rows may outnumber columns (truth holds F and Q, the model says N, S or V); class k is
row k and column k. A unit is what is independent: a record or a patient, never a beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from train.say import fail

DRAWS = 2000        # bootstrap resamples: the 2.5 % tail then rests on 50 of them
OFFSET_ONE = 256    # decision offsets count 1/256 of a logit LSB
AAMI_FORGIVEN = ((3, 2), (4, 2), (4, 1))    # EC57, classes N S V F Q: F called V, Q called V or S


@dataclass(frozen=True)
class Scores:
    """Per class, arrays (..., class); NaN where nothing can be said (no such beat, or none called so)."""

    se: np.ndarray
    ppv: np.ndarray
    f1: np.ndarray
    n: np.ndarray


def confusion(truth, predicted, n: int, columns: int | None = None) -> np.ndarray:
    """Count pairs: int64 (n, columns), columns = n unless the model knows fewer classes than the truth."""
    truth, predicted = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    columns = n if columns is None else columns
    if truth.shape != predicted.shape:
        fail(f"{truth.size} true labels but {predicted.size} predicted ones", "one of each")
    if truth.size and not (0 <= truth.min() and truth.max() < n and 0 <= predicted.min() and predicted.max() < columns):
        fail("a label outside the table", f"truth 0..{n - 1}, predicted 0..{columns - 1}")
    return np.bincount(truth * columns + predicted, minlength=n * columns).reshape(n, columns)


def by_unit(truth, predicted, unit, n: int, columns: int | None = None) -> np.ndarray:
    """One confusion per unit, in order of first appearance: int64 (unit, n, columns)."""
    truth, predicted, unit = np.asarray(truth), np.asarray(predicted), np.asarray(unit)
    names = dict.fromkeys(unit.tolist())
    return np.array([confusion(truth[unit == u], predicted[unit == u], n, columns) for u in names])


def counts(conf: np.ndarray, forgiven: Iterable[tuple[int, int]] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives, false negatives per predicted class, each (..., class).

    `forgiven` pairs (truth, predicted) are not false positives, e.g. AAMI_FORGIVEN.
    """
    conf = np.asarray(conf)
    classes = conf.shape[-1]
    tp = np.diagonal(conf, axis1=-2, axis2=-1)
    called = conf.sum(-2)
    for truth, predicted in forgiven:
        if truth < conf.shape[-2]:
            called = called - conf[..., truth, predicted][..., None] * (np.arange(classes) == predicted)
    return tp, called - tp, conf.sum(-1)[..., :classes] - tp


def scores(tp, fp, fn) -> Scores:
    """Se, +P and F1 from counts of any equal shape."""
    return Scores(ratio(tp, tp + fn), ratio(tp, tp + fp), ratio(2 * tp, 2 * tp + fp + fn), tp + fn)


def per_class(conf, forgiven: Iterable[tuple[int, int]] = ()) -> Scores:
    """Se, +P, F1 and number of true cases of each predicted class."""
    return scores(*counts(conf, forgiven))


def f1_mean(conf, classes: Iterable[int] | None = None) -> np.ndarray:
    """Mean F1 over `classes` (all by default) of a confusion (..., truth, predicted), but of classes never seen."""
    f1 = per_class(conf).f1
    f1 = f1 if classes is None else f1[..., list(classes)]
    return mean(f1)


def false_share(conf, k: int) -> np.ndarray:
    """Share of the cases that are not class k which are called k; every row of the confusion counts."""
    conf = np.asarray(conf)
    other = np.arange(conf.shape[-2]) != k
    return ratio(conf[..., other, k].sum(-1), conf[..., other, :].sum((-2, -1)))


def bootstrap(conf_by_unit, statistic: Callable[[np.ndarray], np.ndarray], draws: int = DRAWS, seed: int = 0):
    """95 % interval (low, high) of statistic(confusion), units drawn with replacement.

    `conf_by_unit` is (unit, ...), summed over the drawn units; `statistic` takes (draw, ...) and returns (draw, ...).
    """
    return limits(statistic(resample(conf_by_unit, draws, seed)))


def paired(conf_a, conf_b, statistic: Callable[[np.ndarray], np.ndarray], draws: int = DRAWS, seed: int = 0):
    """statistic(b) - statistic(a) of two models on the same units, and its 95 % interval: (difference, low, high)."""
    conf_a, conf_b = np.asarray(conf_a), np.asarray(conf_b)
    if conf_a.shape != conf_b.shape:
        fail(f"two models on other units: {conf_a.shape} and {conf_b.shape}", "the same units in the same order")
    difference = statistic(conf_b.sum(0)[None])[0] - statistic(conf_a.sum(0)[None])[0]
    drawn = statistic(resample(conf_b, draws, seed)) - statistic(resample(conf_a, draws, seed))
    return (difference, *limits(drawn))


def vote(logits, windows: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the last `windows` rows of int logits (window, class) at each window (0: all so far), and how many."""
    total = np.cumsum(np.asarray(logits, np.int64), 0)
    n = np.arange(1, len(total) + 1)
    if windows:
        total[windows:] -= total[:-windows].copy()
        n = np.minimum(n, windows)
    return total, n


def decide(total, n, rule: str, offsets) -> np.ndarray:
    """Apply a decision rule to int logit sums (..., class) of `n` (...) windows.

    argmax: int64 (...), class of the largest 256 * total + n * offset, the first on a tie.
    threshold: bool (..., class), 256 * total >= n * offset.
    """
    total, n = np.asarray(total, np.int64), np.asarray(n, np.int64)[..., None]
    offsets = np.asarray(offsets, np.int64)
    if rule == "argmax":
        return (OFFSET_ONE * total + n * offsets).argmax(-1)
    if rule == "threshold":
        return OFFSET_ONE * total >= n * offsets
    return fail(f"unknown decision rule {rule!r}", "argmax or threshold")


def fit_offsets(logits, truth, classes: int, goal: Callable[[np.ndarray], np.ndarray], reach: float, steps: int = 33,
                rounds: int = 3) -> np.ndarray:
    """Offsets (class,) that make argmax(logits + offsets) best by goal(confusion (draw, classes, class)) -> (draw,).

    Coordinate search on a grid of +-`reach` in the unit of the logits, refined fourfold each round; class 0 keeps
    offset 0 (only differences matter). Of equal goals the smallest offset wins. `classes` counts the true classes,
    which may outnumber the model's. Call it with out-of-fold logits only.
    """
    logits, truth = np.asarray(logits, float), np.asarray(truth, np.int64)
    offsets = np.zeros(logits.shape[1])
    for turn in range(rounds):
        grid = np.linspace(-reach, reach, steps) / 4 ** turn
        for k in (*range(1, len(offsets)), *range(1, len(offsets))):
            tried = offsets[k] + grid
            rest = logits + offsets
            rest[:, k] = -np.inf
            rival = rest.argmax(1)
            margin = rest.max(1) - logits[:, k]
            tables = np.array([confusion(truth, np.where(step >= margin, k, rival), classes, len(offsets))
                               for step in tried])
            value = np.nan_to_num(goal(tables), nan=-np.inf)
            best = np.flatnonzero(value >= value.max() - 1e-12)
            offsets[k] = tried[best[np.abs(tried[best]).argmin()]]
    return offsets


def rows(conf_by_unit, names: Iterable[str], forgiven: Iterable[tuple[int, int]] = (), seed: int = 0) -> list[list]:
    """Table rows [class, Se, its interval, +P, interval, F1, interval, n] for say.table under HEADER."""
    forgiven = tuple(forgiven)
    conf_by_unit = np.asarray(conf_by_unit)
    return lines(per_class(conf_by_unit.sum(0), forgiven),
                 per_class(resample(conf_by_unit, seed=seed), forgiven), names)


def lines(total: Scores, drawn: Scores, names: Iterable[str]) -> list[list]:
    """Rows under HEADER from the scores of all units (class,) and of resampled ones (draw, class)."""
    kinds = ("se", "ppv", "f1")
    return [[name, *(cell for kind in kinds for cell in estimate(getattr(total, kind)[k], getattr(drawn, kind)[:, k])),
             int(total.n[k])] for k, name in enumerate(names)]


def estimate(value, drawn: np.ndarray) -> list:
    """Two table cells, a figure and its interval; empty ones for a figure that does not exist."""
    return [None, ""] if np.isnan(value) else [float(value), interval(*limits(drawn))]


HEADER = ("class", "Se", "95 %", "+P", "95 %", "F1", "95 %", "n")


def interval(low, high) -> str:
    """Two limits for a table cell."""
    return f"{low:.3f}-{high:.3f}"


def ratio(a, b) -> np.ndarray:
    """a / b, NaN where b is 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def mean(values) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    return ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))


def resamples(units: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each unit is in each of `draws` samples with replacement: int64 (draw, unit)."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), draws)


def resample(conf_by_unit, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Sums over units drawn with replacement: (draw, ...)."""
    conf = np.asarray(conf_by_unit)
    weight = resamples(len(conf), draws, seed)
    return (weight @ conf.reshape(len(conf), -1)).reshape(draws, *conf.shape[1:])


def limits(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % points over draws; draws in which the figure does not exist are left out."""
    drawn = np.asarray(drawn, float)
    some = ~np.isnan(drawn).all(0)
    low, high = np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    if some.any():
        low[some], high[some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    return low, high
