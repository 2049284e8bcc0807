# SPDX-License-Identifier: Apache-2.0
"""Prune a trained run: whole channels and attention heads go until a share of the work is left, then it is fine-tuned.

    <out>/                what train/fit.py writes, with smaller layers; inner folds are pruned to the same widths
    <out>/prune.json      sizes, and accuracy before, after pruning and after fine-tuning
The unpruned network is the teacher of the fine-tuning. Accuracy is of the validation records, or out of fold where the
run has inner folds; what is pruned, and how, sees training records only.
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from dataclasses import asdict, replace

from train import fit, manifest, runs, say
from train.say import UserError
from train.weights import packed

EPOCHS = 0.3        # of the recipe's, for fine-tuning
RATE = 0.25         # of the recipe's learning rate
BATCHES = 12        # of training records, from which importance is estimated
FORMS = ("before", "pruned", "fine-tuned")


class Prune(fit.Fit):
    """Fine-tuning of a pruned network: a training whose first weights are cut from those of the run `origin`."""

    def __init__(self, job: fit.Job, crew, origin: str, keep: float, multiple: int):
        super().__init__(job, crew)
        self.origin, self.keep, self.multiple = pathlib.Path(origin), keep, multiple
        self.build = lambda: fit.load(self.origin)[1]       # the run itself may be a pruned one
        epochs = job.epochs or max(1, round(EPOCHS * self.recipe.epochs))
        self.recipe = replace(self.recipe, epochs=epochs, lr=RATE * self.recipe.lr)
        self.gone: list[int] | None = None                  # units that each family loses, as found for the first
        self.costs: dict = {}
        self.judged: dict[str, list] = {form: [] for form in FORMS}

    def _train(self, label: str, folder: pathlib.Path, train: list[int], validation: list[int]):
        """Prune the run's network of this part, train it, and keep what all three say of the records held out."""
        from compress import judge
        part = f"{fit.FOLDER}/{folder.name}.safetensors" if folder != self.run else fit.WEIGHTS
        self.whole = fit.load(self.origin, part)[1]
        self.small = self._pruned(train)
        weights, state = super()._train(label, folder, train, validation)
        tuned = self.network()
        tuned.load_state_dict(weights)
        held = validation or sorted({*self.learners[0]} - {*train})
        if held and self.crew.first:
            for form, net in zip(FORMS, (self.whole, self.small, tuned), strict=True):
                self.judged[form].append(judge.logits(net, self.source, held, self.crew.device))
        return weights, state

    def _pruned(self, train: list[int]):
        """The part's network without its least important units; every part loses as many as the first."""
        from itertools import islice

        from compress import cut
        from compress.channels import families
        from train.loop import LabelLoss, class_weights
        from train.models import cost, resized
        leads = len(self.shards.leads)
        found = families(self.whole, leads)
        labels = LabelLoss(class_weights(self.source.counts(train), self.recipe.balance), self.recipe.smoothing)
        batches = self.source.epoch(train, self.recipe.batch, self.job.seed, 0, train=False)
        worth = cut.importance(self.whole, found, labels, islice(batches, BATCHES))
        if self.gone is None:
            self.gone = cut.plan(found, worth, cut.Budget(self.whole, found, leads), self.keep, self.multiple)
        small = cut.cut(self.whole, found, worth, self.gone)
        resized.evaluates(small, leads)
        if not self.costs:
            self.costs = {"before": cost.cost(self.whole, leads), "pruned": cost.cost(small, leads)}
            self._tell(found)
        return small

    def _tell(self, found) -> None:
        from compress import judge
        if self.crew.first:
            for family, gone in zip(found, self.gone, strict=True):
                if gone:
                    count, what = len(family.units), "heads" if family.whole else "channels"
                    each = 1 if family.whole else family.width
                    say.info(f"{family.sides[0].name}: {count * each} -> {(count - gone) * each} {what}")
            judge.sizes(self.costs)

    def network(self):
        """The pruned network of this part."""
        import copy
        return copy.deepcopy(self.small)

    def prepare(self, net, train: list[int]) -> dict:
        """Nothing: what comes before the labels was trained with the run."""
        return {}

    def objective(self):
        """The unpruned network's answers beside the labels."""
        from compress.teacher import Distillation, Teacher, Way
        teacher = Teacher(self.whole, self.small, range(len(self.sides)))
        return lambda labels: Distillation(labels, [teacher], self.small, Way())

    def manifest(self, record: dict) -> manifest.Manifest:
        """The draft manifest, with what was pruned."""
        draft = super().manifest(record)
        about = {"from": self.origin.resolve().name, "keep": self.keep, "round": self.multiple,
                 "macs": self.costs["pruned"].macs, "unpruned_macs": self.costs["before"].macs}
        return replace(draft, provenance=draft.provenance | {"pruned": about})

    def _packed(self, weights: dict) -> bytes:
        from train.models import resized
        return packed(weights, resized.heads(self.small))

    def _write(self, weights: dict, record: dict) -> None:
        from compress import judge
        result = {"from": self.origin.resolve().name, "keep": self.keep, "round": self.multiple,
                  "size": {name: asdict(c) for name, c in self.costs.items()}, "recipe": record["recipe"],
                  "seconds": record["seconds"], "machine": say.machine()}
        if self.judged[FORMS[0]]:
            say.info("out of fold, float:" if self.folds else "validation, float:")
            result |= {"part": "out of fold" if self.folds else "validation"} | judge.compared(
                self.judged, [c.name for c in self.task.classes], self.task.name)
        runs.write(self.run, {"prune.json": json.dumps(result, indent=1)})
        super()._write(weights, record)

    def _report(self, weights: dict, validation: list[int]) -> None:
        say.info(f"{self.run} is pruned. Next: python compress/qat.py --run {self.run}")

    def _result(self, record: dict) -> dict:
        return super()._result(record) | {"macs": self.costs["pruned"].macs if self.costs else None}


