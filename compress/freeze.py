# SPDX-License-Identifier: Apache-2.0
"""The converted program becomes the integer graph: every tensor gets its code, every scale its multiplier.

Works on what torchao's convert_pt2e leaves: each operation between dequantize and quantize nodes, int8 weights behind
dequantize_per_channel. The bounds that `reference.py` and the C kernels rely on are proven here, from the weights.
What has no node kind is refused with the layer's name.
"""

from __future__ import annotations

import numpy as np
import torch

from compress import makers_attention
from compress.fold import layer, parameter
from compress.graph import Graph, Node, Tensor, check
from compress.makers import MAKERS, unary
from compress.quantizer import ADD, RELU, WEIGHTED, aten
from compress.reference import run
from compress.tables import operand
from train.say import GraphError

_Q = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_LOCAL = {"conv1d", "add", "mul", "table", "maxpool", "meanpool", "max", "mean", "reshape", "transpose", "attention",
          "slice", "concat", "norm"}
_OWN_NAME = {"conv1d", "dense", "attention", "norm", "lstm", "lookup"}     # layers of the net with weights of their own


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
            n.attrs["export_scales"] = makers_attention.export_scales(n, [values[t] for t in n.inputs])


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
                self.codes[node] = self._codes_of(node, node.args[0])
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
        relu = source.target in RELU and source.args[0] not in self.codes       # no codes between: one node
        op = source.args[0] if relu else source
        make = unary if operand(op) is not None else MAKERS.get(op.target)
        if make is None or (relu and op.target not in WEIGHTED | ADD):
            known = ", ".join(sorted({str(t) for t in MAKERS}))
            raise GraphError(f"{layer(op)}: {op.target} has no integer form", known)
        return make(self, op, scale, relu)

    def _codes_of(self, node: torch.fx.Node, source: torch.fx.Node) -> str | None:
        """The tensor behind a dequantize node; a parameter used as data becomes one here."""
        if source.op == "get_attr" and source not in self.codes:
            if all(user.target is aten.expand.default for user in node.users):
                return None         # the constant is what expand makes of it
            value = parameter(self.program, source)[0].numpy()
            name = self.emit(next(iter(node.users)), "constant", [], node.args[1], {}, {"value": value})
            self.codes[source] = source.meta["tensor"] = name
        return self.codes[source]

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
        base = layer(op) if kind in _OWN_NAME else f"{layer(op)}.{kind}".lstrip(".")
        name = next(c for c in (base, *(f"{base}.{i}" for i in range(2, 1000))) if c not in taken)
        shape = params["value"].shape if kind == "constant" else tuple(int(s) for s in op.meta["val"].shape[1:])
        self.graph.tensors[name] = Tensor(shape, scale)
        self.graph.nodes.append(Node(name, kind, [self.codes[s] for s in sources], name, attrs, params or {}))
        return name


def _boundary(graph: Graph) -> str:
    """The one slice of the local columns; puts what is local in front of it and everything else behind.

    Local tensors come from the waveform and have time as their last axis. A parameter may join them when it is the same
    in every column. Behind the boundary any node reads only what the slice kept, parameters and side inputs.
    """
    early, cuts = {graph.inputs[0]}, []
    still = {n.output for n in graph.nodes if n.kind == "constant" and n.params["value"].shape[-1] == 1}
    joined: set[str] = set()
    for n in graph.nodes:
        others = [t for t in n.inputs if t not in early]
        if len(others) == len(n.inputs):
            continue
        rank = len(graph.tensors[n.inputs[0]].shape)
        if n.kind == "slice" and n.attrs["axis"] == rank - 1:
            cuts.append(n)
        elif not _local(graph, n):
            raise GraphError(f"{n.name}: {n.kind} sees the whole window", "local layers in front of the boundary")
        elif not set(others) <= still:
            raise GraphError(f"{n.name} reads a column from before the boundary", "only the columns kept")
        else:
            early.add(n.output)
            joined.update(others)
    if len(cuts) != 1:
        raise GraphError(f"{len(cuts)} slices of the time axis", "one, between the local layers and the rest",
                         "streaming=False evaluates every window anew")
    early |= joined
    rest = [n for n in graph.nodes if n.output not in early and n is not cuts[0]]
    for n in rest:
        if joined & set(n.inputs):
            raise GraphError(f"{n.name} reads a parameter from before the boundary", "one of its own on each side")
    graph.nodes = [n for n in graph.nodes if n.output in early] + cuts + rest
    return cuts[0].name


def _local(graph: Graph, n: Node) -> bool:
    """A node whose output has the time axis of its input, last, and looks only at columns near by."""
    shape, out = graph.tensors[n.inputs[0]].shape, graph.tensors[n.output].shape
    last = len(shape) - 1
    return n.kind in _LOCAL and not (
        n.attrs.get("window") == "global" or n.attrs.get("axis") == last or last in n.attrs.get("axes", ())
        or (n.kind == "reshape" and out[-1] != shape[-1]) or (n.kind == "transpose" and n.attrs["perm"][-1] != last))
