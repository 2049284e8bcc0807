#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How well a quantized run classifies records it was not trained on: by the reference, or by what a target built.

Rhythm tasks: per class Se, +P, F1 with 95 % intervals by record, mean F1, and F1 by duration. mitbih has two tables
that are never mixed: beat-given (annotated R) and end-to-end (our detector, 150 ms, from 5:00, missed and extra beats
count).
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # the reference's products are small: a second thread only waits

from train import say

DURATIONS_S = ((0, 29), (29, 31), (31, 1e9))


def opened(run: str, data: str | None):
    """(manifest, graph, dataset source) of a quantized run and the data it is judged on."""
    from compress import evaluate
    from targets import target
    from train import dataset, tasks
    from train.prepare import open_shards, prepare
    manifest, graph = target.open_run(run)
    task = tasks.find(manifest.task)
    shards = open_shards(prepare(task, data, leads=",".join(manifest.waveform.leads)))
    if shards.frontend != manifest.frontend:
        say.fail(f"{run} was trained behind another front end than this release has", "the same constants",
                 "train it again, or use the release that trained it")
    where = evaluate.geometry(manifest, graph)
    return manifest, graph, dataset.source(shards, task, where, uv_per_lsb=round(manifest.waveform.lsb))


def runner(run: str, manifest, name: str):
    """run(inputs) -> logits of a target's build, or None for the reference."""
    if name == "reference":
        return None
    import targets
    from targets import target
    return functools.partial(targets.load(name).run, target.open_build(run, name, manifest))


def rhythms(manifest, logits, source, classes: list[str]) -> dict:
    """The table of a task that labels whole records."""
    import numpy as np

    from compress import report
    from train import score
    decided = logits.decided(manifest.decision)
    result = report.table({"int8": decided}, logits, classes, manifest.task)
    seconds = {r["name"]: r["duration_s"] for r in source.shards.records}
    duration = np.array([seconds[name] for name in logits.unit])
    rows = []
    for low, high in DURATIONS_S:
        inside = (duration >= low) & (duration < high)
        if inside.any():
            conf = score.confusion(logits.truth[inside], decided[inside], len(classes))
            f1 = score.per_class(conf).f1
            rows.append([f"{low}-{high:g} s" if high < 1e9 else f"over {low} s",
                         *(None if np.isnan(v) else float(v) for v in f1), int(inside.sum())])
    say.info("F1 by duration")
    say.table(rows, ("duration", *classes, "n"))
    return result | {"f1_by_duration": rows}


def main(args) -> dict:
    """Evaluate the part of the data that the run's training never saw."""
    from compress import evaluate
    manifest, graph, source = opened(args.run, args.data)
    from train import dataset
    parts = dataset.split(source.shards, manifest.provenance.get("fold", 0))
    indices = parts["test"]
    if not indices:
        say.fail(f"no test records of task {manifest.task} in {args.data}", "the records kept from training")
    classes = [c.name for c in manifest.classes]
    logits = evaluate.integer(graph, source, indices, args.target, runner(args.run, manifest, args.target))
    say.info(f"{manifest.name} {manifest.identity.hex()[:16]}, {args.target}, {len(indices)} test records "
             f"({manifest.provenance['split']})")
    if manifest.trigger.kind == "hop":
        result = rhythms(manifest, logits, source, classes)
    else:
        from bench import beats
        apart = evaluate.integer(graph, source, parts["apart"], "apart") if parts["apart"] else None
        result = {"beat_given": beats.given(manifest, logits, apart, classes),
                  "end_to_end": beats.end_to_end(manifest, graph, source, indices, classes)}
    return {"run": args.run, "target": args.target, "identity": manifest.identity.hex(), "records": len(indices),
            "machine": say.machine()} | result


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, help="a run that compress/qat.py quantized")
    p.add_argument("--data", help="folder with the task's data set (the synthetic task needs none)")
    p.add_argument("--target", default="reference", help="reference, or a target the run was built for")
    return p


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
