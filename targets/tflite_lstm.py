# SPDX-License-Identifier: Apache-2.0
"""LSTMs of a .tflite file, step by step from a state of 0.

The runtimes' own integer LSTM keeps its states from one evaluation to the next and takes three times as long as the
same steps in int16 one by one, so they are written out. What an operator of so few numbers costs is its call: LSTMs of
equal length that do not wait for each other take their steps together, as one whose weights hold a block for each.

The product of a step has int16 inputs and int8 weights of one scale, the form that the kernels do fastest, and it must
not be coarser than the reference's scale for each row. So an input has two columns, the second one 1 / 128 of the first
for what its weight leaves; h has two of the same value, whose weights add up.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from compress.reference_lstm import H_ONE, STEPS
from targets.tflite_file import TfliteFile

BYTE, WORD = 127, 32767
FINER = 128             # first column of an input over the second
GATE = 2.0 ** -15       # grid of what int16 LOGISTIC and TANH write
DRIVE = 8.01 / WORD     # of pre-activations; a power of 2 would take LOGISTIC and TANH to slower, coarser kernels
CELL = 2.0 ** -11       # of the cell; sums of powers of 2 are faster


class Lstm(TfliteFile):
    """Written in terms of `graph`, `value`, `store`, `shape`, `scale`, `file_shape`, `reshaped` and `entries`."""

    def lstms(self, nodes: list[Node]) -> None:
        """LSTMs of equal length together; rows of the weights and parts of h node by node."""
        hidden = [n.params["weight_h"].shape[1] for n in nodes]
        steps, total = self.shape(nodes[0].inputs[0])[0], sum(hidden)
        x, one, h = joined_weights([gate_weights(n, self.scale(n.inputs[0])) for n in nodes],
                                   [self.shape(n.inputs[0])[1] for n in nodes])
        inputs, weights, unit = self.wide_inputs(nodes, steps, x, one, h) if self.form == "int8" else \
            self.real_inputs(nodes, steps, x, one, h)
        columns = [self.tensor((1, self.extent(inputs)[1]), self.values[inputs].dtype, unit) for _ in range(steps)]
        self.ops("SPLIT", [self.constant(np.array(0, np.int32)), inputs], columns, numSplits=steps)
        cell, h, states = None, None, []
        for column in columns:
            cell, h = self.step(column, h, cell, weights, total, unit)
            states.append(h)
        if nodes[0].attrs["sequence"]:
            h = self.op("CONCATENATION", states, (steps, total), unit, dtype=self.values[h].dtype, axis=0)
        self.parted(h, nodes, hidden)

    def parted(self, h: int, nodes: list[Node], hidden: list[int]) -> None:
        """Keep each node's part of h (row, hidden of all)."""
        scale, rows = self.scale(nodes[0].output), self.extent(h)[0]
        if self.form == "int8":
            h = self.op("QUANTIZE", [h], self.extent(h), scale)
        parts = [h]
        if len(nodes) > 1:
            parts = [self.tensor((rows, size), self.dtype, scale) for size in hidden]
            self.ops("SPLIT_V", [h, self.ints(*hidden), self.constant(np.array(1, np.int32))], parts,
                     numSplits=len(parts))
        for node, part in zip(nodes, parts, strict=True):
            self.store(node.output, self.reshaped(part, self.file_shape(node.output)))

    # ---- inputs and weights

    def real_inputs(self, nodes: list[Node], steps: int, x, one, h) -> tuple[int, list[int], None]:
        """(columns (step, feature + 1), weights without and with h, no unit)."""
        parts = [self.reshaped(self.value(n.inputs[0]), (steps, self.shape(n.inputs[0])[1])) for n in nodes]
        parts.append(self.constant(np.ones((steps, 1), np.float32)))
        columns = self.op("CONCATENATION", parts, (steps, x.shape[1] + 1), axis=1)
        weights = [np.concatenate(part, 1).astype(np.float32) for part in ((x, one), (x, one, h))]
        return columns, [self.constant(w) for w in weights], None

    def wide_inputs(self, nodes: list[Node], steps: int, x, one, h) -> tuple[int, list[int], float]:
        """(columns (step, 2 * (feature + 1)), weights without and with h, value of a code of columns and h).

        A column counts as much as lets its largest weight be a code of 127; the unit is such that all fit int16.
        """
        grid = np.abs(h).max() / (2 * BYTE)
        scales = np.repeat([self.scale(n.inputs[0]) for n in nodes], [self.shape(n.inputs[0])[1] for n in nodes])
        each, ones = (np.maximum(np.abs(w).max(0), 1e-6) / (BYTE * grid) for w in (x, one))
        most = 128 * scales * each
        unit = max(1.0, most.max(), ones.max()) / WORD
        codes, factors, parts, first = [], [], [], 0
        for node in nodes:
            count, scale = self.shape(node.inputs[0])[1], self.scale(node.inputs[0])
            part = self.op("CAST", [self.reshaped(self.value(node.inputs[0]), (steps, count))], (steps, count), scale,
                           dtype="int16")
            wanted = np.concatenate([each[first:first + count], each[first:first + count] / FINER])
            factor = np.maximum(np.rint(wanted / wanted.max() * WORD), 1)
            part = self.op("CONCATENATION", [part, part], (steps, 2 * count), scale, dtype="int16", axis=1)
            times = self.constant(np.tile(factor.astype(np.int16), (steps, 1)), wanted.max() / WORD)
            parts.append(self.op("MUL", [part, times], (steps, 2 * count), unit, dtype="int16"))
            factors.append((factor * wanted.max() / WORD).reshape(2, count))
            codes.append(_two(x[:, first:first + count], factors[-1], grid))
            first += count
        factor = np.maximum(np.rint(np.stack([ones, ones / FINER]) / unit), 1) * unit
        parts.append(self.constant(np.tile(np.rint(factor.T / unit).astype(np.int16), (steps, 1)), unit))
        codes.append(_two(one, factor, grid))
        width = sum(c.shape[1] for c in codes)
        columns = self.op("CONCATENATION", parts, (steps, width), unit, dtype="int16", axis=1)
        half = np.rint(h / grid / 2)
        codes += [half, np.rint(h / grid) - half]
        weights = [np.concatenate(part, 1).clip(-BYTE, BYTE).astype(np.int8) for part in (codes[:-2], codes)]
        return columns, [self.constant(w, grid) for w in weights], unit

    # ---- a step

    def step(self, x: int, h: int | None, cell: int | None, weights: list[int], hidden: int, unit) -> tuple[int, int]:
        """(cell, h) after a step. x: (1, column), h and cell (1, hidden) or None for zeros."""
        wide, one = self.values[x].dtype, (1, hidden)
        weight = weights[h is not None]
        if h is not None:
            x = self.op("CONCATENATION", [x, h, h] if self.form == "int8" else [x, h], (1, self.extent(weight)[1]),
                        unit, dtype=wide, axis=1)
        z = self.op("FULLY_CONNECTED", [x, weight, -1], (1, 4 * hidden), DRIVE, dtype=wide)
        parts = [self.tensor((1, size), wide, DRIVE) for size in (3 * hidden, hidden)]
        axis = self.constant(np.array(1, np.int32))
        self.ops("SPLIT_V", [z, self.ints(3 * hidden, hidden), axis], parts, numSplits=2)
        gates = self.op("LOGISTIC", [parts[0]], (1, 3 * hidden), GATE, dtype=wide)
        drive = self.op("TANH", [parts[1]], one, GATE, dtype=wide)
        i, f, o = (self.tensor(one, wide, GATE) for _ in range(3))
        self.ops("SPLIT", [axis, gates], [i, f, o], numSplits=3)
        added = self.op("MUL", [i, drive], one, CELL, dtype=wide)
        if cell is not None:
            kept = self.op("MUL", [f, cell], one, CELL, dtype=wide)
            added = self.op("ADD", [kept, added], one, CELL, dtype=wide, potScaleInt16=True)
        bent = self.op("TANH", [added], one, GATE, dtype=wide)
        return added, self.op("MUL", [o, bent], one, unit, dtype=wide)


