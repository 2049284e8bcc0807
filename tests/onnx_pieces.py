# SPDX-License-Identifier: Apache-2.0
"""A small quantized ONNX model as TensorRT wants it, and ways to break it."""

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper, shape_inference

CHANNELS, TIME, KERNEL, OUT = 4, 32, 3, 16


@dataclass
class Draft:
    """A model in parts: constants by name, nodes by name; `model` packs them."""

    constants: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: dict[str, object] = field(default_factory=dict)
    opset: int = 17
    output: str = "y"
    leads: int | str = 1

    def add(self, kind: str, name: str, inputs: list[str], **attrs) -> str:
        """A node that writes a value of its own name."""
        self.nodes[name] = helper.make_node(kind, inputs, [name], name=name, **attrs)
        return name

    def pair(self, name: str, value: str, **attrs) -> str:
        """`name.q` and `name.dq`, which share `name.scale` and `name.zero`."""
        q = self.add("QuantizeLinear", f"{name}.q", [value, f"{name}.scale", f"{name}.zero"], **attrs)
        return self.add("DequantizeLinear", f"{name}.dq", [q, f"{name}.scale", f"{name}.zero"], **attrs)

    def grid(self, name: str, scale, zero=None) -> None:
        """Scale and zero point of a pair."""
        scale = np.asarray(scale, np.float32)
        self.constants |= {f"{name}.scale": scale,
                           f"{name}.zero": np.zeros(scale.shape, np.int8) if zero is None else zero}

    def read(self, node: str, place: int, value: str) -> None:
        """Let a node read another value."""
        self.nodes[node].input[place] = value

    def model(self) -> bytes:
        """The file; it need not be valid."""
        graph = helper.make_graph(
            list(self.nodes.values()), "piece",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, self.leads, TIME])],
            [helper.make_empty_tensor_value_info(self.output)],
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        try:
            made.graph.output[0].CopyFrom(shape_inference.infer_shapes(made).graph.output[0])
        except shape_inference.InferenceError:
            pass
        return made.SerializeToString()


def good() -> Draft:
    """x -> Conv -> Relu -> MatMul by a weight -> y, both with Q and DQ on data and weight, a float bias."""
    rng = np.random.default_rng(0)
    d = Draft()
    d.constants |= {"conv.w": rng.normal(size=(OUT, CHANNELS, 1, KERNEL)).astype(np.float32),
                    "conv.b": rng.normal(size=OUT).astype(np.float32),
                    "dense.w": rng.normal(size=(TIME, 24)).astype(np.float32)}
    d.grid("x", 0.02)
    d.grid("w", np.full(OUT, 0.03))
    d.grid("h", 0.05)
    d.grid("v", np.full(24, 0.03))
    d.add("Conv", "conv", [d.pair("x", "x"), d.pair("w", "conv.w", axis=0), "conv.b"], kernel_shape=[1, KERNEL],
          pads=[0, 1, 0, 1])
    d.add("Relu", "relu", ["conv"])
    d.add("Reshape", "rows", ["relu", "shape"])
    d.constants["shape"] = np.array([1, OUT, TIME], np.int64)
    d.add("MatMul", "y", [d.pair("h", "rows"), d.pair("v", "dense.w", axis=1)])
    return d
