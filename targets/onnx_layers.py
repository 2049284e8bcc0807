# SPDX-License-Identifier: Apache-2.0
"""The layers without weights of `onnx_qdq.py`: sums, products, means, pools and what only moves codes."""

from __future__ import annotations

from compress.graph import Node
from targets.onnx_file import OnnxFile


def sign(node: Node) -> str:
    """A sum, or with a negative second multiplier a difference."""
    return "Sub" if node.attrs["mul"][1] < 0 else "Add"


class Layers(OnnxFile):
    """Written in terms of the views `view`, `as_real`, `as_codes` and the forms' `settled` and `entries`."""

    # ---- layers that meet on the output's grid

    def add(self, node: Node):
        """Sum or difference; axes of size 1 are repeated."""
        y = self.op(sign(node), [self.as_real(t) for t in node.inputs])
        self.store((node.output,), self.settled(y, self.scale(node.output), node.attrs["relu"]))

    def mul(self, node: Node):
        """Elementwise product; axes of size 1 are repeated."""
        y = self.op("Mul", [self.as_real(t) for t in node.inputs])
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    def meanpool(self, node: Node):
        """Padding counts as 0."""
        a = node.attrs
        y = self.op("AveragePool", [self.as_real(node.inputs[0])], kernel_shape=[1, a["kernel"]],
                    strides=[1, a["stride"]], pads=[0, a["pad"][0], 0, a["pad"][1]], count_include_pad=1)
        self.store((node.output,), self.settled(y, self.scale(node.output)))

    def mean(self, node: Node):
        """Along time by the pooling kernel, over other axes by ReduceMean."""
        source, axes = node.inputs[0], node.attrs["axes"]
        if 0 not in axes and 2 in axes and (1 in axes or self.shape(source)[1] == 1):
            y = self.op("GlobalAveragePool", [self.as_real(source)])
            y = self.op("Reshape", [self.settled(y, self.scale(node.output)), self.ints(1, *self.shape(node.output))])
        else:
            y = self.reduce("ReduceMean", self.as_real(source), [a + 1 for a in axes], keepdims=0)
            y = self.settled(y, self.scale(node.output))
        self.store((node.output,), y)

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
        axes = [a + 1 for a in node.attrs["axes"]]
        self.store((node.output,), self.reduce("ReduceMax", self.view(node.inputs[0]), axes, keepdims=0))

    def slice(self, node: Node):
        """A part of one axis."""
        a = node.attrs
        self.moved(node, "Slice", self.ints(a["start"]), self.ints(a["stop"]), self.ints(a["axis"] + 1))

    def reshape(self, node: Node):
        """The batch axis stays."""
        self.moved(node, "Reshape", self.ints(1, *self.shape(node.output)))

    def transpose(self, node: Node):
        """The batch axis stays in front."""
        self.moved(node, "Transpose", perm=[0, *(a + 1 for a in node.attrs["perm"])])

    def constant_(self, node: Node):
        """A parameter as data; its kind has the name of the file's own constants."""
        value = self.entries(node.params["value"], self.scale(node.output))
        self.store((node.output,), self.op("Identity", [self.constant(value[None])]))

    def table(self, node: Node):
        """256 entries, looked up by code."""
        entries = self.entries(node.params["table"], self.scale(node.output))
        self.store((node.output,), self.op("Gather", [self.constant(entries), self.index(node.inputs[0])]))

    def index(self, tensor: str) -> str:
        """int32, 0 for the least of the 256 codes."""
        from onnx import TensorProto
        return self.op("Cast", [self.as_codes(tensor)], to=TensorProto.INT32)
