# SPDX-License-Identifier: Apache-2.0
"""The training loop: AdamW, cosine with warm-up, class weights, averaged weights, early stopping, checkpoints.

Batches come from a dataset source and depend on (seed, epoch) only, so a checkpoint needs no random state. It is one
safetensors file: tensors named net.*, mean.*, best.* and adam.*, and the rest as JSON in the file's metadata.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train import metrics, runs, say, score
from train.say import UserError

CHECKPOINT = "checkpoint.safetensors"
EVERY = 2       # hops from one window to the next in training: neighbours share five sixths of their samples


@dataclass(frozen=True)
class Recipe:
    """How to train; what it does not name is in the source's augmentation."""

    epochs: int = 40
    batch: int = 32                 # records, or beats
    lr: float = 4e-3                # peak
    weight_decay: float = 0.02      # convolution and dense weights only
    warmup: int = 150               # steps, at most a tenth of all
    smoothing: float = 0.05         # of the labels, single-label tasks
    balance: float = 0.5            # class weight = (mean count / count) ** balance
    mean: float = 0.998             # decay of the averaged weights; they span a tenth of all steps at most
    clip: float = 1.0               # gradient norm
    slow: float = 0.3               # of the learning rate, for weights that start from pre-trained values
    patience: int = 8               # epochs without a better validation score before stopping; 0: never


@dataclass
class State:
    """Where training stands; `log` holds one dict per finished epoch."""

    epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    log: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Workers:
    """This process among those of torchrun; one alone is rank 0 of 1."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """True in the one process that validates, reports and writes."""
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The first process's values, in every process."""
        if self.world == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(told, 0)
        return told.tolist()


@contextlib.contextmanager
def workers(device: str = "auto"):
    """Join the processes torchrun started (gloo on CPU, nccl on GPUs), or work alone."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise say.MissingError(f"--device {device}, but PyTorch sees no GPU", "a CUDA build of PyTorch and a GPU",
                               "use --device cpu")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Workers(0, 1, device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Workers(int(os.environ["RANK"]), world, device)
    finally:
        torch.distributed.destroy_process_group()


class Voter(nn.Module):
    """A network as training sees it: logits (batch, window, class) of crops, (batch, class) of beats."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, ecg: Tensor, sides: tuple[Tensor, ...], crop: bool) -> Tensor:
        if not crop:
            return self.net(ecg, *sides)
        return self.net.vote(ecg, *(side[:, ::EVERY] for side in sides), every=EVERY)


