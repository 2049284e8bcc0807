# SPDX-License-Identifier: Apache-2.0
"""What quantization cost on tasks with several classes a record; report.py is the same for one class."""

from __future__ import annotations

import numpy as np

from compress.evaluate import Logits
from train import challenge, metrics, say, score, tasks

_AREA_KEYS = ("auroc", "auroc_95", "auprc", "auprc_95")
_CALLED_KEYS = ("se", "se_95", "ppv", "ppv_95", "f1", "f1_95", "n")
_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "mean_f1": "F1", "se": "Se", "ppv": "+P", "f_beta": "F-beta",
          "g_beta": "G-beta", "accuracy": "all right", "label_accuracy": "each right", "challenge": "challenge"}


def table(decided: dict[str, np.ndarray], logits: dict[str, Logits], classes: list[str], task: str) -> dict:
    """Print and return the figures of several forms of one model on the same records.

    decided: form -> bool (record, class). Per class AUROC, AUPRC, Se, +P and F1 with 95 % intervals over records; macro
    means, and the challenge score where the task has one, with their paired difference to the first form.
    """
    first = next(iter(decided))
    truth = logits[first].truth
    result: dict = {"rows": len(truth), "units": len(truth), "classes": {}, "forms": {}}
    areas = {form: metrics.rows(logits[form].mean, truth, classes) for form in decided}
    called = {form: metrics.called_rows(truth, d, classes) for form, d in decided.items()}
    for form in decided:
        for area, row in zip(areas[form], called[form], strict=True):
            result["classes"].setdefault(row[0], {})[form] = dict(
                zip((*_AREA_KEYS, *_CALLED_KEYS), (*area[1:-1], *row[1:]), strict=True))
    _side_by_side(areas, metrics.HEADER)
    _side_by_side(called, score.HEADER)
    found = {form: _figures(decided[form], logits[form], classes, task) for form in decided}
    for form, figures in found.items():
        compared = {name: _compared(figure, found[first][name]) for name, figure in figures.items()}
        f1 = compared["mean_f1"]
        result["forms"][form] = {"mean_f1": f1["value"], "mean_f1_95": f1["95"], "difference": f1["difference"],
                                 "difference_95": f1["difference_95"], "figures": compared}
    _print_figures({form: f["figures"] for form, f in result["forms"].items()}, first)
    return result


def _side_by_side(rows: dict[str, list[list]], header) -> None:
    """One table, the forms of a class below one another."""
    forms = list(rows)
    say.table([[f"{of[0][0]}  {form}", *row[1:]] for of in zip(*rows.values(), strict=True)
               for form, row in zip(forms, of, strict=True)], header)


def _decisions(decided: np.ndarray, logits: Logits, classes: list[str], task: str) -> dict[str, metrics.Figure]:
    """Figures of what was called, the challenge score among them where the task has one."""
    figures = metrics.figures(logits.truth, decided)
    if task in challenge.TASKS:
        labels = {label.name: label for label in tasks.find(task).classes}
        figures["challenge"] = challenge.figure([labels[name] for name in classes], logits.truth, decided)
    return figures


def _areas(logits: Logits) -> dict[str, float]:
    return {"auroc": float(score.mean(metrics.auroc(logits.mean, logits.truth))),
            "auprc": float(score.mean(metrics.auprc(logits.mean, logits.truth)))}


def _figures(decided: np.ndarray, logits: Logits, classes: list[str], task: str) -> dict:
    """Name -> (value, the same of resampled records (draw,)); equal draws for every form, so that they pair."""
    drawn = metrics.area_draws(logits.mean, logits.truth, score.resamples(len(decided)))
    out = {name: (value, score.mean(d)) for (name, value), d in zip(_areas(logits).items(), drawn, strict=True)}
    return out | {name: (f.value, f.of(score.resample(f.each)))
                  for name, f in _decisions(decided, logits, classes, task).items()}


def _compared(figure: tuple[float, np.ndarray], base: tuple[float, np.ndarray]) -> dict:
    return {"value": _number(figure[0]), "95": _limits(figure[1]), "difference": _number(figure[0] - base[0]),
            "difference_95": _limits(figure[1] - base[1])}


def _limits(drawn: np.ndarray) -> list[float | None]:
    return [_number(v) for v in score.limits(drawn)]


def _number(value) -> float | None:
    return None if np.isnan(value) else float(value)


def _print_figures(forms: dict[str, dict], first: str) -> None:
    rows = []
    for name in forms[first]:
        for form, figures in forms.items():
            f = figures[name]
            if f["value"] is None:
                continue
            told = "" if form == first else "{:+.2f} [{:+.2f}, {:+.2f}]".format(
                *(100 * v for v in (f["difference"], *f["difference_95"])))
            rows.append([f"{_NAMES[name]}  {form}", f["value"], score.interval(*f["95"]), told])
    header = ("mean over classes", "", "95 %")
    say.table(rows if len(forms) > 1 else [row[:-1] for row in rows],
              (*header, f"points against {first}") if len(forms) > 1 else header)


def fitted(form: str, logits: Logits, decided: np.ndarray, classes: list[str], task: str) -> dict:
    """Print and return Se and +P per class, and the means, without intervals."""
    s = metrics.per_class(metrics.counts(logits.truth, decided).sum(0))
    rows = {name: {"se": _number(s.se[k]), "ppv": _number(s.ppv[k])} for k, name in enumerate(classes)}
    means = _areas(logits) | {name: f.value for name, f in _decisions(decided, logits, classes, task).items()}
    means = {name: _number(value) for name, value in means.items()}
    told = "   ".join(f"{_NAMES[name]} {value:.3f}" for name, value in means.items() if value is not None)
    say.info(f"{form:20s} {told}")
    return rows | {"mean_f1": means["mean_f1"], "figures": means}


def flips(before: np.ndarray, after: np.ndarray, logits: Logits, classes: list[str], most: int = 10) -> dict:
    """Print and return how many decisions changed, class by class, and the first `most` that became wrong."""
    changed = before != after
    worse = changed & (before == logits.truth)
    better = changed & ~worse
    rows = [[name, int(changed[:, k].sum()), int(worse[:, k].sum()), int(better[:, k].sum())]
            for k, name in enumerate(classes)]
    say.info(f"{int(changed.any(1).sum())} of {len(before)} records changed a decision; decisions by class:")
    say.table(rows, ("class", "changed", "right to wrong", "wrong to right"))
    named = [f"{logits.unit[i]} {'+' if after[i, k] else '-'}{classes[k]}" for i, k in np.argwhere(worse)[:most]]
    if named:
        say.info("  " + ", ".join(named))
    keys = ("changed", "right_to_wrong", "wrong_to_right")
    return {"changed": int(changed.any(1).sum()), "of": len(before), "right_to_wrong": int(worse.sum()),
            "wrong_to_right": int(better.sum()), "examples": named,
            "classes": {name: dict(zip(keys, counts, strict=True)) for name, *counts in rows}}
