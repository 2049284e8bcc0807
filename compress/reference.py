# SPDX-License-Identifier: Apache-2.0
"""The integer graph executed in numpy. This file defines the arithmetic; every target is measured against it.

Codes are int8 with zero point 0, accumulators int32 (held in int64 here; `freeze.py` proves the bounds). Arrays carry a
batch axis in front: (batch, channel, lead, time) or (batch, feature).

    requantize(acc, m, k)   clamp8(((acc << k) * m + 2^31) >> 32)            0 < m < 2^31, 0 <= k <= 7, ties up
    conv1d, dense           requantize(sum(w * x) + bias, m[c], k[c]), at least 0 with relu; each lead by itself
    constant                value, the same for every window
    add                     clamp8((a * ma + b * mb + 2^(s-1)) >> s), at least 0 with relu; mb < 0 subtracts
    mul                     requantize(a * b, m, k)
    table                   table[x + 128]
    maxpool, max            the largest code; outside of the signal counts as -128
    mean, meanpool          requantize(sum(x), m, k); outside of the signal counts as 0
    concat                  requantize(x_i, m_i, k_i) side by side
    slice, reshape          the same codes
    transpose               the same codes in another order: output axis i is input axis perm[i]
    attention               see reference_attention.py; the probabilities are never rounded
    norm, lstm              see reference_norm.py and reference_lstm.py
    lookup                  row min(max(x - low, 0), entries - 1) of the table
"""

from __future__ import annotations

import math

import numpy as np

from compress.fixed import clamp8, rescale
from compress.graph import Graph, Node
from compress.reference_attention import attention
from compress.reference_lstm import lstm
from compress.reference_norm import norm
from train.say import GraphError


def run(graph: Graph, inputs: dict[str, np.ndarray], trace: bool = False):
    """Evaluate a batch. inputs: name -> int8 (batch, *shape). Returns int8 logits, or every tensor with `trace`."""
    values = {name: np.asarray(inputs[name]) for name in graph.inputs}
    execute(graph.nodes, values)
    return values if trace else values[graph.output]


def stream(graph: Graph, record: dict[str, np.ndarray], hop: int):
    """Evaluate an endless record at every hop; the definition of streaming.

    record: the waveform, the graph's first input, as int8 (lead, time), and side inputs as int8 (hop, *shape). Local
    layers run over the whole record, padded before sample 0 only; a column exists once every sample and column it looks
    at exists. The first decision falls when the graph's window of samples is complete, the next ones every `hop`
    samples. Returns int8 (hop, class).
    """
    local, rest = graph.local_nodes()
    name, *sides = graph.inputs
    x = np.asarray(record[name])
    window = graph.tensors[name].shape[1]
    values = {name: x[None]}
    execute(local, values, endless=True)
    columns = values[rest[0].inputs[0]]
    stride, whole = column_stride(graph), period(graph)
    if hop <= 0 or hop % whole:
        blocks = f" and its blocks of attention, {whole}" if whole > stride else f" {stride}"
        raise GraphError(f"a hop of {hop} samples", f"a multiple of the total stride{blocks}", "train with such a hop")
    start, stop = rest[0].attrs["start"], rest[0].attrs["stop"]
    hops = np.arange(0, x.shape[1] - window + 1, hop) // stride
    if not len(hops):
        return np.zeros((0, *graph.tensors[graph.output].shape), np.int8)
    batch = np.concatenate([columns[..., c + start:c + stop] for c in hops])
    values = {rest[0].output: batch} | {side: np.asarray(record[side]) for side in sides}
    execute(rest[1:], values)
    return values[graph.output]


def column_stride(graph: Graph) -> int:
    """Samples per column at the boundary."""
    local, rest = graph.local_nodes()
    return strides(graph, local)[rest[0].inputs[0]]


def period(graph: Graph) -> int:
    """Samples after which columns and blocks of attention lie alike: the least hop of a streaming graph."""
    local, _ = graph.local_nodes()
    stride = strides(graph, local)
    blocks = (stride[n.output] * n.attrs["size"] for n in local if n.attrs.get("window") == "block")
    return math.lcm(column_stride(graph), *blocks)


def strides(graph: Graph, local: list[Node]) -> dict[str, int]:
    """Samples per column of every tensor in front of the boundary."""
    stride = {name: 1 for name in graph.inputs}
    for n in local:
        stride[n.output] = max((stride[t] for t in n.inputs), default=1) * n.attrs.get("stride", 1)
    return stride


def execute(nodes: list[Node], values: dict[str, np.ndarray], endless: bool = False) -> None:
    """Run nodes in order over `values` (tensor name -> codes), adding their outputs."""
    batch = max((len(x) for x in values.values()), default=1)
    for n in nodes:
        args = [values[t] for t in n.inputs]
        out = _KERNELS[n.kind](n, args, endless)
        values[n.output] = out if n.inputs else np.repeat(out, batch, axis=0)


def _padded(x: np.ndarray, pad, value: int, endless: bool) -> np.ndarray:
    """Pad the time axis; nothing is appended to an endless record."""
    right = 0 if endless else pad[1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(pad[0], right)], constant_values=value)


def _windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """(..., time) -> (..., column, kernel)."""
    if x.shape[-1] < kernel:
        return np.empty((*x.shape[:-1], 0, kernel), x.dtype)
    return np.lib.stride_tricks.sliding_window_view(x, kernel, axis=-1)[..., ::stride, :]


