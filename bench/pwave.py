# SPDX-License-Identifier: Apache-2.0
"""How well P waves are found on LUDB: Se and +P of onset and peak within 40 ms of the cardiologists' marks, by lead.

R is the detector's, as on a device; marks and reports from the second annotated beat to the last. Se counts all
annotated P waves, blocked ones without a beat behind them as well. A record whose lead has no annotated P wave
(fibrillation, flutter, pacing) tells how often one is reported where there is none. The thresholds were chosen on
folds 1 to 4.
"""

from __future__ import annotations

import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say

NEAR_MS = 40
LEADS = ("I", "II", "V5")


def score(rows: list[dict]) -> dict:
    """Counts and errors of records added up."""
    import numpy as np
    total = {key: sum(row[key] for row in rows) for key in ("annotated", "reported", "peak", "onset", "beats_without",
                                                            "reported_without")}
    found = {"records": len(rows), **total}
    for mark in ("peak", "onset"):
        error = np.concatenate([row[f"{mark}_ms"] for row in rows]) if rows else np.zeros(0)
        found[mark] = {"se": share(total[mark], total["annotated"]), "ppv": share(total[mark], total["reported"]),
                       "bias_ms": float(np.median(error)) if len(error) else None,
                       "p90_ms": float(np.percentile(np.abs(error), 90)) if len(error) else None}
    found["false_share"] = share(total["reported_without"], total["beats_without"])
    return found


def share(part: int, whole: int) -> float | None:
    """A fraction, or None of nothing."""
    return round(part / whole, 4) if whole else None


def compare(record, lead: str, x, spec: dict) -> dict | None:
    """Marks of one record and lead against what is reported; None where fewer than three beats are annotated."""
    import numpy as np

    from bench import beats
    from train import frontend, pwave, rpeak
    fs, marks = spec["fs"], record.annotations[lead]
    symbol = np.array(marks.symbol)
    at = frontend.to_output(spec, marks.sample, record.fs)
    r, p = at[symbol == "N"], np.flatnonzero(symbol == "p")
    if len(r) < 3:
        return None
    found = rpeak.detect(x, fs)
    inside = (found > r[0] + beats.TOLERANCE_S * fs) & (found <= r[-1] + beats.TOLERANCE_S * fs)
    waves = pwave.delineate(x, found, fs)[inside]
    told = waves[waves["peak"] >= 0]
    kept = p[(at[p] > r[0]) & (at[p] < r[-1])]
    row = {"annotated": len(kept), "reported": len(told),
           "beats_without": 0 if len(p) else int(inside.sum()), "reported_without": 0 if len(p) else len(told)}
    for mark, truth in (("peak", at[kept]), ("onset", at[kept - 1])):
        a, f = beats.match(truth, told[mark], NEAR_MS * fs / 1000)
        row |= {mark: len(a), f"{mark}_ms": (told[mark][f] - truth[a]) * 1000 / fs}
    return row


def evaluate(folder, spec: dict) -> dict:
    """Print and return the scores: lead by lead, fold 0 and all folds."""
    from train import frontend, records
    entries = records.catalog("ludb", folder)
    with say.progress("reading ludb", len(entries)) as advance:
        found = []
        for entry in entries:
            found.append(records.read("ludb", entry))
            advance(1)
    signals = frontend.filter_records(spec, [record.pick(LEADS) for record in found], found[0].fs)
    result, table = {}, []
    for k, lead in enumerate(LEADS):
        rows = []
        for entry, record, x in zip(entries, found, signals, strict=True):
            row = compare(record, lead, x[k], spec)
            rows += [row | {"fold": entry.fold}] if row else []
        result[lead] = {"fold 0": score([r for r in rows if r["fold"] == 0]), "all": score(rows)}
        for part, s in result[lead].items():
            table.append((lead, part, s["annotated"], s["peak"]["se"], s["peak"]["ppv"], s["onset"]["se"],
                          s["onset"]["ppv"], s["peak"]["p90_ms"], s["onset"]["p90_ms"], s["beats_without"],
                          s["false_share"]))
    say.table(table, ("lead", "folds", "P waves", "peak Se", "+P", "onset Se", "+P", "peak p90 ms", "onset p90 ms",
                      "beats without", "P reported"))
    return result


def main(args) -> dict:
    """Evaluate on LUDB."""
    from train import frontend
    folder = pathlib.Path(args.data) if args.data else None
    if not folder or not (folder / "ludb").is_dir():
        say.fail(f"{args.data or 'no folder'} holds no ludb", "a folder with the data set's folder",
                 "pass --data DIR or set LEADEDGE_DATA")
    spec = frontend.design(args.fs)
    return {"machine": say.machine(), "fs": args.fs, "near_ms": NEAR_MS, "leads": evaluate(folder / "ludb", spec)}


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--data", default=os.environ.get("LEADEDGE_DATA"), help="folder that holds ludb")
    p.add_argument("--fs", type=int, default=250, help="rate behind the front end, Hz (default 250)")
    return p


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
