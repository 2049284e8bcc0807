# SPDX-License-Identifier: Apache-2.0
"""Is a tiny network better under a teacher than alone, and what does half the work cost? CinC 2017, tested on one fold.

    python bench/distill.py --data DIR --teacher RUN       every cell that has no result yet, then the tables
    python bench/distill.py                                the tables of the cells that are there
A cell is an arm and a seed: `alone` and `distilled` are the same network trained as long, `pruned` is the teacher at
half its multiply-accumulates, `teacher` the run itself. Offsets are fitted on validation records only. Differences are
of all seeds together, with a paired bootstrap interval by record. Each cell is one JSON file beside its run, so the
study goes on where it was stopped; it holds what every record was called, and stays with the records. The figures of
all of them are in bench/results/distill.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataclasses import asdict

from train import fit, runs, say

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "distill.json"
ARMS = ("teacher", "alone", "distilled", "pruned")
COMPARED = (("alone", "distilled"), ("teacher", "pruned"))
KEEP = 0.5
SAME = ("records", "truth", "epochs", "fold")       # what two cells that are compared must agree in


def make(args, arm: str, seed: int) -> str:
    """The run folder of a cell, trained if need be."""
    if arm == "teacher":
        return args.teacher
    run = str(args.runs / f"{arm}-{seed}")
    if (pathlib.Path(run) / "model.json").is_file():
        return run
    if arm == "pruned":
        from compress.prune import prune
        prune(args.teacher, run, KEEP, 8, args.data, args.tune, seed)
    elif arm == "distilled":
        from compress.distill import distill
        from compress.teacher import Way
        distill([args.teacher], run, args.arch, args.preset, Way(), args.data, args.epochs, seed)
    else:
        from train import manifest
        about = manifest.load(args.teacher)
        fit.fit(fit.Job(run=run, arch=args.arch, preset=args.preset, task=about.task, data=args.data, seed=seed,
                        leads=",".join(about.waveform.leads), epochs=args.epochs,
                        fold=about.provenance.get("fold", 0), resume=pathlib.Path(run).is_dir()))
    return run


def judged(args, arm: str, seed: int) -> dict:
    """One cell: the rule from the validation records, what it calls the test records."""
    import hashlib

    from compress import judge, report
    from train import dataset, tasks
    from train.loop import quality
    from train.models.cost import cost
    from train.prepare import open_shards, prepare
    run = make(args, arm, seed)
    about, net = fit.load(run)
    fold = about.provenance.get("fold", 0)
    shards = open_shards(prepare(tasks.find(about.task), args.data, leads=",".join(about.waveform.leads)))
    source = dataset.source(shards, tasks.find(about.task), net.geometry, net.sides)
    parts = dataset.split(shards, fold)
    rule = report.fit_rule(judge.logits(net, source, parts["validation"]), about.task, 0)
    found = judge.logits(net, source, parts["test"])
    training = json.loads((pathlib.Path(run) / fit.RECORD).read_text())
    return {"arm": arm, "seed": seed, "arch": about.arch, "preset": about.preset, "task": about.task, "fold": fold,
            "epochs": args.tune if arm == "pruned" else args.epochs, "classes": [c.name for c in about.classes],
            "records": hashlib.sha256(" ".join(found.unit.tolist()).encode()).hexdigest()[:12],
            "truth": _letters(found.truth), "called": _letters(found.decided(rule)),
            "auroc": quality(found.mean, found.truth), "offsets": list(rule.offsets),
            "cost": asdict(cost(net, len(about.waveform.leads))), "seconds": training["seconds"],
            "machine": say.machine()}


def _letters(numbers) -> str:
    """Class numbers as digits, one a record."""
    return "".join(str(int(n)) for n in numbers)


def cells(arms, seeds: int) -> list[tuple[str, int]]:
    """Every arm and seed; the teacher is one network."""
    return [(arm, seed) for seed in range(seeds) for arm in arms if arm != "teacher" or seed == 0]


def kept(folder: pathlib.Path) -> dict[str, list[dict]]:
    """The cells that are there, by arm."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        found.setdefault(cell["arm"], []).append(cell)
    return found


