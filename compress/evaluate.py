# SPDX-License-Identifier: Apache-2.0
"""Logits of a float network or an integer graph over prepared records, summed per recording or per beat.

Integer logits are int8 codes; float ones are scaled to integers by FLOAT_STEP so that one decision rule serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from compress import reference
from compress.graph import Graph
from train import say, score, tasks

FLOAT_STEP = 1 / 4096       # nats; the float model's logits are rounded to this for the rule
BEATS = 512                 # beats evaluated at a time
AAMI_ROWS = "NSVFQ"         # rows of a beat table; the model's classes come first


@dataclass(frozen=True)
class Logits:
    """One row per recording or beat. `truth` may exceed the model's classes (AAMI F and Q)."""

    sums: np.ndarray        # int64 (n, class), added over the windows of the recording
    counts: np.ndarray      # int64 (n,)
    truth: np.ndarray       # int64 (n,), or bool (n, class) of a multi-label task
    unit: np.ndarray        # str (n,): the record
    scale: float            # nats per logit step

    @staticmethod
    def join(parts: Sequence[Logits]) -> Logits:
        """Rows of several parts, e.g. of the folds; all brought to the first part's scale."""
        scale = parts[0].scale
        sums = [np.rint(p.sums * (p.scale / scale)).astype(np.int64) for p in parts]
        return Logits(np.concatenate(sums), *(np.concatenate([getattr(p, k) for p in parts])
                                              for k in ("counts", "truth", "unit")), scale)

    def where(self, keep: np.ndarray, truth: np.ndarray) -> Logits:
        """The rows marked in `keep` (bool), with another truth."""
        return Logits(self.sums[keep], self.counts[keep], truth[keep], self.unit[keep], self.scale)

    @property
    def mean(self) -> np.ndarray:
        """Mean logit in nats, float (n, class)."""
        return self.sums / self.counts[:, None] * self.scale

    def decided(self, rule) -> np.ndarray:
        """Class index per row under a decision rule, or bool (n, class) under a threshold rule."""
        return score.decide(self.sums, self.counts, rule.rule, rule.offsets)

    def confusion(self, predicted: np.ndarray, classes: int) -> np.ndarray:
        """int64 (unit, truth, class)."""
        return score.by_unit(self.truth, predicted, self.unit, max(classes, int(self.truth.max()) + 1), classes)


def geometry(manifest, graph: Graph):
    """Where the windows of a frozen model lie, without building its network."""
    from train.models.geometry import Geometry
    stride = reference.column_stride(graph) if graph.boundary is not None else 1
    return Geometry(manifest.window, stride, 0, 0, 0, 0, manifest.trigger.kind, manifest.trigger.hop,
                    manifest.trigger.offset, manifest.streaming, manifest.fs)


def integer(graph: Graph, source, indices: Iterable[int], label: str = "int8", run: Callable | None = None) -> Logits:
    """The integer graph on records `indices` of a dataset source.

    By the reference, streamed for hops; or, window by window, by a target's run(inputs) -> int8 logits.
    """
    window_logits, record_logits = _integer(graph, source.geometry, run)
    return _walk(source, indices, label, record_logits, window_logits, graph.tensors[graph.output].scale)


def _integer(graph: Graph, geometry, run: Callable | None) -> tuple[Callable, Callable]:
    """(codes of windows -> logits, codes of a record -> logits of its hops) of an integer graph."""
    def window_logits(*codes: np.ndarray) -> np.ndarray:
        inputs = dict(zip(graph.inputs, codes, strict=True))
        return reference.run(graph, inputs) if run is None else run(inputs)

    def record_logits(ecg: np.ndarray, *codes: np.ndarray) -> np.ndarray:
        if run is None and graph.boundary is not None:
            return reference.stream(graph, dict(zip(graph.inputs, (ecg, *codes), strict=True)), geometry.hop)
        starts = range(0, ecg.shape[1] - geometry.window + 1, geometry.hop)
        return window_logits(np.stack([ecg[:, i:i + geometry.window] for i in starts]), *codes)
    return window_logits, record_logits


def floating(net, source, indices: Iterable[int], label: str = "float") -> Logits:
    """The float network on the same records and the same int8 inputs."""
    import torch

    from train.dataset import millivolt

    def steps(logits: torch.Tensor) -> np.ndarray:
        return np.rint(logits.numpy() / FLOAT_STEP).astype(np.int64)

    def record_logits(ecg: np.ndarray, *codes: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return steps(net.vote(millivolt(ecg[None], source.uv_per_lsb), *(c[None] for c in source.real(codes)))[0])

    def window_logits(ecg: np.ndarray, *codes: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return steps(net(millivolt(ecg, source.uv_per_lsb), *source.real(codes)))
    net.eval()
    return _walk(source, indices, label, record_logits, window_logits, FLOAT_STEP)


def _walk(source, indices, label: str, record_logits: Callable, window_logits: Callable, scale: float) -> Logits:
    """Collect logits of every labelled record, or of every annotated beat of the records."""
    beats = source.geometry.trigger == "r-peak"
    indices = list(indices if beats else source.labelled(indices))
    sums, counts, truth, unit = [], [], [], []
    with say.progress(label, len(indices)) as advance:
        for i in indices:
            record = source.shards.records[i]
            if beats:
                codes = source.inputs(i)
                table = source.shards.beats(i)
                rows = [window_logits(*(c[n:n + BEATS] for c in codes)) for n in range(0, len(table), BEATS)]
                found = np.concatenate(rows).astype(np.int64)
                truth.append(aami(table["symbol"]))
                counts.append(np.ones(len(found), np.int64))
            else:
                total, windows = score.vote(record_logits(*source.evaluate(i)))
                found = total[-1:]
                truth.append(source.truth([i]))
                counts.append(windows[-1:])
            sums.append(found)
            unit.append(np.full(len(found), record["name"]))
            advance(1)
    return Logits(*(np.concatenate(x) for x in (sums, counts, truth, unit)), scale)


def sample(source, names: Sequence[str], indices: Sequence[int], most: int) -> dict[str, np.ndarray]:
    """int8 inputs (name -> (window, *shape)) of `most` windows or beats, taken evenly from the records."""
    each = max(1, -(-most // len(indices)))
    rows = []
    for i in list(indices)[:: max(1, len(indices) * each // most)]:
        arrays = source.inputs(i)
        pick = np.linspace(0, len(arrays[0]) - 1, min(each, len(arrays[0]))).astype(int)
        rows.append([a[pick] for a in arrays])
    return {name: np.concatenate(parts)[:most] for name, parts in zip(names, zip(*rows, strict=True), strict=True)}


def aami(symbols: np.ndarray) -> np.ndarray:
    """Annotation symbols to rows of AAMI_ROWS."""
    place = {s: AAMI_ROWS.index(c) for s, c in tasks.AAMI.items()}
    return np.array([place[s] for s in symbols.tolist()], np.int64)
