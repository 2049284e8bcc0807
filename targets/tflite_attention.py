# SPDX-License-Identifier: Apache-2.0
"""Attention of a .tflite file: BATCH_MATMUL and SOFTMAX over blocks of queries and the keys that a block may see.

A local window is cut into blocks of queries whose keys are the block itself and a halo; a global one is a single block.
Rows lie as (head, block, row, depth), depth holds leads and d together. What a query of a block does not see is hidden
by a constant, which carries the relative bias as well.

Integer probabilities are 1/256. Eight bits over all scores would be half a nat a step in a sharp net, so a first
product on that grid only finds each row's largest score; a second one, with that score as further columns of its depth,
subtracts it inside the accumulator and keeps what lies a few nats below it; the rest, hidden keys among it, ends on the
last code. int16 has none of these cares but takes five to ten times as long: it serves the difference of two maps, and
rows of more than LONG keys where there are few of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compress.graph import Node
from compress.reference_attention import EXP_STEP, reach
from targets.tflite_file import TfliteFile

FAR = 10.0              # nats below a row's largest score that count as nothing; where the int16 softmax ends as well
REST = 5.5              # nats below it of all keys together that count as nothing, where that is less far
HEADROOM = 1.5          # scores may be so much larger than those that were seen when the graph was made
COARSE = 0.5            # nats of a step of a row's largest score, at least
FINE = 0.06             # nats of a step of int8 scores that need no second product
LONG = 64               # keys of a row that lose mass on the grid of int8 probabilities
FEW = 8192              # products of scores up to which int16 costs little
ROWS = 400              # and from which on products of int16 by int8, which cost more to begin, are faster
HIDDEN = 1e4            # nats subtracted from a hidden score of the float form
LANES = 8               # products are fastest where what they sum over is a multiple of it
BLOCK = 64              # scores that a block costs besides its own
HALO = 400              # scores that all halos together cost
BYTE, WORD = 127, 32767


@dataclass(frozen=True)
class Tiles:
    """`count` blocks of `block` queries, each with the keys from `left` before it to `right` behind it.

    seen, step (key - query): (count, block, key of the block).
    """

    block: int
    count: int
    left: int
    right: int
    seen: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class Map:
    """One map of scores: its rows of queries and keys, values of the file.

    unit: a step of their product in the file's scale; beta: nats of 1 on that scale; span: largest |score| in nats;
    bias: nats (head, count, block, key), 0 where nothing is seen, or None.
    """

    query: int
    key: int
    unit: float
    beta: float
    span: float
    tiles: Tiles
    bias: np.ndarray | None

    @property
    def most(self) -> float:
        """Largest |bias| in nats."""
        return 0.0 if self.bias is None else float(np.abs(self.bias).max())

    @property
    def plain(self) -> bool:
        """Nothing is added to the scores."""
        return self.bias is None and self.tiles.seen.all()

    def added(self, hidden: float) -> np.ndarray:
        """Nats that are added to the scores, (head or 1, count, block, key)."""
        return np.where(self.tiles.seen, 0.0 if self.bias is None else self.bias, -hidden).reshape(
            -1, *self.tiles.seen.shape)


class Attention(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape`, `reshaped` and `turned`."""

    def attention(self, node: Node) -> None:
        """softmax(q k') v for each head; with q2 and k2 (softmax(q k') - lambda softmax(q2 k2')) v."""
        q, k, v, *pair = node.inputs
        tiles = tiled(node, self.shape(q)[2], self.shape(k)[2])
        few = tiles.seen.all() and tiles.seen.size * math.prod(self.shape(q)[:2]) <= FEW
        wide = self.form == "int8" and (pair or (few and self.shape(k)[2] > LONG))
        if wide and few and "bias" not in node.params and math.prod(self.shape(q)) * self.shape(k)[2] >= ROWS:
            self.store(node.output, self.few_rows(node))
            return
        turned = self.form == "int8" and self.shape(v)[1] == 1      # what the kernels of either form do faster
        values, scale = self.keys(v, node, tiles, turned), self.scale(node.output)
        weight = self.weights(self.map(node, "", q, k, tiles), wide)
        share = node.attrs["out_mul2"] / node.attrs["out_mul"] if pair else 0.0
        if pair:
            other = self.weights(self.map(node, "2", *pair, tiles), wide)
            weight = self.difference(weight, other, share)
        if wide:        # a mean of values is no larger than they are
            values, scale = self.widened(values), 128 / WORD * max(scale, (1 + abs(share)) * self.scale(v))
        y = self.product(weight, values, scale, turned=turned)
        y = self.op("QUANTIZE", [y], self.extent(y), self.scale(node.output)) if wide else y
        self.store(node.output, self.joined(y, node))

    def map(self, node: Node, which: str, q: str, k: str, tiles: Tiles) -> Map:
        """The map whose multipliers have the suffix `which`."""
        step = nats(node, which)
        bias = None if which else node.params.get("bias")
        if bias is not None:
            place = np.clip(tiles.step + node.attrs["size"] - 1, 0, bias.shape[1] - 1)
            bias = np.where(tiles.seen, bias[:, place] * step, 0.0)
        unit, span = self.scale(q) * self.scale(k), HEADROOM * BYTE * node.attrs["export_scales"]["score" + which]
        query, key = self.queries(q, node, tiles), self.keys(k, node, tiles)
        return Map(query, key, unit, step / unit, span, tiles, bias)

    def weights(self, m: Map, wide: bool) -> int:
        """What each query weighs its values with, (head, block, query, key)."""
        return self.real_softmax(m) if self.form == "float" else self.wide_softmax(m) if wide else self.softmax(m)

    # ---- few queries

    def few_rows(self, node: Node) -> int:
        """Attention in int16 of few queries that see every key, both maps at once, as two products of rows.

        Keys and values are the weights, int8 as they are: an operator of int16 by int8 takes a third of the time of
        one of int16 by int16. All heads share them, so that a query has a row for each head, 0 where the others are.
        """
        q, k, v, *pair = node.inputs
        (_, lead, queries, _), keys, heads = self.file_shape(q), self.shape(k)[2], node.attrs["heads"]
        rows, channel = heads * queries, self.shape(v)[0]
        maps = [("", q, k), *([("2", *pair)] if pair else [])]
        span = max(HEADROOM * BYTE * node.attrs["export_scales"]["score" + which] for which, _, _ in maps)
        grid = max(span, WORD * EXP_STEP) / WORD
        scores = []
        for which, query, key in maps:
            weight = self.turned(self.value(key), [0, 2, 1, 3])
            weight = self.reshaped(weight, (keys, math.prod(self.extent(weight)[2:])))
            row = self.query_rows(query, nats(node, which) / self.scale(key), heads)
            scores.append(self.op("FULLY_CONNECTED", [row, weight, -1], (rows, keys), grid, dtype="int16"))
        score = self.beside(scores, 0) if pair else scores[0]
        weight = self.op("SOFTMAX", [score], self.extent(score), 1 / (WORD + 1), dtype="int16", beta=1.0)
        values = self.reshaped(self.turned(self.value(v), [0, 1, 3, 2]), (lead * channel, keys))
        scale = 128 / WORD * self.scale(v)
        y = self.op("FULLY_CONNECTED", [weight, values, -1], (len(maps) * rows, lead * channel), scale, dtype="int16")
        if pair:
            y = self.halves(y, node.attrs["out_mul2"] / node.attrs["out_mul"])
        y = self.op("QUANTIZE", [y], self.extent(y), self.scale(node.output))
        return self.own_parts(y, heads, self.file_shape(node.output))

    def query_rows(self, tensor: str, scale: float, heads: int) -> int:
        """int16 codes of a tensor on another scale, (head * query, lead * channel), a head's channels in its rows."""
        x = self.turned(self.value(tensor), [0, 2, 1, 3])
        _, queries, lead, channel = self.extent(x)
        x = self.reshaped(x, (1, queries, lead * channel))
        own = np.arange(lead * channel) % channel // (channel // heads) == np.arange(heads)[:, None, None]
        codes, shape = self.data(x), (heads * queries, lead * channel)
        if codes is not None:
            return self.constant((codes * own).astype(np.int16).reshape(shape), scale)
        mask = self.constant(own.astype(np.int8), scale / self.scale(tensor))
        x = self.reshaped(self.op("MUL", [x, mask], (heads, queries, lead * channel), scale), shape)
        return self.widened(x)

    def halves(self, y: int, share: float) -> int:
        """The upper half of the rows minus `share` times the lower one, int16."""
        rows, width = self.extent(y)
        parts = [self.tensor((rows // 2, width), "int16", self.grid(y)) for _ in range(2)]
        self.ops("SPLIT", [self.constant(np.array(0, np.int32)), y], parts, numSplits=2)
        return self.difference(*parts, share)

    def own_parts(self, y: int, heads: int, shape) -> int:
        """Of rows (head * query, lead * channel) each head's channels, as a tensor (1, lead, query, channel)."""
        _, lead, queries, channel = shape
        y, part = self.reshaped(y, (heads, queries, lead, channel)), (1, queries, lead, channel // heads)
        parts = [self.op("SLICE", [y, self.ints(h, 0, 0, h * part[3]), self.ints(*part)], part, self.grid(y))
                 for h in range(heads)]
        return self.turned(self.beside(parts, 3) if heads > 1 else parts[0], [0, 2, 1, 3])

    # ---- rows

    def queries(self, tensor: str, node: Node, tiles: Tiles) -> int:
        """(head, block, query, depth); those beyond the end are zeros."""
        x = self.ended(tensor, 0, tiles.count * tiles.block)
        _, lead, _, channel = self.extent(x)
        return self.heads(self.reshaped(x, (lead, tiles.count, tiles.block, channel)), node.attrs["heads"])

    def keys(self, tensor: str, node: Node, tiles: Tiles, turned: bool = False) -> int:
        """(head, block, key, depth), or turned (head, block, depth, key).

        Each block has its halo, the last part of which is the head of the next block.
        """
        halo = tiles.left + tiles.right if tiles.count > 1 else 0
        block = tiles.block if tiles.count > 1 else tiles.seen.shape[2]
        count = tiles.count + (halo > 0)
        x = self.ended(tensor, tiles.left, count * block)
        _, lead, _, channel = self.extent(x)
        x = self.reshaped(x, (lead, count, block, channel))
        if halo:
            parts = (lead, tiles.count, block, channel), (lead, tiles.count, halo, channel)
            x = self.beside([self.op("SLICE", [x, self.ints(0, i, 0, 0), self.ints(*part)], part, self.grid(x))
                             for i, part in enumerate(parts)], 2)
        return self.heads(x, node.attrs["heads"], turned)

    def ended(self, tensor: str, left: int, columns: int) -> int:
        """(1, lead, columns, channel): zeros before and behind, side by side with it because PAD is slow."""
        x = self.value(tensor)
        _, lead, time, channel = self.extent(x)
        sides = [(left, 0), (columns - left - time, 1)]
        zeros = {at: self.entries(np.zeros((1, lead, size, channel), np.int8), self.scale(tensor))
                 for size, at in sides if size}
        return self.beside([v for v in (zeros.get(0), x, zeros.get(1)) if v is not None], 2) if zeros else x

    def heads(self, value: int, heads: int, turned: bool = False) -> int:
        """(lead, block, row, head * d) -> (head, block, row, lead * d), or turned with one lead."""
        lead, count, rows, channel = self.extent(value)
        if lead == 1:
            x = self.reshaped(value, (count, rows, heads, channel // heads))
            return self.turned(x, [2, 0, 3, 1] if turned else [2, 0, 1, 3])
        x = self.turned(self.reshaped(value, (lead, count * rows, heads, channel // heads)), [2, 1, 0, 3])
        return self.reshaped(x, (heads, count, rows, lead * channel // heads))

    def joined(self, value: int, node: Node) -> int:
        """(head, block, query, depth) -> the tensor of the output; queries beyond the end are left out."""
        channel, lead, time = self.shape(node.output)
        heads, count, block, depth = self.extent(value)
        if lead == 1:
            x = self.turned(value, [1, 2, 0, 3])
        else:
            x = self.turned(self.reshaped(value, (heads, count * block, lead, depth // lead)), [2, 1, 0, 3])
        x = self.reshaped(x, (1, lead, count * block, channel))
        if count * block == time:
            return x
        shape = self.file_shape(node.output)
        return self.op("SLICE", [x, self.ints(0, 0, 0, 0), self.ints(*shape)], shape, self.grid(x))

    def beside(self, values: list[int], axis: int) -> int:
        """Values of one grid side by side."""
        shape = list(self.extent(values[0]))
        shape[axis] = sum(self.extent(v)[axis] for v in values)
        about = self.values[values[0]]
        return self.op("CONCATENATION", values, shape, self.grid(values[0]), dtype=about.dtype, axis=axis)

    # ---- maps

    def product(self, a: int, b: int, scale: float, zero: int = 0, *, turned: bool = True) -> int:
        """a times b, rows of b turned; in the type of a."""
        shape = (*self.extent(a)[:3], self.extent(b)[2 if turned else 3])
        return self.op("BATCH_MATMUL", [a, b], shape, scale, zero, self.values[a].dtype, adjY=turned)

    def softmax(self, m: Map) -> int:
        """int8 probabilities of int8 scores."""
        far = min(FAR, REST + math.log(m.tiles.seen.shape[2]))
        below = 0.0 if m.plain else far
        query, key, span = m.query, m.key, (255 * FINE - below) / 2
        low, high = -span - below, span
        if 2 * m.span > span:
            query, key, coarse = self.shifted(m)
            low, high = -far - m.most, m.most + coarse / 2
        scale, zero = _grid(low, high, m.beta)
        score = self.product(query, key, scale, zero)
        if not m.plain:     # whole steps of the same grid: the sum is rounded no more
            above = math.ceil(m.most / (m.beta * scale))
            steps = np.rint(m.added(high - low) / (m.beta * scale)).clip(above - 255, above)
            codes = (steps + BYTE - above).astype(np.int8)
            score = self.like(score, "ADD", [score, self.constant(codes, scale, BYTE - above)])
        return self.op("SOFTMAX", [score], self.extent(score), 1 / 256, -128, beta=m.beta)

    def shifted(self, m: Map) -> tuple[int, int, float]:
        """Queries and keys with further columns that subtract each row's largest score; nats of a step of that."""
        heads, count, block, _ = self.extent(m.query)
        steps = math.ceil(max(m.span / BYTE, COARSE) / (m.beta * m.unit))   # of the product in one of the largest
        depth = self.extent(m.query)[3]
        columns = -(-(depth - (-steps // BYTE)) // LANES) * LANES - depth
        each = -(-steps // columns)
        coarse = columns * each * m.unit
        score = self.product(m.query, m.key, coarse)
        if not m.tiles.seen.all():
            codes = np.where(m.tiles.seen, 0, -BYTE)[None].astype(np.int8)
            score = self.like(score, "ADD", [score, self.constant(codes, 255 / BYTE * coarse)])
        top = self.op("REDUCE_MAX", [score, self.ints(3)], (heads, count, block, 1), coarse, keepDims=True)
        # times 1 in every column, on the grid of the queries: the codes stay as they are
        one = self.constant(np.ones((1, 1, 1, columns), np.int8), self.grid(m.query) / coarse)
        top = self.op("MUL", [top, one], (heads, count, block, columns), self.grid(m.query))
        minus = np.full((*self.extent(m.key)[:3], columns), -each, np.int8)
        return (self.beside([m.query, top], 3), self.beside([m.key, self.constant(minus, self.grid(m.key))], 3),
                coarse * m.beta)

    def wide_softmax(self, m: Map) -> int:
        """int16 probabilities of int16 scores. Its exponential ends above 0, so that what is hidden becomes 0 here."""
        largest = max(m.span + m.most, WORD * EXP_STEP)
        score = self.product(self.widened(m.query), self.widened(m.key), largest / WORD / m.beta)
        if not m.plain:
            hidden = 2 * largest + FAR
            scale = (largest + hidden) / WORD / m.beta
            added = self.constant(np.rint(m.added(hidden) / (m.beta * scale)).astype(np.int16), scale)
            score = self.op("ADD", [score, added], self.extent(score), scale, dtype="int16", potScaleInt16=False)
        weight = self.op("SOFTMAX", [score], self.extent(score), 1 / (WORD + 1), dtype="int16", beta=m.beta)
        if m.tiles.seen.all():
            return weight
        return self.like(weight, "MUL", [weight, self.constant(m.tiles.seen[None] * np.int16(WORD), 1 / WORD)])

    def real_softmax(self, m: Map) -> int:
        """The float form; a factor in the softmax itself would keep it from the fast kernels."""
        query = self.like(m.query, "MUL", [m.query, self.constant(np.float32(m.beta))])
        score = self.product(query, m.key, None)
        if not m.plain:
            score = self.like(score, "ADD", [score, self.constant(m.added(HIDDEN).astype(np.float32))])
        return self.op("SOFTMAX", [score], self.extent(score), beta=1.0)

    # ---- values of the file

    def like(self, value: int, kind: str, inputs: list[int], **options) -> int:
        """An operator whose output has shape, grid and type of a value."""
        about = self.values[value]
        return self.op(kind, inputs, about.shape, self.grid(value), about.zero, about.dtype, **options)

    def widened(self, value: int) -> int:
        """The same codes as int16; QUANTIZE would take as long as the product."""
        return self.op("CAST", [value], self.extent(value), self.grid(value), dtype="int16")

    def difference(self, a: int, b: int, share: float) -> int:
        """a - share * b, of maps that are int16 or real numbers."""
        if self.form == "float":
            return self.like(a, "SUB", [a, self.like(b, "MUL", [b, self.constant(np.float32(share))])])
        most, scale = max(abs(share), 1 / WORD), self.grid(a)
        factor = np.full(self.extent(b), round(share / most * WORD), np.int16)  # int16 kernels repeat a number slowly
        b = self.op("MUL", [b, self.constant(factor, most / WORD)], self.extent(b), most * scale, dtype="int16")
        return self.op("SUB", [a, b], self.extent(a), (1 + most) * scale, dtype="int16", potScaleInt16=False)


def nats(node: Node, which: str) -> float:
    """Of a step of the product of query and key codes, in the map whose multipliers have the suffix `which`."""
    return node.attrs["score_mul" + which] * 2.0 ** (node.attrs["score_shift" + which] - 32) * EXP_STEP


def _grid(low: float, high: float, beta: float) -> tuple[float, int]:
    """(scale in the file, zero point) of int8 codes for low <= 0 .. high >= 0 nats."""
    scale = (high - low) / 255
    return scale / beta, round(-128 - low / scale)


def tiled(node: Node, queries: int, keys: int) -> Tiles:
    """The blocks of least cost; a single one where they save less than halos take."""
    window, size = node.attrs["window"], node.attrs["size"]
    if window == "global":
        return _tiles(node, queries, keys, queries)
    if window == "block":
        return _tiles(node, queries, keys, min(size, queries))
    cuts = [_tiles(node, queries, keys, block) for block in range(2, queries)]
    costs = {t.seen.size + BLOCK * t.count + HALO: t for t in cuts if t.left + t.right <= t.block}
    least = min(costs, default=queries * keys)
    return costs[least] if least < queries * keys else _tiles(node, queries, keys, queries)


def _tiles(node: Node, queries: int, keys: int, block: int) -> Tiles:
    """Blocks of one size. A query beyond the end sees what the last one sees."""
    count = -(-queries // block)
    t = np.minimum(np.arange(count * block), queries - 1).reshape(count, block)
    first, stop = reach(node, t, keys)
    begin, left, right = np.arange(count)[:, None] * block, 0, 0
    if count == 1:
        s = np.arange(keys)[None]
    else:
        left, right = max(int((begin - first).max()), 0), max(int((stop - begin).max()) - block, 0)
        right += -(left + block + right) % LANES if left + right else 0
        s = begin + np.arange(-left, block + right)
    seen = (s[:, None] >= first[..., None]) & (s[:, None] < stop[..., None])
    return Tiles(block, count, left, right, seen, s[:, None] - t[..., None])
