# SPDX-License-Identifier: Apache-2.0
"""The two tables of MIT-BIH: beat-given (annotated R) and end-to-end (our detector finds the beats).

Classes N, S, V are the model's; F and Q stay as rows. EC57: F called V, and Q called V or S, are no false positives.
"""

from __future__ import annotations

import numpy as np

from compress.evaluate import AAMI_ROWS, BEATS, Logits, aami
from train import rpeak, say, score, sides

TOLERANCE_S = 0.15
LEARNING_S = 300        # end-to-end counts from 5:00
EXTRA = len(AAMI_ROWS)  # row of detections without an annotated beat
MISSED = 3              # column of annotated beats without a detection


def given(manifest, logits: Logits, apart: Logits | None, classes: list[str]) -> dict:
    """Print and return the beat-given table: classes with intervals by record, then record by record."""
    from compress import report
    say.info("beat-given: every annotated beat of the whole record")
    decided = logits.decided(manifest.decision)
    result = report.table({"int8": decided}, logits, classes, "mitbih")
    result["records"] = _by_record(logits.confusion(decided, len(classes)), list(dict.fromkeys(logits.unit.tolist())))
    if apart is not None and "202" in apart.unit:
        keep = apart.unit == "202"
        both = Logits(*(np.concatenate([getattr(logits, k), getattr(apart, k)[keep]])
                        for k in ("sums", "counts", "truth", "unit")), logits.scale)
        say.info("with 202 (the patient of 201, who trains), as published")
        result["with_202"] = report.table({"int8": both.decided(manifest.decision)}, both, classes, "mitbih")
    return result


def _by_record(conf: np.ndarray, names: list[str]) -> list[dict]:
    """Per record: V Se and +P, S Se and +P, false S as a share of the other beats."""
    rows, out = [], []
    for name, c in zip(names, conf, strict=True):
        s = score.per_class(c[:, :3], score.AAMI_FORGIVEN)
        row = {"record": name, "beats": int(c.sum()),
               "V": int(s.n[2]), "V_se": _number(s.se[2]), "V_ppv": _number(s.ppv[2]),
               "S": int(s.n[1]), "S_se": _number(s.se[1]), "S_ppv": _number(s.ppv[1]),
               "false_S": _number(score.false_share(c[:, :3], 1))}
        out.append(row)
        rows.append(list(row.values()))
    say.table(rows, ("record", "beats", "V", "Se", "+P", "S", "Se", "+P", "false S"))
    return out


def _number(value) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def match(annotated: np.ndarray, found: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of ascending sample indices within `tolerance`: (index of annotated, index of found).

    Nearest first in time: a detection goes to the earlier of two beats unless the later one is nearer.
    """
    pairs = []
    a = f = 0
    while a < len(annotated) and f < len(found):
        gap = found[f] - annotated[a]
        if abs(gap) <= tolerance:
            nearer = f + 1 < len(found) and abs(found[f + 1] - annotated[a]) < abs(gap)
            other = a + 1 < len(annotated) and abs(found[f] - annotated[a + 1]) < abs(gap)
            if nearer:
                f += 1
            elif other:
                a += 1
            else:
                pairs.append((a, f))
                a, f = a + 1, f + 1
        elif gap < 0:
            f += 1
        else:
            a += 1
    return tuple(np.array(pairs, int).reshape(-1, 2).T)


def end_to_end(manifest, graph, source, indices: list[int], classes: list[str], called=None) -> dict:
    """Print and return the table in which missed and extra beats count. called(i) -> (R peaks, class of each) of a
    record, by default the reference's."""
    called = called or (lambda i: detected(manifest, graph, source, i))
    tables, names = [], []
    with say.progress("end to end", len(indices)) as advance:
        for i in indices:
            tables.append(confusion(source, i, *called(i)))
            names.append(source.shards.records[i]["name"])
            advance(1)
    conf = np.array(tables)
    say.info(f"end-to-end: detected beats within {1000 * TOLERANCE_S:.0f} ms, from 5:00, flutter left out")
    rows = score.rows(conf, [*classes, "missed"], score.AAMI_FORGIVEN)[:len(classes)]
    say.table(rows, score.HEADER)
    total = conf.sum(0)
    beats, extra = int(total[:EXTRA].sum()), int(total[EXTRA].sum())
    missed = int(total[:EXTRA, MISSED].sum())
    say.info(f"{beats} beats, {missed} missed, {extra} extra: QRS Se {1 - missed / beats:.4f}, "
             f"+P {(beats - missed) / (beats - missed + extra):.4f}")
    return {"classes": {r[0]: dict(zip(("se", "se_95", "ppv", "ppv_95", "f1", "f1_95", "n"), r[1:], strict=True))
                        for r in rows}, "beats": beats, "missed": missed, "extra": extra,
            "false_s": float(score.false_share(total[:, :3], 1)), "confusion": total.tolist(),
            "records": _by_record(conf, names)}


def detected(manifest, graph, source, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(R peaks by our detector, class of each) of one record."""
    from compress import reference
    fs, shards = source.shards.fs, source.shards
    found = rpeak.detect(shards.signal(i)[0], fs)
    codes = source.around(i, found), *sides.of_beats(shards, i, source.names, found)
    inputs = dict(zip(graph.inputs, codes, strict=True))
    parts = [reference.run(graph, {name: c[n:n + BEATS] for name, c in inputs.items()})
             for n in range(0, len(found), BEATS)]
    logits = np.concatenate(parts) if parts else np.zeros((0, 3), np.int8)
    return found, score.decide(logits, np.ones(len(logits), int), manifest.decision.rule, manifest.decision.offsets)


def confusion(source, i: int, found: np.ndarray, called: np.ndarray) -> np.ndarray:
    """(N S V F Q extra, N S V missed) of one record."""
    shards, beats = source.shards, source.shards.beats(i)
    a, f = match(beats["sample"], found, TOLERANCE_S * shards.fs)
    conf = np.zeros((EXTRA + 1, MISSED + 1), int)
    truth, counted = aami(beats["symbol"]), _counted(shards, i, beats["sample"])
    np.add.at(conf, (truth[a[counted[a]]], called[f[counted[a]]]), 1)
    alone = np.setdiff1d(np.flatnonzero(counted), a)
    np.add.at(conf, (truth[alone], MISSED), 1)
    extra = np.setdiff1d(np.flatnonzero(_counted(shards, i, found)), f)
    np.add.at(conf, (EXTRA, called[extra]), 1)
    return conf


def _counted(shards, i: int, samples: np.ndarray) -> np.ndarray:
    """True for samples behind the learning time and outside of ventricular flutter."""
    keep = samples >= LEARNING_S * shards.fs
    for first, last in shards.records[i].get("flutter", []):
        keep &= (samples < first) | (samples > last)
    return keep
