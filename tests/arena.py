# SPDX-License-Identifier: Apache-2.0
"""Executes planned graphs in one byte buffer, as a device does, with the reference's kernels."""

from dataclasses import replace
from math import prod

import numpy as np

from compress import reference
from compress.graph import Graph, Node
from compress.reference import column_stride
from targets import plan
from targets.stream import Stream, columns_after, first_needed, roots_of

GARBAGE = 85
PIECES = 5      # in which a node that works in place reads and writes


def compute(n: Node, args: list[np.ndarray], endless: bool = False) -> np.ndarray:
    """One node; arrays without a batch axis."""
    values = {f"in{i}": a[None] for i, a in enumerate(args)}
    alone = replace(n, inputs=list(values), output="out")
    reference.execute([alone], values, endless)
    return values["out"][0]


class Arena:
    """A buffer of a plan's size. `given`: tensors that lie elsewhere, with their codes."""

    def __init__(self, graph: Graph, planned: plan.Plan, given: dict[str, np.ndarray]):
        self.graph, self.plan, self.given = graph, planned, dict(given)
        self.bytes = np.full(planned.bytes, GARBAGE, np.int8)

    def at(self, tensor: str) -> np.ndarray:
        """The tensor's own bytes, to read or write."""
        if tensor in self.given:
            return self.given[tensor]
        start, shape = self.plan.place[tensor], self.graph.tensors[tensor].shape
        return self.bytes[start:start + prod(shape)].reshape(shape)

    def run(self) -> np.ndarray:
        """Every node in the planned order; returns the codes of the graph's output."""
        for n in self.plan.order:
            if n.output not in self.plan.place:
                self.given[n.output] = compute(n, [self.at(t) for t in n.inputs])
            elif plan.byte_of_view(self.graph, n) is not None and n.inputs[0] in self.plan.place:
                assert np.array_equal(self.at(n.output), compute(n, [self.at(t) for t in n.inputs])), n.name
            else:
                self._write(n)
        return self.at(self.graph.output).copy()

    def _write(self, n: Node) -> None:
        """Piece by piece along the last axis, the inputs read again before each: what a kernel in place sees."""
        out = self.at(n.output)
        whole = n.kind not in plan.OVERWRITES or (n.kind == "norm" and out.ndim == 1)
        for piece in [slice(None)] if whole else np.array_split(np.arange(out.shape[-1]), min(PIECES, out.shape[-1])):
            out[..., piece] = compute(n, [self.at(t).copy() for t in n.inputs])[..., piece]


