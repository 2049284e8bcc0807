# SPDX-License-Identifier: Apache-2.0
"""The integer graph as an ONNX file, Q/DQ pairs placed where ONNX Runtime's CPU kernels want them.

Every tensor of the graph has up to two views in the file: its codes (uint8 with zero point 128, the graph's own grid:
ONNX Runtime's x86 kernels are slow on int8 activations) and its real values (float32). Sequence tensors are
(1, channel, lead, time), vectors (1, feature); one window per evaluation. Inputs and output carry the graph's names.

Forms: `int8`, everything in codes; `mixed`, the two products inside attention in float; `float`, the same weights and
no rounding of activations, float32 input and output. A `table` knows codes only and rounds its input in every form.

Another placement (TensorRT's: int8 with zero point 0, float bias, real values between the layers) is another subclass
of `_Lowering`: a form decides how weights, biases and results are written, the layers are lowered once.
"""

from __future__ import annotations

import math

import numpy as np

from compress.graph import Graph, Node
from compress.reference import EXP_STEP
from train.say import choose, need

FORMS = ("int8", "mixed", "float")
OPSET = 17
IR_VERSION = 8          # what came with opset 17
HIDDEN = -1e9           # added to the score of a key outside of the band
PROBABILITY = 1 / 255   # grid of the attention weights in form int8
FULL_UP_TO = 6          # a band of up to this many blocks is computed as one masked square: fewer operations are faster


def lower(graph: Graph, form: str, trace: bool = False) -> bytes:
    """The ONNX file of a graph in one of FORMS; MissingError without the onnx package.

    With `trace` every tensor is an output as well, named `<tensor>.codes` (uint8) or `<tensor>.real` (float32).
    """
    need("onnx", "arm")
    choose(form, FORMS, "form")
    return {"int8": _Int8, "mixed": _Mixed, "float": _Float}[form](graph).build(trace)


