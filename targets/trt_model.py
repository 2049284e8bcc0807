# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as trt_lint.py looks at it: constants, shapes, who writes and who reads a value.

Files come from anywhere: what cannot be read is a UserError, never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train.say import UserError, need

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Identity", "MaxPool",
          "Expand", "Gather", "Pad")        # they move codes about, and commute with Q and DQ
EXPECTED = "an ONNX model, as targets/deploy.py writes it"


class Model:
    """A parsed file, main graph only: a node with graphs of its own is no operator that we allow."""

    def __init__(self, model: bytes | Path):
        self.proto = parse(model)
        self.graph = self.proto.graph
        self.nodes = list(self.graph.node)
        self.tensors = {t.name: t for t in self.graph.initializer}
        self.tensors |= {n.output[0]: a.t for n in self.nodes if n.op_type == "Constant" and n.output
                         for a in n.attribute if a.name == "value"}
        self.writer = {value: node for node in self.nodes for value in node.output if value}
        self.readers: dict[str, list] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.input):
                self.readers.setdefault(value, []).append(node)
        self.outputs = {o.name for o in self.graph.output}
        self.names = {id(n): n.name or f"{n.op_type} #{i}" for i, n in enumerate(self.nodes)}
        self.broken, inferred = _inferred(self.proto)
        self.values = {v.name: v.type.tensor_type for part in (inferred.input, inferred.output, inferred.value_info)
                       for v in part}

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators; 0 when the file names none."""
        return max((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), default=0)

    def name(self, node) -> str:
        """A node's name, or its operator and place."""
        return self.names[id(node)]

    def constant(self, value: str) -> np.ndarray | None:
        """The numbers of a constant."""
        from onnx import numpy_helper
        if value not in self.tensors:
            return None
        try:
            return numpy_helper.to_array(self.tensors[value])
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError) as error:
            raise UserError(f"the constant {value!r} cannot be read: {str(error).splitlines()[0]}", EXPECTED) from None

    def numbers(self, value: str) -> np.ndarray | None:
        """The numbers of a constant as float64."""
        held = self.constant(value)
        try:
            return None if held is None else held.astype(np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(f"the constant {value!r} holds no numbers: {error}", EXPECTED) from None

    def kind(self, value: str) -> int:
        """Element type as in onnx.TensorProto, 0 when it is unknown."""
        if value in self.tensors:
            return self.tensors[value].data_type
        return self.values[value].elem_type if value in self.values else 0

    def shape(self, value: str) -> tuple[int | None, ...] | None:
        """Dimensions, None where they are not fixed; None when nothing is known."""
        if value in self.tensors:
            return tuple(self.tensors[value].dims)
        if value not in self.values or not self.values[value].HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in self.values[value].shape.dim)

    def attribute(self, node, name: str, default=None):
        """A node's attribute."""
        from onnx import helper
        found = next((a for a in node.attribute if a.name == name), None)
        try:
            return default if found is None else helper.get_attribute_value(found)
        except ValueError:
            return default

    def before(self, value: str):
        """The node that wrote a value, looking through what only moves it; None for an input or a constant."""
        for _ in self.nodes:
            node = self.writer.get(value)
            if node is None or node.op_type not in LAYOUT or not node.input:
                return node
            value = node.input[0]
        return None

    def behind(self, value: str) -> Iterator[tuple[object, int]]:
        """(node, place among its inputs) of everything that reads a value, looking through what only moves it."""
        waiting, seen = [value], {value}
        while waiting:
            value = waiting.pop()
            for node in self.readers.get(value, ()):
                if node.op_type not in LAYOUT:
                    yield from ((node, i) for i, v in enumerate(node.input) if v == value)
                    continue
                fresh = [v for v in node.output if v and v not in seen]
                waiting += fresh
                seen.update(fresh)

    def dequantized(self, value: str) -> bool:
        """Does a value come out of a DequantizeLinear?"""
        node = self.before(value)
        return node is not None and node.op_type == DEQUANTIZE

    def weight(self, node) -> bool:
        """Are the codes that a Q or DQ handles a constant's?"""
        if not node.input:
            return False
        if node.input[0] in self.tensors:
            return True
        source = self.before(node.input[0])
        return node.op_type == DEQUANTIZE and source is not None and source.op_type == QUANTIZE and self.weight(source)

    def invalid(self) -> str | None:
        """What ONNX's own checker says against the file."""
        import onnx
        if self.broken:
            return self.broken
        try:
            onnx.checker.check_model(self.proto)
        except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
            return _first(error)
        return None


def parse(model: bytes | Path):
    """The onnx.ModelProto; UserError for anything else. Weights in other files are not looked for."""
    need("onnx", "jetson")
    import onnx
    from google.protobuf.message import DecodeError
    where = "the model" if isinstance(model, bytes) else str(model)
    try:
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise UserError(f"{where} is not an ONNX file", EXPECTED) from None
    except FileNotFoundError:
        raise UserError(f"no file {where}", EXPECTED, "check the path") from None
    if not proto.graph.node or not proto.graph.output:
        raise UserError(f"{where} holds no graph", EXPECTED)
    return proto


def _inferred(proto) -> tuple[str | None, object]:
    """(what is wrong with the shapes, graph with the shapes that could be found)."""
    import onnx
    try:
        return None, onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return _first(error), proto.graph


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
