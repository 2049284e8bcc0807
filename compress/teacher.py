# SPDX-License-Identifier: Apache-2.0
"""Distillation as an objective of the training loop: one float teacher or several show a student their soft answers.

    loss = (1 - weight) * labels + weight * T^2 * KL(mean of softmax(teacher / T), softmax(student / T)) + matches
With several classes a record, sigmoid and binary cross-entropy take the place of softmax and KL. Hinton et al. 2015.

A teacher sees the same crop as the student. Where both decide on equally long stretches at equal hops, which all edge
presets do, the crop is mirrored at its ends by as much as the teacher's margins are wider, so that both decide on the
same samples, window by window; else their means over the windows of a crop are compared.

Matches, where windows pair, both independent of what the networks are made of:
- attention: how strong the columns are over time, the channels' mean square, scaled to length 1, is to be alike
  (Zagoruyko and Komodakis 2017, their activation-based maps). Softmax maps of two architectures do not correspond.
- features: a dense layer of its own, thrown away afterwards, predicts the teacher's pooled head features from the
  student's (Romero et al. 2015); both without mean and scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.loop import LabelLoss, Voter
from train.models.blocks import Head
from train.models.geometry import Geometry
from train.models.network import Network, WholeWindow
from train.say import UserError

SHARES = {"attention": 1.0, "features": 0.5}        # of the matches in the loss


@dataclass(frozen=True)
class Way:
    """How to learn from teachers."""

    weight: float = 0.7             # share of the teachers; the labels have the rest
    temperature: float = 2.0
    match: tuple[str, ...] = ()     # of SHARES


def pooling(net: nn.Module) -> nn.Linear:
    """The dense layer that reads the pooled columns; UserError for a network without the shared head."""
    head = next((m for m in net.modules() if isinstance(m, Head)), None)
    if head is None:
        raise UserError(f"{type(net).__name__} does not pool its columns in the shared head",
                        "an edge preset on both sides", "leave --match features out")
    return (head.hidden if head.squeeze is None else head.squeeze)[0]


class Watched(Voter):
    """A voter that returns (logits, columns, pooled head features or None) of the same evaluation."""

    @torch.compiler.disable
    def forward(self, ecg: Tensor, sides: tuple[Tensor, ...], crop: bool):
        kept: dict[str, Tensor] = {}
        plain = self.net.columns

        def columns(x: Tensor) -> Tensor:
            kept["columns"] = plain(x)
            return kept["columns"]
        with contextlib.ExitStack() as stack:
            self.net.columns = columns
            stack.callback(self.net.__dict__.pop, "columns")
            with contextlib.suppress(UserError):
                hook = pooling(self.net).register_forward_pre_hook(lambda _, args: kept.update(pooled=args[0]))
                stack.callback(hook.remove)
            logits = super().forward(ecg, sides, crop)
        return logits, kept["columns"], kept.get("pooled")


class Teacher:
    """A trained network that answers a student's batches. `places`: which of the batch's side inputs it takes."""

    def __init__(self, net: Network, student: Network, places: Sequence[int]):
        self.voter, self.places = Watched(net.eval().requires_grad_(False)), tuple(places)
        mine, other = net.geometry, student.geometry
        if mine.fs != other.fs or mine.trigger != other.trigger:
            raise UserError(f"a teacher at {mine.fs} Hz on {mine.trigger}, a student at {other.fs} Hz on "
                            f"{other.trigger}", "the same rate and trigger", "another --teacher")
        if mine.trigger == "r-peak" and (mine.window, mine.offset) != (other.window, other.offset):
            raise UserError(f"the teacher sees {mine.window} samples around a beat, the student {other.window}",
                            "equal beat windows", "another --teacher")
        self.paired = (mine.hop, _core(mine)) == (other.hop, _core(other))
        if self.places and not self.paired:
            raise UserError("the teacher takes side inputs, and its windows are not the student's",
                            "windows of equal length and hop", "another --teacher")
        self.left = mine.left * mine.stride - other.left * other.stride
        self.right = mine.window - other.window - self.left
        self.shortest = mine.window

    @torch.no_grad()
    def __call__(self, batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """(logits, columns, pooled features) of the student's crop, or of its beats."""
        self.voter.to(batch.ecg.device)
        sides = tuple(batch.sides[n] for n in self.places)
        ecg = batch.ecg
        if batch.crop:
            ecg = mirrored(ecg, self.left, self.right) if self.paired else _filled(ecg, self.shortest)
        logits, *rest = self.voter(ecg, sides, batch.crop)
        return logits.float(), *rest


