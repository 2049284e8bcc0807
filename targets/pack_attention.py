# SPDX-License-Identifier: Apache-2.0
"""Attention nodes as C layers. q, k, v and the output lie as their tensors do; nothing is packed but the constants."""

from __future__ import annotations

from compress.graph import Graph, Node, keys_seen
from targets import plan
from targets.pack import Array, Core, Layer

WINDOWS = ("global", "band", "block", "neighbourhood")     # in the order of the C enum
BLOCK = 8           # queries that the DSP kernel takes at a time: more use of paired keys, more rows of scores
ROWS_WORDS = 384    # of scores that are worth it


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
    fields["block"] = block = _block(graph, n) if core.dsp else 1
    scratch = _scratch(graph, n, block) if core.dsp else plan.scratch(graph)[n.name]
    return Layer("attention_dsp" if core.dsp else "attention", "ecg_attention_layer", fields, scratch)


def _keys(graph: Graph, n: Node, block: int) -> int:
    """Keys that `block` queries see together; the kernel pads to four."""
    keys, moving = graph.tensors[n.inputs[1]].shape[2], n.attrs["window"] in ("band", "neighbourhood")
    return max(min(keys_seen(n, keys) + (block - 1 if moving else 0), keys), 4)


def _row_words(graph: Graph, n: Node, block: int) -> int:
    """Scores of a block of queries in all maps, with room for the weights in their place."""
    return (len(n.inputs) - 1) // 2 * block * ((_keys(graph, n, block) + 4) // 2 * 2)


def _block(graph: Graph, n: Node) -> int:
    """The most queries, an even number, whose scores stay small."""
    queries = graph.tensors[n.inputs[0]].shape[2]
    most = min(BLOCK, queries + queries % 2)
    return next((b for b in range(most, 2, -2) if _row_words(graph, n, b) <= ROWS_WORDS), 2)


def _scratch(graph: Graph, n: Node, block: int) -> int:
    """Bytes: paired queries, four paired keys, scores."""
    channels, leads, _ = graph.tensors[n.inputs[0]].shape
    depth = channels // n.attrs["heads"] * leads
    return 4 * ((block // 2 + 2) * (depth + depth % 2) + _row_words(graph, n, block))


PACKERS = {"attention": attention}
