# SPDX-License-Identifier: Apache-2.0
"""Train a small network under one trained run or several: they show it their soft answers.

    <out>/                what train/fit.py writes
    <out>/distill.json    sizes, and accuracy of the teachers and the student
Teachers must be of one task, with equal classes, leads, fold and inner folds; the student takes over all of them. The
student of an inner fold learns from the teachers' networks of the same fold, which saw no more than it may see.
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from dataclasses import replace

from train import fit, manifest, runs, say
from train.say import UserError

MATCHES = ("attention", "features")     # see teacher.SHARES


class Wide:
    """A source whose training batches hold the teachers' side inputs too, behind the student's."""

    def __init__(self, own, wide):
        self._own, self.epoch = own, wide.epoch

    def __getattr__(self, name: str):
        return getattr(self._own, name)


class Distill(fit.Fit):
    """A training whose objective asks the runs `teachers`; `way` is a teacher.Way."""

    def __init__(self, job: fit.Job, crew, teachers: Sequence[str], way):
        from train import dataset
        super().__init__(job, crew)
        self.teachers, self.way = list(map(pathlib.Path, teachers)), way
        self.abouts = [manifest.load(run) for run in teachers]
        self._check_folds()
        taken = [side for run in self.teachers for side in fit.load(run)[1].sides]
        self.names = tuple(dict.fromkeys((*self.sides, *taken)))
        self.own = self.source
        if self.names != tuple(self.sides):
            self.source = Wide(self.own, dataset.source(self.shards, self.task, self.geometry, self.names))
        self.judged: dict[str, list] = {form: [] for form in (*self._titles(), "student")}

    def _titles(self) -> list[str]:
        return [f"teacher {n + 1}" if len(self.teachers) > 1 else "teacher" for n in range(len(self.teachers))]

    def _check_folds(self) -> None:
        """UserError when an inner fold of a teacher held out other records than the student's would."""
        from train.dataset import inner_folds
        if not self.folds:
            return
        wanted = [{self.shards.records[i]["name"] for i in held}
                  for held in inner_folds(self.shards, self.learners[0], self.folds)]
        for run in self.teachers:
            for k, names in enumerate(wanted):
                if set(json.loads((run / fit.FOLDER / f"{k}.json").read_text())["records"]) != names:
                    raise UserError(f"inner fold {k} of {run} held out other records", "the folds of this data set",
                                    "train the teacher again on this data")

    def _train(self, label: str, folder: pathlib.Path, train: list[int], validation: list[int]):
        """Train under the teachers' networks of the same part; keep what all say of the records held out."""
        from compress import judge
        part = f"{fit.FOLDER}/{folder.name}.safetensors" if folder != self.run else fit.WEIGHTS
        self.nets = [fit.load(run, part)[1] for run in self.teachers]
        weights, state = super()._train(label, folder, train, validation)
        held = validation or sorted({*self.learners[0]} - {*train})
        if held and self.crew.first:
            student = self.build()
            student.load_state_dict(weights)
            for form, net in zip(self.judged, (*self.nets, student), strict=True):
                self.judged[form].append(judge.logits(net, self._source(net), held, self.crew.device))
        return weights, state

    def _source(self, net):
        """The records as a network sees them by itself."""
        from train import dataset
        return dataset.source(self.shards, self.task, net.geometry, net.sides)

    def prepare(self, net, train: list[int]) -> dict:
        """What the student trains before the labels, from its own inputs."""
        return net.prepare(self.own, train, self.job.seed)

    def objective(self):
        """The teachers' answers beside the labels."""
        from compress.teacher import Distillation, Teacher
        student = self.build()
        teachers = [Teacher(net, student, [self.names.index(side) for side in net.sides]) for net in self.nets]
        return lambda labels: Distillation(labels, teachers, student, self.way)

    def manifest(self, record: dict) -> manifest.Manifest:
        """The draft manifest, with who taught and how."""
        draft = super().manifest(record)
        about = {"teachers": [about.name for about in self.abouts], "weight": self.way.weight,
                 "temperature": self.way.temperature, "match": list(self.way.match)}
        return replace(draft, provenance=draft.provenance | {"distilled": about})

    def _write(self, weights: dict, record: dict) -> None:
        from compress import judge
        from train.models.cost import cost
        nets = dict(zip(self.judged, (*self.nets, self.build()), strict=True))
        result = {"teachers": [about.name for about in self.abouts], "weight": self.way.weight,
                  "temperature": self.way.temperature, "match": list(self.way.match),
                  "size": judge.sizes({form: cost(net, len(self.shards.leads)) for form, net in nets.items()}),
                  "recipe": record["recipe"], "seconds": record["seconds"], "machine": say.machine()}
        if self.judged["student"]:
            say.info("out of fold, float:" if self.folds else "validation, float:")
            result |= {"part": "out of fold" if self.folds else "validation"} | judge.compared(
                self.judged, [c.name for c in self.task.classes], self.task.name)
        runs.write(self.run, {"distill.json": json.dumps(result, indent=1)})
        super()._write(weights, record)

    def _report(self, weights: dict, validation: list[int]) -> None:
        say.info(f"{self.run} is trained. Next: python compress/qat.py --run {self.run}")


