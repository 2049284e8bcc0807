# SPDX-License-Identifier: Apache-2.0
"""What quantization cost: one table of float, post-training int8 and QAT int8 per class, and what changed class."""

from __future__ import annotations

import numpy as np

from compress import report_labels, rule
from compress.evaluate import Logits
from train import say, score

_COLUMNS = ("se", "se_95", "ppv", "ppv_95", "f1", "f1_95", "n")
FORMS = ("float", "post-training int8", "QAT int8")


def table(decided: dict[str, np.ndarray], logits: Logits, classes: list[str], task: str) -> dict:
    """Print and return the figures of several forms of one model on the same rows.

    decided: form -> class index per row. Per class Se, +P and F1 with 95 % intervals over records; the task's mean F1
    with its paired difference to the first form.
    """
    forgiven = score.AAMI_FORGIVEN if task == "mitbih" else ()
    conf = {form: logits.confusion(d, len(classes)) for form, d in decided.items()}
    result: dict = {"rows": len(logits.truth), "units": len(np.unique(logits.unit)), "classes": {}, "forms": {}}
    printed = []
    for form, c in conf.items():
        for row in score.rows(c, classes, forgiven):
            printed.append([f"{row[0]}  {form}", *row[1:]])
            result["classes"].setdefault(row[0], {})[form] = dict(zip(_COLUMNS, row[1:], strict=True))
    printed.sort(key=lambda row: classes.index(row[0].split("  ")[0]))
    say.table(printed, ("class", *score.HEADER[1:]))
    first = next(iter(conf))
    for form, c in conf.items():
        result["forms"][form] = _summary(conf[first], c, task)
        say.info(_sentence(form, result["forms"][form], form == first, first))
    return result


def _summary(base: np.ndarray, conf: np.ndarray, task: str) -> dict:
    """Mean F1 of a form and its paired difference to the base, over records; for beats the share of false S too."""
    statistic = mean_f1(task)
    value = float(statistic(conf.sum(0)))
    low, high = score.bootstrap(conf, statistic)
    difference, worse, better = score.paired(base, conf, statistic)
    out = {"mean_f1": value, "mean_f1_95": [float(low), float(high)], "difference": float(difference),
           "difference_95": [float(worse), float(better)]}
    if task == "mitbih":
        out["false_s"] = float(score.false_share(conf.sum(0), 1))
    return out


def mean_f1(task: str):
    """The mean F1 that a task is judged by: N, A, O of CinC 2017, else all classes."""
    return (lambda c: score.f1_mean(c, (0, 1, 2))) if task == "cinc2017" else score.f1_mean


def _sentence(form: str, s: dict, base: bool, first: str) -> str:
    text = f"{form:20s} mean F1 {s['mean_f1']:.4f} [{s['mean_f1_95'][0]:.3f}, {s['mean_f1_95'][1]:.3f}]"
    if not base:
        low, high = s["difference_95"]
        text += f"   against {first} {100 * s['difference']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
    if "false_s" in s:
        text += f"   false S {100 * s['false_s']:.2f} % of the other beats"
    return text


def compare(decided: dict[str, np.ndarray], logits: dict[str, Logits], classes: list[str], task: str) -> dict:
    """Print and return the table of several forms, the first the base, and what changed from it to the last."""
    first, *_, last = decided
    if logits[first].truth.ndim == 2:
        result = report_labels.table(decided, logits, classes, task)
        return result | {"flips": report_labels.flips(decided[first], decided[last], logits[last], classes)}
    result = table(decided, logits[last], classes, task)
    return result | {"flips": flips(decided[first], decided[last], logits[last], classes),
                     "joint": joint(logits[last].truth, decided[first], decided[last], len(classes)).tolist()}


def joint(truth: np.ndarray, before: np.ndarray, after: np.ndarray, classes: int) -> np.ndarray:
    """How many rows of each true class were called what before and after: int64 (truth, before, after).

    What folds are pooled from: where a row is a record, drawing from these counts is drawing records.
    """
    counts = np.zeros((max(classes, int(truth.max()) + 1), classes, classes), np.int64)
    np.add.at(counts, (truth, before, after), 1)
    return counts


def fitted(form: str, logits: Logits, decided: np.ndarray, classes: list[str], task: str) -> dict:
    """Print and return Se and +P per class without intervals."""
    if logits.truth.ndim == 2:
        return report_labels.fitted(form, logits, decided, classes, task)
    conf = logits.confusion(decided, len(classes)).sum(0)
    s = score.per_class(conf, score.AAMI_FORGIVEN if task == "mitbih" else ())
    rows = {name: {"se": float(s.se[k]), "ppv": float(s.ppv[k])} for k, name in enumerate(classes)}
    say.info(f"{form:20s} " + "   ".join(f"{name} Se {v['se']:.3f} +P {v['ppv']:.3f}" for name, v in rows.items()))
    return rows | {"mean_f1": float(mean_f1(task)(conf))}


def flips(before: np.ndarray, after: np.ndarray, logits: Logits, classes: list[str], most: int = 10) -> dict:
    """Print and return how many rows changed class, and the first `most` of those that changed from right to wrong."""
    changed = np.flatnonzero(before != after)
    worse = [i for i in changed if before[i] == logits.truth[i]]
    better = [i for i in changed if after[i] == logits.truth[i]]
    say.info(f"{len(changed)} of {len(before)} changed class: {len(worse)} from right to wrong, "
             f"{len(better)} from wrong to right")
    named = [f"{logits.unit[i]} {classes[before[i]]}>{classes[after[i]]}" for i in worse[:most]]
    if named:
        say.info("  " + ", ".join(named))
    return {"changed": len(changed), "of": len(before), "right_to_wrong": len(worse), "wrong_to_right": len(better),
            "examples": named}


def fit_rule(logits: Logits, task: str, vote: int):
    """The decision rule of out-of-fold logits."""
    return rule.fit(logits.sums, logits.counts, logits.truth, logits.unit, task, logits.scale, vote)
