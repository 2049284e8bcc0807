# SPDX-License-Identifier: Apache-2.0
"""Attention nodes as C layers. q, k, v and the output lie as their tensors do; nothing is packed but the constants."""

from __future__ import annotations

from compress.graph import Graph, Node, keys_seen
from targets.pack import Array, Core, Layer

WINDOWS = ("global", "band", "block", "neighbourhood")     # in the order of the C enum
# The DSP kernel pairs keys once for many queries: all that a query sees where they fit into PAIRED bytes, else those
# that fit into SOME bytes for a block of queries, whose scores fit into ROWS bytes.
PAIRED, SOME, ROWS, BLOCK = 2048, 256, 1600, 8
SLACK = 20          # queries of a moving window whose keys are kept together, so that few keys are paired again


def attention(graph: Graph, n: Node, core: Core) -> Layer:
    """The layer of the kernel for a core."""
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
    kernel, block, paired, scratch = _form(graph, n, core)
    return Layer(kernel, "ecg_attention_layer", fields | {"block": block, "paired": paired}, scratch)


def _form(graph: Graph, n: Node, core: Core) -> tuple[str, int, int, int]:
    """(kernel, queries at a time, keys that it keeps side by side, bytes of scratch)."""
    seen = keys_seen(n, graph.tensors[n.inputs[1]].shape[2])
    if core.dsp and _least(graph, n) >= 4:
        block, paired = _dials(graph, n)
        return "attention_dsp", block, paired, _scratch(graph, n, block, paired)
    if core.mve:
        room, kept = -(-seen // 8) * 8, _keys(graph, n, SLACK)
        depth = -(-_depth(graph, n) // 16) * 16
        return "attention_mve", 1, kept, (_maps(n) * kept + 1) * depth + (4 + 2 * _maps(n)) * room
    return "attention", 1, 4, 4 * _maps(n) * seen


def _least(graph: Graph, n: Node) -> int:
    """Fewest keys that the kernel is ever given: a whole window's, or those of an endless signal's first query."""
    size = n.attrs["size"]
    return min(graph.tensors[n.inputs[1]].shape[2], {"global": 4, "band": size + 1}.get(n.attrs["window"], size))


def _maps(n: Node) -> int:
    return (len(n.inputs) - 1) // 2


def _keys(graph: Graph, n: Node, block: int) -> int:
    """Keys that `block` queries see together; the kernel pads to four."""
    keys, moving = graph.tensors[n.inputs[1]].shape[2], n.attrs["window"] in ("band", "neighbourhood")
    return max(min(keys_seen(n, keys) + (block - 1 if moving else 0), keys), 4)


def _depth(graph: Graph, n: Node) -> int:
    """Rows of a head of q, an even number."""
    channels, leads, _ = graph.tensors[n.inputs[0]].shape
    depth = channels // n.attrs["heads"] * leads
    return depth + depth % 2


def _rows(graph: Graph, n: Node, block: int) -> int:
    """Bytes of the scores of a block of queries in all maps, with room around them."""
    return 4 * _maps(n) * block * ((_keys(graph, n, block) + 8) // 2 * 2)


def _dials(graph: Graph, n: Node) -> tuple[int, int]:
    """(queries at a time, keys that are kept paired)."""
    queries, keys = (graph.tensors[t].shape[2] for t in n.inputs[:2])
    whole = -(-min(_keys(graph, n, SLACK), keys) // 4) * 4
    if queries > 2 and 2 * _maps(n) * whole * _depth(graph, n) <= PAIRED:
        return 2, whole
    most = min(BLOCK, queries + queries % 2)
    some = min(max(SOME // (2 * _depth(graph, n)) // 4 * 4, 4), whole)
    return next((b for b in range(most, 2, -2) if _rows(graph, n, b) <= ROWS), 2), some


def _scratch(graph: Graph, n: Node, block: int, paired: int) -> int:
    """Bytes: paired keys, paired queries, scores."""
    return 2 * (_maps(n) * paired + block) * _depth(graph, n) + _rows(graph, n, block)


PACKERS = {"attention": attention}
