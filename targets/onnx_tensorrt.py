# SPDX-License-Identifier: Apache-2.0
"""The integer graph as ONNX files for TensorRT: Q/DQ pairs where its builder wants them, every sum in real numbers.

Forms, all with float32 input and output in real units:
    int8        float32 body; every Conv and Gemm reads int8 codes and int8 weights
    float       the same weights as real numbers, no Q/DQ, nothing rounded but the index of a table
    fp16        float with a float16 body, for the strongly typed networks of TensorRT 10 and 11

A float16 body around the pairs was tried: it rounds again in front of each of them, and nine of ten small networks left
the bounds of parity (98.7 to 99.7 % equal labels). So strongly typed networks get the float32 body too.

TensorRT's rules: zero points are int8 zeros; weights are float constants behind a pair per output channel, on the
graph's own grid, so that its codes come back; bias stays float, since int32 behind a DequantizeLinear is refused.
Activations have one scale a tensor, the graph's, and one pair, which all readers share.

Every tensor that is computed with is rounded, not only what Conv, Gemm and attention read: sums, means and norms run in
float, but on the graph's codes. Without those pairs nine of ten small networks left the bounds of parity (98.0 to
99.3 % equal labels of 2,000 windows of CinC 2017, executed by ONNX Runtime, not by TensorRT), because what saturates in
int8 did not saturate; with them all ten keep them (99.65 % or more). Layers that only move or compare codes get none.
A narrow Conv left in float would save nothing: what it reads and writes is codes anyhow.

Both products of an attention are float unless `attention` is "int8": then their operands are codes and the
probabilities lie on a grid of 1/127, symmetric as TensorRT wants it and too coarse for many networks: four of the ten
left the bounds. Rows are far shorter than the 512 keys up to which TensorRT has such kernels, and they are small.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Graph, Node
from targets import jetpacks
from targets.jetpacks import JetPack
from targets.onnx_attention import HIDDEN
from targets.onnx_file import OPSET
from targets.onnx_lowering import Lowering
from train.say import GraphError, choose, need

FORMS = ("int8", "float", "fp16")
STRONGLY_TYPED = (10, 0)        # TensorRT that takes types from the file
LAYER_NORM = (8, 6)     # TensorRT that has LayerNormalization
PROBABILITY = 1 / 127   # grid of the attention weights with int8 products
HALF_LIMIT = 6e4        # stands for anything larger in float16, whose largest number is 65504
MOVED = ("maxpool", "max", "slice", "reshape", "transpose")     # their output holds codes of their input
EXACT = ("constant", "table", "lookup")                         # their output lies on its grid by itself


def forms(jetpack: str | None) -> tuple[str, ...]:
    """What a JetPack, such as "6.2", can build; None: what some JetPack from 5.0 on can."""
    if jetpack is None:
        return FORMS
    pack = jetpacks.find(jetpack)
    return tuple(f for f in FORMS
                 if (pack.int8 or f != "int8") and (pack.tensorrt >= STRONGLY_TYPED or f != "fp16"))


def opset(form: str, jetpack: str | None) -> int:
    """Of the file of a form."""
    return OPSET if form == "fp16" else min(jetpacks.find(jetpack).opset, OPSET)


def lower(graph: Graph, form: str, jetpack: str | None = None, trace: bool = False, attention: str = "float") -> bytes:
    """The ONNX file of a graph in one of the forms of a JetPack; MissingError without the onnx package.

    Without a JetPack every one from 5.0 on can read it, or from TensorRT 10 on if it is strongly typed. With `trace`
    every tensor is an output as well, named `<tensor>.real`, before its readers round it.
    """
    need("onnx", "jetson")
    choose(form, forms(jetpack), "form")
    choose(attention, ("float", "int8"), "attention")
    placed = (_Int8 if form == "int8" else _Body)(graph, form, jetpacks.find(jetpack))
    placed.products = attention == "int8"
    return placed.build(trace)


class _Body(Lowering):
    """Real numbers, float32 or float16; the native view is the real one."""

    dtype = np.float32
    zero = np.int8(0)
    products = False    # of an attention in int8?

    def __init__(self, graph: Graph, form: str, pack: JetPack):
        super().__init__(graph)
        self.native = self.real
        self.half, self.opset = form == "fp16", opset(form, pack.name)
        self.layer_norm = self.half or pack.tensorrt >= LAYER_NORM
        self.wide = not self.half       # are constants float32 right now?

    # ---- float16

    def constant(self, array) -> str:
        """What hides a key fits float16 in every form, since an engine may choose that for a float32 body too."""
        array = np.asarray(array)
        if array.dtype == np.float32:
            array = np.where(array <= HIDDEN, np.float32(-HALF_LIMIT), array)
            if not self.wide:
                array = np.clip(array, -HALF_LIMIT, HALF_LIMIT).astype(np.float16)
        return super().constant(array)

    def cast(self, value: str, half: bool) -> str:
        """To float16 or float32."""
        from onnx import TensorProto
        return self.op("Cast", [value], to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)

    def entering(self, name: str) -> str:
        return self.cast(name, True) if self.half else name

    def leaving(self, value: str) -> str:
        return self.cast(value, False) if self.half else value

    def widened(self, value: str) -> str:
        """Squares and the floor of a norm do not fit float16."""
        self.wide = True
        return self.cast(value, False) if self.half else value

    def narrowed(self, value: str) -> str:
        """Back from `widened`."""
        self.wide = not self.half
        return self.cast(value, True) if self.half else value

    # ---- views

    def as_real(self, tensor: str) -> str:
        return self.view(tensor)

    def settled(self, real: str, scale: float, relu: bool = False) -> str:
        """What a layer leaves behind; its readers round it."""
        return self.op("Relu", [real]) if relu else real

    def entries(self, table: np.ndarray, scale: float) -> np.ndarray:
        """A table of real values."""
        return (table * scale).astype(np.float32)

    def index(self, tensor: str) -> str:
        """By arithmetic: TensorRT reads int8 behind pairs only."""
        from onnx import TensorProto
        steps = self.op("Div", [self.view(tensor), self.constant(np.float32(self.scale(tensor)))])
        code = self.op("Floor", [self.op("Add", [steps, self.constant(np.float32(128.5))])])
        code = self.op("Clip", [code, self.constant(np.float32(0)), self.constant(np.float32(255))])
        return self.op("Cast", [code], to=TensorProto.INT32)

    # ---- weights

    def weight_grid(self, node: Node, first: Node) -> np.ndarray:
        """Value of one weight code, per channel."""
        return node.params["weight_scale"].astype(float)

    def weight(self, codes: np.ndarray, grid: np.ndarray) -> str:
        """A float weight or bias."""
        return self.constant(_along(codes, grid).astype(np.float32))

    # ---- modules

    def scores(self, pair: list[str], nats: float, scales: list[float]) -> str:
        """q k' in nats, of which one product of codes counts `nats`."""
        return self.op("Mul", [self.op("MatMul", pair), self.constant(np.float32(nats / math.prod(scales)))])

    def values(self, value: str, scale: float) -> str:
        """v as it is."""
        return value

    def weighted(self, weight: str, share: float) -> str:
        """Attention weights as they are."""
        return weight

    def normalized(self, x: str, floor: np.float32, count: int, rms: bool) -> str:
        """In single steps where there is no LayerNormalization."""
        if rms or self.layer_norm:
            return super().normalized(x, floor, count, rms)
        x = self.op("Sub", [x, self.reduce("ReduceMean", x, [-1], keepdims=1)])
        return super().normalized(x, floor, count, rms=True)


