# SPDX-License-Identifier: Apache-2.0
"""conv1d and dense for conv.c and dense.c, which any compiler takes, and the layers' fields that all cores share."""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from targets.pack import Array, Core, Layer, scales, shifts


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column)."""
    return conv_layer(graph, n, "conv", Array("int8_t", n.params["weight"].reshape(-1)), _rescale(n))


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,)."""
    return dense_layer(n, "dense", Array("int8_t", n.params["weight"].reshape(-1)), _rescale(n))


def _rescale(n: Node) -> dict[str, Array | None]:
    return {"scale": scales(n.params["bias"], n.params["mul"]), "shift": shifts(n.params["shift"].astype(np.uint8))}


def conv_layer(graph: Graph, n: Node, kernel: str, weight: Array, rescale: dict, scratch: int = 0) -> Layer:
    """An ecg_conv_layer with weights as its kernel wants them."""
    channel, leads, _ = graph.tensors[n.inputs[0]].shape
    out, _, taps = n.params["weight"].shape
    return Layer(kernel, "ecg_conv_layer", {
        "weight": weight, **rescale, "in": channel, "out": out, "leads": leads, "groups": n.attrs["groups"],
        "kernel": taps, "stride": n.attrs["stride"], "pad": n.attrs["pad"][0], "relu": int(n.attrs["relu"])}, scratch)


def dense_layer(n: Node, kernel: str, weight: Array, rescale: dict, scratch: int = 0) -> Layer:
    """An ecg_dense_layer with weights as its kernel wants them; a 1x1 convolution of one column is one too."""
    out, features = n.params["weight"].shape[:2]
    return Layer(kernel, "ecg_dense_layer", {
        "weight": weight, **rescale, "in": features, "out": out, "relu": int(n.attrs["relu"])}, scratch)
