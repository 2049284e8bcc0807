# SPDX-License-Identifier: Apache-2.0
"""How well a quantized run classifies records it was not trained on: by the reference, or by what a target built.

Rhythm tasks: per class Se, +P, F1 with 95 % intervals by record, mean F1, and F1 by duration. Tasks with several
classes a record: the same with AUROC and AUPRC, macro F-beta and G-beta, and the challenge score. mitbih has two tables
that are never mixed: beat-given (annotated R) and end-to-end (our detector, 150 ms, from 5:00, missed and extra beats
count). With --stream the records go as bytes through the bridge into the classifier first.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # the reference's products are small: a second thread only waits

from bench.records import held_out, opened
from train import say

DURATIONS_S = ((0, 29), (29, 31), (31, 1e9))


def runner(run: str, manifest, name: str):
    """run(inputs) -> logits of a target's build, or None for the reference."""
    if name == "reference":
        return None
    import targets
    from targets import target
    return functools.partial(targets.load(name).run, target.open_build(run, name, manifest))


def common(logits, source, classes: list[str]):
    """Rows whose true class the model knows by name, truth as the model numbers it."""
    import numpy as np
    names = [c.name for c in source.task.classes]
    place = np.array([classes.index(n) if n in classes else -1 for n in names])
    truth = place[logits.truth]
    if (truth < 0).all():
        say.fail(f"the model's classes {', '.join(classes)} share no name with {source.task.name}", ", ".join(names))
    if (truth < 0).any():
        say.info(f"{int((truth < 0).sum())} records of classes the model does not know are left out")
    return logits.where(truth >= 0, truth)


def diagnoses(manifest, logits, source, classes: list[str]) -> dict:
    """The tables of a task with several classes a record, whose classes must be the model's, in any order."""
    from compress import report_labels
    names = [c.name for c in source.task.classes]
    if set(names) != set(classes) or not manifest.multi_label:
        say.fail(f"the model tells {', '.join(classes)}; {source.task.name} has {', '.join(names)}, several a record",
                 "a model of the same classes", f"leave out --task, the run's is {manifest.task}")
    order = [names.index(name) for name in classes]
    logits = logits.where(slice(None), logits.truth[:, order])
    return report_labels.table({"int8": logits.decided(manifest.decision)}, {"int8": logits}, classes, source.task.name)


def rhythms(manifest, logits, source, classes: list[str]) -> dict:
    """The table of a task that labels whole records; where the classes have N and A, the AUROC of A against N."""
    import numpy as np

    from compress import report
    from train import metrics, score
    logits = common(logits, source, classes)
    decided = logits.decided(manifest.decision)
    result = report.table({"int8": decided}, logits, classes, source.task.name)
    if {"N", "A"} <= set(classes):
        n, a = classes.index("N"), classes.index("A")
        two = np.isin(logits.truth, (n, a))
        margin = (logits.sums[:, a] - logits.sums[:, n]) / logits.counts
        result["auroc_a_n"] = float(metrics.auroc(margin[two, None], logits.truth[two, None] == a)[0])
        say.info(f"AUROC of A against N {result['auroc_a_n']:.4f}, {int(two.sum())} records")
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
    manifest, graph, source = opened(args.run, args.data, args.task)
    parts = held_out(manifest, source)
    indices = parts["test"]
    classes = [c.name for c in manifest.classes]
    about = {"run": args.run, "target": args.target, "identity": manifest.identity.hex(), "machine": say.machine()}
    if args.stream:
        from bench import stream
        indices = named(source, indices, args.records)
        result = about | {"records": len(indices)} | stream.table(args, manifest, graph, source, indices, classes)
        if args.write:
            stream.keep(manifest.name, result)
        return result
    logits = evaluate.integer(graph, source, indices, args.target, runner(args.run, manifest, args.target))
    say.info(f"{manifest.name} {manifest.identity.hex()[:16]}, {args.target}, {len(indices)} test records "
             f"({manifest.provenance['split']})")
    if source.task.multi_label:
        result = diagnoses(manifest, logits, source, classes)
    elif manifest.trigger.kind == "hop":
        result = rhythms(manifest, logits, source, classes)
    else:
        from bench import beats
        apart = evaluate.integer(graph, source, parts["apart"], "apart") if parts["apart"] else None
        result = {"beat_given": beats.given(manifest, logits, apart, classes),
                  "end_to_end": beats.end_to_end(manifest, graph, source, indices, classes)}
    return about | {"records": len(indices)} | result


def named(source, indices: list[int], names: list[str] | None) -> list[int]:
    """Those of the records that are asked for."""
    place = {source.shards.records[i]["name"]: i for i in indices}
    return [place[say.choose(name, place, "test record")] for name in names or place]


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, help="a run that compress/qat.py quantized")
    p.add_argument("--data", help="folder with the task's data set (the synthetic task needs none)")
    p.add_argument("--task", help="judge on another task whose classes have the same names (default: the run's)")
    p.add_argument("--target", default="reference", help="reference, or a target the run was built for")
    p.add_argument("--stream", action="store_true", help="beats: through bytes, bridge and classifier (target host)")
    p.add_argument("--write", action="store_true", help="with --stream: keep the figures in bench/results")
    p.add_argument("--records", nargs="+", metavar="NAME", help="with --stream: only these of the test records")
    return p


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
