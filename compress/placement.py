# SPDX-License-Identifier: Apache-2.0
"""Q/DQ for a float ONNX network that has no integer graph, where TensorRT wants them; see `insert`.

On both inputs of convolutions and matrix products, nowhere else: softmax, norms, activations and sums stay float, a
bias too. Zero point 0; weights keep float values behind a Q and DQ with a scale per output channel. Scales of
activations come from training windows (`Ranges`), from the device's grid for the network's own inputs, and from the
bound 1 for what a softmax leaves. Left in float as NVIDIA's ModelOpt does: grouped and depthwise convolutions, whose
kernels here are one row high; products with one row or column; attention over more than LONG steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compress.onnx_portable import checked, constants, shapes

LONG = 512
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")    # no value changes
CODE = 127                                                  # of the largest value
KEPT = 2048                                                 # values of a tensor remembered of each window
SHARES = np.linspace(0.3, 1, 15)                            # of the largest value: ranges that are tried


@dataclass(frozen=True)
class Plan:
    """Names of layers that run in codes, names -> reason of those that stay float, and the activations to measure."""

    layers: tuple[str, ...]
    kept: dict[str, str]
    activations: tuple[str, ...]


def plan(model: onnx.ModelProto) -> Plan:
    """What is to be quantized; nodes must have names and shapes be static."""
    held, size = {t.name for t in model.graph.initializer}, shapes(model)
    layers, kept, activations = [], {}, {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            reason = _reason(node, held, size)
            if reason:
                kept[node.name] = reason
            else:
                layers.append(node.name)
                activations |= dict.fromkeys(v for v in node.input[:2] if v not in held)
    return Plan(tuple(layers), kept, tuple(activations))


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


@dataclass
class Ranges:
    """Largest value and a sample of every activation of a plan, collected window by window."""

    largest: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def collect(self, model: onnx.ModelProto, activations: Iterable[str], windows: Iterable[dict]) -> Ranges:
        """Evaluate windows {input: float32 array} with ONNX Runtime and look at the activations."""
        names = list(activations)
        wide = onnx.ModelProto.FromString(model.SerializeToString())
        known = {v.name for v in (*wide.graph.input, *wide.graph.output)}
        wide.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
        inside = [n for n in names if n not in {v.name for v in wide.graph.input}]
        run, rng = session(wide).run, np.random.default_rng(0)
        for window in windows:
            for name, value in (window | dict(zip(inside, run(inside, window), strict=True))).items():
                self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(value).max()))
                self.seen.setdefault(name, []).append(rng.choice(value.ravel(), min(KEPT, value.size), replace=False))
        return self

    def scale(self, name: str) -> float:
        """Value of one code, with the least squared error among SHARES of the largest value."""
        most, x = self.largest[name], np.concatenate(self.seen[name])
        if most == 0:
            return 1 / CODE
        scales = most * SHARES / CODE
        return float(min(scales, key=lambda s: np.square(np.clip(np.rint(x / s), -CODE - 1, CODE) * s - x).sum()))


def scales(model: onnx.ModelProto, activations: Iterable[str], ranges: Ranges, grids: Mapping[str, float]) -> dict:
    """Scale of every activation; `grids`: value of a code of the network's inputs."""
    writer = {v: n for n in model.graph.node for v in n.output}
    found = {}
    for name in activations:
        source = name
        while source in writer and writer[source].op_type in MOVES:
            source = writer[source].input[0]
        bounded = source in writer and writer[source].op_type == "Softmax"
        found[name] = 1 / CODE if bounded else grids[source] if source in grids else ranges.scale(name)
    return found


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
