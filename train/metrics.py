# SPDX-License-Identifier: Apache-2.0
"""How good a classifier of several classes at once is: areas under curves, and figures of what it called.

truth and called are bool (record, class), values float (record, class), the higher the likelier. A class of which a
figure cannot be told (never there, never called) is NaN and leaves the macro mean, as in the official evaluations of
the PhysioNet/CinC Challenges of 2020 and 2021, whose F-measure, F-beta, G-beta and accuracy these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from train import say, score

BETA = 2            # of F-beta and G-beta: a missed class weighs more than a false one
CHUNK = 1 << 22     # numbers held at a time while areas are resampled


def auroc(values, truth) -> np.ndarray:
    """Area under the ROC curve of each class; NaN for a class that all records have, or none."""
    return _areas("roc_auc_score", values, truth, lambda t: t.any() and not t.all())


def auprc(values, truth) -> np.ndarray:
    """Average precision of each class, the area under its precision-recall steps; NaN for a class no record has."""
    return _areas("average_precision_score", values, truth, np.any)


def _areas(name: str, values, truth, known: Callable) -> np.ndarray:
    say.need("sklearn", "train")
    from sklearn import metrics
    area = getattr(metrics, name)
    values, truth = np.asarray(values, float), np.asarray(truth, bool)
    return np.array([area(t, v) if known(t) else np.nan for v, t in zip(values.T, truth.T, strict=True)])


def area_draws(values, truth, weight: np.ndarray) -> np.ndarray:
    """(AUROC, AUPRC) of resampled records: (2, draw, class), for weight (draw, record) of score.resamples.

    The same areas as auroc and auprc give, for all draws at once: thousands of curves would take scikit-learn minutes.
    """
    values, truth = np.asarray(values, float), np.asarray(truth, bool)
    out = np.empty((2, len(weight), values.shape[1]))
    step = max(1, CHUNK // len(values))
    for k in range(values.shape[1]):
        order, last = ends(values[:, k])
        for n in range(0, len(weight), step):
            w = weight[n:n + step, order]                       # (draw, record)
            tp = np.cumsum(w * truth[order, k], 1)[:, last]     # (draw, distinct value), called from the top down
            fp = np.cumsum(w, 1)[:, last] - tp
            rise, run = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
            out[0, n:n + step, k] = score.ratio((run * (tp - rise / 2)).sum(1), tp[:, -1] * fp[:, -1])
            out[1, n:n + step, k] = score.ratio(np.nansum(rise * score.ratio(tp, tp + fp), 1), tp[:, -1])
    return out


def ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order of values (n,) from the highest down, places in it of the last of each group of equal ones)."""
    order = np.argsort(-values, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(values[order]) != 0, True))


def counts(truth, called) -> np.ndarray:
    """True positives, false positives and false negatives of each record: int64 (record, 3, class)."""
    truth, called = np.asarray(truth, bool), np.asarray(called, bool)
    return np.stack([truth & called, ~truth & called, truth & ~called], 1).astype(np.int64)


def per_class(sums) -> score.Scores:
    """Se, +P, F1 and number of cases of each class from summed counts (..., 3, class)."""
    return score.scores(*np.moveaxis(np.asarray(sums), -2, 0))


HEADER = ("class", "AUROC", "95 %", "AUPRC", "95 %", "n")


def rows(values, truth, names: Iterable[str]) -> list[list]:
    """Table rows [class, AUROC, its interval by record, AUPRC, interval, n] for say.table under HEADER."""
    truth = np.asarray(truth, bool)
    areas = auroc(values, truth), auprc(values, truth)
    drawn = area_draws(values, truth, score.resamples(len(truth)))
    return [[name, *(cell for area, d in zip(areas, drawn, strict=True) for cell in score.estimate(area[k], d[:, k])),
             int(truth[:, k].sum())] for k, name in enumerate(names)]


def called_rows(truth, called, names: Iterable[str]) -> list[list]:
    """Table rows of what was called, for say.table under score.HEADER."""
    each = counts(truth, called)
    return score.lines(per_class(each.sum(0)), per_class(score.resample(each)), names)


@dataclass(frozen=True)
class Figure:
    """A figure that rests on sums over records: what each record adds (record, ...), and the figure of such a sum."""

    each: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """Over all records."""
        return float(self.of(self.each.sum(0)))


def figures(truth, called) -> dict[str, Figure]:
    """Macro Se, +P, F (mean_f1), F-beta and G-beta; accuracy, all classes of a record right; label_accuracy, each."""
    truth, called = np.asarray(truth, bool), np.asarray(called, bool)
    each = counts(truth, called)
    shared = each / np.maximum(truth.sum(1), 1)[:, None, None]  # F-beta and G-beta share a record among its classes
    right = truth == called
    return {"se": Figure(each, lambda c: score.mean(per_class(c).se)),
            "ppv": Figure(each, lambda c: score.mean(per_class(c).ppv)),
            "mean_f1": Figure(each, lambda c: score.mean(per_class(c).f1)),
            "f_beta": Figure(shared, f_beta), "g_beta": Figure(shared, g_beta),
            "accuracy": Figure(_share(right.all(1)), _quotient),
            "label_accuracy": Figure(_share(right.mean(1)), _quotient)}


def f_beta(sums) -> np.ndarray:
    """Macro F-beta of summed counts (..., 3, class)."""
    tp, fp, fn = np.moveaxis(np.asarray(sums, float), -2, 0)
    hit = (1 + BETA ** 2) * tp
    return score.mean(score.ratio(hit, hit + fp + BETA ** 2 * fn))


def g_beta(sums) -> np.ndarray:
    """Macro G-beta, a Jaccard index in which a miss counts BETA times, of summed counts (..., 3, class)."""
    tp, fp, fn = np.moveaxis(np.asarray(sums, float), -2, 0)
    return score.mean(score.ratio(tp, tp + fp + BETA * fn))


def _share(right: np.ndarray) -> np.ndarray:
    return np.stack([right.astype(float), np.ones(len(right))], 1)


def _quotient(sums: np.ndarray) -> np.ndarray:
    return score.ratio(sums[..., 0], sums[..., 1])