class _Lowering:
    """Walks the graph once and writes ONNX nodes. The native view is the one that a layer leaves behind."""

    zero = np.uint8(128)    # the code of the value 0

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes, self.constants, self.taken = [], {}, set()
        self.codes: dict[str, str] = {}                 # tensor -> ONNX value, uint8
        self.real: dict[str, str] = {}                  # tensor -> ONNX value, float32
        self.native: dict[str, str] = {}                # the one of the two that this form moves about
        self.stacks: dict[tuple[str, ...], str] = {}    # tensors that one merged convolution wrote -> ONNX value
        self.layer = ""

    def build(self, trace: bool) -> bytes:
        """Lower every node that a merged convolution has not written already, then pack the model."""
        self.native.update({name: name for name in self.graph.inputs})
        written: set[str] = set()
        for node in self.graph.nodes:
            if node.output not in written:
                self.layer = node.name
                written.update(getattr(self, node.kind)(node) or ())
        self.layer = "output"
        outputs = [self.graph.output, *(n.output for n in self.graph.nodes if n.output != self.graph.output and trace)]
        return self.pack([self.view(t) for t in outputs])

    def pack(self, outputs: list[str]) -> bytes:
        """Model bytes, checked with shape inference. Views get the name of their tensor."""
        import onnx
        from onnx import helper, numpy_helper
        named = {v: f"{t}.codes" for t, v in self.codes.items()} | {v: f"{t}.real" for t, v in self.real.items()}
        named |= {outputs[0]: self.graph.output} | {name: name for name in self.graph.inputs}
        for node in self.nodes:
            node.input[:] = [named.get(v, v) for v in node.input]
            node.output[:] = [named.get(v, v) for v in node.output]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = [helper.make_tensor_value_info(name, kind, [1, *self.graph.tensors[name].shape])
                  for name in self.graph.inputs]
        body = helper.make_graph(self.nodes, "leadedge", inputs,
                                 [helper.make_empty_tensor_value_info(named[v]) for v in outputs],
                                 [numpy_helper.from_array(a, name) for name, a in self.constants.values()])
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="LeadEdge",
                                  ir_version=IR_VERSION)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    # ---- ONNX nodes and constants

    def op(self, kind: str, inputs: list[str], count: int = 1, **attrs):
        """Append an ONNX node named after the layer; returns its output, or a list of `count` outputs."""
        from onnx import helper
        name = self.unique(kind)
        outputs = [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attrs))
        return name if count == 1 else outputs

    def unique(self, word: str) -> str:
        """layer/word, with a number when that is taken."""
        name, i = f"{self.layer}/{word}", 1
        while name in self.taken:
            i += 1
            name = f"{self.layer}/{word}{i}"
        self.taken.add(name)
        return name

    def constant(self, array) -> str:
        """An initializer; equal arrays share one."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = (self.unique("constant"), array)
        return self.constants[key][0]

    def ints(self, *values: int) -> str:
        """An int64 vector: a shape, a pad, an axis."""
        return self.constant(np.array(values, np.int64))

    def quantize(self, real: str, scale: float) -> str:
        """real -> codes."""
        return self.op("QuantizeLinear", [real, self.constant(np.float32(scale)), self.constant(self.zero)])

    def dequantize(self, codes: str, scale: float) -> str:
        """codes -> real."""
        return self.op("DequantizeLinear", [codes, self.constant(np.float32(scale)), self.constant(self.zero)])

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
        group = self.siblings(node)
        names = tuple(n.output for n in group)
        weight = np.concatenate([n.params["weight"] for n in group])[:, :, None]
        grid = np.concatenate([self.weight_grid(n, group[0]) for n in group])
        bias = np.concatenate([n.params["bias"] for n in group])
        a, x = node.attrs, node.inputs[0]
        y = self.op("Conv", [self.as_real(x), self.weight(weight, grid), self.weight(bias, self.scale(x) * grid)],
                    kernel_shape=[1, weight.shape[3]], strides=[1, a["stride"]],
                    pads=[0, a["pad"][0], 0, a["pad"][1]], group=a["groups"])
        self.store(names, self.settled(y, self.scale(names[0]), a["relu"]))
        return names

    def dense(self, node: Node):
        """A vector times a matrix."""
        x, grid = node.inputs[0], node.params["weight_scale"].astype(float)
        y = self.op("Gemm", [self.as_real(x), self.weight(node.params["weight"], grid),
                             self.weight(node.params["bias"], self.scale(x) * grid)], transB=1)
        self.store((node.output,), self.settled(y, self.scale(node.output), node.attrs["relu"]))

    # ---- layers that meet on the output's grid

    def add(self, node: Node):
        """Residual sum."""
        y = self.op("Add", [self.as_real(t) for t in node.inputs])
        self.store((node.output,), self.settled(y, self.scale(node.output), node.attrs["relu"]))

    def mean(self, node: Node):
        """Over leads and columns by the pooling kernel, over other axes by ReduceMean."""
        x, axes = self.as_real(node.inputs[0]), node.attrs["axes"]
        if sorted(axes) == [1, 2]:
            y = self.op("Reshape", [self.op("GlobalAveragePool", [x]), self.ints(1, -1)])
        else:
            y = self.op("ReduceMean", [x], axes=[a + 1 for a in axes], keepdims=0)
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    def concat(self, node: Node):
        """Side by side."""
        y = self.op("Concat", [self.as_real(t) for t in node.inputs], axis=node.attrs["axis"] + 1)
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    # ---- layers that change no value run on the native view

    def moved(self, node: Node, kind: str, *constants: str, **attrs) -> None:
        """One operation on the native view."""
        self.store((node.output,), self.op(kind, [self.view(node.inputs[0]), *constants], **attrs))

    def maxpool(self, node: Node):
        """Padding never wins."""
        a = node.attrs
        self.moved(node, "MaxPool", kernel_shape=[1, a["kernel"]], strides=[1, a["stride"]],
                   pads=[0, a["pad"][0], 0, a["pad"][1]])

    def max(self, node: Node):
        """Over whole axes."""
        self.moved(node, "ReduceMax", axes=[a + 1 for a in node.attrs["axes"]], keepdims=0)

    def slice(self, node: Node):
        """A part of one axis."""
        a = node.attrs
        self.moved(node, "Slice", self.ints(a["start"]), self.ints(a["stop"]), self.ints(a["axis"] + 1))

    def reshape(self, node: Node):
        """The batch axis stays."""
        self.moved(node, "Reshape", self.ints(1, *self.shape(node.output)))

    def table(self, node: Node):
        """256 entries, looked up by code."""
        from onnx import TensorProto
        index = self.op("Cast", [self.as_codes(node.inputs[0])], to=TensorProto.INT32)
        entries = self.entries(node.params["table"], self.scale(node.output))
        self.store((node.output,), self.op("Gather", [self.constant(entries), index]))

    # ---- attention

    def attention(self, node: Node):
        """softmax(q' k) v' for each head, whose depth axis holds d and lead together: (head, d * lead, time).

        A long band is cut into blocks of 2 * half queries; block i sees the keys of the padded blocks i and i + 1.
        """
        a, (channel, lead, time) = node.attrs, self.shape(node.output)
        block = 2 * a["half"] if a["window"] == "band" else 0
        blocks = -(-time // block) if block else 0
        alike = len({self.shape(t) for t in node.inputs}) == 1
        if alike and blocks > FULL_UP_TO:
            q, k, v, key, query = self.blockwise(node, block, blocks)
        else:
            q, k, v = self.whole(node, alike)
            key, query = np.arange(self.shape(node.inputs[1])[2]), np.arange(time)[:, None]
            blocks = 0
        hidden = (np.abs(key - query) > a["half"]) | (key < 0) | (key >= time)
        y = self.products(node, q, k, v, hidden if a["window"] == "band" else None, 4 if blocks else 3)
        y = self.settled(y, self.scale(node.output))
        if blocks:
            y = self.op("Transpose", [y], perm=[0, 2, 1, 3])
            y = self.op("Reshape", [y, self.ints(1, channel, lead, blocks * block)])
            if blocks * block > time:
                y = self.op("Slice", [y, self.ints(0), self.ints(time), self.ints(3)])
        else:
            y = self.op("Reshape", [y, self.ints(1, channel, lead, time)])
        self.store((node.output,), y)

    def products(self, node: Node, q: str, k: str, v: str, hidden, rank: int) -> str:
        """Real (..., depth, query) from real (..., depth, time)."""
        turn = [*range(rank - 2), rank - 1, rank - 2]
        score = self.op("MatMul", [self.op("Transpose", [q], perm=turn), k])
        score = self.in_nats(score, node)
        if hidden is not None:
            mask = np.where(hidden, HIDDEN, 0).astype(np.float32)
            score = self.op("Add", [score, self.constant(mask.reshape(1, *mask.shape))])
        weight = self.weighted(self.op("Softmax", [score], axis=-1))
        return self.op("Transpose", [self.op("MatMul", [weight, self.op("Transpose", [v], perm=turn)])], perm=turn)

    def heads(self, node: Node, tensors: list[str]) -> str:
        """Native views of equal shape as one (len * head, depth, time)."""
        x = self.stacks.get(tuple(tensors)) or self.op("Concat", [self.view(t) for t in tensors], axis=1)
        heads, (channel, lead, time) = node.attrs["heads"], self.shape(tensors[0])
        return self.op("Reshape", [x, self.ints(len(tensors) * heads, channel // heads * lead, time)])

    def whole(self, node: Node, alike: bool) -> list[str]:
        """Real q, k, v of all columns at once."""
        scales = self.product_scales(node)
        if alike:
            return self.parted(self.heads(node, node.inputs), scales, node.attrs["heads"])
        return [self.parted(self.op("Reshape", [self.view(t), self.ints(
            node.attrs["heads"], math.prod(self.shape(t)[:2]) // node.attrs["heads"], self.shape(t)[2])]),
            [s], node.attrs["heads"])[0] for t, s in zip(node.inputs, scales, strict=True)]

    def blockwise(self, node: Node, block: int, blocks: int):
        """Real q (head, block, depth, query) and k, v (head, block, depth, key); positions of keys and queries."""
        heads, time = node.attrs["heads"], self.shape(node.output)[2]
        scales = self.product_scales(node)
        stacked = self.heads(node, node.inputs)
        q, kv = self.op("Split", [stacked, self.ints(heads, 2 * heads)], count=2, axis=0)
        q = self.folded(q, heads, 0, block, blocks, time)
        kv = self.folded(kv, 2 * heads, block // 2, block, blocks + 1, time)
        left, right = (self.op("Slice", [kv, self.ints(i), self.ints(i + blocks), self.ints(1)]) for i in (0, 1))
        kv = self.op("Concat", [left, right], axis=3)
        k, v = self.parted(kv, scales[1:], heads)
        q, = self.parted(q, scales[:1], heads)
        first = np.arange(blocks)[:, None, None] * block
        return q, k, v, first - block // 2 + np.arange(2 * block), first + np.arange(block)[:, None]

    def folded(self, x: str, rows: int, left: int, block: int, blocks: int, time: int) -> str:
        """(row, depth, time) -> (row, block, depth, block column), padded with zeros."""
        right = blocks * block - left - time
        if left or right:
            x = self.op("Pad", [x, self.ints(0, 0, left, 0, 0, right), self.padding()])
        return self.op("Transpose", [self.op("Reshape", [x, self.ints(rows, -1, blocks, block)])], perm=[0, 2, 1, 3])


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

    def padding(self) -> str:
        """The value 0."""
        return self.constant(np.float32(0))

    def product_scales(self, node: Node) -> list[float]:
        """Real views need none."""
        return [1.0, 1.0, 1.0]

    def parted(self, x: str, scales: list[float], heads: int) -> list[str]:
        """(part * head, ...) as parts."""
        return self.op("Split", [x], count=len(scales), axis=0) if len(scales) > 1 else [x]

    def in_nats(self, score: str, node: Node) -> str:
        """Scores in nats."""
        real = _nats(node) / self.scale(node.inputs[0]) / self.scale(node.inputs[1])
        return self.op("Mul", [score, self.constant(np.float32(real))])

    def weighted(self, weight: str) -> str:
        """Attention weights as they are."""
        return weight


class _Mixed(_Lowering):
    """Every layer leaves codes; the products inside attention read them as real numbers."""

    dtype = np.uint8

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.native = self.codes

    def as_codes(self, tensor: str) -> str:
        return self.view(tensor)

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

    def padding(self) -> str:
        """The code of 0."""
        return self.constant(self.zero)

    def product_scales(self, node: Node) -> list[float]:
        """q carries the whole scale of the scores, so that they come out in nats."""
        return [_nats(node), 1.0, self.scale(node.inputs[2])]

    def parted(self, x: str, scales: list[float], heads: int) -> list[str]:
        """(part * head, ...) codes as real parts, each with its own scale."""
        if len(scales) == 1:
            return [self.dequantize(x, scales[0])]
        each = np.repeat(np.array(scales, np.float32), heads)
        zeros = np.full(len(each), self.zero)
        real = self.op("DequantizeLinear", [x, self.constant(each), self.constant(zeros)], axis=0)
        return self.op("Split", [real], count=len(scales), axis=0)

    def in_nats(self, score: str, node: Node) -> str:
        """They are."""
        return score

    def weighted(self, weight: str) -> str:
        """Attention weights as they are."""
        return weight


class _Int8(_Mixed):
    """The products inside attention on codes too: q and k as they are, attention weights on a grid of 1/255."""

    def parted(self, x: str, scales: list[float], heads: int) -> list[str]:
        parts = self.op("Split", [x], count=len(scales), axis=0) if len(scales) > 1 else [x]
        return [self.dequantize(part, scale) for part, scale in zip(parts, scales, strict=True)]

    def weighted(self, weight: str) -> str:
        grid = [self.constant(np.float32(PROBABILITY)), self.constant(np.uint8(0))]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [weight, *grid]), *grid])


def _nats(node: Node) -> float:
    """Nats of one unit of the integer score."""
    return node.attrs["score_mul"] * 2.0 ** (node.attrs["score_shift"] - 32) * EXP_STEP
