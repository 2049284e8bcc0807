# SPDX-License-Identifier: Apache-2.0
"""The integer graph walked once, written as ONNX nodes: what every placement of Q/DQ pairs has in common.

Every tensor of the graph has up to two views in the file: its codes and its real values (float32). Sequence tensors are
(1, channel, lead, time), vectors (1, feature); one window per evaluation. Inputs and output carry the graph's names.
A form (`onnx_qdq.py`) decides how weights, biases and results are written; the layers are lowered here, once.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from targets.onnx_attention import Attention
from targets.onnx_layers import Layers
from targets.onnx_modules import Modules
from train.say import GraphError


class Lowering(Layers, Attention, Modules):
    """Walks the graph once and writes ONNX nodes. The native view is the one that a layer leaves behind."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.codes: dict[str, str] = {}                 # tensor -> ONNX value, uint8
        self.real: dict[str, str] = {}                  # tensor -> ONNX value, float32
        self.native: dict[str, str] = {}                # the one of the two that this form moves about
        self.stacks: dict[tuple[str, ...], str] = {}    # tensors that one merged convolution wrote -> ONNX value

    def build(self, trace: bool) -> bytes:
        """Lower every node that a merged convolution has not written already, then pack the file."""
        self.native.update({name: self.entering(name) for name in self.graph.inputs})
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
        values[0] = self.leaving(values[0])
        names = {v: f"{t}.codes" for t, v in self.codes.items()} | {v: f"{t}.real" for t, v in self.real.items()}
        names |= {values[0]: self.graph.output} | {name: name for name in self.graph.inputs}
        shapes = {name: (1, *self.shape(name)) for name in self.graph.inputs}
        return self.pack(shapes, self.dtype, values, names)

    # ---- views

    def entering(self, name: str) -> str:
        """The native view of an input."""
        return name

    def leaving(self, value: str) -> str:
        """The file's output, of the output's native view."""
        return value

    def operand(self, tensor: str) -> str:
        """The float view as a layer with weights reads it."""
        return self.as_real(tensor)

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
        y = self.convolved(self.operand(node.inputs[0]), self.scale(node.inputs[0]), weight, grid, bias,
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
        y = self.op("Gemm", [self.operand(x), self.weight(node.params["weight"], grid),
                             self.weight(node.params["bias"], self.scale(x) * grid)], transB=1)
        self.store((node.output,), self.settled(y, self.scale(node.output), node.attrs["relu"]))
