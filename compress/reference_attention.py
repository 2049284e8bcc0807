# SPDX-License-Identifier: Apache-2.0
"""Attention in integers: the exp table and the kernel of the reference. Probabilities are never rounded."""

from __future__ import annotations

import numpy as np

from compress.fixed import clamp8, rescale
from compress.graph import Node

EXP_STEP = 1 / 128      # nats per table index: at 1/32 one in twenty outputs of a band differed from a float softmax
EXP_ENTRIES = 1024      # 8 nats
EXP_ONE = 1 << 14       # table[0]
ROWS = 64               # queries evaluated at a time; only bounds the memory of the score matrix


def exp_table() -> np.ndarray:
    """uint16 (1024,): exp(-i / 128) in 14 bits; the last entry is 0, so far-off keys vanish."""
    table = np.rint(EXP_ONE * np.exp(-EXP_STEP * np.arange(EXP_ENTRIES))).astype(np.uint16)
    table[-1] = 0
    return table


def attention(n: Node, args, endless: bool) -> np.ndarray:
    """Lead-joint attention with an integer softmax; (batch, heads * d, lead, time).

    score = sum of q * k over leads and d, + bias[head, s - t + size - 1] of query t and key s where there is a bias
    i = min(rescale(max - score, m, k), 1023);  e = table[i];  U = sum(e * v)
    r = floor(2^40 / sum(e));  R = (r * out_mul + 2^23) >> 24
    out = clamp8((U * R + 2^39) >> 40), with q2 and k2: clamp8((U * R - U2 * R2 + 2^39) >> 40), U2 and R2 by the same
    lines with score_mul2, score_shift2 and out_mul2, which holds lambda and may be negative. max and sums run over the
    keys that `reach` names. On an endless record a query waits until all its keys exist; none moves inwards at the end.
    """
    q, k, v, *pair = (split(a, n.attrs["heads"]) for a in args)
    time = finished(n, q.shape[-1]) if endless else q.shape[-1]
    out = np.empty((*v.shape[:-1], time), np.int8)
    for start in range(0, time, ROWS):
        rows = np.arange(start, min(start + ROWS, time))
        first, stop = reach(n, rows, k.shape[-1])
        cut = slice(first.min(), stop.max())
        t, s = rows[:, None], np.arange(cut.start, cut.stop)
        seen = (s >= first[:, None]) & (s < stop[:, None])
        bias = n.params["bias"][:, np.where(seen, s - t + n.attrs["size"] - 1, 0)] if "bias" in n.params else 0
        top = _weighted(n, "", q[..., rows], k[..., cut], v[..., cut], seen, bias)
        if pair:
            top = top - _weighted(n, "2", pair[0][..., rows], pair[1][..., cut], v[..., cut], seen, 0)
        out[..., rows] = clamp8((top + (1 << 39)) >> 40)
    return out.reshape(len(out), out.shape[1] * out.shape[2], *out.shape[3:])


def _weighted(n: Node, which: str, q, k, v, seen, bias) -> np.ndarray:
    """U * R of one map; int64 (batch, head, d, lead, query)."""
    score = np.where(seen, scores(q, k) + bias, np.iinfo(np.int64).min >> 1)
    below = np.where(seen, score.max(-1, keepdims=True) - score, 0)
    index = np.minimum(rescale(below, n.attrs["score_mul" + which], n.attrs["score_shift" + which]), EXP_ENTRIES - 1)
    e = np.where(seen, n.params["table"][index], 0).astype(np.int64)
    reciprocal = ((1 << 40) // e.sum(-1) * n.attrs["out_mul" + which] + (1 << 23)) >> 24    # (batch, head, query)
    top = np.einsum("bhts,bhdls->bhdlt", e.astype(np.float64), v, optimize=True).astype(np.int64)
    return top * reciprocal[:, :, None, None]


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """(batch, heads * d, lead, time) -> float64 (batch, head, d, lead, time), exact in every sum of products."""
    return x.reshape(x.shape[0], heads, -1, *x.shape[2:]).astype(np.float64)


def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Lead-joint products of `split` codes; int64 (batch, head, query, key)."""
    return np.einsum("bhdlt,bhdls->bhts", q, k, optimize=True).astype(np.int64)


def reach(n: Node, t: np.ndarray, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """(first key, last key + 1) that the queries t see, of `keys` that there are."""
    window, size = n.attrs["window"], n.attrs["size"]
    if window == "global":
        return np.zeros_like(t), np.full_like(t, keys)
    if window == "band":
        return np.maximum(t - size, 0), np.minimum(t + size + 1, keys)
    if window == "block":
        return t // size * size, np.minimum(t // size * size + size, keys)
    first = np.clip(t - (size - 1) // 2, 0, keys - size)
    return first, first + size


def finished(n: Node, columns: int) -> int:
    """Queries whose keys all exist after `columns` columns of an endless record; blocks count from column 0."""
    window, size = n.attrs["window"], n.attrs["size"]
    if window == "block":
        return columns // size * size
    if window == "neighbourhood":
        return columns - size // 2 if columns >= size else 0
    return max(columns - size, 0)
