# SPDX-License-Identifier: Apache-2.0
"""How well the R-peak detector finds beats: Se and +P on MIT-BIH, distance from the annotated R on LUDB.

MIT-BIH: every record but the paced ones, lead MLII, from 5:00 to the end, ventricular flutter left out as bxb does, one
detection per beat within 150 ms. LUDB: lead II and its own annotations, from the first annotated beat to the last. The
positions compared are those at the front end's output; nothing is revised after a beat is decided, so a late beat or a
beat that the detector would rather take back counts as it was reported.
"""

from __future__ import annotations

import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say

NEAR_MS = 40


def filtered(dataset: str, folder, lead: str, spec: dict, skip=()) -> list[tuple]:
    """[(record, int16 (n,) lead behind the front end), ...] of every record that is not in `skip`."""
    from train import frontend, records
    entries = [e for e in records.catalog(dataset, folder) if e.name not in skip]
    found = []
    with say.progress(f"reading {dataset}", len(entries)) as advance:
        for entry in entries:
            found.append(records.read(dataset, entry))
            advance(1)
    signals = frontend.filter_records(spec, [r.pick((lead,)) for r in found], found[0].fs)
    return [(record, x[0]) for record, x in zip(found, signals, strict=True)]


def counted(samples, marks, at, fs: int):
    """True for samples from 5:00 on and outside of ventricular flutter, `[` to `]` among the marks placed at `at`."""
    from bench import beats
    keep = samples >= beats.LEARNING_S * fs
    begin = None
    for symbol, sample in zip(marks.symbol, at, strict=True):
        if symbol == "[":
            begin = sample
        elif symbol == "]" and begin is not None:
            keep &= (samples < begin) | (samples > sample)
    return keep


def mitdb(folder, spec: dict) -> dict:
    """Print and return beats found, missed and extra, per record and gross."""
    import numpy as np

    from bench import beats
    from train import frontend, rpeak, tasks
    fs, rows = spec["fs"], []
    for record, x in filtered("mitdb", folder, "MLII", spec, tasks.PACED):
        marks = record.annotations["atr"]
        at = frontend.to_output(spec, marks.sample, record.fs)
        annotated = at[np.isin(marks.symbol, list(tasks.AAMI)) & counted(at, marks, at, fs)]
        found = rpeak.detect(x, fs)
        found = found[counted(found, marks, at, fs)]
        hit = len(beats.match(annotated, found, beats.TOLERANCE_S * fs)[0])
        rows.append((record.name, len(annotated), len(annotated) - hit, len(found) - hit))
    say.table([(*row, 1 - row[2] / row[1], (row[1] - row[2]) / (row[1] - row[2] + row[3])) for row in rows],
              ("record", "beats", "missed", "extra", "Se", "+P"))
    n, missed, extra = np.sum([row[1:] for row in rows], axis=0).tolist()
    result = {"records": len(rows), "beats": n, "missed": missed, "extra": extra,
              "se": round(1 - missed / n, 5), "ppv": round((n - missed) / (n - missed + extra), 5),
              "per_record": [dict(zip(("record", "beats", "missed", "extra"), row, strict=True)) for row in rows]}
    say.info(f"MIT-BIH, {len(rows)} records: {n} beats, {missed} missed, {extra} extra: "
             f"Se {100 * result['se']:.2f} %, +P {100 * result['ppv']:.2f} %")
    return result


def ludb(folder, spec: dict) -> dict:
    """Print and return how far from the annotated R beats are reported, and how long after it they are decided."""
    import numpy as np

    from bench import beats
    from train import frontend, rpeak
    fs, distance, beats_n, extra, waits = spec["fs"], [], 0, 0, []
    tolerance = beats.TOLERANCE_S * fs
    for record, x in filtered("ludb", folder, "II", spec):
        marks = record.annotations["II"]
        annotated = frontend.to_output(spec, marks.sample[np.array(marks.symbol) == "N"], record.fs)
        found, wait = decided(x, fs)
        inside = (found >= annotated[0] - tolerance) & (found <= annotated[-1] + tolerance)
        a, f = beats.match(annotated, found[inside], tolerance)
        distance += (found[inside][f] - annotated[a]).tolist()
        beats_n, extra, waits = beats_n + len(annotated), extra + int(inside.sum()) - len(f), waits + wait
    ms = np.abs(distance) * 1000 / fs
    result = {"beats": beats_n, "found": len(ms), "extra": extra,
              f"within_{NEAR_MS}_ms": round(float((ms <= NEAR_MS).sum()) / beats_n, 4),
              "distance_ms": {"median": float(np.median(ms)), "p95": float(np.percentile(ms, 95))},
              "decided_after_ms": {"median": float(np.median(waits)) * 1000 / fs, "max": max(waits) * 1000 / fs,
                                   "bound": rpeak.Detector(fs).latency * 1000 / fs}}
    say.info(f"LUDB, lead II: {beats_n} beats, {len(ms)} found, {extra} extra; R within {NEAR_MS} ms of "
             f"{100 * result[f'within_{NEAR_MS}_ms']:.1f} % of the beats, |error| median "
             f"{result['distance_ms']['median']:.0f} ms, 95 % {result['distance_ms']['p95']:.0f} ms; decided "
             f"{result['decided_after_ms']['max']:.0f} ms after R at the latest")
    return result


def decided(x, fs: int):
    """(R positions, samples from each R to its decision), the samples given one by one as a device would."""
    import numpy as np

    from train import rpeak
    detector, found, wait = rpeak.Detector(fs), [], []
    for n in range(len(x)):
        for r in detector.push(x[n:n + 1]):
            found.append(r)
            wait.append(n - r)
    return np.array(found, np.int64), wait


def main(args) -> dict:
    """Evaluate on the data sets that the folder holds."""
    from train import frontend
    spec = frontend.design(args.fs)
    folder = pathlib.Path(args.data) if args.data else None
    present = [(name, run) for name, run in (("mitdb", mitdb), ("ludb", ludb)) if folder and (folder / name).is_dir()]
    if not present:
        say.fail(f"{args.data or 'no folder'} holds neither mitdb nor ludb", "a folder with the data sets' folders",
                 "pass --data DIR or set LEADEDGE_DATA")
    return {"machine": say.machine(), "fs": args.fs, **{name: run(folder / name, spec) for name, run in present}}


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--data", default=os.environ.get("LEADEDGE_DATA"), help="folder that holds mitdb and ludb")
    p.add_argument("--fs", type=int, default=250, help="rate behind the front end, Hz (default 250)")
    return p


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
