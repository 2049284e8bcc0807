# SPDX-License-Identifier: Apache-2.0
"""The converted program becomes the integer graph: every tensor gets its code, every scale its multiplier.

Works on what torchao's convert_pt2e leaves: each operation between dequantize and quantize nodes, int8 weights behind
dequantize_per_channel. The bounds that `reference.py` and the C kernels rely on are proven here, from the weights.
What has no node kind is refused with the layer's name.
"""

from __future__ import annotations

import numpy as np
import torch

from compress.fold import layer
from compress.graph import Graph, Node, Tensor, check
from compress.makers import MAKERS
from compress.quantizer import ADD, RELU, WEIGHTED, aten
from compress.reference import run
from train.say import GraphError

_Q = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_ALIAS = {aten.clone.default, aten.contiguous.default, aten.dropout.default}
_LOCAL = {"conv1d", "add", "table", "maxpool", "reshape", "attention", "slice", "concat"}


def freeze(program: torch.fx.GraphModule, shapes: dict[str, tuple[int, ...]], streaming: bool) -> Graph:
    """The integer graph of a converted program.

    shapes: input name -> shape without batch. A streaming program must cut its time axis exactly once, between the
    local layers and the rest. Biases are rounded to int32 in `program` too, and its quantize nodes carry the tensor's
    name in meta["tensor"], so that the two stay comparable (`agree.py`).
    """
    graph = _Freezer(program, shapes).build()
    if streaming:
        graph.boundary = _boundary(graph)
    check(graph)
    return graph


def export_scales(graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    """Store the grids that only other runtimes need: attention scores, measured on calibration inputs."""
    values = run(graph, inputs, trace=True)
    for n in graph.nodes:
        if n.kind == "attention":
            q, k = (values[t].astype(np.float64) * graph.tensors[t].scale for t in n.inputs[:2])
            heads = n.attrs["heads"]
            q, k = (a.reshape(a.shape[0], heads, -1, *a.shape[2:]) for a in (q, k))
            score = np.einsum("bhdlt,bhdls->bhts", q, k, optimize=True) / np.sqrt(q.shape[2])
            n.attrs["export_scales"] = {"score": float(np.abs(score).max()) / 127}


class _Freezer:
    """Walks the program once; `self.codes` maps every fx node that holds codes to its tensor's name."""

    def __init__(self, program, shapes):
        self.program, self.shapes = program, shapes
        self.codes: dict[torch.fx.Node, str] = {}
        self.graph = Graph([], "", {}, [])

    def build(self) -> Graph:
        for node in self.program.graph.nodes:
            if node.target is _Q:
                self.codes[node] = node.meta["tensor"] = self._quantized(node.args[0], node.args[1])
            elif node.target is _DQ:
                self.codes[node] = self.codes[node.args[0]]
            elif node.op == "output":
                logits, = node.args[0]
                if logits not in self.codes:
                    raise GraphError("the model's output is not quantized", "one tensor of logits")
                self.graph.output = self.codes[logits]
        return self.graph

    def _quantized(self, source: torch.fx.Node, scale: float) -> str:
        if source.op == "placeholder":
            self.graph.tensors[source.name] = Tensor(tuple(self.shapes[source.name]), scale)
            self.graph.inputs.append(source.name)
            return source.name
        if source in self.codes:                        # the same codes, quantized again on the same grid
            return self.same(source, scale)
        if source.target in _ALIAS:
            return self.same(source.args[0], scale)
        relu = source.target in RELU
        op = source.args[0] if relu else source
        if relu and op in self.codes:
            return self.emit(source, "table", [op], scale, {}, {"table": self._relu_table(op, scale)})
        make = MAKERS.get(op.target)
        if make is None or (relu and op.target not in WEIGHTED | ADD):
            known = ", ".join(sorted({str(t) for t in MAKERS}))
            raise GraphError(f"{layer(op)}: {op.target} has no integer form", known)
        return make(self, op, scale, relu)

    def same(self, source, scale: float) -> str:
        name = self.codes[source]
        own = self.graph.tensors[name].scale
        if own != scale:
            raise GraphError(f"{layer(source)}: requantized from {own} to {scale}", "one grid")
        return name

    def scale(self, node) -> float:
        return self.graph.tensors[self.codes[node]].scale

    def shape(self, node) -> tuple[int, ...]:
        return self.graph.tensors[self.codes[node]].shape

    def emit(self, op, kind: str, sources, scale: float, attrs: dict, params: dict | None = None) -> str:
        """Append a node; its output shape is the program's own, without the batch axis."""
        taken = {n.name for n in self.graph.nodes}
        base = layer(op) if kind in ("conv1d", "dense", "attention") else f"{layer(op)}.{kind}".lstrip(".")
        name = next(c for c in (base, *(f"{base}.{i}" for i in range(2, 1000))) if c not in taken)
        shape = tuple(int(s) for s in op.meta["val"].shape[1:])
        self.graph.tensors[name] = Tensor(shape, scale)
        self.graph.nodes.append(Node(name, kind, [self.codes[s] for s in sources], name, attrs, params or {}))
        return name

    def _relu_table(self, source, scale: float) -> np.ndarray:
        codes = np.arange(-128, 128) * self.scale(source)
        return np.clip(np.floor(np.maximum(codes, 0) / scale + 0.5), -128, 127).astype(np.int8)


def _boundary(graph: Graph) -> str:
    """The one slice of the time axis; everything before it must be local, everything behind it must read only it."""
    cuts = [i for i, n in enumerate(graph.nodes) if n.kind == "slice" and n.attrs["axis"] == 2]
    if len(cuts) != 1:
        raise GraphError(f"{len(cuts)} slices of the time axis", "one, between the local layers and the rest",
                         "streaming=False evaluates every window anew")
    before, after = graph.nodes[:cuts[0]], graph.nodes[cuts[0] + 1:]
    for n in before:
        if n.kind not in _LOCAL or n.attrs.get("window") == "global" or n.attrs.get("axis") == 2:
            raise GraphError(f"{n.name}: {n.kind} sees the whole window", "local layers in front of the boundary")
    early = {n.output for n in before}
    for n in after:
        if early & set(n.inputs):
            raise GraphError(f"{n.name} reads a column from before the boundary", "only the columns kept")
    return graph.nodes[cuts[0]].name
