# SPDX-License-Identifier: Apache-2.0
"""Pre-train a network on recordings without their labels, as a masked autoencoder (train/masking.py).

    python train/pretrain.py --data-sets cinc2017,mitbih --data DIR --run R        DIR/<data set>, or NAME=DIR,NAME=DIR
    python train/fit.py --arch nat --preset tiny --task cinc2017 --data DIR --init R --run R2

    <run>/weights.safetensors    averaged weights of the layers that were pre-trained, without the decoder
    <run>/pretraining.json       data sets, what was kept out of them, recipe, loss of each epoch, seconds
A crop is one window of one lead, drawn at random, or of all of --leads. Data sets are mixed in proportion to the square
root of their hours of signal, leads counted; records of a set in proportion to their length. It sees the training and
validation parts of each data set for the fold, and no sample of any test part, DS2, 202, or PTB-XL's folds 9 and 10;
records that two data sets share are judged by both. While it trains, checkpoint.safetensors is replaced after each
epoch; --resume goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from dataclasses import asdict, dataclass, replace

from train import runs, say
from train.say import fail
from train.weights import PRETRAINING, WEIGHTS, packed

SETS = "cinc2017,mitbih,ptbxl,cinc2021,ludb"
CROPS = 6400            # of an epoch: records differ too much in length to speak of passes over them
PTBXL_IN_CINC = "HR"    # the CinC Challenges name record n of PTB-XL HR and five digits


@dataclass(frozen=True)
class Job:
    """What to pre-train. `leads` None: one lead a crop, any that a data set has."""

    run: str
    arch: str = "nat"
    preset: str = "tiny"
    data_sets: str = SETS
    data: str | None = None
    leads: str | None = None
    fold: int = 0
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = False


def recipe():
    """What a masked autoencoder trains with."""
    from train.loop import Recipe
    return Recipe(epochs=80, batch=64, lr=2e-3, weight_decay=0.05, warmup=300, patience=0)


# ---- what may be seen

def usable(shards, fold: int) -> list[int]:
    """Records that pre-training for `fold` may see: those that train or validate, but for doubles.

    PTB-XL's records are part of the CinC Challenges of 2020 and 2021 under other names. The Challenges' copies are left
    to PTB-XL itself, whose folds are kept there; a record of PTB-XL whose copy lies in the fold that a Challenge task
    would be tested on is left out too.
    """
    from train import dataset
    from train.records import sha1_fold
    parts = dataset.split(shards, fold)
    kept = sorted(parts["train"] + parts["validation"])
    if shards.task == "ptbxl":
        twins = {i: PTBXL_IN_CINC + shards.records[i]["name"][:5] for i in kept}
        return [i for i in kept if sha1_fold(twins[i]) != fold]
    if shards.task in ("cinc2020", "cinc2021"):
        return [i for i in kept if not shards.records[i]["name"].startswith(PTBXL_IN_CINC)]
    return kept


def folders(data: str | None, names: list[str]) -> dict[str, str | None]:
    """The folder of each data set: of NAME=DIR pairs, or the one inside a common folder called as task or data set."""
    from train import tasks
    pairs = dict(word.split("=", 1) for word in data.split(",")) if data and "=" in data else {}
    if unknown := sorted(set(pairs) - set(names)):
        fail(f"--data has a folder of {unknown[0]}", f"folders of {', '.join(names)}", "add it to --data-sets")
    found: dict[str, str | None] = {}
    for name in names:
        kind = tasks.find(name).dataset
        if kind == "synthetic":
            found[name] = None
            continue
        places = [pathlib.Path(pairs[name])] if name in pairs else [] if pairs or not data else [
            pathlib.Path(data) / kind, pathlib.Path(data) / name]
        there = [place for place in places if place.is_dir()]
        if not there:
            fail(f"no folder for data set {name}" + (f": {places[0]} is none" if places else ""),
                 f"--data DIR with a folder {kind} in it, or --data {name}=DIR,...",
                 "correct the folder, or leave the data set out of --data-sets")
        found[name] = str(there[0])
    return found


class Crops:
    """Windows without labels from several data sets: a source for loop.Training.

    `sets` are (shards, records to use) pairs. A batch's side input says which patches are hidden.
    """

    def __init__(self, sets, geometry, one_lead: bool, size: int = CROPS):
        import numpy as np

        from train import frontend
        from train.augment import Augment
        self.sets, self.geometry, self.one_lead, self.size = sets, geometry, one_lead, size
        self.settle = frontend.SETTLE_S * geometry.fs
        self.hours = [sum(shards.records[i]["length"] for i in kept) * (len(shards.leads) if one_lead else 1)
                      / geometry.fs / 3600 for shards, kept in sets]
        roots = np.sqrt(self.hours)
        self.shares = roots / roots.sum()
        lengths = [np.array([shards.records[i]["length"] for i in kept], float) for shards, kept in sets]
        self.chances = [length / length.sum() for length in lengths]
        # what tells recordings of one heart apart; noise would become part of what is to be guessed
        self.kinds = Augment(mains=0, wander=0, muscle=0, lead_loss=0)

    def counts(self, indices):
        """There are no classes."""
        import numpy as np
        return np.ones(1, np.int64)

    def batches(self, indices, size: int) -> int:
        """How many batches an epoch has."""
        return self.size // size

    def epoch(self, indices, size: int, seed: int, epoch: int, rank: int = 0, world: int = 1):
        """The batches of one epoch, drawn from (seed, epoch, rank) only."""
        import numpy as np
        import torch

        from train import dataset, frontend, masking
        from train.augment import augment
        rng = np.random.default_rng([seed, epoch, rank])
        for _ in range(self.batches(indices, size) // world):
            sets = rng.choice(len(self.sets), size, p=self.shares)
            x = augment(np.stack([self.crop(s, rng) for s in sets]), rng, self.kinds, self.geometry.fs)
            ecg = dataset.millivolt(frontend.quantize(x, dataset.UV_PER_LSB), dataset.UV_PER_LSB)
            hidden = torch.from_numpy(masking.draw(rng, size, x.shape[2]))
            yield dataset.Batch(ecg, (hidden,), torch.zeros(size, dtype=torch.long), False)

    def crop(self, number: int, rng):
        """int16 (lead, window) from one record of data set `number`, repeated where the record is shorter."""
        import numpy as np
        shards, kept = self.sets[number]
        x = shards.signal(kept[rng.choice(len(kept), p=self.chances[number])])
        if self.one_lead:
            x = x[[rng.integers(len(x))]]
        window = self.geometry.window
        x = np.tile(x, -(-window // x.shape[1]))[:, :max(window, x.shape[1])] if x.shape[1] < window else x
        last = x.shape[1] - window
        start = int(rng.integers(min(self.settle, last), last + 1))
        return x[:, start:start + window]


# ---- one call

class Pretraining:
    """One call of pretrain.py: the data sets, the training, the files."""

    def __init__(self, job: Job, crew):
        import torch

        from train import masking
        from train.leads import parse_map
        from train.models import build
        self.job, self.crew, self.run = job, crew, pathlib.Path(job.run)
        self.leads = parse_map(job.leads)[0] if job.leads else ()
        self.width = len(self.leads) or 1
        found = folders(job.data, [name.strip() for name in job.data_sets.split(",")])
        torch.manual_seed(job.seed)
        self.net = build(job.arch, job.preset, "pretraining", self.width, 1)
        self.backbone = masking.backbone(self.net, self.width)
        for name, p in self.net.named_parameters():
            p.requires_grad_(name in self.backbone)
        self.recipe = recipe() if job.epochs is None else replace(recipe(), epochs=job.epochs)
        sets = [self._shards(name, folder) for name, folder in found.items()]
        fs = self.net.geometry.fs
        if odd := [shards for shards in sets if shards.fs != fs]:
            fail(f"{odd[0].task} is prepared at {odd[0].fs} Hz, {job.arch} {job.preset} is for {fs} Hz",
                 "a preset for that rate", "use --preset small or tiny")
        self.source = Crops([(shards, usable(shards, job.fold)) for shards in sets], self.net.geometry, not self.leads)

    def _shards(self, name: str, folder: str | None):
        """Prepared records; under torchrun the first process prepares, the others wait for it."""
        from train.prepare import open_shards, prepare

        def ready():
            return open_shards(prepare(name, folder, leads=self.job.leads, skip_broken=True))
        shards = ready() if self.crew.first else None
        self.crew.agree(0)
        return ready() if shards is None else shards

    def all(self) -> dict:
        """Train, then write the run."""
        from train import masking
        from train.loop import Training
        about = {key: getattr(self.job, key) for key in ("arch", "preset", "data_sets", "leads", "seed", "fold")}
        training = Training(self.net, self.source, [], [], self.recipe, self.run, self.job.seed, about, self.crew,
                            self.job.minutes, lambda _: masking.Reconstruction(self.net, self.width))
        if self.job.resume and training.load():
            say.info(f"goes on behind epoch {training.state.epoch}")
        if self.crew.first:
            self._say_hello()
        weights = training.fit("pre-training")
        record = self.record(training.state)
        if self.crew.first:
            kept = {name: weights[name] for name in self.backbone}
            runs.write(self.run, {WEIGHTS: packed(kept), PRETRAINING: json.dumps(record, indent=1)})
            (self.run / "checkpoint.safetensors").unlink(missing_ok=True)
            say.info(f"{self.run} is pre-trained. Next: python train/fit.py --arch {self.job.arch} --preset "
                     f"{self.job.preset} --fold {self.job.fold} --init {self.run} --task ... --run ...")
        return {"run": str(self.run)} | {key: record[key] for key in ("epochs", "seconds", "loss")}

    def record(self, state) -> dict:
        """What pretraining.json says."""
        from train import masking, tasks
        losses = [entry["loss"] for entry in state.log]
        return {"arch": self.job.arch, "preset": self.job.preset, "leads": list(self.leads) or "one of any",
                "fold": self.job.fold, "seed": self.job.seed, "hidden": masking.RATIO, "patch": masking.PATCH,
                "data_sets": [{"task": shards.task, "source": tasks.find(shards.task).source, "records": len(kept),
                               "withheld": len(shards) - len(kept), "broken": len(shards.skipped),
                               "hours": round(hours, 2), "share": round(float(share), 4),
                               "names_sha256": digest(shards.records[i]["name"] for i in kept)}
                              for (shards, kept), hours, share in zip(self.source.sets, self.source.hours,
                                                                      self.source.shares, strict=True)],
                "tensors": self.backbone, "recipe": asdict(self.recipe), "crops_per_epoch": self.source.size,
                "epochs": state.epoch, "loss": [losses[0], losses[-1]], "losses": losses,
                "seconds": round(state.elapsed_s, 1), "machine": say.machine()}

    def _say_hello(self) -> None:
        count = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        say.info(f"{self.job.arch} {self.job.preset}: {count:,} parameters to pre-train on "
                 f"{' '.join(self.leads) or 'one lead'}, {self.source.size} crops of {self.net.geometry.window} samples"
                 f" an epoch, on {self.crew.device}")
        rows = [[shards.task, len(kept), len(shards) - len(kept), hours, float(share)] for (shards, kept), hours, share
                in zip(self.source.sets, self.source.hours, self.source.shares, strict=True)]
        say.table(rows, ("data set", "records", "withheld", "lead hours", "share"))


def digest(names) -> str:
    """SHA-256 of the sorted names, one a line."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def pretrain(job: Job) -> dict:
    """Pre-train `job` and write its run folder; returns {"run", "epochs", "seconds", "loss": [first, last]}."""
    from train.loop import workers
    run = pathlib.Path(job.run)
    if job.resume and (run / PRETRAINING).is_file():
        say.info(f"{run} is pre-trained already")
        return {"run": str(run)} | {key: json.loads((run / PRETRAINING).read_text())[key]
                                    for key in ("epochs", "seconds", "loss")}
    for name in (WEIGHTS, PRETRAINING, "checkpoint.safetensors"):
        if (run / name).exists() and not job.resume:
            fail(f"{run} already holds {name}", "a new folder, or --resume to go on",
                 "pass another --run, or remove the folder")
    with workers(job.device) as crew:
        return Pretraining(job, crew).all()


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--run", required=True, help="folder to write")
    p.add_argument("--arch", default=Job.arch, help="architecture, or path/to/file.py:Class")
    p.add_argument("--preset", default=Job.preset, help="size: small, tiny or paper")
    p.add_argument("--data-sets", default=Job.data_sets, help=f"tasks of train/tasks.py (default: {SETS})")
    p.add_argument("--data", help="folder with a folder for each data set, or NAME=DIR,NAME=DIR")
    p.add_argument("--leads", help="all of these in every crop (default: one lead, any that a data set has)")
    p.add_argument("--fold", type=int, default=Job.fold, help="fold kept for the test, never seen here")
    p.add_argument("--epochs", type=say.positive(int), help=f"of {CROPS} crops each (default: the recipe's)")
    p.add_argument("--minutes", type=say.positive(float), help="time budget; the schedule ends with it")
    p.add_argument("--seed", type=int, default=Job.seed, help="equal seeds give equal weights")
    p.add_argument("--device", default=Job.device, help="auto, cpu or cuda")
    p.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    return p


def main(args) -> dict:
    """Pre-train as the command line says."""
    return pretrain(Job(**{name: getattr(args, name) for name in Job.__dataclass_fields__}))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
