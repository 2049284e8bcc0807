# SPDX-License-Identifier: Apache-2.0
"""The rules of trt_lint.py, each a few lines; a finding names its rule once for every node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.jetpacks import JetPack
from targets.trt_model import DEQUANTIZE, QUANTIZE, WEIGHTED, Model

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10      # onnx.TensorProto.DataType
CHANNEL = {"Conv": 0, "ConvTranspose": 1}       # axis of output channels in a weight

# operators of the importer of TensorRT 8.4; a later one knows those of SINCE as well
OPERATORS = frozenset("""
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu
    Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GRU HardSigmoid Identity InstanceNormalization IsNaN LRN LSTM LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear RNN Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round ScatterElements ScatterND Selu Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu Tile TopK Transpose Unsqueeze Where Xor""".split())
SINCE = {"GridSample": (8, 5), "HardSwish": (8, 5), "MeanVarianceNormalization": (8, 5), "Mod": (8, 5),
         "NonZero": (8, 5), "OneHot": (8, 5), "Reciprocal": (8, 5), "RoiAlign": (8, 5), "Trilu": (8, 5),
         "GroupNormalization": (8, 6), "IsInf": (8, 6), "LayerNormalization": (8, 6), "Hardmax": (9, 2),
         "Gelu": (10, 3), "Mish": (10, 3)}
ONE_OUTPUT = ("MaxPool", "LayerNormalization", "BatchNormalization", "Dropout")
POOLS = ("AveragePool", "MaxPool", "LpPool")
PREQUANTIZED = (10, 0)      # TensorRT that takes int8 weights without a QuantizeLinear
LONG = 512                  # keys beyond which attention is no faster in int8


@dataclass(frozen=True)
class Finding:
    """level: "error" or "warning"; rule: a name of RULES; message: what is wrong and what was expected."""

    level: str
    rule: str
    node: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.rule} at {self.node}: {self.message}"


RULES = {
    "invalid": ("error", "a file that passes ONNX's own checker"),
    "opset": ("error", "at most what the JetPack's importer knows, and at least 13 for scales per channel"),
    "domain": ("error", "operators of ONNX itself"),
    "unsupported-op": ("error", "an operator of the JetPack's importer"),
    "extra-output": ("error", "one output"),
    "external-data": ("error", "weights inside the file, which is copied alone"),
    "static-shape": ("error", "fixed sizes above 0, so that the engine needs no profile"),
    "io-type": ("error", "float32, float16, int32, int8 or bool"),
    "rank": ("error", "(batch, channel, height, width): a height of 1 stands for one dimension"),
    "no-int8": ("error", "the float file: no device of this JetPack computes in int8"),
    "int32-dequantize": ("error", "int8 codes; a bias stays float"),
    "quantized-bias": ("error", "a float bias"),
    "data-type": ("error", "int8 codes"),
    "zero-point-missing": ("error", "an int8 zero point of 0: without one ONNX means uint8 and TensorRT int8"),
    "zero-point-type": ("error", "int8"),
    "zero-point-nonzero": ("error", "0: TensorRT quantizes symmetrically"),
    "zero-point-shape": ("error", "as many zero points as scales"),
    "zero-point-not-static": ("error", "a constant"),
    "scale-not-static": ("error", "a constant"),
    "scale-not-positive": ("error", "finite numbers above 0"),
    "scale-length": ("error", "one scale for each channel of the axis"),
    "per-channel-activation": ("error", "one scale: only weights have one per channel"),
    "weight-axis": ("error", "the axis of output channels"),
    "block-scale": ("error", "one scale, or one per output channel"),
    "prequantized-weight": ("error", "float weights behind Q and DQ: before TensorRT 10 codes need their Q"),
    "codes-used": ("error", "a DequantizeLinear behind every QuantizeLinear"),
    "weight-not-static": ("error", "a constant, alone or behind Q and DQ"),
    "half-quantized": ("warning", "Q and DQ on both inputs: with one of them the layer runs in float"),
    "quantized-float-op": ("warning", "Q and DQ on inputs of Conv, Gemm and MatMul only: this runs in float anyhow"),
    "gemv": ("warning", "no Q and DQ: a product with one row or column gains nothing from int8"),
    "long-attention": ("warning", f"no Q and DQ: beyond {LONG} steps attention has no int8 kernel"),
}


class Rules:
    """Everything that is to be said about one model; `found` grows as `check` goes on."""

    def __init__(self, model: Model, jetpack: JetPack):
        self.model, self.jetpack = model, jetpack
        self.found: list[Finding] = []
        self.told: set[tuple[str, str]] = set()

    def say(self, rule: str, node, what: str) -> None:
        """A finding, once for a rule and a node; `node` may be the name of a value."""
        name = node if isinstance(node, str) else self.model.name(node)
        if (rule, name) not in self.told:
            self.told.add((rule, name))
            level, expected = RULES[rule]
            self.found.append(Finding(level, rule, name, f"{what}; expected {expected}"))

    def check(self) -> None:
        """All rules. ONNX's own checker is heard last: where ours speaks, it says the same less clearly."""
        self.file()
        for node in self.model.nodes:
            self.operator(node)
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                self.pair(node)
            if node.op_type in WEIGHTED:
                self.weighted(node)
        invalid = self.model.invalid()
        if invalid and not any(f.level == "error" for f in self.found):
            self.say("invalid", "the file", invalid)

    # ---- the file

    def file(self) -> None:
        """Opset, weights elsewhere, inputs and outputs."""
        if not 1 <= self.model.opset <= self.jetpack.opset:
            self.say("opset", "the file", f"opset {self.model.opset}, where JetPack {self.jetpack.name} knows "
                     f"{self.jetpack.opset}")
        for tensor in self.model.graph.initializer:
            if tensor.data_location == 1:
                self.say("external-data", tensor.name, "weights lie in another file")
        inputs = [v.name for v in self.model.graph.input if v.name not in self.model.tensors]
        types = {FLOAT, FLOAT16, INT8, INT32, BOOL, *([INT64] if self.jetpack.tensorrt >= (9, 0) else [])}
        for value in (*inputs, *self.model.outputs):
            if self.model.kind(value) not in types:
                self.say("io-type", value, f"an input or output of type {_type(self.model.kind(value))}")
        for value in inputs:
            shape = self.model.shape(value)
            if shape is None or not all(shape):
                self.say("static-shape", value, f"shape {'unknown' if shape is None else _shape(shape)}")

    def operator(self, node) -> None:
        """Is there an importer for it?"""
        if node.domain not in ("", "ai.onnx"):
            self.say("domain", node, f"{node.op_type} of the domain {node.domain}")
        elif node.op_type not in OPERATORS and SINCE.get(node.op_type, (99,)) > self.jetpack.tensorrt:
            held = ".".join(map(str, self.jetpack.tensorrt))
            since = SINCE.get(node.op_type)
            later = f"; TensorRT {'.'.join(map(str, since))} has it" if since else ""
            self.say("unsupported-op", node, f"TensorRT {held} has no {node.op_type}{later}")
        if node.op_type in ONE_OUTPUT and any(node.output[1:]):
            self.say("extra-output", node, f"{node.op_type} with {len(node.output)} outputs")
        shape = self.model.shape(node.input[0]) if node.input else None
        flat = POOLS if self.jetpack.tensorrt >= (8, 5) else (*POOLS, "Conv", "ConvTranspose")
        if node.op_type in flat and shape is not None and len(shape) not in (4, 5):
            self.say("rank", node, f"{node.op_type} of a shape {_shape(shape)}")

    # ---- Q and DQ

    def pair(self, node) -> None:
        """A QuantizeLinear or a DequantizeLinear."""
        if not self.jetpack.int8:
            self.say("no-int8", node, f"{node.op_type} for JetPack {self.jetpack.name}")
        data, scale, zero = [*node.input, "", "", ""][:3]
        weight = self.model.weight(node)
        if not self.codes(node, data):
            return
        grid = self.model.numbers(scale)
        self.zero_point(node, zero, grid)
        if grid is None:
            self.say("scale-not-static", node, f"the scale {scale or 'left out'} is computed")
            return
        if not grid.size or not np.all(np.isfinite(grid)) or not np.all(grid > 0):
            self.say("scale-not-positive", node, f"a scale of {float(grid.min()) if grid.size else 'nothing'}")
        if self.model.attribute(node, "block_size") or grid.ndim > 1:
            self.say("block-scale", node, f"scales of shape {_shape(grid.shape)}")
        elif grid.size > 1:
            self.per_channel(node, data, grid, weight)
        self.neighbours(node, weight)

    def codes(self, node, data: str) -> bool:
        """The type of what is dequantized; False when nothing else is worth saying."""
        kind = self.model.kind(data) if node.op_type == DEQUANTIZE else INT8
        if kind == INT32:
            self.say("int32-dequantize", node, "int32 codes, as of a quantized bias")
        elif kind not in (0, INT8):
            self.say("data-type", node, f"codes of type {_type(kind)}")
        return kind in (0, INT8, UINT8)

    def zero_point(self, node, zero: str, grid: np.ndarray | None) -> None:
        """There, int8, 0, as many as scales."""
        if not zero:
            self.say("zero-point-missing", node, "no zero point")
            return
        if self.model.kind(zero) not in (0, INT8):
            self.say("zero-point-type", node, f"a zero point of type {_type(self.model.kind(zero))}")
        point = self.model.numbers(zero)
        if point is None:
            self.say("zero-point-not-static", node, f"the zero point {zero} is computed")
            return
        if point.any():
            self.say("zero-point-nonzero", node, f"a zero point of {int(point.flat[np.flatnonzero(point)[0]])}")
        if grid is not None and point.size != grid.size:
            self.say("zero-point-shape", node, f"{point.size} zero points for {grid.size} scales")

    def per_channel(self, node, data: str, grid: np.ndarray, weight: bool) -> None:
        """Several scales: weights only, along their output channels, with the axis spelt out."""
        if not weight:
            self.say("per-channel-activation", node, f"{grid.size} scales of an activation")
            return
        if self.model.opset < 13:
            self.say("opset", node, f"{grid.size} scales in opset {self.model.opset}")
        shape, axis = self.model.shape(data), self.model.attribute(node, "axis")
        if axis is None:
            self.say("weight-axis", node, "no axis, where ONNX means 1 and TensorRT 0")
            return
        if shape is None:
            return
        if not -len(shape) <= axis < len(shape):
            self.say("weight-axis", node, f"axis {axis} of a weight {_shape(shape)}")
            return
        axis %= len(shape)
        wanted = self.channels(node, len(shape))
        if wanted is not None and axis != wanted:
            self.say("weight-axis", node, f"axis {axis}, where the output channels lie on {wanted}")
        elif shape[axis] != grid.size:
            self.say("scale-length", node, f"{grid.size} scales for {shape[axis]} channels")

    def channels(self, node, rank: int) -> int | None:
        """Axis of output channels in the weight that a node handles; None when it is reshaped on its way."""
        for _ in self.model.nodes:
            readers = self.model.readers.get(node.output[0], ()) if node.output else ()
            if len(readers) != 1:
                return None
            following = readers[0]
            if following.op_type not in WEIGHTED:
                node = following
                if node.op_type != DEQUANTIZE:
                    return None
                continue
            if following.op_type == "MatMul":
                return rank - 1 if following.input[-1] == node.output[0] else None
            if following.op_type == "Gemm":
                return 0 if self.model.attribute(following, "transB", 0) else 1
            return CHANNEL[following.op_type]
        return None

    def neighbours(self, node, weight: bool) -> None:
        """What lies before and behind a Q or DQ."""
        if node.op_type == DEQUANTIZE and node.input and node.input[0] in self.model.tensors:
            if self.jetpack.tensorrt < PREQUANTIZED:
                self.say("prequantized-weight", node, "weights stored as codes")
        for output in node.output[:1]:
            if node.op_type == QUANTIZE:
                readers = self.model.readers.get(output, ())
                other = next((n for n in readers if n.op_type != DEQUANTIZE), None)
                if other is not None or output in self.model.outputs or not readers:
                    where = self.model.name(other) if other is not None else "an output"
                    self.say("codes-used", node, f"its codes go to {where}")
            elif not weight:
                self.floating(node, output)

    def floating(self, node, output: str) -> None:
        """Readers of a dequantized activation that compute in float whatever they read."""
        if output in self.model.outputs:
            self.say("quantized-float-op", node, "Q and DQ on an output")
        for reader, _ in self.model.behind(output):
            if reader.op_type not in (*WEIGHTED, QUANTIZE, DEQUANTIZE):
                self.say("quantized-float-op", reader, f"{reader.op_type} behind {self.model.name(node)}")

    # ---- layers with weights

    def weighted(self, node) -> None:
        """Conv, ConvTranspose, Gemm, MatMul."""
        quantized = [self.model.dequantized(v) for v in node.input[:2]]
        if len(quantized) < 2:
            return
        if len(node.input) > 2 and node.input[2] and self.model.dequantized(node.input[2]):
            self.say("quantized-bias", node, f"the bias of {node.op_type} comes from codes")
        if node.op_type in CHANNEL and node.input[1] not in self.model.tensors:
            source = self.model.before(node.input[1])
            if source is None or source.op_type != DEQUANTIZE or not self.model.weight(source):
                self.say("weight-not-static", node, f"the weight {node.input[1]} is computed")
        if any(quantized) and not all(quantized):
            self.say("half-quantized", node, f"input {quantized.index(False)} of {node.op_type} is not quantized")
        shape = self.model.shape(node.output[0]) if node.output else None
        if all(quantized) and node.op_type in ("Gemm", "MatMul") and shape is not None:
            self.product(node, shape)

    def product(self, node, shape: tuple[int | None, ...]) -> None:
        """A matrix product in codes."""
        if len(shape) < 2 or 1 in shape[-2:]:
            self.say("gemv", node, f"{node.op_type} of a result {_shape(shape)}")
            return
        sources = [self.model.before(v) for v in node.input[:2]]
        between = max((n for n in (*shape[-2:], *(self.model.shape(node.input[0]) or ())[-1:]) if n), default=0)
        if node.op_type == "MatMul" and not any(self.model.weight(s) for s in sources) and between > LONG:
            self.say("long-attention", node, f"a product of activations over {between} steps")


def _shape(shape) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _type(kind: int) -> str:
    """The name of an element type, as people write it."""
    from onnx import TensorProto
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else f"number {kind}"