def confusions(parts: list[dict]):
    """int64 (record, truth, called) of an arm, all seeds together."""
    import numpy as np

    from train import score
    truth = np.array([int(c) for c in parts[0]["truth"]])
    classes = len(parts[0]["classes"])
    return sum(score.by_unit(truth, np.array([int(c) for c in part["called"]]), np.arange(len(truth)), classes)
               for part in parts)


def tables(found: dict[str, list[dict]]) -> dict:
    """Print and return what the results say."""
    import numpy as np

    from compress.report import mean_f1
    from train import score
    out: dict = {"arms": {}, "differences": {}}
    rows = []
    for arm in (a for a in ARMS if a in found):
        parts, conf = found[arm], confusions(found[arm])
        statistic = mean_f1(parts[0]["task"])
        value, (low, high) = float(statistic(conf.sum(0))), map(float, score.bootstrap(conf, statistic))
        f1 = [None if np.isnan(v) else float(v) for v in score.per_class(conf.sum(0)).f1]
        auroc = sum(p["auroc"] for p in parts) / len(parts)
        out["arms"][arm] = {"seeds": len(parts), "epochs": parts[0]["epochs"], "mean_f1": value,
                            "mean_f1_95": [low, high], "f1": f1, "auroc": auroc, "cost": parts[0]["cost"],
                            "seconds": [p["seconds"] for p in parts]}
        rows.append([arm, len(parts), f"{parts[0]['cost']['parameters']:,}", f"{parts[0]['cost']['macs'] / 1e6:.2f}",
                     *f1, value, f"{low:.3f}-{high:.3f}", auroc])
    if rows:
        classes = next(iter(found.values()))[0]["classes"]
        say.table(rows, ("arm", "seeds", "parameters", "MMAC", *classes, "mean F1", "95 %", "AUROC"))
    for base, other in COMPARED:
        if base in found and other in found:
            out["differences"][f"{other} - {base}"] = _difference(found, base, other)
    return out


def _difference(found: dict[str, list[dict]], base: str, other: str) -> dict:
    """Mean F1 of one arm against another on the same records."""
    from compress.report import mean_f1
    from train import score
    same = SAME[:2] if base == "teacher" else SAME      # the teacher trained for as long as it took
    odd = [key for key in same if len({part[key] for arm in (base, other) for part in found[arm]}) > 1]
    if odd:
        say.fail(f"cells of {base} and {other} differ in {', '.join(odd)}", "one study",
                 "remove the older *.json beside the runs")
    difference, low, high = map(float, score.paired(confusions(found[base]), confusions(found[other]),
                                                    mean_f1(found[base][0]["task"])))
    say.info(f"{other} against {base}: mean F1 {100 * difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]")
    return {"difference": difference, "difference_95": [low, high]}


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--data", help="folder with the CinC 2017 records; without it only the tables are printed")
    p.add_argument("--teacher", help="trained run that teaches, and is pruned")
    p.add_argument("--arch", default="local-lead", help="architecture of the student")
    p.add_argument("--preset", default="tiny", help="its size")
    p.add_argument("--arms", default=",".join(ARMS), help="which cells to make")
    p.add_argument("--seeds", type=say.positive(int), default=3, help="trainings of each arm")
    p.add_argument("--epochs", type=say.positive(int), default=10, help="of the student, alone and distilled")
    p.add_argument("--tune", type=say.positive(int), default=4, help="epochs of fine-tuning behind pruning")
    p.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "distill", help="where the run folders go")
    return p


def main(args) -> dict:
    """Make what is open, print the tables."""
    arms = [say.choose(arm, ARMS, "arm") for arm in args.arms.split(",")]
    if args.data is not None:
        if args.teacher is None:
            say.fail("--data without --teacher", "a trained run", "--teacher runs/cinc2017-small")
        for arm, seed in cells(arms, args.seeds):
            if not (args.runs / f"{arm}-{seed}.json").is_file():
                say.info(f"{arm}, seed {seed}")
                runs.write(args.runs, {f"{arm}-{seed}.json": json.dumps(judged(args, arm, seed), indent=1) + "\n"})
    found = tables(kept(args.runs))
    if not found["arms"]:
        say.fail(f"{args.runs} holds no cells", "cells made before, or records", "pass --data DIR --teacher RUN")
    if args.data is not None:
        runs.write(RESULT.parent, {RESULT.name: json.dumps(found | {"machine": say.machine()}, indent=1) + "\n"})
    return found


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