def loss_of(logits: Tensor, target: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted cross-entropy, or binary cross-entropy whose positives weigh `weight` for multi-label targets."""
    if target.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    return F.cross_entropy(logits, target, weight, label_smoothing=smoothing)


class LabelLoss(nn.Module):
    """The loss of the labels: what training minimises when nothing else is asked for.

    An objective is called with the voter and a batch, runs the one on the other, and returns the loss. Parameters of
    its own are trained with the network's. A method `voter(network)` may make another voter than Voter.
    """

    def __init__(self, weight: Tensor, smoothing: float):
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weight", weight)

    def forward(self, voter: nn.Module, batch) -> Tensor:
        return self.of(voter(batch.ecg, batch.sides, batch.crop).float(), batch)

    def of(self, logits: Tensor, batch) -> Tensor:
        """The loss of logits that are there already; the windows of a crop vote by their mean."""
        return loss_of(logits.mean(1) if batch.crop else logits, batch.target, self.weight, self.smoothing)


def class_weights(counts: np.ndarray, power: float) -> Tensor:
    """(mean count / count) ** power; a class without cases weighs as one case would."""
    counts = np.maximum(counts, 1)
    return torch.tensor((counts.mean() / counts) ** power, dtype=torch.float32)


@torch.no_grad()
def predict(net: nn.Module, source, indices, device: str = "cpu", size: int = 64) -> np.ndarray:
    """Logits without augmentation, float32 (row, class) in the order of source.truth: per record the mean over its
    windows, or one row per beat."""
    net.eval()
    logits, places = [], []
    crop = source.geometry.trigger == "hop"
    for ecg, sides, rows in source.evaluation(indices, size):
        given = (ecg.to(device), *(side.to(device) for side in sides))
        out = net.vote(*given).mean(1) if crop else net(*given)
        logits.append(out.float().cpu().numpy())
        places += rows
    return np.concatenate(logits)[np.argsort(places)]


def quality(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over classes of the area under the ROC curve, class against rest.

    truth is (row,), -1 left out, or (row, class) for multi-label tasks. NaN when no class has cases and others.
    """
    if truth.ndim == 1:     # one class per row: what counts is how far its logit stands out
        logits, truth = logits[truth >= 0], truth[truth >= 0]
        logits, truth = logits - logits.mean(1, keepdims=True), truth[:, None] == np.arange(logits.shape[1])
    return float(score.mean(metrics.auroc(logits, truth)))


class Training:
    """One network being trained. `run` is the folder for its checkpoint, `job` what a resumed one must agree with.

    `objective` makes the loss of the labels into another one, see LabelLoss. `slow` names parameters that start from
    pre-trained values and learn at recipe.slow of the rate.
    """

    def __init__(self, net: nn.Module, source, train, validation, recipe: Recipe, run: Path, seed: int, job: dict,
                 crew: Workers, minutes: float | None = None,
                 objective: Callable[[LabelLoss], nn.Module] | None = None, slow: Collection[str] = ()):
        # kernels are (1, k): channels last takes a third off a training step on CPU
        self.net = net.to(crew.device, memory_format=torch.channels_last)
        self.source, self.train, self.validation = source, train, validation
        self.recipe, self.run, self.seed, self.job = recipe, Path(run), seed, {**job, "recipe": asdict(recipe)}
        self.crew, self.minutes, self.state = crew, minutes, State()
        self.mean = copy.deepcopy(self.net)     # averaged weights: what is validated and kept
        self.best = copy.deepcopy(self.net.state_dict())
        labels = LabelLoss(class_weights(source.counts(train), recipe.balance), recipe.smoothing)
        self.objective = (objective(labels) if objective else labels).to(crew.device)
        self.adam = torch.optim.AdamW(self._groups(slow), lr=recipe.lr)
        self.gpu = crew.device.startswith("cuda")
        self.voter = self._voter()

    def _groups(self, slow: Collection[str]) -> list[dict]:
        """All parameters by weight decay and by `share`, their part of the learning rate."""
        groups: dict[tuple[float, float], list] = {}
        for name, p in (*self.net.named_parameters(), *self.objective.named_parameters()):
            kind = self.recipe.weight_decay if p.dim() > 1 else 0.0, self.recipe.slow if name in slow else 1.0
            groups.setdefault(kind, []).append(p)
        return [{"params": params, "weight_decay": decay, "share": share} for (decay, share), params in groups.items()]

    def _voter(self) -> nn.Module:
        """The voter, compiled on a GPU, its gradients averaged over processes."""
        voter: nn.Module = getattr(self.objective, "voter", Voter)(self.net)
        if self.crew.world > 1:
            voter = nn.parallel.DistributedDataParallel(voter, [self.crew.device] if self.gpu else None)
        return torch.compile(voter, dynamic=True) if self.gpu else voter

    def fit(self, label: str = "training") -> dict[str, Tensor]:
        """Train to the end, from a loaded checkpoint if there was one, and return the weights to keep."""
        per_epoch = max(1, self.source.batches(self.train, self.recipe.batch) // self.crew.world)
        planned = self._planned()
        while self.state.epoch < planned and not self._stale():
            began = time.monotonic()
            title = f"{label}: epoch {self.state.epoch + 1} of {planned}"
            with say.progress(title, per_epoch) if self.crew.first else _silent() as advance:
                loss = self._epoch(planned, per_epoch, advance)
            self.state.epoch += 1
            self._validate(loss)
            self.state.elapsed_s += time.monotonic() - began
            if self.crew.first:
                self.save()
                self._report(label, planned)
            planned = self._planned()
        return self.best if self.state.best_epoch else self.mean.state_dict()

    def _planned(self) -> int:
        """Epochs in all: those asked for, or as many as fit into the minutes at the speed so far."""
        s = self.state
        planned = self.recipe.epochs
        if self.minutes is not None and s.epoch:
            left = max(0, int((self.minutes * 60 - s.elapsed_s) * s.epoch / s.elapsed_s))
            planned = min(planned, s.epoch + left)
        return int(self.crew.agree(planned)[0])

    def _stale(self) -> bool:
        return 0 < self.recipe.patience <= self.state.epoch - self.state.best_epoch

    def _rate(self, planned: int, per_epoch: int) -> float:
        """Learning rate of the next step: linear warm-up, then half a cosine down to nothing."""
        total = planned * per_epoch
        warm = max(1, min(self.recipe.warmup, total // 10))
        return self.recipe.lr * min(1.0, (self.state.step + 1) / warm) * (
            0.5 + 0.5 * math.cos(math.pi * min(1.0, self.state.step / total)))

    def _epoch(self, planned: int, per_epoch: int, advance) -> float:
        """One pass over the training records; returns the mean loss."""
        self.net.train()
        losses = []
        for batch in self.source.epoch(self.train, self.recipe.batch, self.seed, self.state.epoch, self.crew.rank,
                                       self.crew.world):
            batch = batch.to(self.crew.device)
            rate = self._rate(planned, per_epoch)
            for group in self.adam.param_groups:
                group["lr"] = rate * group["share"]
            with torch.autocast(self.crew.device.split(":")[0], torch.bfloat16, enabled=self.gpu):
                loss = self.objective(self.voter, batch)
            self.adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
            self.adam.step()
            self.state.step += 1
            self._average(planned * per_epoch)
            losses.append(loss.detach())
            advance(1)
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def _average(self, steps: int) -> None:
        decay = min(self.recipe.mean, 1 - min(1.0, 10 / steps), (1 + self.state.step) / (10 + self.state.step))
        for kept, now in zip(self.mean.state_dict().values(), self.net.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(now, 1 - decay)
            else:
                kept.copy_(now)

    def _validate(self, loss: float) -> None:
        """Score the averaged weights on the validation part and keep the best; without one, the last are kept."""
        s, value = self.state, math.nan
        if self.crew.first and self.validation:
            logits = predict(self.mean, self.source, self.validation, self.crew.device)
            value = quality(logits, self.source.truth(self.validation))
        value = self.crew.agree(value)[0]
        auroc = None if math.isnan(value) else round(value, 5)
        s.log.append({"epoch": s.epoch, "loss": round(loss, 5), "auroc": auroc})
        if value > s.best:
            s.best, s.best_epoch = value, s.epoch
            self.best = copy.deepcopy(self.mean.state_dict())

    def _report(self, label: str, planned: int) -> None:
        s = self.state
        last = s.log[-1]
        left = s.elapsed_s / s.epoch * (planned - s.epoch)
        seen = "" if last["auroc"] is None else f"  validation AUROC {last['auroc']:.4f}"
        say.info(f"{label}: epoch {s.epoch} of {planned}  loss {last['loss']:.4f}{seen}  {_clock(left)} left")

    def save(self) -> None:
        """Write the checkpoint, all or nothing."""
        from safetensors.torch import save
        s = self.state
        parts = {"net": self.net.state_dict(), "best": self.best, "mean": self.mean.state_dict(),
                 "objective": self.objective.state_dict()}
        tensors = {f"{name}.{k}": v.contiguous() for name, part in parts.items() for k, v in part.items()}
        for i, values in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v.contiguous() for k, v in values.items()}
        about = {"state": asdict(s) | {"best": None if s.best == -math.inf else s.best}, "job": self.job}
        tensors = {k: v.clone() for k, v in tensors.items()}    # safetensors refuses memory that two names share
        runs.write(self.run, {CHECKPOINT: save(tensors, metadata={"training": json.dumps(about)})})

    def load(self) -> bool:
        """Continue from the run's checkpoint if there is one; UserError when it belongs to another training."""
        from safetensors import SafetensorError, safe_open
        path = self.run / CHECKPOINT
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt", device=self.crew.device) as file:
                about = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no checkpoint: {error}", "a file written by train/fit.py",
                            "remove it and train again") from None
        odd = [key for key, value in self.job.items() if about["job"].get(key) != json.loads(json.dumps(value))]
        if odd:
            raise UserError(f"{path} belongs to a training with another {', '.join(odd)}", f"{self.job[odd[0]]!r}",
                            "repeat the first command with --resume, or pass another --run")
        self._restore(tensors, about["state"])
        return True

    def _restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        def part(name):
            return {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}
        self.net.load_state_dict(part("net"))
        self.mean.load_state_dict(part("mean"))
        self.objective.load_state_dict(part("objective"))
        self.best = part("best")
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam").items():
            i, key = name.split(".")
            adam.setdefault(int(i), {})[key] = value
        self.adam.load_state_dict(self.adam.state_dict() | {"state": adam})
        self.state = State(**state | {"best": -math.inf if state["best"] is None else state["best"]})


@contextlib.contextmanager
def _silent():
    yield lambda n=1, note="": None


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
