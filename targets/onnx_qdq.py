# SPDX-License-Identifier: Apache-2.0
"""The integer graph as an ONNX file, Q/DQ pairs placed where ONNX Runtime's CPU kernels want them.

Codes are uint8 with zero point 128, the graph's own grid: ONNX Runtime's x86 kernels are slow on int8 activations.

Forms: `mixed`, every layer in codes, attention weights in float; `int8`, attention weights in codes too; `float`, the
same weights and no rounding of activations, float32 input and output. A `table` and a `lookup` know codes only and
round their input in every form; a `norm` and an `lstm` are real inside in every form. The reference rounds the states
of an LSTM in every step, the file does not: about one state in ten differs by one code.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Graph, Node
from targets.onnx_layers import sign
from targets.onnx_lowering import Lowering
from train.say import choose, need

FORMS = ("int8", "mixed", "float")
PROBABILITY = 1 / 255   # grid of the attention weights in form int8
FOLD = 8                # samples of a one-channel input that an integer convolution takes at once
LEAST_GRID = 2.0 ** -7  # stands for the multiplier 0, whose operand must not move a sum


def lower(graph: Graph, form: str, trace: bool = False) -> bytes:
    """The ONNX file of a graph in one of FORMS; MissingError without the onnx package.

    With `trace` every tensor is an output as well, named `<tensor>.codes` (uint8) or `<tensor>.real` (float32).
    """
    need("onnx", "arm")
    choose(form, FORMS, "form")
    return {"int8": _Int8, "mixed": _Mixed, "float": _Float}[form](graph).build(trace)


class _Float(Lowering):
    """No rounding: the native view is the real one."""

    dtype = np.float32

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.native = self.real

    def as_real(self, tensor: str) -> str:
        return self.view(tensor)

    def weight_grid(self, node: Node, first: Node) -> np.ndarray:
        """Value of one weight code, per channel."""
        return node.params["weight_scale"].astype(float)

    def weight(self, codes: np.ndarray, grid: np.ndarray) -> str:
        """A float weight or bias."""
        return self.constant((codes * grid.reshape(-1, *(1,) * (codes.ndim - 1))).astype(np.float32))

    def settled(self, real: str, scale: float, relu: bool = False) -> str:
        """What a layer leaves behind."""
        return self.op("Relu", [real]) if relu else real

    def entries(self, table: np.ndarray, scale: float) -> np.ndarray:
        """A table of real values."""
        return (table * scale).astype(np.float32)

    def scores(self, pair: list[str], nats: float, scales: list[float]) -> str:
        """q k' in nats, of which one product of codes counts `nats`."""
        real = nats / math.prod(scales)
        return self.op("Mul", [self.op("MatMul", pair), self.constant(np.float32(real))])

    def values(self, value: str, scale: float) -> str:
        """v as it is."""
        return value

    def weighted(self, weight: str, share: float) -> str:
        """Attention weights as they are."""
        return weight