def inner_folds(run: str | pathlib.Path) -> int:
    """How many inner folds a run holds."""
    return len(list((pathlib.Path(run) / fit.FOLDER).glob("*.safetensors")))


def prune(origin: str, out: str, keep: float, multiple: int, data: str | None = None, epochs: int | None = None,
          seed: int = 0, device: str = "auto") -> dict:
    """Prune the run `origin` to `keep` of its multiply-accumulates, fine-tune it and write the run `out`."""
    from train.loop import workers
    about = manifest.load(origin)
    job = fit.Job(run=out, arch=about.arch, preset=about.preset, task=about.task, data=data,
                  leads=",".join(about.waveform.leads), epochs=epochs, seed=seed,
                  fold=about.provenance.get("fold", 0), folds=inner_folds(origin), device=device)
    fit.check_folder(job)
    with workers(device) as crew:
        return Prune(job, crew, origin, keep, multiple).all()


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, help="trained run to prune")
    p.add_argument("--out", required=True, help="run folder to write")
    p.add_argument("--keep", type=say.share, default=0.5, help="share of the multiply-accumulates to keep")
    p.add_argument("--round", type=int, default=8, choices=(1, 2, 4, 8, 16), help="widths become multiples of this")
    p.add_argument("--epochs", type=say.positive(int), help="of fine-tuning (default: 0.3 of the recipe's)")
    p.add_argument("--data", help="folder with the data set (the synthetic task needs none)")
    p.add_argument("--seed", type=int, default=0, help="equal seeds give equal weights")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return p


def main(args) -> dict:
    """Prune as the command line says."""
    for package in ("torch", "torch_pruning", "safetensors"):
        say.need(package, "compress")
    if args.keep == 1:
        raise UserError("--keep 1 removes nothing", "a share below 1, for example 0.5")
    return prune(args.run, args.out, args.keep, args.round, args.data, args.epochs, args.seed, args.device)


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
