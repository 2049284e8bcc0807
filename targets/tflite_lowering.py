# SPDX-License-Identifier: Apache-2.0
"""The integer graph walked once, written as operators of a .tflite file.

Sequence tensors lie as (1, lead, time, channel), the order that the convolutions want; everything else as (1, *shape).
Forms: `int8`, whose codes are the graph's own with zero point 0 and which has integer operators only; `float`, the same
weights as real numbers and no rounding, to compare speed and to find where int8 differs.
"""

from __future__ import annotations

import numpy as np

from compress import reference
from compress.graph import Graph, Node
from targets.tflite_attention import Attention
from targets.tflite_layers import Layers, axes_in_file
from targets.tflite_lstm import Lstm, together
from targets.tflite_modules import Modules
from train.say import GraphError, choose, need

FORMS = ("int8", "float")


def lower(graph: Graph, form: str) -> bytes:
    """The .tflite file of a graph in one of FORMS; MissingError without ai-edge-litert, GraphError names a layer."""
    return Lowering(graph, form).build()


def traced(graph: Graph, form: str) -> tuple[bytes, dict[str, int]]:
    """The file with every tensor that an input reaches as an output, and tensor -> its index in the file."""
    lowering = Lowering(graph, form)
    file = lowering.build(trace=True)
    return file, {name: lowering.place[value] for name, value in lowering.held.items() if name not in lowering.known}


class Lowering(Layers, Attention, Modules, Lstm):
    """Walks the graph once. `value(tensor)` is the file's value of a tensor of the graph."""

    def __init__(self, graph: Graph, form: str):
        need("ai_edge_litert", "litert")
        super().__init__()
        self.form = choose(form, FORMS, "form")
        self.dtype = "int8" if form == "int8" else "float32"
        self.graph = graph
        self.held: dict[str, int] = {}              # tensor of the graph -> value of the file
        self.origins: dict[int, int] = {}           # reshaped value -> the one that it was made of
        self.known: dict[str, np.ndarray] = {}      # tensor that no input reaches -> its codes

    def build(self, trace: bool = False) -> bytes:
        """The file. With `trace` every tensor of the graph that a layer computes is an output too."""
        for name in self.graph.inputs:
            self.held[name] = self.tensor(self.file_shape(name), None, self.scale(name), name=name)
        for nodes in together(self.graph):
            self.layer = nodes[0].name
            self.lower([node for node in nodes if not self.settled(node)])
        self.layer = "output"
        inputs, output = [self.value(name) for name in self.graph.inputs], self.value(self.graph.output)
        if output in inputs or self.data(output) is not None:
            output = self.copied(output)
        self.values[output].name = self.graph.output
        outputs = [output]
        if trace:
            outputs += sorted({v for v in self.held.values() if self.values[v].data is None} - {output, *inputs})
        return self.pack(inputs, outputs)

    def lower(self, nodes: list[Node]) -> None:
        """Write a node, or LSTMs that take their steps together."""
        if nodes and nodes[0].kind == "lstm":
            self.lstms(nodes)
            return
        for node in nodes:
            lower = getattr(self, node.kind, None)
            if lower is None:
                raise GraphError(f"{node.name}: {node.kind} has no TFLite form", "another kind", "another target")
            lower(node)

    def settled(self, node: Node) -> bool:
        """Write what needs no window as data: a constant, and what is made of constants alone."""
        if not all(name in self.known for name in node.inputs):
            return False
        codes = {name: self.known[name] for name in node.inputs}
        reference.execute([node], codes)
        value = self.known[node.output] = codes[node.output][:1]
        value = value.transpose(0, *(a + 1 for a in axes_in_file(value.ndim - 1)))
        self.store(node.output, self.entries(np.ascontiguousarray(value), self.scale(node.output)))
        return True

    # ---- tensors of the graph

    def scale(self, tensor: str) -> float:
        """Value of one code."""
        return self.graph.tensors[tensor].scale

    def shape(self, tensor: str) -> tuple[int, ...]:
        """As the graph has it: (channel, lead, time), (feature,), without the batch axis."""
        return self.graph.tensors[tensor].shape

    def file_shape(self, tensor: str) -> tuple[int, ...]:
        """As the file has it, batch axis in front."""
        return file_shape(self.shape(tensor))

    def value(self, tensor: str) -> int:
        """The file's value of a tensor."""
        return self.held[tensor]

    def store(self, tensor: str, value: int) -> None:
        """Keep the value that a layer leaves behind; its shape and scale must be the tensor's."""
        assert self.extent(value) == self.file_shape(tensor), (tensor, self.extent(value), self.file_shape(tensor))
        self.held[tensor] = value

    # ---- what differs between the forms

    def weight(self, codes: np.ndarray, grid: np.ndarray, axis: int) -> int:
        """int8 weights with one scale per slice along `axis`, or the same as real numbers."""
        grid = np.asarray(grid, float)
        if self.form == "int8":
            return self.constant(codes, grid, axis=axis)
        shape = [-1 if a == axis else 1 for a in range(codes.ndim)]
        return self.constant((codes * grid.reshape(shape)).astype(np.float32))

    def entries(self, codes: np.ndarray, scale: float) -> int:
        """Data of a tensor: int8 codes, or real numbers."""
        if self.form == "int8":
            return self.constant(codes, scale)
        return self.constant((codes * scale).astype(np.float32))


def file_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a graph's tensor in the file."""
    return (1, *(shape[a] for a in axes_in_file(len(shape))))