def agreed(teachers: Sequence[str]) -> manifest.Manifest:
    """The first teacher's manifest; UserError where another one differs in what the student takes over."""
    from compress.prune import inner_folds

    def told(run) -> dict:
        m = manifest.load(run)
        return {"task": m.task, "classes": [c.name for c in m.classes], "leads": list(m.waveform.leads), "rate": m.fs,
                "fold": m.provenance.get("fold", 0), "split": m.provenance.get("split"),
                "number of inner folds": inner_folds(run)}
    first = told(teachers[0])
    for run in teachers[1:]:
        for key, value in told(run).items():
            if value != first[key]:
                raise UserError(f"{run} has another {key} than {teachers[0]}: {value}", str(first[key]),
                                "teachers of one task, fold and set of leads")
    return manifest.load(teachers[0])


def distill(teachers: Sequence[str], out: str, arch: str, preset: str, way, data: str | None = None,
            epochs: int | None = None, seed: int = 0, device: str = "auto") -> dict:
    """Train `arch` `preset` under `teachers` as the teacher.Way `way` says, and write the run `out`."""
    from compress.prune import inner_folds
    from train.loop import workers
    about = agreed(teachers)
    job = fit.Job(run=out, arch=arch, preset=preset, task=about.task, data=data, leads=",".join(about.waveform.leads),
                  epochs=epochs, seed=seed, fold=about.provenance.get("fold", 0), folds=inner_folds(teachers[0]),
                  device=device)
    fit.check_folder(job)
    with workers(device) as crew:
        return Distill(job, crew, teachers, way).all()


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--teacher", required=True, action="append", help="trained run; several times for an ensemble")
    p.add_argument("--out", required=True, help="run folder to write")
    p.add_argument("--arch", default=fit.Job.arch, help="architecture of the student")
    p.add_argument("--preset", default="tiny", help="its size")
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--epochs", type=say.positive(int), help="passes over the training records (default: the recipe's)")
    p.add_argument("--seed", type=int, default=0, help="equal seeds give equal weights")
    p.add_argument("--weight", type=say.share, default=0.7, help="share of the teachers in the loss")
    p.add_argument("--temperature", type=say.positive(float), default=2.0, help="of the soft answers")
    p.add_argument("--match", default="", help=f"what else is to be alike, of {','.join(MATCHES)}")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return p


def main(args) -> dict:
    """Distil as the command line says."""
    for package in ("torch", "safetensors"):
        say.need(package, "compress")
    from compress.teacher import Way
    match = tuple(say.choose(word, MATCHES, "match") for word in args.match.split(",") if word)
    return distill(args.teacher, args.out, args.arch, args.preset, Way(args.weight, args.temperature, match), args.data,
                   args.epochs, args.seed, args.device)


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
