# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM and lookup of `onnx_qdq.py`: real numbers inside, settled on the output's grid."""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Node
from compress.reference_lstm import H_ONE, STEPS
from targets.onnx_file import OnnxFile

GATES = (0, 3, 1, 2)    # ours are in the order i, f, g, o; the file's are i, o, f, c


class Modules(OnnxFile):
    """Written in terms of the view `as_real`, of `index` and of the forms' `settled` and `entries`."""

    def norm(self, node: Node):
        """Over the channels of each group, which are turned to the last axis: (1, column, group, channel)."""
        source, groups = node.inputs[0], node.attrs["groups"]
        channels, *rest = self.shape(source)
        count = channels // groups
        turn = math.prod(rest) > 1 or (self.turns_single and len(rest) > 0)
        # the reference's floor counts n^2 codes^2 in 2^-28
        floor = np.float32(node.attrs["eps"] * 2.0 ** -28 * (self.scale(source) / count) ** 2)
        scale = self.scale(node.output)
        gain, bias = ((node.params[key] * (scale / one)).astype(np.float32).reshape(groups, count)
                      for key, one in (("mul", 2 ** 12), ("bias", 2 ** 16)))
        x = self.as_real(source)
        x = self.op("Transpose", [x], perm=[0, *range(2, len(rest) + 2), 1]) if turn else x
        x = self.op("Reshape", [x, self.ints(1, -1, groups, count)])
        x = self.levelled(x, floor, gain, bias, node.attrs["rms"])
        x = self.op("Reshape", [x, self.ints(1, *rest, channels)])
        x = self.op("Transpose", [x], perm=[0, len(rest) + 1, *range(1, len(rest) + 1)]) if turn else \
            self.op("Reshape", [x, self.ints(1, channels, *rest)])
        self.store((node.output,), self.settled(x, scale))

    def levelled(self, x: str, floor: np.float32, gain: np.ndarray, bias: np.ndarray, rms: bool) -> str:
        """Normalized over the last axis, times gain, plus bias, both (group, channel)."""
        x = self.narrowed(self.normalized(self.widened(x), floor, gain.shape[1], rms))
        x = self.op("Mul", [x, self.constant(gain)])
        return self.op("Add", [x, self.constant(bias)]) if bias.any() else x

    def widened(self, value: str) -> str:
        """A value on its way into what float16 would spoil; a form with such a body overrides this and `narrowed`."""
        return value

    def narrowed(self, value: str) -> str:
        """Back from `widened`."""
        return value

    def normalized(self, x: str, floor: np.float32, count: int, rms: bool) -> str:
        """Unit energy over the last axis, of `count` values; without `rms` their mean is taken off before."""
        if rms:
            return self.op("Div", [x, self.root_mean_square(x, floor)])
        return self.op("LayerNormalization", [x, self.constant(np.ones(count, np.float32))], epsilon=float(floor))

    def root_mean_square(self, x: str, floor: np.float32) -> str:
        """Over the last axis, which stays."""
        square = self.reduce("ReduceMean", self.op("Mul", [x, x]), [-1], keepdims=1)
        return self.op("Sqrt", [self.op("Add", [square, self.constant(floor)])])

    def lstm(self, node: Node):
        """ONNX's own, in float: the reference rounds its states in every step, this one only what it hands on."""
        source, p = node.inputs[0], node.params
        steps, features = self.shape(source)
        hidden = p["weight_h"].shape[1]
        unit = np.repeat([1.0, 1.0, 2.0, 1.0], hidden) * STEPS      # pre-activation steps per unit; g counts 2z
        weight_x = p["weight_x"] * (p["mul_x"] * 2.0 ** -32 / unit / self.scale(source))[:, None]
        weight_h = p["weight_h"] * (p["mul_h"] * 2.0 ** -32 / unit * H_ONE)[:, None]
        bias = p["bias"] * 2.0 ** -16 / unit
        x = self.op("Reshape", [self.as_real(source), self.ints(steps, 1, features)])
        parts = [_ordered(weight_x), _ordered(weight_h), np.concatenate([_ordered(bias), np.zeros_like(bias)])]
        values = [self.constant(part[None].astype(np.float32)) for part in parts]
        every, last, _ = self.op("LSTM", [x, *values], count=3, hidden_size=hidden)
        y = self.op("Reshape", [every if node.attrs["sequence"] else last, self.ints(1, *self.shape(node.output))])
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    def lookup(self, node: Node):
        """Each of the 256 codes has its row, so that nothing needs clipping."""
        table = node.params["table"]
        rows = table[np.clip(np.arange(-128, 128) - node.attrs["low"], 0, len(table) - 1)]
        y = self.op("Gather", [self.constant(self.entries(rows, self.scale(node.output))), self.index(node.inputs[0])])
        self.store((node.output,), self.op("Reshape", [y, self.ints(1, *self.shape(node.output))]))


def _ordered(rows: np.ndarray) -> np.ndarray:
    """Gate rows in the order of the file."""
    return rows.reshape(4, -1, *rows.shape[1:])[list(GATES)].reshape(rows.shape)
