# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM, lookup and table of a .tflite file.

A norm is a vector of length 1 between two products: the first one takes the mean away, the second one has gains and
offsets. The runtimes' own integer LSTM keeps its states from one evaluation to the next and takes three times as long
as the same steps in int16 one by one, so they are written out.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Node
from compress.reference_lstm import H_ONE, STEPS
from targets.tflite_file import TfliteFile
from train.say import GraphError

BYTE, WORD = 127, 32767
LENGTH = 1 / 128            # grid of what int8 L2_NORMALIZATION writes
GATE = 2.0 ** -15           # of what int16 LOGISTIC and TANH write
DRIVE = 8.01 / WORD         # of pre-activations; a power of 2 would take LOGISTIC and TANH to slower, coarser kernels
CELL = 16.01 / WORD         # of the cell
COPIES = 2              # of a vector whose mean is taken away, each rounded at another place
WIDER = 1.25             # grid of what is left without the mean: an outlier is farther from the mean than from 0
FLOOR = 16                  # further channels that the floor of a norm may take
VALID = 1                   # padding


class Modules(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape`, `entries`, `reshaped` and `turned`."""

    # ---- norm

    def norm(self, node: Node) -> None:
        """Over the channels of each group, which lie last: (1, 1, row, channel)."""
        source, p = node.inputs[0], node.params
        channels, *rest = self.shape(source)
        count, scale = channels // node.attrs["groups"], self.scale(node.output)
        gain, bias = (p[key] * (scale / one) for key, one in (("mul", 2 ** 12), ("bias", 2 ** 16)))
        # the reference's floor counts n^2 codes^2 in 2^-28
        floor = node.attrs["eps"] * 2.0 ** -28 * (self.scale(source) / count) ** 2
        turn = [0, 2, 1] if len(rest) == 1 else [*range(len(rest) + 2)]
        x = self.turned(self.value(source), turn)
        shape, normed = self.extent(x), self.unit_vectors if self.form == "int8" else self.real_norm
        y = normed(self.reshaped(x, (1, 1, math.prod(shape) // count, count)), node, floor, gain, bias)
        self.store(node.output, self.turned(self.reshaped(y, shape), turn))

    def unit_vectors(self, x: int, node: Node, floor: float, gain, bias) -> int:
        """x (1, 1, row * group, count) -> (1, 1, row, channel). The floor is in channels that hold a constant."""
        (rows, count), groups, rms = self.extent(x)[2:], node.attrs["groups"], node.attrs["rms"]
        least = math.sqrt(count * floor) / self.grid(x) / (1 if rms else WIDER)
        more = math.ceil((least / BYTE) ** 2) if least >= 0.5 else 0
        if more > FLOOR:
            raise GraphError(f"{node.name}: a norm whose eps is {floor:.3g} beside a grid of {self.grid(x):.3g}",
                             "an eps below the square of the largest value", "another target")
        copies = 1 if rms else COPIES
        if more or not rms:
            weight = np.concatenate([np.eye(count) if rms else np.eye(count) * count - 1, np.zeros((more, count))])
            offset = np.where(np.arange(len(weight)) < count, 0, math.sqrt(count * floor / max(more, 1)))
            scale = self.grid(x) * (1 if rms else WIDER)
            offset = offset + (np.arange(copies)[:, None] / copies - 0.5 + 0.5 / copies) * scale
            grid = np.full(offset.size, 1 if rms else 1 / count)
            x = self.times(x, np.tile(weight, (copies, 1)), grid, offset.ravel(), scale)
        width = count + more
        x = self.op("L2_NORMALIZATION", [self.reshaped(x, (1, 1, rows * copies, width))], (1, 1, rows * copies, width),
                    LENGTH)
        x = self.reshaped(x, (1, 1, rows // groups, groups * copies * width))
        gain, at = gain * math.sqrt(count) / copies, np.arange(groups * count)
        grid = np.maximum(np.abs(gain), 1e-9) / BYTE
        weight = np.zeros((groups * count, groups * copies * width))
        for copy in range(copies):
            weight[at, (at // count * copies + copy) * width + at % count] = np.rint(gain / grid)
        return self.times(x, weight, grid, bias, self.scale(node.output))

    def times(self, x: int, codes: np.ndarray, grid: np.ndarray, offset: np.ndarray, scale: float) -> int:
        """(1, 1, row, in) times codes (out, in) that count `grid` each, with an offset in real numbers."""
        step = self.grid(x) * grid
        if np.abs(codes).max() > BYTE:
            raise GraphError(f"{self.layer}: a norm of {codes.shape[1]} channels", f"at most {BYTE + 1}",
                             "another target")
        offset = np.clip(np.rint(offset / step), -(2 ** 31), 2 ** 31 - 1).astype(np.int32)
        return self.op("CONV_2D", [x, self.constant(codes.astype(np.int8)[:, None, None], grid),
                                   self.constant(offset, step)],
                       (*self.extent(x)[:3], len(codes)), scale, padding=VALID, strideW=1, strideH=1)

    def real_norm(self, x: int, node: Node, floor: float, gain, bias) -> int:
        """The same of the float form."""
        shape, one = self.extent(x), (*self.extent(x)[:3], 1)
        if not node.attrs["rms"]:
            x = self.op("SUB", [x, self.op("MEAN", [x, self.ints(3)], one, keepDims=True)], shape)
        square = self.op("MEAN", [self.op("MUL", [x, x], shape), self.ints(3)], one, keepDims=True)
        square = self.op("ADD", [square, self.constant(np.float32(floor))], one)
        x = self.op("MUL", [x, self.op("RSQRT", [square], one)], shape)
        shape = (1, 1, shape[2] // node.attrs["groups"], len(gain))
        x = self.op("MUL", [self.reshaped(x, shape), self.constant(gain.astype(np.float32))], shape)
        return self.op("ADD", [x, self.constant(bias.astype(np.float32))], shape)

    # ---- LSTM

    def lstm(self, node: Node) -> None:
        """Step by step in int16, from a state of 0; a column of ones beside x carries the bias.

        x and h lie on one grid, so that one product drives all gates: int16 weights in the order i, f, o, g.
        """
        source, hidden = node.inputs[0], node.params["weight_h"].shape[1]
        steps, features = self.shape(source)
        wide, scale = "int16" if self.form == "int8" else None, max(BYTE * self.scale(source), 1) / WORD
        x = self.value(source)
        if wide:
            # in two steps: older runtimes do not QUANTIZE to int16
            x = self.op("CAST", [x], self.extent(x), self.scale(source), dtype=wide)
            one = self.constant(np.full((1,) * len(self.extent(x)), 1 << 14, np.int16), 2.0 ** -14)
            x = self.op("MUL", [x, one], self.extent(x), scale, dtype=wide)
        one = self.wide_entries(np.ones((1, steps, 1)), scale)
        shape = (1, steps, features + 1)
        x = self.op("CONCATENATION", [x, one], shape, scale, dtype=wide, axis=2)
        columns = [self.tensor((1, 1, features + 1), wide, scale) for _ in range(steps)]
        self.ops("SPLIT", [self.constant(np.array(1, np.int32)), x], columns, numSplits=steps)
        weights = gate_weights(node, self.scale(source))
        cell, h, states = None, None, []
        for column in columns:
            cell, h = self.step(column, h, cell, weights, hidden, scale)
            states.append(h)
        if node.attrs["sequence"]:
            h = self.op("CONCATENATION", states, (1, steps, hidden), scale, dtype=wide, axis=1)
        h = self.op("QUANTIZE", [h], self.extent(h), self.scale(node.output)) if wide else h
        self.store(node.output, self.reshaped(h, self.file_shape(node.output)))

    def step(self, x: int, h: int | None, cell: int | None, weights, hidden: int, scale: float) -> tuple[int, int]:
        """(cell, h) after a step. x: (1, 1, feature + 1), h and cell (1, 1, hidden) or None for zeros."""
        wide, one = self.values[x].dtype, (1, 1, hidden)
        width = self.extent(x)[2]
        if h is not None:
            width += hidden
            x = self.op("CONCATENATION", [x, h], (1, 1, width), scale, dtype=wide, axis=2)
        grid = np.abs(weights).max() / WORD
        z = self.op("BATCH_MATMUL", [x, self.wide_entries(weights[None, :, :width], grid)], (1, 1, 4 * hidden), DRIVE,
                    dtype=wide, adjY=True)
        parts = [self.tensor((1, 1, size), wide, DRIVE) for size in (3 * hidden, hidden)]
        self.ops("SPLIT_V", [z, self.ints(3 * hidden, hidden), self.constant(np.array(2, np.int32))], parts,
                 numSplits=2)
        gates = self.op("LOGISTIC", [parts[0]], (1, 1, 3 * hidden), GATE, dtype=wide)
        drive = self.op("TANH", [parts[1]], one, GATE, dtype=wide)
        i, f, o = (self.tensor(one, wide, GATE) for _ in range(3))
        self.ops("SPLIT", [self.constant(np.array(2, np.int32)), gates], [i, f, o], numSplits=3)
        added = self.op("MUL", [i, drive], one, CELL, dtype=wide)
        if cell is not None:
            kept = self.op("MUL", [f, cell], one, CELL, dtype=wide)
            added = self.op("ADD", [kept, added], one, CELL, dtype=wide, potScaleInt16=False)
        bent = self.op("TANH", [added], one, GATE, dtype=wide)
        return added, self.op("MUL", [o, bent], one, scale, dtype=wide)

    def wide_entries(self, real: np.ndarray, scale: float) -> int:
        """Data as int16, or as real numbers."""
        if self.form == "float":
            return self.constant(real.astype(np.float32))
        return self.constant(np.rint(real / scale).astype(np.int16), scale)

    # ---- what is looked up

    def lookup(self, node: Node) -> None:
        """Each of the 256 codes has its row, so that nothing needs clipping."""
        table = node.params["table"]
        rows = table[np.clip(np.arange(-128, 128) - node.attrs["low"], 0, len(table) - 1)]
        self.store(node.output, self.gathered(node, rows))

    def table(self, node: Node) -> None:
        """One of 256 codes for each."""
        self.store(node.output, self.gathered(node, node.params["table"]))

    def gathered(self, node: Node, rows: np.ndarray) -> int:
        """Of rows (256, ...) the one of each code."""
        x, scale = self.value(node.inputs[0]), self.scale(node.output)
        shape = self.extent(x)
        if self.form == "float":
            x = self.op("QUANTIZE", [x], shape, self.scale(node.inputs[0]), dtype="int8")
        x = self.op("CAST", [x], shape, dtype="int32")
        x = self.op("ADD", [x, self.constant(np.array([128], np.int32))], shape, dtype="int32")
        y = self.op("GATHER", [self.entries(rows, scale), x], (*shape, *rows.shape[1:]), scale, axis=0)
        return self.reshaped(y, self.file_shape(node.output))


def gate_weights(node: Node, scale: float) -> np.ndarray:
    """Real weights (4 * hidden, feature + 1 + hidden) of x, of 1 and of h, rows in the order i, f, o, g."""
    p, hidden = node.params, node.params["weight_h"].shape[1]
    unit = np.repeat([1.0, 1.0, 2.0, 1.0], hidden) * STEPS      # pre-activation steps per unit; g counts 2z
    weight_x = p["weight_x"] * (p["mul_x"] * 2.0 ** -32 / unit / scale)[:, None]
    weight_h = p["weight_h"] * (p["mul_h"] * 2.0 ** -32 / unit * H_ONE)[:, None]
    rows = np.concatenate([weight_x, (p["bias"] * 2.0 ** -16 / unit)[:, None], weight_h], 1)
    i, f, g, o = np.split(rows, 4)
    return np.concatenate([i, f, o, g])
