# SPDX-License-Identifier: Apache-2.0
"""Layers of the kernels without a matrix product, the same for every core: elementwise, pools, reductions, moves, norm,
LSTM, lookup.

A constant is data and a reshape a view, so neither has a kernel here; `copy` serves a reshape whose input has gaps
between its rows.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from targets.pack import Array, Core, Layer, volume


def channels_first(kind: str) -> bool:
    """Whether a kind's kernel takes a vector or matrix as (channel, 1, time), with `pack.volume`, and not as rows."""
    return kind == "norm"


def copy(shape: tuple[int, ...]) -> Layer:
    """Every code of a tensor, into rows of another pitch."""
    return _cut(shape, 2, 0, volume(shape)[2])


def pair(graph: Graph, n: Node, core: Core) -> Layer:
    """add and mul."""
    shape = volume(graph.tensors[n.output].shape)
    operands = [volume(graph.tensors[t].shape) for t in n.inputs]
    repeat = [sum(1 << axis for axis in range(3) if x[axis] < shape[axis]) for x in operands]
    mul = n.attrs["mul"] if n.kind == "add" else [n.attrs["mul"], 0]
    kernel = "add_dsp" if n.kind == "add" and core.dsp and not any(repeat) and _short(n) else n.kind
    return Layer(kernel, "ecg_pair_layer", {
        "mul": list(mul), "channels": shape[0], "leads": shape[1], "repeat": repeat, "shift": n.attrs["shift"],
        "relu": int(n.attrs.get("relu", False))})


def _short(n: Node) -> bool:
    """Whether a sum and the 128 that add_dsp adds to it fit 16 bits once they are shifted, whatever the codes."""
    shift = n.attrs["shift"]
    most = 128 * sum(abs(m) for m in n.attrs["mul"]) + (1 << (shift - 1))
    return (most >> shift) + 128 < 1 << 15


def table(graph: Graph, n: Node, core: Core) -> Layer:
    channels, leads, _ = volume(graph.tensors[n.output].shape)
    return Layer("table", "ecg_table_layer", {"table": Array("int8_t", n.params["table"]), "rows": channels * leads})


def pool(graph: Graph, n: Node, core: Core) -> Layer:
    """maxpool and meanpool. The padding on the right is where the input ends."""
    channels, leads, _ = graph.tensors[n.output].shape
    return Layer(n.kind, "ecg_pool_layer", {
        "mul": n.attrs.get("mul", 0), "rows": channels * leads, "kernel": n.attrs["kernel"],
        "stride": n.attrs["stride"], "pad": n.attrs["pad"][0], "shift": n.attrs.get("shift", 0)})


def reduction(graph: Graph, n: Node, core: Core) -> Layer:
    """max and mean."""
    shape = graph.tensors[n.inputs[0]].shape
    channels, leads, _ = volume(shape)
    return Layer(f"reduce_{n.kind}", "ecg_reduce_layer", {
        "mul": n.attrs.get("mul", 0), "channels": channels, "leads": leads, "shift": n.attrs.get("shift", 0),
        "over": sum(1 << _axis(shape, axis) for axis in n.attrs["axes"])})


def concat(graph: Graph, n: Node, core: Core) -> Layer:
    """A part on the output's own scale is copied."""
    shape = graph.tensors[n.output].shape
    channels, leads, _ = volume(shape)
    axis = n.attrs["axis"]
    mul = [0 if m << k == 1 << 32 else m for m, k in zip(n.attrs["mul"], n.attrs["shift"], strict=True)]
    return Layer("concat", "ecg_concat_layer", {
        "mul": _numbers("int32_t", mul), "shift": _numbers("uint8_t", n.attrs["shift"]),
        "count": _numbers("uint16_t", [graph.tensors[t].shape[axis] for t in n.inputs]),
        "inputs": len(n.inputs), "channels": channels, "leads": leads, "axis": _axis(shape, axis)})


def cut(graph: Graph, n: Node, core: Core) -> Layer:
    """slice"""
    shape = graph.tensors[n.inputs[0]].shape
    return _cut(shape, _axis(shape, n.attrs["axis"]), n.attrs["start"], n.attrs["stop"])


def transpose(graph: Graph, n: Node, core: Core) -> Layer:
    shape = graph.tensors[n.inputs[0]].shape
    channels, leads, _ = volume(shape)
    front = 3 - len(shape)
    perm = [*range(front), *(axis + front for axis in n.attrs["perm"])]
    return Layer("transpose", "ecg_transpose_layer", {"channels": channels, "leads": leads, "perm": perm})


def norm(graph: Graph, n: Node, core: Core) -> Layer:
    channels, leads, _ = volume(graph.tensors[n.output].shape, channels_first(n.kind))
    return Layer("norm", "ecg_norm_layer", {
        "eps": n.attrs["eps"], "mul": Array("int32_t", n.params["mul"]), "bias": Array("int32_t", n.params["bias"]),
        "channels": channels, "leads": leads, "groups": n.attrs["groups"], "rms": int(n.attrs["rms"])})


def lstm(graph: Graph, n: Node, core: Core) -> Layer:
    steps, features = graph.tensors[n.inputs[0]].shape
    hidden, p, sequence = n.params["weight_h"].shape[1], n.params, n.attrs["sequence"]
    return Layer("lstm", "ecg_lstm_layer", {
        "weight_x": Array("int8_t", p["weight_x"]), "weight_h": Array("int8_t", p["weight_h"]),
        "mul_x": Array("int32_t", p["mul_x"]), "mul_h": Array("int32_t", p["mul_h"]),
        "bias": Array("int32_t", p["bias"]), "table": Array("uint16_t", p["table"]), "steps": steps,
        "features": features, "hidden": hidden, "sequence": int(sequence)}, scratch=hidden * (2 if sequence else 4))


def lookup(graph: Graph, n: Node, core: Core) -> Layer:
    entries, width = n.params["table"].shape
    return Layer("lookup", "ecg_lookup_layer", {
        "table": Array("int8_t", n.params["table"]), "low": n.attrs["low"], "entries": entries, "width": width})


def _cut(shape: tuple[int, ...], axis: int, start: int, stop: int) -> Layer:
    channels, leads, _ = volume(shape)
    return Layer("slice", "ecg_slice_layer", {
        "channels": channels, "leads": leads, "start": start, "stop": stop, "axis": axis})


def _axis(shape: tuple[int, ...], axis: int) -> int:
    """An axis of a tensor as one of (channel, lead, time)."""
    return axis + 3 - len(shape)


def _numbers(ctype: str, values) -> Array:
    return Array(ctype, np.array(values, ctype.removesuffix("_t")))


PACKERS = {"add": pair, "mul": pair, "table": table, "maxpool": pool, "meanpool": pool, "max": reduction,
           "mean": reduction, "concat": concat, "slice": cut, "transpose": transpose, "norm": norm, "lstm": lstm,
           "lookup": lookup}
