# SPDX-License-Identifier: Apache-2.0
"""Q/DQ for a float ONNX network that has no integer graph, where TensorRT wants them; see `insert`.

On both inputs of convolutions and matrix products, nowhere else: softmax, norms, activations and sums stay float, a
bias too. Zero point 0; weights keep float values behind a Q and DQ with a scale per output channel. Scales of
activations come from training windows (`Ranges`), from the device's grid for the network's own inputs. Left in float
as NVIDIA's ModelOpt does: grouped and depthwise convolutions, whose kernels here are one row high; products with one
row or column; attention over more than LONG steps. And products with a softmax whose rows int8 cannot hold: where one
head looks at one key and another at hundreds, a grid up to 1 rounds the hundreds to nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compress.onnx_portable import checked, constants, shapes

LONG = 512
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")    # no value changes
CODE = 127                                                  # of the largest value
KEPT = 2048                                                 # values of a tensor remembered of each window
SHARES = np.linspace(0.3, 1, 15)                            # of the largest value: ranges that are tried
WAYS = ("widest", "nearest")
LOST = 0.05                                                 # share of a softmax row that rounding may move


@dataclass(frozen=True)
class Plan:
    """What is to be quantized.

    layers: their names; kept: name -> reason of those that stay float; sources: operand -> the value to measure, which
    has the same numbers in another shape; rows: sources that a softmax wrote.
    """

    layers: tuple[str, ...]
    kept: dict[str, str]
    sources: dict[str, str]
    rows: frozenset[str]

    def without(self, model: onnx.ModelProto, sources: Container[str], reason: str) -> Plan:
        """The plan with the readers of `sources` left in float."""
        out = {n.name for n in model.graph.node if any(self.sources.get(v) in sources for v in n.input[:2])}
        return replace(self, layers=tuple(n for n in self.layers if n not in out),
                       kept=self.kept | {n: reason for n in self.layers if n in out})


def plan(model: onnx.ModelProto) -> Plan:
    """Which layers to quantize; nodes must have names and shapes be static."""
    held, size = {t.name for t in model.graph.initializer}, shapes(model)
    writer = {v: n for n in model.graph.node for v in n.output}
    layers, kept, sources = [], {}, {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            reason = _reason(node, held, size)
            if reason:
                kept[node.name] = reason
                continue
            layers.append(node.name)
            sources |= {v: _source(v, writer) for v in node.input[:2] if v not in held}
    rows = frozenset(v for v in sources.values() if v in writer and writer[v].op_type == "Softmax")
    return Plan(tuple(layers), kept, sources, rows)


def _reason(node: onnx.NodeProto, held: set[str], size: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a layer stays float."""
    if node.op_type == "Conv":
        return "grouped" if _attribute(node, "group", 1) > 1 else None
    rows = size[node.output[0]][-2:]
    if len(rows) < 2 or 1 in rows:
        return "vector"
    if node.op_type == "MatMul" and not held & set(node.input):
        return "long" if max(*rows, size[node.input[0]][-1]) > LONG else None
    return None


def _source(value: str, writer: Mapping[str, onnx.NodeProto]) -> str:
    while value in writer and writer[value].op_type in MOVES:
        value = writer[value].input[0]
    return value


@dataclass
class Ranges:
    """Largest number and a sample of every source of a plan: whole rows of a softmax, single numbers of others."""

    largest: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def collect(self, model: onnx.ModelProto, plan: Plan, windows: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
        """Evaluate windows {input: float32 array} with ONNX Runtime and look at the sources."""
        wide = onnx.ModelProto.FromString(model.SerializeToString())
        inputs = {v.name for v in wide.graph.input}
        inside = sorted(set(plan.sources.values()) - inputs)
        known = {v.name for v in wide.graph.output}
        wide.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in inside if n not in known)
        run, rng = session(wide).run, np.random.default_rng(0)
        for window in windows:
            for name, value in zip(inside, run(inside, dict(window)), strict=True):
                x = value.reshape(-1, value.shape[-1] if name in plan.rows else 1)
                pick = rng.choice(len(x), min(len(x), max(1, KEPT // x.shape[1])), replace=False)
                self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(value).max()))
                self.seen.setdefault(name, []).append(x[pick])
        return self

    def widest(self, name: str) -> float:
        """Value of one code when nothing seen is cut off."""
        return self.largest[name] / CODE or 1 / CODE

    def nearest(self, name: str) -> float:
        """Value of one code with the least squared error, among SHARES of the largest number."""
        x = np.concatenate(self.seen[name])
        return float(min(self.widest(name) * SHARES, key=lambda scale: np.square(_rounded(x, scale) - x).sum()))

    def lost(self, name: str) -> float:
        """Share of a softmax row's sum that rounding adds or takes, on average."""
        rows = np.concatenate(self.seen[name])
        return float(np.abs(_rounded(rows, self.widest(name)).sum(1) - 1).mean())


def _rounded(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(x / scale), -CODE - 1, CODE) * scale


def scales(plan: Plan, ranges: Ranges, grids: Mapping[str, float], way: str) -> dict[str, float]:
    """Scale of every operand. grids: value of a code of the network's inputs; way: of WAYS, for all but softmax."""
    return {operand: grids[source] if source in grids else
            ranges.widest(source) if source in plan.rows else getattr(ranges, way)(source)
            for operand, source in plan.sources.items()}


def insert(model: onnx.ModelProto, layers: Iterable[str], scales: Mapping[str, float]) -> onnx.ModelProto:
    """The model with Q and DQ on both inputs of `layers`."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    held, wanted = constants(model), set(layers)
    pairs: dict[tuple[str, int | None], str] = {}
    nodes: list[onnx.NodeProto] = []

    def pair(value: str, scale: np.ndarray, axis: int | None) -> str:
        """The name of the value behind Q and DQ, made once."""
        if (value, axis) not in pairs:
            stem = value if axis is None else f"{value}/{axis}"
            scale = np.asarray(scale, np.float32)
            names = [f"{stem}/scale", f"{stem}/zero"]
            model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in
                                           zip(names, (scale, np.zeros(scale.shape, np.int8)), strict=True))
            more = {} if axis is None else {"axis": axis}
            for kind, source, out in (("QuantizeLinear", value, "q"), ("DequantizeLinear", f"{stem}/q", "dq")):
                nodes.append(helper.make_node(kind, [source, *names], [f"{stem}/{out}"], f"{stem}/{out}", **more))
            pairs[value, axis] = f"{stem}/dq"
        return pairs[value, axis]

    for node in model.graph.node:
        if node.name in wanted:
            for i, value in enumerate(node.input[:2]):
                axis = output_axis(node, held[value].ndim) if value in held else None
                grid = scales[value] if axis is None else channel_scales(held[value], axis)
                node.input[i] = pair(value, grid, axis)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return checked(model)


def output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Axis of output channels in a constant input of a layer."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return rank - 1


def channel_scales(weight: np.ndarray, axis: int) -> np.ndarray:
    """Value of a weight code per channel; 1 for a channel of zeros."""
    most = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    return np.where(most > 0, most / CODE, 1).astype(np.float32)


def session(model: onnx.ModelProto):
    """A model in ONNX Runtime, one thread a core."""
    import onnxruntime
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
