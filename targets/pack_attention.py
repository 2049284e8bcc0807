# SPDX-License-Identifier: Apache-2.0
"""Attention nodes as C layers. q, k, v and the output lie as their tensors do; nothing is packed but the constants."""

from __future__ import annotations

from compress.graph import Graph, Node
from targets import plan
from targets.pack import Array, Core, Layer

WINDOWS = ("global", "band", "block", "neighbourhood")     # in the order of the C enum


def attention(graph: Graph, n: Node, core: Core) -> Layer:
    """The plain kernel of any core, or the DSP one, which wants more scratch."""
    (channels, leads, _), (wide, _, _) = (graph.tensors[t].shape for t in (n.inputs[0], n.output))
    heads, bias = n.attrs["heads"], n.params.get("bias")
    fields = {
        "table": Array("uint16_t", n.params["table"]),
        "bias": None if bias is None else Array("int32_t", bias),
        **{key: n.attrs.get(key, 0) for key in ("score_mul", "out_mul", "score_mul2", "out_mul2", "score_shift",
                                                "score_shift2")},
        "pair": int(len(n.inputs) == 5), "window": WINDOWS.index(n.attrs["window"]),
        "heads": heads, "d": channels // heads, "dv": wide // heads, "leads": leads, "size": n.attrs["size"],
    }
    return Layer("attention", "ecg_attention_layer", fields, plan.scratch(graph)[n.name])


PACKERS = {"attention": attention}
