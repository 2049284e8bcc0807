# SPDX-License-Identifier: Apache-2.0
"""From shards to batches: who trains and who validates, crops of records, windows around beats, the int8 grid.

The network's input is what a device feeds it: int16 microvolts of the front end, quantized to int8, as millivolt:
ecg float32 (batch, 1, lead, time) = quantize(x) * uv_per_lsb / 1000. Side inputs are those of train/sides.py.
A source gives training batches (augmented, in an order drawn from (seed, epoch) only) and evaluation windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from train import frontend, sides
from train.augment import PLAIN, Augment, augment, jitter
from train.models.geometry import Geometry
from train.say import fail

UV_PER_LSB = 16         # +-2 mV in int8: an R wave of a wearable fits, a P wave of 50 uV still is 3 steps
VALIDATION_PERCENT = 12
BEAT_KINDS = Augment(gain=(0.5, 2.0), polarity=0.0)     # beats are told apart by shape, and their lead by name
DIAGNOSIS_KINDS = Augment(gain=(0.8, 1.25), polarity=0.0)   # voltages and Q waves are criteria


@dataclass(frozen=True)
class Batch:
    """`target` is int64 (batch,) or, multi-label, float32 (batch, class). With `crop` true, ecg holds several windows
    of each record, whose logits are averaged, and `sides` are (batch, window, *shape), one window a hop."""

    ecg: torch.Tensor
    sides: tuple[torch.Tensor, ...]
    target: torch.Tensor
    crop: bool

    def to(self, device) -> Batch:
        """The batch on another device."""
        sides = tuple(side.to(device, non_blocking=True) for side in self.sides)
        return replace(self, ecg=self.ecg.to(device, non_blocking=True), sides=sides,
                       target=self.target.to(device, non_blocking=True))


def hashed(text: str, modulus: int) -> int:
    """A number below `modulus` that depends on the text only."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % modulus


