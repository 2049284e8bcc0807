# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM, lookup and table of a .tflite file."""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Node
from targets.tflite_file import TfliteFile

STEEP = 8               # |pre-activation| at which int16 gates end
UNIT = 1 / 128          # grid of what int8 L2_NORMALIZATION writes
BYTE = 127


class Modules(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape`, `entries`, `reshaped` and `weight`."""

    def norm(self, node: Node) -> None:
        """A product that centres, a vector of length 1 and a product with gains and offsets."""
        source, groups, n = node.inputs[0], node.attrs["groups"], self.shape(node.inputs[0])[0] // node.attrs["groups"]
        scale = self.scale(node.output)
        gain, bias = (node.params[key] * (scale / one) for key, one in (("mul", 2 ** 12), ("bias", 2 ** 16)))
        floor = node.attrs["eps"] * 2.0 ** -28 / n * self.scale(source) ** 2      # n * eps
        x = self.rows_last(source)
        shape = self.extent(x)
        rows = (1, 1, math.prod(shape) // n, n)
        x = self.reshaped(x, rows)
        if self.form == "float":
            y = self.real_norm(x, node.attrs["rms"], floor / n)
        else:
            if not node.attrs["rms"]:
                x = self.dense8(x, (n * np.eye(n) - 1).astype(np.int8), np.full(n, 1 / n), np.zeros(n), self.scale(source))
            y = self.op("L2_NORMALIZATION", [x], rows, UNIT)
        y = self.reshaped(y, (1, 1, rows[2] // groups, n * groups))
        unit = math.sqrt(n)
        if self.form == "float":
            y = self.op("ADD", [self.op("MUL", [y, self.constant(gain.astype(np.float32))], self.extent(y)),
                                self.constant(bias.astype(np.float32))], self.extent(y))
        else:
            grid = np.maximum(np.abs(gain) * unit / BYTE, 1e-9)
            codes = np.diag(np.rint(gain * unit / grid)).astype(np.int8)
            y = self.dense8(y, codes, grid, bias, scale)
        y = self.reshaped(y, shape)
        self.store(node.output, self.reshaped(y, self.file_shape(node.output)))

    def rows_last(self, tensor: str) -> int:
        """Channels behind all else."""
        x = self.value(tensor)
        if len(self.shape(tensor)) == 2:
            return self.turned(x, [0, 2, 1])
        return x

    def dense8(self, x: int, weight, grid, bias, scale: float) -> int:
        """(1, 1, row, channel) times weight (out, channel)."""
        step = self.grid(x) * grid
        codes = np.clip(np.rint(bias / step), -2.0 ** 31, 2.0 ** 31 - 1).astype(np.int32)
        return self.op("CONV_2D", [x, self.weight(weight[:, None, None], grid, 0), self.weight(codes, step, 0)],
                       (*self.extent(x)[:3], len(weight)), scale, padding=1, strideW=1, strideH=1)

    def real_norm(self, x: int, rms: bool, floor: float) -> int:
        """The float form."""
        shape, one = self.extent(x), (*self.extent(x)[:3], 1)
        if not rms:
            x = self.op("SUB", [x, self.op("MEAN", [x, self.ints(3)], one, keepDims=True)], shape)
        square = self.op("MEAN", [self.op("MUL", [x, x], shape), self.ints(3)], one, keepDims=True)
        square = self.op("ADD", [square, self.constant(np.float32(floor))], one)
        return self.op("MUL", [x, self.op("RSQRT", [square], one)], shape)

    def lstm(self, node: Node) -> None:
        """The runtime's own, int8 with an int16 cell. Its states outlive an evaluation, so that they have to be ended.

        That takes steps in front of the first one, whose further features close every gate.
        """
        source, hidden = node.inputs[0], node.params["weight_h"].shape[1]
        length, features = self.shape(source)
        parts = gates(node, self.scale(source))
        closing, steps = ending(parts, self.scale(source), features)
        x = self.value(source)
        zeros = np.zeros((1, length, closing), np.int8)
        first = np.repeat(np.array([0] * features + [BYTE] * closing, np.int8)[None, None], steps, 1)
        x = self.op("CONCATENATION", [x, self.entries(zeros, self.scale(source))], (1, length, features + closing),
                    self.grid(x), axis=2)
        x = self.op("CONCATENATION", [self.entries(first, self.scale(source)), x],
                    (1, steps + length, features + closing), self.grid(x), axis=1)
        weights_x, weights_h, biases = [], [], []
        for gate, (weight_x, weight_h, bias) in enumerate(parts):
            close = np.full((hidden, closing), 0 if gate == 2 else -_most(weight_x))
            weights_x.append(self.rounded(np.concatenate([weight_x, close], 1)))
            weights_h.append(self.rounded(weight_h))
            biases.append(self.offsets(bias, self.scale(source) * _most(weight_x) / BYTE))
        states = self.state((1, hidden), None, 1 / 128), self.state((1, hidden), self.int8_or("int16"), 2.0 ** -11)
        inputs = [x, *weights_x, *weights_h, -1, -1, -1, *biases, -1, -1, *states, -1, -1, -1, -1]
        y = self.tensor((1, steps + length, hidden), None, self.scale(node.output))
        inner = [self.tensor((0,), self.int8_or("int16"), 2.0 ** -12) for _ in range(4)]
        inner.append(self.tensor((0,), None, 1 / 128))
        self.ops("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], tuple(inner) if self.form == "int8" else (),
                 fusedActivationFunction=4, timeMajor=False)
        begin = steps if node.attrs["sequence"] else steps + length - 1
        shape = (1, steps + length - begin, hidden)
        y = self.op("SLICE", [y, self.ints(0, begin, 0), self.ints(*shape)], shape, self.grid(y))
        self.store(node.output, self.reshaped(y, self.file_shape(node.output)))

    def int8_or(self, dtype):
        return dtype if self.form == "int8" else None

    def rounded(self, weight):
        """Weights of a gate; the runtime has one scale for all of them."""
        grid = _most(weight) / BYTE
        return self.weight(np.rint(weight / grid).astype(np.int8), np.array([grid]), 0) if self.form == "int8" else \
            self.constant(weight.astype(np.float32))

    def offsets(self, bias, step):
        return self.constant(np.rint(bias / step).astype(np.int32), step) if self.form == "int8" else \
            self.constant(bias.astype(np.float32))


def gates(node: Node, scale: float):
    """Real (weight of x, weight of h, bias) of the gates i, f, g and o."""
    p, hidden = node.params, node.params["weight_h"].shape[1]
    unit = np.repeat([1.0, 1.0, 2.0, 1.0], hidden) * 64
    weight_x = p["weight_x"] * (p["mul_x"] * 2.0 ** -32 / unit / scale)[:, None]
    weight_h = p["weight_h"] * (p["mul_h"] * 2.0 ** -32 / unit * 128)[:, None]
    return list(zip(*(np.split(a, 4) for a in (weight_x, weight_h, p["bias"] * 2.0 ** -16 / unit)), strict=True))


def ending(parts, scale: float, features: int):
    """(features that close every gate, steps after which no state of before is left)."""
    closing, recurrent = 1, 0.0
    for i, (weight_x, weight_h, bias) in enumerate(parts):
        if i != 2:
            closing = max(closing, math.ceil((STEEP + max(bias.max(), 0)) / (_most(weight_x) * BYTE * scale)))
            recurrent = max(recurrent, np.abs(weight_h).sum(1).max())
    h, cell, steps = 1.0, 16.0, 0
    while h >= 1 / 256 or cell >= 2.0 ** -12:
        gate = 1 / (1 + math.exp(STEEP - recurrent * h))
        cell, steps = gate * cell + gate, steps + 1
        h = gate * math.tanh(cell)
        if steps > 8:
            break
    return closing, steps


def _most(weight) -> float:
    return max(float(np.abs(weight).max()), 1e-6)
