# SPDX-License-Identifier: Apache-2.0
"""The integer graph as an ONNX file, Q/DQ pairs placed where ONNX Runtime's CPU kernels want them.

Every tensor of the graph has up to two views in the file: its codes (uint8 with zero point 128, the graph's own grid:
ONNX Runtime's x86 kernels are slow on int8 activations) and its real values (float32). Sequence tensors are
(1, channel, lead, time), vectors (1, feature); one window per evaluation. Inputs and output carry the graph's names.

Forms: `mixed`, every layer in codes, attention weights in float; `int8`, attention weights in codes too; `float`, the
same weights and no rounding of activations, float32 input and output. A `table` and a `lookup` know codes only and
round their input in every form; a `norm` and an `lstm` are real inside in every form. The reference rounds the states
of an LSTM in every step, the file does not: about one state in ten differs by one code.

Another placement (TensorRT's: int8 with zero point 0, float bias, real values between the layers) is another subclass
of `_Lowering`: a form decides how weights, biases and results are written, the layers are lowered once.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Graph, Node
from targets.onnx_attention import Attention
from targets.onnx_layers import Layers, sign
from targets.onnx_modules import Modules
from train.say import GraphError, choose, need

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


class _Lowering(Layers, Attention, Modules):
    """Walks the graph once and writes ONNX nodes. The native view is the one that a layer leaves behind."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.codes: dict[str, str] = {}                 # tensor -> ONNX value, uint8
        self.real: dict[str, str] = {}                  # tensor -> ONNX value, float32
        self.native: dict[str, str] = {}                # the one of the two that this form moves about
        self.stacks: dict[tuple[str, ...], str] = {}    # tensors that one merged convolution wrote -> ONNX value
        self.turned: dict[str, str] = {}                # ONNX value -> the same with time in front of the channels

    def build(self, trace: bool) -> bytes:
        """Lower every node that a merged convolution has not written already, then pack the file."""
        self.native.update({name: name for name in self.graph.inputs})
        written: set[str] = set()
        for node in self.graph.nodes:
            if node.output not in written:
                self.layer = node.name
                lower = getattr(self, f"{node.kind}_" if node.kind == "constant" else node.kind, None)
                if lower is None:
                    raise GraphError(f"{node.name}: {node.kind} has no ONNX form", "another kind", "another target")
                written.update(lower(node) or ())
        self.layer = "output"
        outputs = [self.graph.output, *(n.output for n in self.graph.nodes if n.output != self.graph.output and trace)]
        values = [self.view(t) for t in outputs]
        names = {v: f"{t}.codes" for t, v in self.codes.items()} | {v: f"{t}.real" for t, v in self.real.items()}
        names |= {values[0]: self.graph.output} | {name: name for name in self.graph.inputs}
        shapes = {name: (1, *self.shape(name)) for name in self.graph.inputs}
        return self.pack(shapes, self.dtype, values, names)

    # ---- views

    def scale(self, tensor: str) -> float:
        """Value of one code."""
        return self.graph.tensors[tensor].scale

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Without the batch axis."""
        return self.graph.tensors[tensor].shape

    def view(self, tensor: str) -> str:
        """The native view; a tensor inside a stack is split off."""
        if tensor not in self.native:
            names = next(names for names in self.stacks if tensor in names)
            sizes = self.ints(*(self.shape(t)[0] for t in names))
            parts = self.op("Split", [self.stacks[names], sizes], count=len(names), axis=1)
            self.native.update(zip(names, parts, strict=True))
        return self.native[tensor]

    def as_real(self, tensor: str) -> str:
        """The float view."""
        if tensor not in self.real:
            self.real[tensor] = self.dequantize(self.view(tensor), self.scale(tensor))
        return self.real[tensor]

    def as_codes(self, tensor: str) -> str:
        """The view in codes."""
        if tensor not in self.codes:
            self.codes[tensor] = self.quantize(self.view(tensor), self.scale(tensor))
        return self.codes[tensor]

    def store(self, names: tuple[str, ...], value: str) -> None:
        """Keep a native view; several names mean channels side by side."""
        if len(names) == 1:
            self.native[names[0]] = value
        else:
            self.stacks[names] = value

    # ---- layers with weights

    def siblings(self, node: Node) -> list[Node]:
        """The convolutions that read the same input in the same way: one matrix product does them all."""
        if node.attrs["groups"] != 1:
            return [node]
        kernel = node.params["weight"].shape[1:]
        return [n for n in self.graph.nodes if n.kind == "conv1d" and n.inputs == node.inputs
                and n.attrs == node.attrs and n.params["weight"].shape[1:] == kernel]

    def conv1d(self, node: Node):
        """Kernels are (1, k): the lead axis is a height of independent rows."""
        names, weight, grid, bias = self.merged(node)
        a = node.attrs
        y = self.convolved(self.as_real(node.inputs[0]), self.scale(node.inputs[0]), weight, grid, bias,
                           strides=[1, a["stride"]], pads=[0, a["pad"][0], 0, a["pad"][1]], group=a["groups"])
        self.store(names, self.settled(y, self.scale(names[0]), a["relu"]))
        return names

    def merged(self, node: Node):
        """Outputs, weight (out, in, 1, kernel), weight grid and bias of all siblings of a convolution."""
        group = self.siblings(node)
        return (tuple(n.output for n in group), np.concatenate([n.params["weight"] for n in group])[:, :, None],
                np.concatenate([self.weight_grid(n, group[0]) for n in group]),
                np.concatenate([n.params["bias"] for n in group]))

    def convolved(self, real: str, scale: float, weight, grid, bias, **attrs) -> str:
        """Conv of a real input whose codes count `scale`."""
        return self.op("Conv", [real, self.weight(weight, grid), self.weight(bias, scale * grid)],
                       kernel_shape=[1, weight.shape[3]], **attrs)

    def dense(self, node: Node):
        """A vector times a matrix."""
        x, grid = node.inputs[0], node.params["weight_scale"].astype(float)
        y = self.op("Gemm", [self.as_real(x), self.weight(node.params["weight"], grid),
                             self.weight(node.params["bias"], self.scale(x) * grid)], transB=1)
        self.store((node.output,), self.settled(y, self.scale(node.output), node.attrs["relu"]))


class _Float(_Lowering):
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


class _Mixed(_Lowering):
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
