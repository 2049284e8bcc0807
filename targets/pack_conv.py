# SPDX-License-Identifier: Apache-2.0
"""conv1d and dense: which packer serves a core."""

from __future__ import annotations

from types import ModuleType

from compress.graph import Graph, Node
from targets import pack_dsp, pack_mve, pack_plain, pack_swar
from targets.pack import Core, Layer


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column)."""
    if not core.plain and _one_column(graph, n):
        return dense(graph, n, core)
    return _family(core).conv1d(graph, n, core)


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,)."""
    return _family(core).dense(graph, n, core)


def _family(core: Core) -> ModuleType:
    return pack_dsp if core.dsp else pack_mve if core.mve else pack_swar if core.swar else pack_plain


def _one_column(graph: Graph, n: Node) -> bool:
    """A 1x1 convolution of a single column is a dense layer: channels lie side by side, except in a stream's state."""
    shape = graph.tensors[n.inputs[0]].shape
    local = graph.local_nodes()[0] if graph.boundary is not None else []
    alone = shape[1:] == (1, 1) and not any(n.attrs["pad"])
    return alone and n.params["weight"].shape[1:] == (shape[0], 1) and not any(n is m for m in local)


PACKERS = {"conv1d": conv1d, "dense": dense}
