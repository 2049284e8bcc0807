# SPDX-License-Identifier: Apache-2.0
"""How far a network comes with few labels: from pre-trained weights against from scratch, on the same labels.

    python bench/labels.py --data DIR --init RUN           every cell that has no result yet, then the table
    python bench/labels.py                                 the table of the results that are there
A cell is a share of the labels, a seed and an arm. Arms of a share and a seed train on the same records for as many
steps, without validation, and are judged on the same test fold by argmax: nothing is fitted on the test. Each result is
one JSON file, so the study goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataclasses import replace

from train import runs, say

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "labels"
SCORED = ("N", "A", "O")        # the classes of the CinC 2017 score; noisy records train and are judged, but not scored
# From scratch, from pre-trained weights, and those with the contrastive term beside the loss of the labels.
ARMS = {"scratch": {}, "pretrained": {"init": True}, "contrastive": {"init": True, "supcon": 0.5}}
EPOCHS = 10                     # with all labels; labels.repeated says what that is with fewer


def name(share: float, seed: int, arm: str) -> str:
    """What a cell's files are called."""
    return f"{share:g}-{arm}-{seed}"


def cell(args, share: float, seed: int, arm: str) -> dict:
    """Train one cell, judge it on the test fold, and return its result."""
    import numpy as np

    from train import fit, loop, score
    ways = {"init": args.init if ARMS[arm].get("init") else None, "supcon": ARMS[arm].get("supcon")}
    run = pathlib.Path(args.runs) / name(share, seed, arm)
    job = fit.Job(str(run), args.arch, args.preset, "cinc2017", args.data, epochs=args.epochs, seed=seed, device="cpu",
                  labels=share, resume=True, **ways)
    with loop.workers("cpu") as crew:
        trained = fit.Fit(job, crew)
        trained.recipe = replace(trained.recipe, slow=args.slow)
        seconds = trained.all()["seconds"]
    about, net = fit.load(run)
    source, test = trained.source, trained.parts["test"]
    logits, truth = loop.predict(net, source, test), source.truth(test)
    known = truth >= 0
    names = [label.name for label in about.classes]
    conf = score.confusion(truth[known], logits[known].argmax(1), len(names))
    own = sorted(set(trained.learners[0]))
    return {"task": about.task, "arch": about.arch, "preset": about.preset, "fold": job.fold, "share": share,
            "seed": seed, "arm": arm, "labels": dict(zip(names, source.counts(own).tolist(), strict=True)),
            "epochs": job.epochs, "steps": job.epochs * source.batches(trained.learners[0], trained.recipe.batch),
            "test_records": int(known.sum()), "f1": dict(zip(names, score.per_class(conf).f1.tolist(), strict=True)),
            "mean_f1": float(score.f1_mean(conf, [names.index(c) for c in SCORED])),
            "auroc": loop.quality(logits, np.asarray(truth)), "seconds": seconds,
            "slow": args.slow if ways["init"] else None, "pretrained": about.provenance.get("pretrained"),
            "machine": say.machine()}


def table(results: list[dict]) -> list[dict]:
    """One row per share of the labels and arm: mean over seeds, lowest and highest, difference from scratch by seed."""
    found = {(r["share"], r["arm"], r["seed"]): r for r in results}
    rows = []
    for share, arm in sorted({(r["share"], r["arm"]) for r in results}, key=lambda k: (k[0], list(ARMS).index(k[1]))):
        mine = {seed: r for (s, a, seed), r in found.items() if (s, a) == (share, arm)}
        row = {"share": share, "arm": arm, "seeds": len(mine),
               "labels": round(_mean([sum(r["labels"].values()) for r in mine.values()])),
               "minutes": _mean([r["seconds"] for r in mine.values()]) / 60}
        for key in ("mean_f1", "auroc"):
            values = [r[key] for r in mine.values()]
            base = {seed: found[share, "scratch", seed][key] for seed in mine if (share, "scratch", seed) in found}
            gains = [mine[seed][key] - value for seed, value in base.items()] if arm != "scratch" else []
            row |= {key: _mean(values), key + "_range": [min(values), max(values)],
                    key + "_gain": _mean(gains) if gains else None,
                    key + "_gain_range": [min(gains), max(gains)] if gains else None}
        rows.append(row)
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def show(rows: list[dict]) -> None:
    """Print the table."""
    cells = [[f"{100 * r['share']:g} % {r['arm']}", r["labels"], r["seeds"], r["mean_f1"], _limits(r["mean_f1_range"]),
              r["mean_f1_gain"], _limits(r["mean_f1_gain_range"]), r["auroc"], _limits(r["auroc_range"]),
              r["auroc_gain"], r["minutes"]] for r in rows]
    say.table(cells, ("labels, arm", "records", "seeds", "F1", "range", "gain", "range", "AUROC", "range", "gain",
                      "minutes"))


def _limits(pair: list[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.3f}..{pair[1]:.3f}"


def main(args) -> dict:
    """Train the cells that are asked for and missing, then print the table of all results."""
    shares, seeds = [float(x) for x in args.shares.split(",")], [int(x) for x in args.seeds.split(",")]
    arms = [say.choose(arm, ARMS, "arm") for arm in args.arms.split(",")]
    plan = [(share, seed, arm) for seed in seeds for share in shares for arm in arms]
    out = pathlib.Path(args.out)
    missing = [key for key in plan if not (out / f"{name(*key)}.json").is_file()] if args.data else []
    if missing and not args.init and any(ARMS[arm].get("init") for _, _, arm in missing):
        say.fail("no pre-trained weights to compare with", "a run of train/pretrain.py", "pass --init RUN")
    for number, key in enumerate(missing):
        say.info(f"cell {number + 1} of {len(missing)}: {100 * key[0]:g} % of the labels, seed {key[1]}, {key[2]}")
        result = cell(args, *key)
        runs.write(out, {f"{name(*key)}.json": json.dumps(result, indent=1) + "\n"})
        say.info(f"mean F1 {result['mean_f1']:.4f}, AUROC {result['auroc']:.4f}, {result['steps']} steps in "
                 f"{result['seconds'] / 60:.2f} minutes")
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    if not found:
        say.fail(f"{out} holds no results", "cells that were trained before, or records to train on",
                 "pass --data DIR --init RUN")
    rows = table(found)
    show(rows)
    return {"rows": rows, "cells": len(found)}


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--data", help="folder of cinc2017; without it, only the table is printed")
    p.add_argument("--init", help="run of train/pretrain.py")
    p.add_argument("--shares", default="0.01,0.05,0.1,1", help="of the labels (default: 0.01,0.05,0.1,1)")
    p.add_argument("--seeds", default="0,1,2", help="draws of labels, first weights and batches (default: 0,1,2)")
    p.add_argument("--arms", default="scratch,pretrained", help=f"of {', '.join(ARMS)} (default: scratch,pretrained)")
    p.add_argument("--arch", default="nat", help="architecture")
    p.add_argument("--preset", default="tiny", help="its size")
    p.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes with all labels (default: {EPOCHS})")
    p.add_argument("--slow", type=float, default=0.3,
                   help="learning rate of pre-trained weights as a part of the others'; 0 trains the head alone")
    p.add_argument("--runs", default=str(ROOT / "runs" / "labels"), help="folder for the cells' run folders")
    p.add_argument("--out", default=str(RESULTS), help="folder for the results")
    return p


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