def _core(g: Geometry) -> int:
    """Samples that a window decides on."""
    return g.columns * g.stride


def mirrored(ecg: Tensor, left: int, right: int) -> Tensor:
    """ecg (batch, 1, lead, time) with more samples at its ends, mirrored, or fewer where the number is negative."""
    ecg = F.pad(ecg, (max(left, 0), max(right, 0), 0, 0), mode="reflect")
    return ecg[..., max(-left, 0):ecg.shape[-1] - max(-right, 0)]


def _filled(ecg: Tensor, window: int) -> Tensor:
    """A crop that is too short for one window is repeated, as short records are."""
    times = -(-window // ecg.shape[-1])
    return ecg if times <= 1 else torch.cat([ecg] * times, -1)[..., :window]


class Distillation(nn.Module):
    """What a student of `teachers` minimises; see the module. `sides` of the batch's side inputs are the student's."""

    def __init__(self, labels: LabelLoss, teachers: Sequence[Teacher], student: Network, way: Way):
        super().__init__()
        self.labels, self.teachers, self.way, self.geometry = labels, tuple(teachers), way, student.geometry
        self.sides, self.paired = len(student.sides), all(t.paired for t in teachers)
        whole = [isinstance(net, WholeWindow) for net in (student, *(t.voter.net for t in teachers))]
        if way.match and (not self.paired or any(whole)):
            raise UserError(f"--match {','.join(way.match)} with windows that do not pair",
                            "edge presets on both sides", "leave --match out")
        self.hints = nn.ModuleList()
        if "features" in way.match:
            width = pooling(student).in_features
            self.hints.extend(nn.Linear(width, pooling(t.voter.net).in_features) for t in teachers)

    def voter(self, net: Network) -> Voter:
        """The student's voter: one that shows its inside where that is matched."""
        return Watched(net) if self.way.match else Voter(net)

    def forward(self, voter: nn.Module, batch) -> Tensor:
        told = [teacher(batch) for teacher in self.teachers]
        out = voter(batch.ecg, batch.sides[:self.sides], batch.crop)
        logits, columns, pooled = out if self.way.match else (out, None, None)
        logits = logits.float()
        loss = (1 - self.way.weight) * self.labels.of(logits, batch) + self.way.weight * self._soft(logits, told, batch)
        if "attention" in self.way.match:
            maps = [_map(t[1], teacher.voter.net.geometry) for teacher, t in zip(self.teachers, told, strict=True)]
            own = _map(columns, self.geometry)
            loss = loss + SHARES["attention"] * sum(_unlike(own, m) for m in maps) / len(maps)
        for hint, (_, _, wanted) in zip(self.hints, told, strict=bool(self.hints)):
            loss = loss + SHARES["features"] / len(told) * _missed(hint, pooled, wanted)
        return loss

    def _soft(self, logits: Tensor, told: Sequence, batch) -> Tensor:
        """How far the student's softened answers are from the teachers' mean."""
        wanted = [t[0] for t in told]
        if batch.crop and not self.paired:
            logits, wanted = logits.mean(1), [w.mean(1) for w in wanted]
        t = self.way.temperature
        if batch.target.is_floating_point():        # several classes a record
            soft = torch.stack([(w / t).sigmoid() for w in wanted]).mean(0)
            return t * t * F.binary_cross_entropy_with_logits(logits / t, soft)
        soft = torch.stack([(w / t).softmax(-1) for w in wanted]).mean(0).flatten(0, -2)
        return t * t * F.kl_div((logits / t).log_softmax(-1).flatten(0, -2), soft, reduction="batchmean")


def _map(columns: Tensor, g: Geometry) -> Tensor:
    """Strength over time of the finished columns: (batch, channel, lead, column) -> (batch, column)."""
    return columns[..., g.left:columns.shape[-1] - g.right].float().square().mean((1, 2))


def _unlike(own: Tensor, other: Tensor) -> Tensor:
    """Squared distance of two maps at the coarser one's steps, each scaled to length 1."""
    steps = min(own.shape[1], other.shape[1])
    own, other = (F.normalize(F.adaptive_avg_pool1d(m[:, None], steps)[:, 0]) for m in (own, other))
    return (own - other).square().sum(1).mean()


def _missed(hint: nn.Linear, pooled: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of the predicted features; rows that the head hides in training do not count."""
    seen = pooled.abs().sum(1) > 0
    wanted = F.layer_norm(wanted.float(), wanted.shape[1:])
    guess = F.layer_norm(hint(pooled.float()), wanted.shape[1:])
    return ((guess - wanted).square().mean(1) * seen).sum() / seen.sum().clamp(min=1)