def window(graph: Graph, planned: plan.Plan, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The logits of one window (inputs without a batch axis)."""
    arena = Arena(graph, planned, {})
    for name in graph.inputs:
        arena.at(name)[...] = inputs[name]
    return arena.run()


class Streamer:
    """Takes a record hop by hop and keeps of the past what `Stream.state` says, nothing more."""

    def __init__(self, graph: Graph, planned: Stream, hop: int):
        self.graph, self.plan, self.hop = graph, planned, hop
        self.local, (self.cut, *_) = graph.local_nodes()
        self.flash = plan.constants(graph)
        self.have = dict.fromkeys([graph.inputs[0], *(n.output for n in self.local if n.output not in self.flash)], 0)
        self.root = roots_of(graph, self.local)
        self.state = {t: self._columns(t, np.empty(0, np.int8), 0) for t in set(self.root.values())}
        self.constants: dict[str, np.ndarray] = {}

    def _columns(self, t: str, codes: np.ndarray, count: int) -> np.ndarray:
        """Column after column in memory -> (..., time) in the tensor's own shape."""
        shape = self.graph.tensors[t].shape[:-1]
        return np.moveaxis(codes.reshape(count, *shape), 0, -1)

    def push(self, samples: np.ndarray, sides: dict[str, np.ndarray]) -> np.ndarray | None:
        """(lead, hop) new samples -> the logits when a window is complete."""
        first = self.graph.inputs[0]
        total = self.have[first] + samples.shape[-1]
        after = columns_after(self.graph, self.local, self.flash, total)
        self.fresh = {t: after[t] - self.have[t] for t in after}
        self.bytes = np.full(self.plan.local.bytes, GARBAGE, np.int8)
        self._store(first, samples)
        for n in self.plan.local.order:
            if n.output in self.flash:
                self.constants[n.output] = compute(n, [self.constants[t] for t in n.inputs])
                continue
            out = self._produce(n, after)
            if self.root[n.output] == n.output:
                self._store(n.output, out)
            for t in {self.root[t] for t in n.inputs if t in self.root}:
                if not any(self.root.get(i) == t for later in self._behind(n) for i in later.inputs):
                    self._keep(t)
        self.have = after
        window = self.graph.tensors[first].shape[-1]
        if total < window or (total - window) % self.hop:
            return None
        return self._decide((total - window) // column_stride(self.graph), after, sides)

    def _behind(self, n: Node) -> list[Node]:
        order = self.plan.local.order
        return list(order[[id(o) for o in order].index(id(n)) + 1:])

    def _store(self, t: str, codes: np.ndarray) -> None:
        """New columns go into the arena, those in front of the boundary into the state."""
        assert codes.shape[-1] == self.fresh[t]
        if self.root[self.cut.inputs[0]] == t:
            self.state[t] = np.concatenate([self.state[t], codes], -1)[..., -self.plan.state[t]:]
        elif codes.size:
            start = self.plan.local.place[t]
            self.bytes[start:start + codes.size] = np.moveaxis(codes, -1, 0).ravel()

    def _new(self, t: str) -> np.ndarray:
        count, start = self.fresh[t], self.plan.local.place[t]
        return self._columns(t, self.bytes[start:start + count * prod(self.graph.tensors[t].shape[:-1])], count)

    def _keep(self, t: str) -> None:
        """After the last reader the newest columns become state."""
        if self.root[self.cut.inputs[0]] != t:
            held, kept = np.concatenate([self.state[t], self._new(t)], -1), self.plan.state.get(t, 0)
            self.state[t] = held[..., max(held.shape[-1] - kept, 0):].copy()

    def _seen(self, t: str, low: int, after: dict[str, int]) -> np.ndarray:
        """Columns low .. of a tensor, from its state and the arena."""
        root = self.root[t]
        final = root == self.root[self.cut.inputs[0]]
        held = self.state[root] if final else np.concatenate([self.state[root], self._new(root)], -1)
        start = after[t] - held.shape[-1]
        assert low >= start, f"{t} has forgotten column {low}"
        shape = self.graph.tensors[t].shape
        return held[..., low - start:].reshape(*shape[:-1], after[t] - low).copy()

    def _produce(self, n: Node, after: dict[str, int]) -> np.ndarray:
        """The new columns of one node, by the reference's kernel on a part of the record."""
        done, count = self.have[n.output], self.fresh[n.output]
        if not count:
            return np.empty((*self.graph.tensors[n.output].shape[:-1], 0), np.int8)
        lows = [first_needed(n, i, done) for i in range(len(n.inputs))]
        args = [self.constants[t] if t in self.flash else self._seen(t, max(low, 0), after)
                for t, low in zip(n.inputs, lows, strict=True)]
        if n.kind in ("conv1d", "maxpool", "meanpool"):
            pad = [max(-lows[0], 0), 0]
            return compute(replace(n, attrs=n.attrs | {"pad": pad}), args, endless=True)[..., :count]
        if n.kind == "attention":       # queries start later than keys: those before `done` are made up
            skip = done - max(lows[1], 0)
            queries = [0, 3][:len(args) // 2]
            args = [np.pad(a, [(0, 0), (0, 0), (skip, 0)]) if i in queries else a for i, a in enumerate(args)]
            return compute(n, args, endless=True)[..., skip:skip + count]
        return compute(n, args, endless=True)[..., :count]

    def _decide(self, column: int, after: dict[str, int], sides: dict[str, np.ndarray]) -> np.ndarray:
        start, stop = self.cut.attrs["start"], self.cut.attrs["stop"]
        columns = self._seen(self.cut.inputs[0], column + start, after)[..., :stop - start]
        arena = Arena(self.graph, self.plan.decide, {self.cut.output: columns})
        for name, codes in sides.items():
            arena.at(name)[...] = codes
        return arena.run()