def conv1d(n: Node, args, endless: bool) -> np.ndarray:
    """(batch, channel, lead, time) -> (batch, out, lead, column), grouped; weights shared by the leads."""
    w, groups, stride = n.params["weight"], n.attrs["groups"], n.attrs["stride"]
    out, depth, kernel = w.shape
    # float32 holds every sum below 2^24 exactly, float64 below 2^53; their matrix products are the fast ones
    exact = np.float32 if depth * kernel * 127 * 128 < 1 << 24 else np.float64
    x = _padded(args[0], n.attrs["pad"], 0, endless).astype(exact)
    batch, _, lead, time = x.shape
    columns = max((time - kernel) // stride + 1, 0)
    acc = np.zeros((batch, groups, out // groups, lead * columns), exact)
    for tap in range(kernel):
        seen = x[..., tap:tap + (columns - 1) * stride + 1:stride] if columns else x[..., :0]
        seen = np.ascontiguousarray(seen).reshape(batch, groups, depth, lead * columns)
        weight = w[:, :, tap].reshape(groups, out // groups, depth).astype(exact)
        acc += weight @ seen if depth > 1 else weight * seen
    per_channel = (1, out, 1, 1)
    acc = acc.reshape(batch, out, lead, columns).astype(np.int64) + n.params["bias"].reshape(per_channel)
    acc = rescale(acc, n.params["mul"].reshape(per_channel), n.params["shift"].reshape(per_channel))
    return clamp8(acc, n.attrs["relu"])


def dense(n: Node, args, endless: bool) -> np.ndarray:
    """(batch, feature) -> (batch, out)."""
    acc = args[0].astype(np.int64) @ n.params["weight"].T.astype(np.int64) + n.params["bias"]
    return clamp8(rescale(acc, n.params["mul"], n.params["shift"]), n.attrs["relu"])


def constant(n: Node, args, endless: bool) -> np.ndarray:
    """A parameter as data, (1, *shape)."""
    return n.params["value"][None]


def _finished(args, endless: bool, still: int = 1) -> list[np.ndarray]:
    """Operands as int64; on an endless record the branch that waits longest decides the length.

    An operand of `still` columns is one that repeats along time.
    """
    if endless:
        length = min((a.shape[-1] for a in args if a.shape[-1] != still), default=still)
        args = [a[..., :length] for a in args]
    return [a.astype(np.int64) for a in args]


def add(n: Node, args, endless: bool) -> np.ndarray:
    """Sum or difference; an axis of size 1 is repeated."""
    (a, b), (ma, mb), s = _finished(args, endless), n.attrs["mul"], n.attrs["shift"]
    return clamp8((a * ma + b * mb + (1 << (s - 1))) >> s, n.attrs["relu"])


def product(n: Node, args, endless: bool) -> np.ndarray:
    """Elementwise product; an axis of size 1 is repeated."""
    a, b = _finished(args, endless)
    return clamp8(rescale(a * b, n.attrs["mul"], n.attrs["shift"]))


def table(n: Node, args, endless: bool) -> np.ndarray:
    """Any unary function as 256 bytes."""
    return n.params["table"][args[0].astype(np.int64) + 128]


def maxpool(n: Node, args, endless: bool) -> np.ndarray:
    """Sliding maximum along time."""
    return _windows(_padded(args[0], n.attrs["pad"], -128, endless), n.attrs["kernel"], n.attrs["stride"]).max(-1)


def meanpool(n: Node, args, endless: bool) -> np.ndarray:
    """Sliding mean along time; the multiplier holds 1 / kernel, padding counts as 0."""
    acc = _windows(_padded(args[0].astype(np.int64), n.attrs["pad"], 0, endless), n.attrs["kernel"], n.attrs["stride"])
    return clamp8(rescale(acc.sum(-1), n.attrs["mul"], n.attrs["shift"]))


def maximum(n: Node, args, endless: bool) -> np.ndarray:
    """Maximum over whole axes."""
    return args[0].max(tuple(a + 1 for a in n.attrs["axes"]))


def mean(n: Node, args, endless: bool) -> np.ndarray:
    """Mean over whole axes; the multiplier holds 1 / count."""
    acc = args[0].astype(np.int64).sum(tuple(a + 1 for a in n.attrs["axes"]))
    return clamp8(rescale(acc, n.attrs["mul"], n.attrs["shift"]))


def concat(n: Node, args, endless: bool) -> np.ndarray:
    """Inputs brought to the output's scale and laid side by side."""
    args = _finished(args, endless, still=-1)
    parts = [clamp8(rescale(a, m, k)) for a, m, k in zip(args, n.attrs["mul"], n.attrs["shift"], strict=True)]
    return np.concatenate(parts, axis=n.attrs["axis"] + 1)


def cut(n: Node, args, endless: bool) -> np.ndarray:
    """A slice of one axis."""
    return args[0].take(np.arange(n.attrs["start"], n.attrs["stop"]), axis=n.attrs["axis"] + 1)


def reshape(n: Node, args, endless: bool) -> np.ndarray:
    """Other axes in the same order; on an endless record the last one stays time."""
    x, shape = args[0], n.attrs["shape"]
    return x.reshape(x.shape[0], *shape[:-1], x.shape[-1] if endless else shape[-1])


def transpose(n: Node, args, endless: bool) -> np.ndarray:
    """Other order of the axes."""
    return args[0].transpose(0, *(axis + 1 for axis in n.attrs["perm"]))


def lookup(n: Node, args, endless: bool) -> np.ndarray:
    """(batch, 1) -> (batch, width)."""
    rows = n.params["table"]
    return rows[np.clip(args[0][:, 0].astype(np.int64) - n.attrs["low"], 0, len(rows) - 1)]


_KERNELS = {"conv1d": conv1d, "dense": dense, "attention": attention, "constant": constant, "add": add, "mul": product,
            "table": table, "maxpool": maxpool, "meanpool": meanpool, "max": maximum, "mean": mean, "concat": concat,
            "slice": cut, "reshape": reshape, "transpose": transpose,
            "norm": norm, "lstm": lstm, "lookup": lookup}