def gate_weights(node: Node, scale: float) -> np.ndarray:
    """Real weights (4, hidden, feature + 1 + hidden) of x, of 1 and of h; gates in the order i, f, o, g."""
    p, hidden = node.params, node.params["weight_h"].shape[1]
    unit = np.repeat([1.0, 1.0, 2.0, 1.0], hidden) * STEPS      # pre-activation steps per unit; g counts 2z
    weight_x = p["weight_x"] * (p["mul_x"] * 2.0 ** -32 / unit / scale)[:, None]
    weight_h = p["weight_h"] * (p["mul_h"] * 2.0 ** -32 / unit * H_ONE)[:, None]
    rows = np.concatenate([weight_x, (p["bias"] * 2.0 ** -16 / unit)[:, None], weight_h], 1)
    return rows.reshape(4, hidden, -1)[[0, 1, 3, 2]]


def joined_weights(blocks: list[np.ndarray], features: list[int]) -> list[np.ndarray]:
    """Real weights of x (row, feature), of 1 (row, 1) and of h (row, hidden) of LSTMs side by side.

    Rows are gate by gate, within a gate LSTM by LSTM; zeros where one does not see the other's columns.
    """
    hidden, starts = [b.shape[1] for b in blocks], np.cumsum([0, *features])
    places, total = np.cumsum([0, *hidden]), sum(hidden)
    x, one, h = (np.zeros((4, total, width)) for width in (starts[-1], 1, total))
    for block, count, start, place in zip(blocks, features, starts, places, strict=False):
        rows = slice(place, place + block.shape[1])
        x[:, rows, start:start + count], one[:, rows], h[:, rows, rows] = np.split(block, [count, count + 1], 2)
    return [w.reshape(4 * total, -1) for w in (x, one, h)]


def _two(weight: np.ndarray, factor: np.ndarray, grid: float) -> np.ndarray:
    """Codes (row, 2 * column) of weights (row, column) by columns that are factor (2, column) of the input."""
    first = np.rint(weight / factor[0] / grid).clip(-BYTE, BYTE)
    rest = weight - first * factor[0] * grid
    return np.concatenate([first, np.rint(rest / factor[1] / grid)], 1)


def together(graph: Graph) -> list[list[Node]]:
    """The nodes in an order of execution, LSTMs that may take their steps together as one entry."""
    order, rest = [], [*graph.nodes]
    while rest:
        group, later, behind = [], [], set()
        for node in rest:
            if behind.intersection(node.inputs):
                later.append(node)
            elif node.kind != "lstm":
                order.append([node])
                continue
            elif group and _form(graph, node) != _form(graph, group[0]):
                later.append(node)
            else:
                group.append(node)
            behind.add(node.output)
        order += [group] if group else []
        rest = later
    return order


def _form(graph: Graph, node: Node) -> tuple:
    """What LSTMs that take their steps together have in common."""
    return graph.tensors[node.inputs[0]].shape[0], node.attrs["sequence"], graph.tensors[node.output].scale
