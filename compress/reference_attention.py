# SPDX-License-Identifier: Apache-2.0
"""Attention in integers: the exp table and the kernel of the reference. Probabilities are never rounded."""

from __future__ import annotations

import numpy as np

from compress.fixed import clamp8, rescale
from compress.graph import Node

EXP_STEP = 1 / 128      # nats per table index: at 1/32 one in twenty outputs of a band differed from a float softmax
EXP_ENTRIES = 1024      # 8 nats
EXP_ONE = 1 << 14       # table[0]


def exp_table() -> np.ndarray:
    """uint16 (1024,): exp(-i / 128) in 14 bits; the last entry is 0, so far-off keys vanish."""
    table = np.rint(EXP_ONE * np.exp(-EXP_STEP * np.arange(EXP_ENTRIES))).astype(np.uint16)
    table[-1] = 0
    return table


def attention(n: Node, args, endless: bool) -> np.ndarray:
    """Lead-joint attention with an integer softmax; (batch, heads * d, lead, time).

    score = sum of q * k over leads and d;  i = min(rescale(max - score, m, k), 1023);  e = table[i]
    r = floor(2^40 / sum(e));  rm = (r * out_mul + 2^23) >> 24;  out = clamp8((sum(e * v) * rm + 2^39) >> 40)
    A band sees the keys t-half..t+half that exist; on an endless record it waits for its right half.
    """
    heads, half = n.attrs["heads"], n.attrs["half"]
    q, k, v = (a.reshape(a.shape[0], heads, a.shape[1] // heads, *a.shape[2:]).astype(np.float64) for a in args)
    time, keys = q.shape[-1], k.shape[-1]
    if n.attrs["window"] == "band" and endless:
        time = max(time - half, 0)
    out = np.empty((*v.shape[:-1], time), np.int8)
    block = 64              # rows at a time; only bounds the memory of the score matrix
    for start in range(0, time, block):
        stop = min(start + block, time)
        lo, hi = (0, keys) if n.attrs["window"] == "global" else (max(start - half, 0), min(stop + half, keys))
        score = np.einsum("bhdlt,bhdls->bhts", q[..., start:stop], k[..., lo:hi], optimize=True).astype(np.int64)
        seen = np.ones(score.shape[-2:], bool)
        if n.attrs["window"] == "band":
            seen = np.abs(np.arange(start, stop)[:, None] - np.arange(lo, hi)[None]) <= half
        score = np.where(seen, score, np.iinfo(np.int32).min)
        below = np.where(seen, score.max(-1, keepdims=True) - score, 0)
        index = np.minimum(rescale(below, n.attrs["score_mul"], n.attrs["score_shift"]), EXP_ENTRIES - 1)
        e = np.where(seen, n.params["table"][index], 0).astype(np.int64)
        reciprocal = (1 << 40) // e.sum(-1)                                    # (batch, head, time)
        reciprocal = (reciprocal * n.attrs["out_mul"] + (1 << 23)) >> 24
        top = np.einsum("bhts,bhdls->bhdlt", e.astype(np.float64), v[..., lo:hi], optimize=True).astype(np.int64)
        out[..., start:stop] = clamp8((top * reciprocal[:, :, None, None] + (1 << 39)) >> 40)
    return out.reshape(out.shape[0], -1, *out.shape[3:])
