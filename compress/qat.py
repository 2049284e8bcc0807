# SPDX-License-Identifier: Apache-2.0
"""Quantize a trained run into the integer graph, with quantization-aware training; trains first when it has no weights.

    <run>/graph.json graph.npz   the integer graph
    <run>/golden.npz             development inputs (in.<name>) with the reference's logits (out)
    <run>/qat.json               what int8 cost, per class, with intervals
    <run>/model.json             the manifest, now with decision rule and the graph's hash; written last
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")      # the reference's products are small: a second thread only waits

from dataclasses import dataclass, replace

from train import manifest, runs, say
from train.say import UserError

EPOCHS = {"hop": 3, "r-peak": 4}
FIRST_LOOK = {"synthetic": 1}       # epochs of tasks whose figures are no goal
LR = {"hop": 5e-4, "r-peak": 5e-4}
BATCH = {"hop": 32, "r-peak": 256}
GOLDEN = {"hop": 256, "r-peak": 1024}       # windows; about half a megabyte


@dataclass
class Forms:
    """One network in three forms."""

    net: object
    post: object            # integer graph without training
    graph: object           # integer graph after training
    agreement: dict         # reference against converted program
    history: list


class Quantize:
    """One call of qat.py: the trained run, its data, and the files to write."""

    def __init__(self, run: str, data: str | None, epochs: int | None, seed: int):
        from train import dataset, fit, tasks
        from train.prepare import open_shards, prepare
        from train.sides import SIDES
        self.run, self.seed = pathlib.Path(run), seed
        self.draft, self.net = fit.load(run)
        self.task = tasks.find(self.draft.task)
        leads = ",".join(self.draft.waveform.leads)
        self.shards = open_shards(prepare(self.task, data, leads=leads))
        self.source = dataset.source(self.shards, self.task, self.net.geometry, self.net.sides)
        self.parts = dataset.split(self.shards, self.draft.provenance.get("fold", 0))
        kind = self.draft.trigger.kind
        self.epochs = epochs or FIRST_LOOK.get(self.task.name, EPOCHS[kind])
        self.lr, self.batch = LR[kind], BATCH[kind]
        self.scales = {i.name: i.lsb / 1000 if i.kind == "waveform" else SIDES[i.name].one for i in self.draft.inputs}
        self.classes = [c.name for c in self.draft.classes]

    def all(self) -> dict:
        """Quantize, fit the rule out of fold, score on the development test, write the run."""
        whole = sorted(self.parts["train"] + self.parts["validation"])
        folds = self._folds(whole)
        main = self._forms(self.net, whole if folds else self.parts["train"], "QAT")
        held = [self._out_of_fold(*fold) for fold in folds] or [self._logits(main, self.parts["validation"])]
        rules = self._rules(held)
        result = self._score(main, rules) | {"out_of_fold": self._fitted(held, rules)}
        result |= {"run": str(self.run), "agreement": main.agreement, "history": main.history,
                   "weight_bytes": main.graph.weight_bytes, "machine": say.machine(),
                   "seconds": round(sum(h["seconds"] for h in main.history), 1)}
        self._write(main.graph, rules["QAT int8"], result)
        a = main.agreement
        say.info(f"{main.graph.weight_bytes / 1000:.1f} kB of weights and tables; the reference differs from the "
                 f"converted program in {a['share']:.1e} of {a['codes']:,} codes, by {a['worst']} LSB at most")
        say.info(f"next: python targets/deploy.py --run {self.run} --target arm")
        return result

    def _folds(self, indices: list[int]) -> list[tuple[int, object, list[int], list[int]]]:
        """(number, network, records it was trained on, records held out) of each inner fold of the run."""
        from train import fit
        found = []
        for path in sorted((self.run / fit.FOLDER).glob("*.json")):
            held_names = set(json.loads(path.read_text())["records"])
            held = [i for i in indices if self.shards.records[i]["name"] in held_names]
            _, net = fit.load(self.run, f"{fit.FOLDER}/{path.stem}.safetensors")
            found.append((int(path.stem), net, [i for i in indices if i not in set(held)], held))
        return found

    def _out_of_fold(self, number: int, net, rest: list[int], held: list[int]) -> dict:
        return self._logits(self._forms(net, rest, f"QAT without fold {number}"), held)

    def _forms(self, net, indices: list[int], label: str) -> Forms:
        """Calibrate on training records, freeze, train, freeze again."""
        from compress import agree, evaluate, tune
        from compress.program import Program
        shapes = {i.name: i.shape for i in self.draft.inputs}
        program = Program(net, shapes, self.scales, self.draft.streaming)
        tune.calibrate(program, self.source, indices, self.batch, self.seed)
        _, post = program.convert()
        history = tune.tune(program, net, self.source, indices, self.epochs, self.batch, self.lr, self.seed, label)
        converted, graph = program.convert()
        rows = agree.compare(converted, graph, evaluate.sample(self.source, graph.inputs, indices, 64))
        return Forms(net, post, graph, agree.summary(rows), history)

    def _logits(self, forms: Forms, indices: list[int]) -> dict:
        """Logits of the three forms on records."""
        from compress import evaluate
        from compress.report import FORMS
        return dict(zip(FORMS, (evaluate.floating(forms.net, self.source, indices),
                                evaluate.integer(forms.post, self.source, indices, FORMS[1]),
                                evaluate.integer(forms.graph, self.source, indices, FORMS[2])), strict=True))

    def _rules(self, held: list[dict]) -> dict:
        """A decision rule per form, from the out-of-fold logits."""
        from compress.evaluate import Logits
        from compress.report import FORMS, fit_rule
        vote = 1 if self.draft.trigger.kind == "r-peak" else 0
        return {form: fit_rule(Logits.join([h[form] for h in held]), self.task.name, vote) for form in FORMS}

    def _fitted(self, held: list[dict], rules: dict) -> dict:
        """How the rules do on the records they were fitted on, per form; for choosing, never for reporting."""
        from compress import report
        from compress.evaluate import Logits
        say.info("out of fold, where the rules were fitted:")
        logits = {form: Logits.join([h[form] for h in held]) for form in rules}
        return {form: report.fitted(form, x, x.decided(rules[form]), self.classes, self.task.name)
                for form, x in logits.items()}

    def _score(self, main: Forms, rules: dict) -> dict:
        """The table on the development test; on the validation part when there are no test records."""
        from compress import report
        part = "test" if self.parts["test"] else "validation"
        say.info(f"{part} part, {len(self.parts[part])} records; rules fitted on records that were not trained on")
        logits = self._logits(main, self.parts[part])
        decided = {form: logits[form].decided(rules[form]) for form in report.FORMS}
        return {"part": part} | report.compare(decided, logits, self.classes, self.task.name)

    def _write(self, graph, rule, result: dict) -> None:
        """Graph, golden vectors, figures and manifest, all or nothing."""
        import hashlib

        import numpy as np

        from compress import evaluate, reference
        from compress.freeze import export_scales
        from compress.graph import dumps
        part = self.parts["validation"] or self.parts["train"]
        golden = evaluate.sample(self.source, graph.inputs, part, GOLDEN[self.draft.trigger.kind])
        export_scales(graph, {k: v[:64] for k, v in golden.items()})
        packed = io.BytesIO()
        np.savez(packed, **{f"in.{k}": v for k, v in golden.items()}, out=reference.run(graph, golden))
        document, arrays = dumps(graph)
        final = replace(self.draft, decision=rule, graph_sha256=hashlib.sha256(document + arrays).hexdigest(),
                        provenance=self.draft.provenance | {"qat_epochs": self.epochs, "qat_seed": self.seed})
        runs.write(self.run, {"graph.json": document, "graph.npz": arrays, "golden.npz": packed.getvalue(),
                              "qat.json": json.dumps(result, indent=1), "model.json": manifest.dumps(final)})


def ensure_trained(args) -> str:
    """The run folder, trained first when it has no weights; UserError when it holds another model than asked for."""
    from train import fit
    arch, preset, task = args.arch or "local-lead", args.preset or "small", args.task or "synthetic"
    run = args.run or f"runs/{pathlib.Path(arch).stem}-{preset}-{task}"
    if not (pathlib.Path(run) / fit.WEIGHTS).is_file():
        fit.fit(fit.Job(run=run, arch=arch, preset=preset, task=task, data=args.data, leads=args.leads,
                        seed=args.seed, resume=(pathlib.Path(run) / "checkpoint.safetensors").is_file()))
        return run
    held = manifest.load(run)
    for key, asked in (("arch", args.arch), ("preset", args.preset), ("task", args.task)):
        if asked is not None and asked != getattr(held, key):
            raise UserError(f"{run} holds a model with {key} {getattr(held, key)}, not {asked}",
                            f"--{key} {getattr(held, key)}", "pass another --run to train a new one")
    return run


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--arch", help="architecture, or path/to/file.py:Class (default: the run's, else local-lead)")
    p.add_argument("--run", help="run folder (default: runs/<arch>-<preset>-<task>)")
    p.add_argument("--preset", help="size: small, tiny or paper (default: the run's, else small)")
    p.add_argument("--task", help="see train/tasks.py (default: the run's, else synthetic)")
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--leads", help="leads of a new training, for example I,II")
    p.add_argument("--epochs", type=int, help=f"epochs of quantization-aware training (default: {EPOCHS})")
    p.add_argument("--seed", type=int, default=0, help="equal seeds give equal graphs")
    return p


def main(args) -> dict:
    """Train if need be, then quantize."""
    for package in ("torch", "torchao", "safetensors"):
        say.need(package, "compress")
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs {args.epochs}", "1 or more")
    return Quantize(ensure_trained(args), args.data, args.epochs, args.seed).all()


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