class _Int8(_Body):
    """What computes reads codes: a pair in front of it."""

    def __init__(self, graph: Graph, form: str, pack: JetPack):
        super().__init__(graph, form, pack)
        self.rounded: dict[str, str] = {}       # tensor -> its value behind the pair that all readers share
        self.writers = {n.output: n for n in graph.nodes}

    def paired(self, value: str, scale: float) -> str:
        """Rounded to the grid, by a pair."""
        return self.dequantize(self.quantize(value, scale), scale)

    def operand(self, tensor: str) -> str:
        if tensor not in self.rounded:
            self.rounded[tensor] = self.paired(self.view(tensor), self.scale(tensor))
        return self.rounded[tensor]

    def as_real(self, tensor: str) -> str:
        return self.view(tensor) if self.on_grid(tensor) else self.operand(tensor)

    def on_grid(self, tensor: str) -> bool:
        """Are the values codes without being rounded?"""
        node = self.writers.get(tensor)
        return node is None or node.kind in EXACT or (node.kind in MOVED and self.on_grid(node.inputs[0]))

    def siblings(self, node: Node) -> list[Node]:
        """None: outputs of one Conv with several grids could not leave it as int8."""
        return [node]

    def weight(self, codes: np.ndarray, grid: np.ndarray) -> str:
        """int8 weights behind a pair per output channel, whose quantizer gives `codes` again; a bias as it is."""
        if codes.dtype != np.int8:
            return super().weight(codes, grid)
        grid = grid.astype(np.float32)
        real = _along(codes, grid).astype(np.float32)
        if not (grid > 0).all() or (_along(real.astype(float), 1 / grid.astype(float)).round() != codes).any():
            raise GraphError(f"{self.layer}: weight scales of {grid.min():g} .. {grid.max():g} do not keep the codes",
                             "positive scales that float32 holds", "python compress/qat.py quantizes again")
        pair = [self.constant(grid), self.constant(np.zeros(len(grid), np.int8))]
        x = self.op("QuantizeLinear", [self.constant(real), *pair], axis=0)
        return self.op("DequantizeLinear", [x, *pair], axis=0)

    def beside(self, tensor: str) -> tuple[str, int, int]:
        """Rounded here, or by the products themselves."""
        return self.view(tensor) if self.products else self.as_real(tensor), 1, 0

    def scores(self, pair: list[str], nats: float, scales: list[float]) -> str:
        if self.products:
            pair = [self.paired(x, scale) for x, scale in zip(pair, scales, strict=True)]
        return super().scores(pair, nats, scales)

    def values(self, value: str, scale: float) -> str:
        return self.paired(value, scale) if self.products else value

    def weighted(self, weight: str, share: float) -> str:
        """A second map, whose `share` is subtracted, widens the grid."""
        return self.paired(weight, PROBABILITY * (1 + abs(share))) if self.products else weight


def _along(codes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """codes (channel, ...) times grid (channel,)."""
    return codes * grid.reshape(-1, *(1,) * (codes.ndim - 1))