def split(shards, fold: int = 0) -> dict[str, list[int]]:
    """Record numbers by part: train, validation (VALIDATION_PERCENT of the training patients), test, apart.

    Validation patients are drawn by name, never from the fold tested on; at least one, and at least one stays.
    """
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": [], "apart": [], "excluded": []}
    for i, part in enumerate(shards.splits(fold)):
        parts[part].append(i)
    patients = sorted({shards.records[i]["patient"] for i in parts["train"]},
                      key=lambda p: hashed("validation " + p, 1 << 64))
    if len(patients) < 2:
        fail(f"{len(patients)} training patients in {shards.task}", "at least two: one to train on, one to stop by")
    held = set(patients[:max(1, len(patients) * VALIDATION_PERCENT // 100)])
    parts["validation"] = [i for i in parts["train"] if shards.records[i]["patient"] in held]
    parts["train"] = [i for i in parts["train"] if shards.records[i]["patient"] not in held]
    return parts


def inner_folds(shards, indices: Sequence[int], count: int) -> list[list[int]]:
    """Deal the patients of `indices` into `count` groups of alike size (beats, or records), for out-of-fold scores."""
    patients: dict[str, list[int]] = {}
    for i in indices:
        patients.setdefault(shards.records[i]["patient"], []).append(i)
    if len(patients) < count:
        fail(f"{len(patients)} patients for {count} inner folds", "a patient or more in each",
             f"--folds {len(patients)}")
    groups: list[list[int]] = [[] for _ in range(count)]
    for number, patient in enumerate(sorted(patients, key=lambda p: hashed("fold " + p, 1 << 64))):
        groups[number % count] += patients[patient]
    return [sorted(group) for group in groups]


def source(shards, task, geometry: Geometry, names: Sequence[str] = (), kinds: Augment | None = None,
           uv_per_lsb: int = UV_PER_LSB):
    """The batches of a task: beats for the trigger r-peak, else records. Default `kinds`: what the task allows.

    `names` are the side inputs that the network takes.
    """
    if shards.fs != geometry.fs:
        fail(f"shards at {shards.fs} Hz, a network for {geometry.fs} Hz", "the same rate",
             "python train/prepare.py with the network's rate")
    cls = Beats if geometry.trigger == "r-peak" else Records
    usual = BEAT_KINDS if cls is Beats else DIAGNOSIS_KINDS if task.multi_label else Augment()
    return cls(shards, task, geometry, names, usual if kinds is None else kinds, uv_per_lsb)


def millivolt(q: np.ndarray, uv_per_lsb: int) -> torch.Tensor:
    """int8 (batch, lead, time) -> the network's float32 (batch, 1, lead, time)."""
    return torch.from_numpy(q.astype(np.float32) * np.float32(uv_per_lsb / 1000))[:, None]


class _Source:
    """What both kinds share: where the shards are, the grid, and drawing an epoch for one of several processes."""

    def __init__(self, shards, task, geometry: Geometry, names: Sequence[str], kinds: Augment, uv_per_lsb: int):
        self.shards, self.task, self.geometry, self.names = shards, task, geometry, tuple(names)
        self.kinds, self.uv_per_lsb = kinds, uv_per_lsb

    def _batch(self, x: np.ndarray, codes: Sequence[np.ndarray], target, rng, train: bool) -> Batch:
        """int16 (batch, lead, time) and int8 side inputs -> a Batch, augmented when training."""
        if train:
            x = augment(x, rng, self.kinds, self.shards.fs)
        ecg = millivolt(frontend.quantize(x, self.uv_per_lsb), self.uv_per_lsb)
        return Batch(ecg, self.real(codes), self._target(target), self.geometry.trigger == "hop")

    def real(self, codes: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
        """int8 side inputs as the network sees them."""
        return tuple(torch.from_numpy(c.astype(np.float32) * np.float32(sides.SIDES[name].one))
                     for name, c in zip(self.names, codes, strict=True))

    def _target(self, labels) -> torch.Tensor:
        if not self.task.multi_label:
            return torch.tensor([labels_[0] for labels_ in labels], dtype=torch.long)
        many = torch.zeros(len(labels), len(self.task.classes))
        for row, present in zip(many, labels, strict=True):
            row[list(present)] = 1
        return many


def share(items: list, rank: int, world: int) -> list:
    """Every world-th item from `rank`; all processes get equally many, the last few items may be left out."""
    return items[rank:len(items) // world * world or None:world] if len(items) >= world else items[:1]


class Records(_Source):
    """Tasks that label whole records: a batch is crops of up to `windows` hops, all windows of which vote."""

    def __init__(self, shards, task, geometry, names, kinds, uv_per_lsb, windows: int = 5):
        super().__init__(shards, task, geometry, names, kinds, uv_per_lsb)
        self.windows = windows
        self.settle = frontend.SETTLE_S * shards.fs

    def labelled(self, indices: Sequence[int]) -> list[int]:
        """The records one can learn from: a single-label record needs its label."""
        return [i for i in indices if self.task.multi_label or len(self.shards.records[i]["labels"]) == 1]

    def counts(self, indices: Sequence[int]) -> np.ndarray:
        """Records per class."""
        labels = [k for i in self.labelled(indices) for k in self.shards.records[i]["labels"]]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.task.classes))

    def fill(self, i: int) -> np.ndarray:
        """Record i as int16 (lead, time); one shorter than a window is repeated from its start until it fits."""
        x = self.shards.signal(i)
        short = self.geometry.window - x.shape[1]
        return np.concatenate([x] * (1 + -(-short // x.shape[1])), 1)[:, :self.geometry.window] if short > 0 else x

    def _many(self, i: int) -> int:
        """Windows of record i."""
        return max(1, len(self.geometry.starts(self.shards.records[i]["length"], self.settle)))

    def epoch(self, indices: Sequence[int], size: int, seed: int, epoch: int, rank: int = 0, world: int = 1,
              train: bool = True) -> Iterator[Batch]:
        """The batches of one epoch, each with crops of one length; records of alike length come together."""
        order = np.random.default_rng([seed, epoch])
        indices = order.permutation(self.labelled(indices))
        many = np.minimum([self._many(i) for i in indices], self.windows)
        indices = indices[np.argsort(many, kind="stable")]
        batches = [indices[n:n + size] for n in range(0, len(indices), size)]
        batches = [batches[n] for n in order.permutation(len(batches))]
        rng = np.random.default_rng([seed, epoch, rank])
        for batch in share(batches, rank, world):
            hops = min(min(self._many(i) for i in batch), self.windows) - 1
            length = self.geometry.window + hops * self.geometry.hop
            crops, starts = zip(*(self._crop(i, length, rng) for i in batch), strict=True)
            codes = self._stack([self.beside(i, start, hops + 1) for i, start in zip(batch, starts, strict=True)])
            yield self._batch(np.stack(crops), codes, [self.shards.records[i]["labels"] for i in batch], rng, train)

    def batches(self, indices: Sequence[int], size: int) -> int:
        """How many batches an epoch has."""
        return -(-len(self.labelled(indices)) // size)

    def _crop(self, i: int, length: int, rng) -> tuple[np.ndarray, int]:
        """A random crop that starts after the filters settled when there is room, and its start."""
        x = self.fill(i)
        last = x.shape[1] - length
        start = int(rng.integers(min(self.settle, last), last + 1))
        return x[:, start:start + length], start

    def beside(self, i: int, start: int, windows: int) -> tuple[np.ndarray, ...]:
        """Side inputs of `windows` windows of record i, one a hop from sample `start`: int8 (window, *shape) each."""
        ends = start + self.geometry.window + self.geometry.hop * np.arange(windows)
        return sides.of_windows(self.shards, i, self.names, ends)

    @staticmethod
    def _stack(rows: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, ...]:
        """Side inputs of several records, name by name: (record, window, *shape)."""
        return tuple(np.stack(part) for part in zip(*rows, strict=True))

    def evaluate(self, i: int) -> tuple[np.ndarray, ...]:
        """The longest crop whose hops are the record's windows, int8 (lead, window + n * hop), for `vote`, and the side
        inputs of its windows."""
        x, starts = self.fill(i), self.geometry.starts(max(self.shards.records[i]["length"], self.geometry.window),
                                                       self.settle)
        ecg = frontend.quantize(x[:, starts[0]:starts[-1] + self.geometry.window], self.uv_per_lsb)
        return ecg, *self.beside(i, starts[0], len(starts))

    def inputs(self, i: int) -> tuple[np.ndarray, ...]:
        """All windows of record i: int8 (window, lead, time), and their side inputs."""
        g = self.geometry
        ecg, *codes = self.evaluate(i)
        windows = np.lib.stride_tricks.sliding_window_view(ecg, g.window, axis=1)[:, ::g.hop]
        return np.ascontiguousarray(windows.swapaxes(0, 1)), *codes

    def truth(self, indices: Sequence[int]) -> np.ndarray:
        """Class of each record (-1: none), int64 (record,), or bool (record, class) for multi-label tasks."""
        labels = [self.shards.records[i]["labels"] for i in indices]
        if self.task.multi_label:
            return self._target(labels).numpy() > 0
        return np.array([found[0] if len(found) == 1 else -1 for found in labels], np.int64)

    def units(self, indices: Sequence[int]) -> np.ndarray:
        """The record each row of truth belongs to."""
        return np.asarray(indices)

    def evaluation(self, indices: Sequence[int], size: int) -> Iterator[tuple[torch.Tensor, tuple, list[int]]]:
        """(crops of one length for `vote`, side inputs, their places in `indices`), each record once."""
        many = np.array([self._many(i) for i in indices], np.int64)
        for count in np.unique(many):
            places = np.flatnonzero(many == count)
            for n in range(0, len(places), size):
                part = places[n:n + size].tolist()
                ecg, *codes = self._stack([self.evaluate(indices[p]) for p in part])
                yield millivolt(ecg, self.uv_per_lsb), self.real(codes), part


class Beats(_Source):
    """Tasks that label beats: windows around R with the side inputs of the beat.

    An epoch holds all rare beats and as many of the commonest class as `common` times the others together, dealt
    evenly over the records: a 30-minute record holds two thousand normal beats that are nearly one.
    """

    def __init__(self, shards, task, geometry, names, kinds, uv_per_lsb, common: float = 2.0):
        super().__init__(shards, task, geometry, names, kinds, uv_per_lsb)
        self.common = common
        self._padded: dict[int, np.ndarray] = {}
        self._beside: dict[int, tuple[np.ndarray, ...]] = {}

    def counts(self, indices: Sequence[int]) -> np.ndarray:
        """Beats per class in an epoch."""
        labels = np.concatenate([self.shards.beats(i)["label"] for i in indices])
        counts = np.bincount(labels[labels >= 0], minlength=len(self.task.classes))
        top = counts.argmax()
        counts[top] = min(counts[top], int(self.common * (counts.sum() - counts[top])) or counts[top])
        return counts

    def draw(self, indices: Sequence[int], rng) -> np.ndarray:
        """The beats of an epoch, int64 (n, 2) of (record, beat), shuffled."""
        tables = {i: self.shards.beats(i)["label"] for i in indices}
        want = self.counts(indices)
        total = np.bincount(np.concatenate([t[t >= 0] for t in tables.values()]), minlength=len(want))
        top = int(total.argmax())
        quota = _even([int((t == top).sum()) for t in tables.values()], int(want[top]))
        pairs = []
        for (i, label), most in zip(tables.items(), quota, strict=True):
            rare = np.flatnonzero((label >= 0) & (label != top))
            common = rng.choice(np.flatnonzero(label == top), most, replace=False)
            beats = np.concatenate([rare, common])
            pairs.append(np.stack([np.full(len(beats), i), beats], 1))
        return rng.permutation(np.concatenate(pairs))

    def epoch(self, indices: Sequence[int], size: int, seed: int, epoch: int, rank: int = 0, world: int = 1,
              train: bool = True) -> Iterator[Batch]:
        """The batches of one epoch: beats of all records mixed."""
        order = np.random.default_rng([seed, epoch])
        pairs = self.draw(indices, order)
        rng = np.random.default_rng([seed, epoch, rank])
        for part in share([pairs[n:n + size] for n in range(0, len(pairs), size)], rank, world):
            shift = jitter(rng, len(part), self.kinds if train else PLAIN, self.shards.fs)
            tables = {i: self.shards.beats(i) for i in np.unique(part[:, 0])}
            rows = [tables[i][n] for i, n in part]
            x = np.stack([self._window(i, int(row["sample"]) + s)
                          for (i, _), row, s in zip(part, rows, shift, strict=True)])
            yield self._batch(x, self._codes(part), [(int(r["label"]),) for r in rows], rng, train)

    def batches(self, indices: Sequence[int], size: int) -> int:
        """How many batches an epoch has."""
        return -(-int(self.counts(indices).sum()) // size)

    def _window(self, i: int, r: int) -> np.ndarray:
        """int16 (lead, window) with R at the geometry's offset, zeros beyond the record's ends."""
        x, g = self._padded.get(i), self.geometry
        if x is None:   # padded once: beats near the ends then need no case of their own
            x = self._padded[i] = np.pad(self.shards.signal(i), ((0, 0), (g.window, g.window)))
        start = r - g.offset + g.window
        return x[:, start:start + g.window]

    def _codes(self, pairs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Side inputs of beats given as (record, beat) pairs: int8 (beat, *shape) for each name."""
        held = {i: self.beside(i) for i in np.unique(pairs[:, 0])}
        return tuple(np.stack([held[i][k][n] for i, n in pairs]) for k in range(len(self.names)))

    def beside(self, i: int) -> tuple[np.ndarray, ...]:
        """Side inputs of all beats of record i: int8 (beat, *shape) for each name."""
        if i not in self._beside:
            table = self.shards.beats(i)
            self._beside[i] = sides.of_beats(self.shards, i, self.names, table["sample"], table["rr"])
        return self._beside[i]

    def inputs(self, i: int, beats: slice = slice(None)) -> tuple[np.ndarray, ...]:
        """All beats of record i, or a stretch of them: int8 (beat, lead, window), and their side inputs."""
        return self.around(i, self.shards.beats(i)["sample"][beats]), *(c[beats] for c in self.beside(i))

    def around(self, i: int, peaks: np.ndarray) -> np.ndarray:
        """Windows around any R positions of record i: int8 (beat, lead, window)."""
        x = np.stack([self._window(i, int(r)) for r in peaks]) if len(peaks) else np.zeros(
            (0, len(self.shards.leads), self.geometry.window), np.int16)
        return frontend.quantize(x, self.uv_per_lsb)

    def truth(self, indices: Sequence[int]) -> np.ndarray:
        """Class of every beat of the records, in order, int64 (beat,); -1 for symbols that are no class of the task."""
        return np.concatenate([self.shards.beats(i)["label"].astype(np.int64) for i in indices])

    def units(self, indices: Sequence[int]) -> np.ndarray:
        """The record each row of truth belongs to."""
        return np.repeat(indices, [len(self.shards.beats(i)) for i in indices])

    def evaluation(self, indices: Sequence[int], size: int) -> Iterator[tuple[torch.Tensor, tuple, list[int]]]:
        """(windows, side inputs, their places among all beats of the records), every beat once."""
        done, size = 0, 16 * size       # a beat is much shorter than a record
        for i in indices:
            for n in range(0, len(self.shards.beats(i)), size):
                x, *codes = self.inputs(i, slice(n, n + size))
                yield millivolt(x, self.uv_per_lsb), self.real(codes), list(range(done, done + len(x)))
                done += len(x)


def _even(available: Sequence[int], total: int) -> list[int]:
    """Deal `total` over bins that hold `available`: as even as the small bins allow."""
    quota, left = [0] * len(available), min(total, sum(available))
    order = sorted(range(len(available)), key=lambda b: available[b])
    for rank, b in enumerate(order):
        quota[b] = min(available[b], -(-left // (len(order) - rank)))
        left -= quota[b]
    return quota