class _Mixed(Lowering):
    """Every layer leaves codes; attention weights are real numbers, as in the reference, which never rounds them."""

    dtype = np.uint8

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.native = self.codes

    def as_codes(self, tensor: str) -> str:
        return self.view(tensor)

    def conv1d(self, node: Node):
        """A convolution of one channel is fed several samples at once as channels: rows of single bytes are slow.

        Fold f: output columns o..o+f/stride-1 are channels of one column computed from blocks of f samples, with the
        same weights at shifted places and zeros elsewhere. Same sums, same codes.
        """
        lead, time = self.shape(node.inputs[0])[1:]
        stride, left = node.attrs["stride"], node.attrs["pad"][0]
        fold = _fold(stride, self.shape(node.inputs[0]), self.shape(node.output))
        if fold == 1:
            return super().conv1d(node)
        names, weight, grid, bias = self.merged(node)
        phases = fold // stride
        wide, before, after = _folded_weight(weight, fold, stride, left)
        x = self.op("Reshape", [self.view(node.inputs[0]), self.ints(1, lead, time // fold, fold)])
        x = self.op("Transpose", [x], perm=[0, 3, 1, 2])
        scale = self.scale(node.inputs[0])
        y = self.convolved(self.dequantize(x, scale), scale, wide, np.tile(grid, phases), np.tile(bias, phases),
                           pads=[0, before, 0, after])
        y = self.op("Transpose", [self.settled(y, self.scale(names[0]), node.attrs["relu"])], perm=[0, 2, 3, 1])
        y = self.op("Reshape", [y, self.ints(1, lead, time // stride, len(bias))])
        self.store(names, self.op("Transpose", [y], perm=[0, 3, 1, 2]))
        return names

    def add(self, node: Node):
        """The reference's own integer multipliers as grids: the same sums, rounded once at the same place."""
        grids = [abs(m) or LEAST_GRID for m in node.attrs["mul"]]
        parts = [self.dequantize(self.view(t), grid) for t, grid in zip(node.inputs, grids, strict=True)]
        y = self.settled(self.op(sign(node), parts), 2.0 ** node.attrs["shift"], node.attrs["relu"])
        self.store((node.output,), y)

    def weight_grid(self, node: Node, first: Node) -> np.ndarray:
        """Per channel, such that a merged sibling lands on its own codes although all share the first one's grid."""
        return node.params["weight_scale"].astype(float) * (self.scale(first.output) / self.scale(node.output))

    def weight(self, codes: np.ndarray, grid: np.ndarray) -> str:
        """int8 weights or int32 bias behind a DequantizeLinear per output channel."""
        zero = np.zeros(len(grid), codes.dtype)
        return self.op("DequantizeLinear", [self.constant(codes), self.constant(grid.astype(np.float32)),
                                            self.constant(zero)], axis=0)

    def settled(self, real: str, scale: float, relu: bool = False) -> str:
        """Codes. ReLU acts on them: between Conv and QuantizeLinear it would keep the convolution in float."""
        codes = self.quantize(real, scale)
        return self.op("Clip", [codes, self.constant(self.zero)]) if relu else codes

    def entries(self, table: np.ndarray, scale: float) -> np.ndarray:
        """A table of codes."""
        return (table.astype(np.int16) + int(self.zero)).astype(np.uint8)

    def scores(self, pair: list[str], nats: float, scales: list[float]) -> str:
        """q k' of codes; q carries the whole scale, so that they come out in nats."""
        return self.op("MatMul", [self.dequantize(x, scale) for x, scale in zip(pair, (nats, 1.0), strict=True)])

    def values(self, value: str, scale: float) -> str:
        """Real v."""
        return self.dequantize(value, scale)

    def weighted(self, weight: str, share: float) -> str:
        """Attention weights as they are."""
        return weight


class _Int8(_Mixed):
    """Attention weights on a grid of 1/255, so that their product with v runs on codes too."""

    def weighted(self, weight: str, share: float) -> str:
        """A second map, whose `share` is subtracted, widens the grid to -share .. 1, or 0 .. 1 - share."""
        zero = np.uint8(round(max(share, 0) / (1 + abs(share)) / PROBABILITY))
        grid = [self.constant(np.float32(PROBABILITY * (1 + abs(share)))), self.constant(zero)]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [weight, *grid]), *grid])


def _fold(stride: int, source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Samples that a convolution may take at once, at most FOLD; 1 for one with more than one input channel."""
    if source[0] > 1 or output[2] * stride != source[2]:
        return 1
    return max((f for f in range(stride, FOLD + 1, stride) if source[2] % f == 0), default=1)


def _folded_weight(weight: np.ndarray, fold: int, stride: int, left: int) -> tuple[np.ndarray, int, int]:
    """(out, 1, 1, kernel) -> (fold / stride * out, fold, 1, blocks), and the blocks of padding before and after."""
    out, kernel = len(weight), weight.shape[3]
    phases = fold // stride
    before, after = -(-left // fold), max((stride * (phases - 1) - left + kernel - 1) // fold, 0)
    wide = np.zeros((phases, out, fold, 1, before + after + 1), weight.dtype)
    for phase in range(phases):
        for tap in range(kernel):
            block, place = divmod(stride * phase - left + tap, fold)
            wide[phase, :, place, 0, block + before] = weight[:, 0, 0, tap]
    return wide.reshape(phases * out, fold, 1, -1), before, after
