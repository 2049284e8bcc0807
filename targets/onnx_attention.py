# SPDX-License-Identifier: Apache-2.0
"""The attention of `onnx_qdq.py`: every window is blocks of queries, the keys they may see and a constant mask.

A local window is cut into blocks of queries, (block, head, time, depth), a global one and one that blocks save nothing
in is a single block, (head, time, depth); depth holds d and lead together. Blocks and heads are gathered as whole rows.
What a query of a block does not see is hidden by the mask, which carries the relative bias as well.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Node
from compress.reference_attention import EXP_STEP, reach
from targets.onnx_file import OnnxFile

HIDDEN = -1e9           # added to the score of a key that a query does not see
LANES = 16              # floats of the widest SIMD vector
LEAST = 12              # queries of a block whose keys overlap with the next one's


class Attention(OnnxFile):
    """Written in terms of the views `view` and `stacks` and the forms' `scores`, `weighted`, `values` and `settled`."""

    def __init__(self):
        super().__init__()
        self.turned: dict[tuple, str] = {}              # (ONNX value, shape of rows) -> what attention reads of it
        self.parted: dict[tuple, list[str]] = {}        # (ONNX value, heads) -> its tensors, head by head

    def attention(self, node: Node):
        """softmax(q k') v for each head; with q2 and k2 (softmax(q k') - lambda softmax(q2 k2')) v, one product."""
        q, k, v, *pair = node.inputs
        query, key, seen = _columns(node, self.shape(q)[2], self.shape(k)[2])
        mask = _mask(node, query, key, seen)
        weight = self.softmax(node, "", (q, k), query, key, mask)
        share = 0.0
        if pair:
            share = node.attrs["out_mul2"] / node.attrs["out_mul"]
            other = self.softmax(node, "2", pair, query, key, mask)
            weight = self.op("Sub", [weight, self.op("Mul", [other, self.constant(np.float32(share))])])
        values = self.values(self.gathered(v, key, node.attrs["heads"]), self.scale(v))
        y = self.op("MatMul", [self.weighted(weight, share), values])
        y = self.settled(y, self.scale(node.output) / self.unit(v))
        self.store((node.output,), self.channels_first(y, node, query))

    def softmax(self, node: Node, which: str, pair, query: np.ndarray, key: np.ndarray, mask) -> str:
        """The attention weights of one map; `which` is the suffix of its multipliers."""
        heads = node.attrs["heads"]
        x, y = (self.gathered(t, at, heads) for t, at in zip(pair, (query, key), strict=True))
        y = self.op("Transpose", [y], perm=[0, 1, 3, 2] if key.ndim == 2 else [0, 2, 1])
        score = self.scores([x, y], _nats(node, which), [self.scale(t) / self.unit(t) for t in pair])
        if mask is not None:
            score = self.op("Add", [score, self.constant(mask)])
        return self.op("Softmax", [score], axis=-1)

    def unit(self, tensor: str) -> float:
        """The real value that 1 stands for in the rows that attention reads."""
        return 1.0

    def attended(self, rows: str) -> str:
        """Native rows as attention reads them."""
        return rows

    def gathered(self, tensor: str, columns: np.ndarray, heads: int) -> str:
        """(head, time, depth) of the columns wanted, (time,); with columns (block, time) a block in front."""
        value, count, place = self.beside(tensor)
        time = self.shape(tensor)[2]
        if columns.ndim == 1:
            return self.by_head(value, tensor, count, heads)[place]
        index = np.clip(columns, 0, time - 1) * count + place
        index = index[..., None, :] * heads + np.arange(heads)[:, None]
        rows = self.rows(value, tensor, (time * count * heads, -1))
        return self.op("Gather", [rows, self.constant(index.astype(np.int32))])

    def by_head(self, value: str, tensor: str, count: int, heads: int) -> list[str]:
        """(head, time, depth) of each of the tensors that lie side by side in a value."""
        time = self.shape(tensor)[2]
        if (value, heads) not in self.parted:
            if time == 1:
                x = self.rows(value, tensor, (count * heads, 1, -1))
            else:
                x = self.op("Transpose", [self.rows(value, tensor, (time, count * heads, -1))], perm=[1, 0, 2])
            parts = [x] if count == 1 else self.op("Split", [x, self.ints(*[heads] * count)], count=count, axis=0)
            self.parted[value, heads] = parts
        return self.parted[value, heads]

    def beside(self, tensor: str) -> tuple[str, int, int]:
        """(native value, tensors of equal width whose channels lie side by side in it, the place of this one)."""
        for names, value in self.stacks.items():
            if tensor in names and len({self.shape(t)[0] for t in names}) == 1:
                return value, len(names), names.index(tensor)
        return self.view(tensor), 1, 0

    def rows(self, value: str, tensor: str, shape: tuple[int, ...]) -> str:
        """(1, channel, lead, time) -> columns one after the other, channels and leads of each in rows of `shape`."""
        if (value, shape) not in self.turned:
            x, (lead, time) = value, self.shape(tensor)[1:]
            if time > 1 or self.turns_single:
                # with one lead this order meets the one that ONNX Runtime gives its integer convolutions: no cost
                x = self.op("Transpose", [x], perm=[0, 2, 3, 1] if lead == 1 else [0, 3, 1, 2])
            self.turned[value, shape] = self.attended(self.op("Reshape", [x, self.ints(*shape)]))
        return self.turned[value, shape]

    def channels_first(self, value: str, node: Node, query: np.ndarray) -> str:
        """(head, time, depth) or (block, head, time, depth) -> (1, channel, lead, time)."""
        channel, lead, time = self.shape(node.output)
        if time == 1 and not self.turns_single:
            return self.op("Reshape", [value, self.ints(1, channel, lead, time)])
        if query.ndim == 1:
            x = self.op("Transpose", [value], perm=[1, 0, 2]) if time > 1 else value
        else:                       # one gather joins the blocks, turns heads and drops the columns beyond the end
            heads, block = node.attrs["heads"], query.shape[1]
            at = np.arange(time)[:, None]
            rows = (at // block * heads + np.arange(heads)) * block + at % block
            x = self.op("Reshape", [value, self.ints(query.size * heads, -1)])
            x = self.op("Gather", [x, self.constant(rows.astype(np.int32))])
        x = self.op("Reshape", [x, self.ints(*((1, 1, time, channel) if lead == 1 else (1, time, channel, lead)))])
        return self.op("Transpose", [x], perm=[0, 3, 1, 2] if lead == 1 else [0, 2, 3, 1])


def _columns(node: Node, time: int, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(queries (time,), keys (key,), seen (time, key)), or each with a block in front.

    Queries of the last block and keys may lie beyond the end; such a query sees what the last one sees.
    """
    window, size = node.attrs["window"], node.attrs["size"]
    extra = {"band": 2 * size, "neighbourhood": size - 1}.get(window, 0)    # keys that a block of queries sees more
    block = {"global": time, "block": size}.get(window) or _block(time, extra)
    query, key = np.arange(time), np.arange(keys)
    if block < time:
        query = np.arange(-(-time // block) * block).reshape(-1, block)
        key = reach(node, query[:, :1], keys)[0] + np.arange(block + extra)
    first, stop = reach(node, np.minimum(query, time - 1), keys)
    seen = (key[..., None, :] >= first[..., None]) & (key[..., None, :] < stop[..., None])
    return query, key, seen


def _mask(node: Node, query: np.ndarray, key: np.ndarray, seen: np.ndarray) -> np.ndarray | None:
    """float32 (head or 1, time, key), a block in front when blockwise: the bias in nats, HIDDEN where nothing is seen.

    None where it would change nothing.
    """
    bias = node.params.get("bias")
    if bias is None:
        return None if seen.all() else np.where(seen, 0, HIDDEN).astype(np.float32)[..., None, :, :]
    step = np.clip(key[..., None, :] - query[..., None] + node.attrs["size"] - 1, 0, bias.shape[1] - 1)
    nats = np.where(seen, bias[:, step] * _nats(node), HIDDEN)
    return np.moveaxis(nats, 0, -3).astype(np.float32)


def _nats(node: Node, which: str = "") -> float:
    """Nats of one unit of the integer score."""
    return node.attrs["score_mul" + which] * 2.0 ** (node.attrs["score_shift" + which] - 32) * EXP_STEP


def _block(time: int, extra: int) -> int:
    """Queries of a block that sees `extra` keys more than it has queries; `time` where blocks save less than half.

    The keys of a block fill whole SIMD vectors; at least LEAST queries pay for a matrix product.
    """
    keys = -(-(extra + LEAST) // LANES) * LANES
    block = keys - extra
    return block if 2 * -(-time // block) * block * keys < time * time else time
