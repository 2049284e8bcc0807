# SPDX-License-Identifier: Apache-2.0
"""Train a network in float: records in, a run folder out.

    <run>/weights.safetensors    averaged weights of the best epoch
    <run>/folds/<k>.safetensors  the same trained without inner fold k, for out-of-fold scores (beat tasks, or --folds)
    <run>/training.json          recipe, seconds, one entry per epoch
    <run>/model.json             the manifest, a draft until compress/qat.py froze it; written last
While it trains, checkpoint.safetensors is replaced after each epoch; --resume goes on from there. Under torchrun, each
process trains on its share of every epoch.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from dataclasses import asdict, dataclass, replace

from train import manifest, runs, say
from train.say import UserError
from train.weights import HEADS, WEIGHTS, packed, start

RECORD, FOLDER = "training.json", "folds"
INNER_FOLDS = 5         # of the training patients, for tasks with too few of them to spare a validation part


@dataclass(frozen=True)
class Job:
    """What to train. None means: as the task has it."""

    run: str
    arch: str = "local-lead"
    preset: str = "small"
    task: str = "synthetic"
    data: str | None = None
    leads: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    fold: int = 0
    folds: int | None = None
    device: str = "auto"
    resume: bool = False
    init: str | None = None         # a run of pretrain.py to start from
    labels: float | None = None     # share of the labels to train with, see labels.subset
    supcon: float | None = None     # first weight of the contrastive term, see contrast.py


def recipe(task):
    """The recipe of a task: beats are short, so a batch holds many; the synthetic task is a first look, not a goal."""
    from train.loop import Recipe
    if task.trigger == "r-peak":
        return Recipe(epochs=14, batch=256, mean=0.995)
    return Recipe(epochs=16) if task.name == "synthetic" else Recipe()


def fit(job: Job) -> dict:
    """Train `job` and write its run folder; returns {"run", "epochs", "seconds", "validation"}.

    UserError when the folder holds another run already, or the checkpoint to resume belongs to another job.
    """
    from train.loop import workers
    check_folder(job)
    with workers(job.device) as crew:
        return Fit(job, crew).all()


def check_folder(job: Job) -> None:
    """UserError when the folder to write holds a run already, unless that one is to go on."""
    run = pathlib.Path(job.run)
    if job.resume:
        return
    for name in (WEIGHTS, "model.json", "checkpoint.safetensors"):
        if (run / name).exists():
            raise UserError(f"{run} already holds {name}", "a new folder, or --resume to go on",
                            "pass another --run, or remove the folder")


class Fit:
    """One call of fit.py: the data, the parts of it, the trainings, the files."""

    def __init__(self, job: Job, crew):
        from train import dataset, tasks
        from train.leads import parse_map
        from train.models import build
        from train.sides import SIDES
        self.job, self.crew = job, crew
        self.run = pathlib.Path(job.run)
        self.task = tasks.find(job.task)
        self.rr = SIDES["rr"].shape[0] if self.task.trigger == "r-peak" else 0
        leads = len(parse_map(job.leads or self.task.leads)[0])
        self.build = lambda: build(job.arch, job.preset, self.task.name, leads, len(self.task.classes), self.rr)
        net = self.build()                          # a wrong name fails here, before records are prepared
        self.geometry, self.sides = net.geometry, net.sides
        self.shards = self._shards()
        self.source = dataset.source(self.shards, self.task, self.geometry, self.sides)
        self.parts = dataset.split(self.shards, job.fold)
        default = INNER_FOLDS if self.task.trigger == "r-peak" else 0
        self.folds = default if job.folds is None else job.folds
        self.learners = self._learners()
        self.recipe = replace(recipe(self.task), **net.RECIPE)
        self.pretrained: list[str] = []             # tensors that came from --init
        self.started: dict | None = None            # what is known of their training
        self.prepared: dict[str, dict] = {}         # figures of what was trained before the labels, by training
        if job.epochs is not None:
            self.recipe = replace(self.recipe, epochs=job.epochs)

    def network(self):
        """The network to train, with its first weights."""
        net = self.build()
        if self.job.init:
            self.pretrained, self.started = start(net, self.job.init, self.job.arch, self.job.preset, self.job.fold)
            if self.crew.first:
                say.info(f"{len(self.pretrained)} tensors of {len(net.state_dict())} start from {self.job.init}"
                         + f", {self.started['left']} of another shape are left out" * (self.started["left"] > 0))
        return net

    def prepare(self, net, train: list[int]) -> dict:
        """What the network trains before the labels; its figures."""
        return net.prepare(self.source, train, self.job.seed)

    def objective(self):
        """What to minimise instead of the labels' loss, see loop.LabelLoss; None: the labels' loss."""
        if self.job.supcon is None or self.task.multi_label:
            return None
        from train import contrast
        return contrast.objective(self.build(), self.job.supcon, self.steps)

    def _shards(self):
        """Prepared records; under torchrun the first process prepares, the others wait for it."""
        from train.prepare import open_shards, prepare

        def ready():
            return open_shards(prepare(self.task, self.job.data, leads=self.job.leads))
        shards = ready() if self.crew.first else None
        self.crew.agree(0)
        return ready() if shards is None else shards

    def all(self) -> dict:
        """Train the network and its inner folds, then write the run."""
        began = time.monotonic()
        if self.job.resume and (self.run / "model.json").is_file():
            say.info(f"{self.run} is trained already")
            return self._result(json.loads((self.run / RECORD).read_text()))
        train, validation = self.learners
        self._say_hello(train, validation)
        weights, state = self._train("training", self.run, train, validation)
        record = {"recipe": asdict(self.recipe), "log": state.log, "epochs": state.epoch,
                  "best_epoch": state.best_epoch,
                  "validation": state.best if validation else None, "folds": self._train_folds(train)}
        record |= {"prepared": self.prepared} if any(self.prepared.values()) else {}
        record["seconds"] = round(state.elapsed_s + sum(f["seconds"] for f in record["folds"]), 1)
        record["wall_seconds"] = round(time.monotonic() - began, 1)
        if self.crew.first:
            self._write(weights, record)
            self._report(weights, validation)
        return self._result(record)

    def _learners(self) -> tuple[list[int], list[int]]:
        """(records to train on, records to stop by)."""
        train, validation = self.parts["train"], self.parts["validation"]
        if self.job.labels is not None:
            from train import labels
            kept = labels.subset(self.source, train + validation, self.job.labels, self.job.seed)
            return labels.repeated(kept, self.job.labels), []
        # with inner folds every training record trains; out-of-fold scores take validation's place
        return (sorted(train + validation), []) if self.folds else (train, validation)

    def _train(self, label: str, folder: pathlib.Path, train: list[int], validation: list[int]):
        """(weights to keep, final state) of one network trained on `train`."""
        import torch

        from train.loop import Training
        torch.manual_seed(self.job.seed)
        about = {key: getattr(self.job, key) for key in ("arch", "preset", "task", "seed", "fold", "init", "labels",
                                                          "supcon")}
        about |= {"leads": list(self.shards.leads), "label": label, "records": len(train)}
        minutes = None if self.job.minutes is None else self.job.minutes / (1 + self.folds)
        net = self.network()
        self.steps = self.recipe.epochs * max(1, self.source.batches(train, self.recipe.batch) // self.crew.world)
        self.prepared[label] = self.prepare(net, train)
        training = Training(net, self.source, train, validation, self.recipe, folder, self.job.seed, about,
                            self.crew, minutes, self.objective(), self.pretrained)
        if self.job.resume and training.load():
            say.info(f"{label}: goes on behind epoch {training.state.epoch}")
        return training.fit(label), training.state

    def _train_folds(self, train: list[int]) -> list[dict]:
        """Train without each inner fold; every finished one stays on disk, so that a resumed run skips it."""
        from train.dataset import inner_folds
        if not self.folds:
            return []
        done = []
        for k, held in enumerate(inner_folds(self.shards, train, self.folds)):
            names = [self.shards.records[i]["name"] for i in held]
            kept = self.run / FOLDER / f"{k}.json"
            if not (self.job.resume and kept.is_file()):
                rest = [i for i in train if i not in set(held)]
                weights, state = self._train(f"without fold {k}", self.run / FOLDER / str(k), rest, [])
                facts = {"records": names, "seconds": round(state.elapsed_s, 1), "log": state.log}
                if self.crew.first:
                    runs.write(self.run / FOLDER, {f"{k}.safetensors": self._packed(weights),
                                                   kept.name: json.dumps(facts)})
                    _remove_checkpoint(self.run / FOLDER / str(k))
                self.crew.agree(0)
            done.append(json.loads(kept.read_text()))
        return done

    def _packed(self, weights: dict) -> bytes:
        return packed(weights)

    def _write(self, weights: dict, record: dict) -> None:
        draft = self.manifest(record)
        runs.write(self.run, {WEIGHTS: self._packed(weights), RECORD: json.dumps(record, indent=1),
                              "model.json": manifest.dumps(draft)})
        _remove_checkpoint(self.run)

    def manifest(self, record: dict) -> manifest.Manifest:
        """The draft manifest: everything but the decision rule and the graph."""
        from train.dataset import UV_PER_LSB
        from train.sides import SIDES
        g, leads = self.geometry, self.shards.leads
        inputs = [manifest.Input("ecg", "waveform", (len(leads), g.window), "uV", float(UV_PER_LSB), leads)]
        inputs += [manifest.Input(name, s.kind, s.shape, s.unit, s.lsb)
                   for name, s in ((name, SIDES[name]) for name in self.sides)]
        trigger = manifest.Trigger("hop", hop=g.hop) if g.trigger == "hop" else manifest.Trigger(
            "r-peak", offset=g.offset, beats_after=1)
        provenance = {"data": self.task.source, "split": self.task.rule, "fold": self.job.fold, "seed": self.job.seed,
                      "training_records": len({*self.learners[0], *self.learners[1]}),
                      "epochs": record["epochs"], "left_out": len(self.shards.skipped), "machine": say.machine()}
        provenance |= self._ways()
        return manifest.Manifest(
            self.run.resolve().name, self.job.arch, self.job.preset, self.task.name, tuple(self.task.classes),
            self.task.multi_label, self.shards.fs, g.window, tuple(inputs), trigger, g.streaming, self.shards.frontend,
            provenance=provenance)

    def _ways(self) -> dict:
        """What the manifest says of the start, the labels and the objective where they are not the usual ones."""
        ways = {key: getattr(self.job, key) for key in ("labels", "supcon") if getattr(self.job, key) is not None}
        if self.started:
            ways["pretrained"] = {key: self.started[key] for key in ("epochs", "seed", "sha256")} | {
                "tensors": len(self.pretrained), "data": [part["source"] for part in self.started["data_sets"]]}
        return ways

    def _say_hello(self, train: list[int], validation: list[int]) -> None:
        if not self.crew.first:
            return
        net = self.build()
        size = sum(p.numel() for p in net.parameters())
        own = sorted(set(train))        # with --labels, an epoch shows each several times
        counts = ", ".join(f"{label.name} {n}" for label, n in
                           zip(self.task.classes, self.source.counts(own), strict=True))
        say.info(f"{self.job.arch} {self.job.preset}: {size:,} parameters, window {self.geometry.window} samples at "
                 f"{self.shards.fs} Hz; {self.task.name}, leads {' '.join(self.shards.leads)}")
        say.info(f"{len(own)} records to train on ({counts}), {len(validation)} to stop by, on {self.crew.device}"
                 + (f", {self.crew.world} processes" if self.crew.world > 1 else ""))
        if self.job.supcon and self.task.multi_label:
            say.info(f"{self.task.name} may give a record several labels: the contrastive term is left out")

    def _report(self, weights: dict, validation: list[int]) -> None:
        """The validation table of the kept weights, and what to type next."""
        from train import metrics, score
        from train.loop import predict
        if validation:
            net = self.build()
            net.load_state_dict(weights)
            truth, names = self.source.truth(validation), [label.name for label in self.task.classes]
            logits = predict(net.to(self.crew.device), self.source, validation, self.crew.device)
            if self.task.multi_label:
                say.info("validation, float; decisions come from compress/qat.py, which fits thresholds:")
                say.table(metrics.rows(logits, truth, names), metrics.HEADER)
            else:
                known = truth >= 0
                tables = score.by_unit(truth[known], logits.argmax(1)[known], self.source.units(validation)[known],
                                       len(names))
                say.info("validation, float, argmax without offsets:")
                say.table(score.rows(tables, names), score.HEADER)
        paper = self.job.preset.startswith("paper")
        step = "compress/export_onnx.py" if paper else "compress/qat.py"
        then = f"{self.run} is trained. Next: python {step} --run {self.run}"
        if self.job.labels is not None:
            then = f"{self.run} is trained on {self.job.labels:g} of the labels; compress/qat.py would use all of them"
        say.info(then)

    def _result(self, record: dict) -> dict:
        return {"run": str(self.run), "epochs": record["epochs"], "seconds": record["seconds"],
                "validation": record["validation"]}


def load(run: str | pathlib.Path, weights: str = WEIGHTS):
    """(manifest, network in evaluation mode) of a run folder; `weights` may be folds/<k>.safetensors."""
    from safetensors import SafetensorError, safe_open

    from train.models import build
    from train.models.resized import resize
    about = manifest.load(run)
    rr = sum(i.shape[0] for i in about.inputs if i.name == "rr")
    net = build(about.arch, about.preset, about.task, len(about.waveform.leads), len(about.classes), rr)
    path = pathlib.Path(run) / weights
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            kept = json.loads((file.metadata() or {}).get(HEADS, "{}"))
        resize(net, tensors, kept, len(about.waveform.leads)).load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the weights of {about.arch} {about.preset}: {error}",
                        "a file written by train/fit.py", "train again into another --run") from None
    return about, net.eval()


def _remove_checkpoint(folder: pathlib.Path) -> None:
    """What is finished needs no checkpoint; an inner fold's folder goes with it."""
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    if folder.parent.name == FOLDER:
        folder.rmdir()


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, help="folder to write")
    p.add_argument("--arch", default=Job.arch, help="architecture, or path/to/file.py:Class")
    p.add_argument("--preset", default=Job.preset, help="size: small, tiny or paper")
    p.add_argument("--task", default=Job.task, help="see train/tasks.py")
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--leads", help="for example I,II or ch1=I,ch2=-II (default: the task's)")
    p.add_argument("--epochs", type=say.positive(int), help="passes over the training records (default: the recipe's)")
    p.add_argument("--minutes", type=say.positive(float), help="time budget; the schedule ends with it")
    p.add_argument("--seed", type=int, default=Job.seed, help="equal seeds give equal weights")
    p.add_argument("--fold", type=int, default=Job.fold, help="fold kept for the test, never seen here")
    p.add_argument("--folds", type=int, help=f"inner folds to train as well (default: {INNER_FOLDS} for beats)")
    p.add_argument("--device", default=Job.device, help="auto, cpu or cuda")
    p.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    p.add_argument("--init", help="run of train/pretrain.py to start from")
    p.add_argument("--labels", type=say.share, help="train with this share of the labels, without validation: 0.01")
    p.add_argument("--supcon", type=say.share, help="first weight of a contrastive term beside the labels' loss: 0.5")
    return p


def main(args) -> dict:
    """Train as the command line says."""
    return fit(Job(**{name: getattr(args, name) for name in Job.__dataclass_fields__}))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
