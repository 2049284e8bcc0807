# SPDX-License-Identifier: Apache-2.0
"""An ONNX file under construction: nodes named after the layer they come from, constants that are shared.

Values are known by name. Codes are uint8 with zero point `zero`, real values float32.
"""

from __future__ import annotations

import numpy as np

OPSET = 17
IR_VERSIONS = {13: 7, 17: 8, 19: 9}     # opset -> the file format that came with it
AXES_ARE_INPUTS = 18    # of reductions, from this opset on


class OnnxFile:
    """Collects nodes and constants; `layer` prefixes their names."""

    zero = np.uint8(128)    # the code of the value 0
    opset = OPSET
    turns_single = False    # is a sequence of one column turned as well where its values lie in the same order anyway?

    def __init__(self):
        self.nodes, self.taken = [], set()
        self.constants: dict[tuple, tuple[str, np.ndarray]] = {}
        self.layer = ""

    def op(self, kind: str, inputs: list[str], count: int = 1, **attrs):
        """Append a node; returns its output, or a list of `count` outputs."""
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

    def reduce(self, kind: str, value: str, axes: list[int], keepdims: int) -> str:
        """ReduceMean or ReduceMax."""
        if self.opset >= AXES_ARE_INPUTS:
            return self.op(kind, [value, self.ints(*axes)], keepdims=keepdims)
        return self.op(kind, [value], axes=axes, keepdims=keepdims)

    def quantize(self, real: str, scale: float) -> str:
        """real -> codes."""
        return self.op("QuantizeLinear", [real, self.constant(np.float32(scale)), self.constant(self.zero)])

    def dequantize(self, codes: str, scale: float) -> str:
        """codes -> real."""
        return self.op("DequantizeLinear", [codes, self.constant(np.float32(scale)), self.constant(self.zero)])

    def pack(self, inputs: dict[str, tuple[int, ...]], dtype, outputs: list[str], names: dict[str, str]) -> bytes:
        """The file, checked with shape inference. inputs: name -> shape; names: value -> better name."""
        import onnx
        from onnx import helper, numpy_helper
        for node in self.nodes:
            node.input[:] = [names.get(v, v) for v in node.input]
            node.output[:] = [names.get(v, v) for v in node.output]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        body = helper.make_graph(self.nodes, "leadedge",
                                 [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
                                 [helper.make_empty_tensor_value_info(names.get(v, v)) for v in outputs],
                                 [numpy_helper.from_array(a, name) for name, a in self.constants.values()])
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", self.opset)],
                                  producer_name="LeadEdge", ir_version=IR_VERSIONS[self.opset])
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()
