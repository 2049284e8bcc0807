# SPDX-License-Identifier: Apache-2.0
"""conv1d and dense for the C kernels: conv.c and dense.c."""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from targets.pack import Array, Core, Layer, scales, shifts


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column)."""
    weight = n.params["weight"]         # (out, channel / groups, kernel)
    return _conv_layer(graph, n, "conv", Array("int8_t", weight.reshape(-1)))


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,)."""
    return _dense_layer(n, "dense", Array("int8_t", n.params["weight"].reshape(-1)))


def _conv_layer(graph: Graph, n: Node, kernel: str, weight: Array, scratch: int = 0) -> Layer:
    channel, leads, _ = graph.tensors[n.inputs[0]].shape
    out, _, taps = n.params["weight"].shape
    return Layer(kernel, "ecg_conv_layer", {
        "weight": weight, **_rescale(n), "in": channel, "out": out, "leads": leads, "groups": n.attrs["groups"],
        "kernel": taps, "stride": n.attrs["stride"], "pad": n.attrs["pad"][0], "relu": int(n.attrs["relu"])}, scratch)


def _dense_layer(n: Node, kernel: str, weight: Array, scratch: int = 0) -> Layer:
    out, features = n.params["weight"].shape
    return Layer(kernel, "ecg_dense_layer", {
        "weight": weight, **_rescale(n), "in": features, "out": out, "relu": int(n.attrs["relu"])}, scratch)


def _rescale(n: Node) -> dict[str, Array | None]:
    return {"scale": scales(n.params["bias"], n.params["mul"]), "shift": shifts(n.params["shift"].astype(np.uint8))}


PACKERS = {"conv1d": conv1d, "dense": dense}
