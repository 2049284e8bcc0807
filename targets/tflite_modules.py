# SPDX-License-Identifier: Apache-2.0
"""Norm, lookup and table of a .tflite file.

A norm is a vector of length 1 between two products: the first one takes the mean away, the second one has gains and
offsets.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Node
from targets.tflite_file import TfliteFile
from train.say import GraphError

BYTE = 127
LENGTH = 1 / 128            # grid of what int8 L2_NORMALIZATION writes
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
