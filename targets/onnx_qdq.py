# SPDX-License-Identifier: Apache-2.0
"""The integer graph as an ONNX file, Q/DQ pairs placed where ONNX Runtime's CPU kernels want them.

Codes are uint8 with zero point 128, the graph's own grid: ONNX Runtime's x86 kernels are slow on int8 activations.
`onnx_layout.py` says how those kernels want sequences laid out.

Forms: `mixed`, every layer in codes, attention's products and weights in float; `int8`, those in codes too; `float`,
the same weights and no rounding of activations, float32 input and output. A `table` and a `lookup` know codes only and
round their input in every form; a `norm` and an `lstm` are real inside in every form. The reference rounds the states
of an LSTM in every step, the file does not: about one state in ten differs by one code.

Between `mixed` and `float` nothing keeps the limits of `target.py` for every net: forms that round the first layers
and are float behind, or that drop the upper limit of depthwise ReLUs, are faster and were tried on real records.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Graph, Node
from targets import onnx_layout as layout
from targets.onnx_layers import sign
from targets.onnx_lowering import Lowering
from train.say import choose, need

FORMS = ("int8", "mixed", "float")
PROBABILITY = 1 / 255   # grid of the attention weights in form int8
LEAST_GRID = 2.0 ** -7  # stands for the multiplier 0, whose operand must not move a sum


def lower(graph: Graph, form: str, trace: bool = False) -> bytes:
    """The ONNX file of a graph in one of FORMS; MissingError without the onnx package.

    With `trace` every tensor is an output as well, named `<tensor>.codes` (uint8) or `<tensor>.real` (float32).
    """
    need("onnx", "arm")
    choose(form, FORMS, "form")
    return {"int8": _Int8, "mixed": _Mixed, "float": _Float}[form](graph).build(trace)


class _OnnxRuntime(Lowering):
    """Norms in as few operations as ONNX Runtime has for them."""

    def levelled(self, x: str, floor: np.float32, gain: np.ndarray, bias: np.ndarray, rms: bool) -> str:
        """One operation, or two for groups; written for rms as the sequence that ONNX Runtime knows and makes one."""
        if not rms:
            if len(gain) > 1:
                return super().levelled(x, floor, gain, bias, rms)
            return self.op("LayerNormalization", [x, self.constant(gain[0]), self.constant(bias[0])],
                           epsilon=float(floor))
        one, rest = (gain[0], None) if len(gain) == 1 else (np.full_like(gain[0], 0.5), gain * 2)
        square = self.reduce("ReduceMean", self.op("Pow", [x, self.constant(np.float32(2))]), [-1], keepdims=1)
        root = self.op("Sqrt", [self.op("Add", [square, self.constant(floor)])])
        x = self.op("Mul", [self.op("Div", [x, root]), self.constant(one)])
        x = x if rest is None else self.op("Mul", [x, self.constant(rest)])
        return self.op("Add", [x, self.constant(bias)]) if bias.any() else x


class _Float(_OnnxRuntime):
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


class _Mixed(_OnnxRuntime):
    """Every layer leaves codes; attention weights are real numbers, as in the reference, which never rounds them."""

    dtype = np.uint8
    turns_single = True     # meets the turns that ONNX Runtime puts around its integer convolutions

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.native = self.codes
        self.folded: dict[str, tuple[str, int]] = {}    # tensor -> ONNX value in codes, samples a column

    def as_codes(self, tensor: str) -> str:
        return self.view(tensor)

    def build(self, trace: bool) -> bytes:
        """Traced, no tensor has more channels than the graph says: zeros that change no code."""
        self.widths = {} if trace else layout.widths(self.graph)
        return super().build(trace)

    def width(self, tensor: str) -> int:
        """Channels of a tensor in the file."""
        return self.widths.get(tensor, self.shape(tensor)[0])

    def view(self, tensor: str) -> str:
        """A folded tensor is unfolded for whoever does not know of folds."""
        if tensor not in self.native and tensor in self.folded:
            self.native[tensor] = self.unfolded(tensor)
        return super().view(tensor)

    def conv1d(self, node: Node):
        """Few channels are read folded, and leave folded what the next layer may read as well."""
        source, output = self.shape(node.inputs[0]), self.shape(node.output)
        fold = layout.first_fold(node.attrs["stride"], source, output)
        value, known = self.folded.get(node.inputs[0], (None, 1))
        if fold > 1:
            value = self.op("Reshape", [self.view(node.inputs[0]), self.ints(1, source[1], source[2] // fold, fold)])
            return self.fold(node, self.op("Transpose", [value], perm=[0, 3, 1, 2]), fold)
        if known > 1 and layout.folds(node, known, source, output):
            return self.fold(node, value, known)
        return super().conv1d(node)

    def fold(self, node: Node, value: str, fold: int) -> tuple[str, ...]:
        """A convolution of `fold` samples a column; its output has fold / stride samples a column."""
        names, weight, grid, bias = self.merged(node)
        a = node.attrs
        phases, scale = fold // a["stride"], self.scale(node.inputs[0])
        groups = a["groups"] if layout.depthwise(node) else 1
        wide, before, after = layout.folded_weight(weight, groups, fold, a["stride"], a["pad"][0])
        y = self.convolved(self.dequantize(value, scale), scale, wide, np.tile(grid, phases), np.tile(bias, phases),
                           pads=[0, before, 0, after])
        y = self.settled(y, self.scale(names[0]), a["relu"])
        if len(names) > 1 or phases == 1:
            self.store(names, y if phases == 1 else self.spread(y, phases, names))
        else:
            self.folded[names[0]] = y, phases
        return names

    def unfolded(self, tensor: str) -> str:
        """One sample a column."""
        value, fold = self.folded[tensor]
        return self.spread(value, fold, (tensor,))

    def spread(self, value: str, fold: int, names: tuple[str, ...]) -> str:
        """(1, fold * channel, lead, column) -> (1, channel, lead, time)."""
        lead, time = self.shape(names[0])[1:]
        y = self.op("Transpose", [value], perm=[0, 2, 3, 1])
        y = self.op("Reshape", [y, self.ints(1, lead, time, -1)])
        return self.op("Transpose", [y], perm=[0, 3, 1, 2])

    def merged(self, node: Node):
        """With channels of zeros where the file's tensors are wider; groups of several channels become one."""
        names, weight, grid, bias = super().merged(node)
        if not layout.depthwise(node):
            weight = layout.ungrouped(weight, node.attrs["groups"])
        more = self.width(names[0]) - len(bias) if len(names) == 1 else 0
        before = weight.shape[1] if layout.depthwise(node) else self.width(node.inputs[0])
        weight = layout.widened(weight, before, len(bias) + more)
        return names, weight, np.pad(grid, (0, more), mode="edge"), np.pad(bias, (0, more))

    def convolved(self, real: str, scale: float, weight, grid, bias, **attrs) -> str:
        """Depthwise, every channel of zeros is a group; no other convolution has groups here."""
        attrs["group"] = len(weight) if weight.shape[1] == 1 < attrs.get("group", 1) else 1
        return super().convolved(real, scale, weight, grid, bias, **attrs)

    def meanpool(self, node: Node):
        """As a depthwise convolution with weights of 1: ONNX Runtime's own integer pooling is slow."""
        a, x = node.attrs, node.inputs[0]
        channels = self.width(x)
        weight = np.ones((channels, 1, 1, a["kernel"]), np.int8)
        y = self.convolved(self.as_real(x), self.scale(x), weight, np.full(channels, 1 / a["kernel"]),
                           np.zeros(channels, np.int32), strides=[1, a["stride"]],
                           pads=[0, a["pad"][0], 0, a["pad"][1]], group=channels)
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    def add(self, node: Node):
        """The reference's own integer multipliers as grids: the same sums, rounded once at the same place."""
        grids = [abs(m) or LEAST_GRID for m in node.attrs["mul"]]
        values, folds = zip(*(self.folded.get(t, (None, 1)) for t in node.inputs), strict=True)
        together = folds[0] == folds[1] > 1 and self.shape(node.inputs[0]) == self.shape(node.inputs[1])
        values = values if together else [self.view(t) for t in node.inputs]
        parts = [self.dequantize(v, grid) for v, grid in zip(values, grids, strict=True)]
        y = self.settled(self.op(sign(node), parts), 2.0 ** node.attrs["shift"], node.attrs["relu"])
        if together:
            self.folded[node.output] = y, folds[0]
        else:
            self.store((node.output,), y)

    def levelled(self, x: str, floor: np.float32, gain: np.ndarray, bias: np.ndarray, rms: bool) -> str:
        """Doubled first where it is read twice: ONNX Runtime gives each reader of codes a pair of its own."""
        if rms:
            x, floor = self.op("Mul", [x, self.constant(np.float32(2))]), floor * np.float32(4)
        return super().levelled(x, floor, gain, bias, rms)

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

    def attended(self, rows: str) -> str:
        """Codes as real numbers: ONNX Runtime's product of codes is slower than one of small whole numbers."""
        return self.dequantize(rows, 1.0)

    def unit(self, tensor: str) -> float:
        """One code."""
        return self.scale(tensor)

    scores, values = _Float.scores, _Float.values

    def weighted(self, weight: str, share: float) -> str:
        """Attention weights as they are."""
        return weight


class _Int8(_Mixed):
    """Attention weights on a grid of 1/255, so that both products run on codes."""

    def attended(self, rows: str) -> str:
        """Codes."""
        return rows

    def unit(self, tensor: str) -> float:
        """The real one: products are scaled."""
        return 1.0

    def scores(self, pair: list[str], nats: float, scales: list[float]) -> str:
        """q k' of codes; q carries the whole scale, so that they come out in nats."""
        return self.op("MatMul", [self.dequantize(x, scale) for x, scale in zip(pair, (nats, 1.0), strict=True)])

    def values(self, value: str, scale: float) -> str:
        """Real v."""
        return self.dequantize(value, scale)

    def weighted(self, weight: str, share: float) -> str:
        """A second map, whose `share` is subtracted, widens the grid to -share .. 1, or 0 .. 1 - share."""
        zero = np.uint8(round(max(share, 0) / (1 + abs(share)) / PROBABILITY))
        grid = [self.constant(np.float32(PROBABILITY * (1 + abs(share)))), self.constant(zero)]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [weight, *grid]), *grid])
