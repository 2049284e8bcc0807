# SPDX-License-Identifier: Apache-2.0
"""Convolutions for cores that get two products out of one multiplication (Cortex-M0+, M3): conv_swar.c.

The taps of an output channel are cut into chunks whose sums fit 16 bits whatever the input is, so that two of them fit
one word. Small weights and an input that is never negative make chunks long and the convolution fast.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.graph import Graph, Node
from targets import pack_plain
from targets.pack import Array, Core, Layer

LONGEST, TAP, FIRST = 16, 14, 2             # as in conv_swar.c
SUMS = 16 * 4 * 4                           # bytes of its sums
TILE = 16
WORDS = 8                                   # bytes of the two words of a tap
_SAME = {"maxpool", "max", "slice", "reshape", "transpose"}
_SCALED = {"mean", "meanpool", "concat", "mul"}


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column). Fewer columns than lanes are left to the plain kernel."""
    plain = pack_plain.conv1d(graph, n, core)
    out, depth, kernel = n.params["weight"].shape
    if graph.tensors[n.output].shape[2] < 3:
        return plain
    split = requantize_split(graph, n) if core.name == "m0plus" else np.zeros(out, np.uint8)
    codes = split.tobytes() + weights(n.params["weight"].reshape(out, -1), *code_range(graph, n.inputs[0]))
    taps = depth * kernel if depth > 1 else (TILE - 1) * n.attrs["stride"] + kernel
    return replace(plain, kernel="conv_swar" if depth > 1 else "fir_swar", scratch=SUMS + WORDS * (taps + 1),
                   fields=plain.fields | {"weight": Array("uint8_t", np.frombuffer(codes, np.uint8))})


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,): dense_four.c."""
    weight = n.params["weight"].reshape(len(n.params["weight"]), -1)
    fours = np.pad(weight, [(0, -len(weight) % 4), (0, 0)]).reshape(-1, 4, weight.shape[1]).swapaxes(1, 2)
    plain = pack_plain.dense(graph, n, core)
    return replace(plain, kernel="dense_four", fields=plain.fields | {"weight": Array("int8_t", fours.reshape(-1))})


def weights(codes: np.ndarray, low: int, high: int) -> bytes:
    """The kernel's string of bytes for int8 codes (out, tap) that meet inputs of low .. high."""
    parts = []
    for row in codes:
        for chunk in chunks(row, low, high):
            parts += [bytes([FIRST + TAP * (LONGEST - len(chunk))]), chunk.astype(np.int8).tobytes()]
        parts.append(b"\0")
    return b"".join(parts) + b"\0"          # the kernel may read one byte further


def chunks(row: np.ndarray, low: int, high: int) -> list[np.ndarray]:
    """Cut the weights of a channel (tap,) where a sum could leave -(2^15 - 1) .. 2^15 - 1, greedily."""
    most = np.maximum(row * np.int64(high), row * np.int64(low))
    least = np.minimum(row * np.int64(high), row * np.int64(low))
    found, start, above, below = [], 0, 0, 0
    for i in range(len(row)):
        above, below = above + most[i], below + least[i]
        if above >= 1 << 15 or below <= -(1 << 15) or i - start == LONGEST:
            found.append(row[start:i])
            start, above, below = i, most[i], least[i]
    return [*found, row[start:]]


def code_range(graph: Graph, tensor: str) -> tuple[int, int]:
    """The least and the largest code that a tensor, or the padding around it, can hold."""
    node = next((n for n in graph.nodes if n.output == tensor), None)
    if node is None:
        return -128, 127
    if node.kind in ("table", "lookup", "constant"):
        codes = node.params["value" if node.kind == "constant" else "table"]
        return min(int(codes.min()), 0), max(int(codes.max()), 0)
    if node.attrs.get("relu"):
        return 0, 127
    if node.kind == "maxpool" and max(node.attrs["pad"]) >= node.attrs["kernel"]:
        return -128, 127                    # a window of nothing but padding gives -128
    if node.kind in _SAME:
        return code_range(graph, node.inputs[0])
    if node.kind in _SCALED and all(code_range(graph, t)[0] == 0 for t in node.inputs):
        return 0, 127
    return -128, 127


def requantize_split(graph: Graph, n: Node) -> np.ndarray:
    """uint8 (out,): low bits of the multiplier that conv_swar.c may take apart so that no product passes 32 bits.

    All 0 when one channel has none.
    """
    codes = n.params["weight"].reshape(len(n.params["mul"]), -1).astype(np.int64)
    low, high = code_range(graph, n.inputs[0])
    above, below = np.maximum(codes * low, codes * high).sum(1), np.minimum(codes * low, codes * high).sum(1)
    reach = np.maximum(above, -below) + np.abs(n.params["bias"].astype(np.int64))
    reach, mul = reach << n.params["shift"].astype(np.int64), n.params["mul"].astype(np.int64)
    split, limit = np.zeros(len(mul), np.uint8), (1 << 31) - 1
    for bits in range(1, 31):
        coarse = ((mul >> (bits - 1)) + 1) >> 1
        split[(reach << (bits - 1) <= limit) & (reach * (coarse + 1) <= limit)] = bits
    return split if split.all() else np.zeros_like(split)
