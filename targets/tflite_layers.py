# SPDX-License-Identifier: Apache-2.0
"""The layers of a .tflite file that are no attention: convolutions, sums, means, pools and what only moves codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from compress.graph import Node
from targets.tflite_file import TfliteFile

NONE, RELU = 0, 1           # fused activation functions
SAME, VALID = 0, 1          # padding
BEFORE_FILE = (1, 2, 0)     # graph axes of a sequence tensor in the order of the file
FOLD = 8                    # samples of a one-channel input that an integer convolution takes at once
WIDE = 16                   # output channels that a group has at least: kernels compute as many at once anyway
MORE_TAPS = 2               # taps of weight 0 that a convolution may have so that its padding needs no operator


@dataclass(frozen=True)
class Taps:
    """A convolution along time. weight: codes (out, in / groups, kernel); grid: value of a weight's code, float (out,);
    bias: codes (out,) that count unit * grid; unit: value of an input's code; left: steps seen before the first one."""

    weight: np.ndarray
    grid: np.ndarray
    bias: np.ndarray
    unit: float
    stride: int = 1
    left: int = 0
    relu: bool = False
    depthwise: bool = False


class Layers(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape` and the forms' `weight` and `entries`."""

    # ---- layers with weights

    def conv1d(self, node: Node) -> None:
        """Kernels are (1, k): the lead axis is a height of independent rows."""
        x, shape, a = self.value(node.inputs[0]), self.file_shape(node.output), node.attrs
        depthwise = a["groups"] == self.extent(x)[3] == shape[3] > 1
        weight = node.params["weight"] if depthwise else _joined(node.params["weight"], a["groups"])
        taps = Taps(weight, node.params["weight_scale"].astype(float), node.params["bias"],
                    self.scale(node.inputs[0]), a["stride"], a["pad"][0], a["relu"], depthwise)
        fold = _fold(taps, self.extent(x), shape) if self.form == "int8" else 1
        y = (self.folded(x, taps, fold, shape, self.scale(node.output)) if fold > 1 else
             self.convolved(x, taps, shape, self.scale(node.output)))
        self.store(node.output, y)

    def folded(self, x: int, taps: Taps, fold: int, shape, scale: float) -> int:
        """A convolution of one channel is fed several samples at once as channels: rows of single bytes are slow.

        Output columns that come of the same `fold` samples are channels of one column, with the same weights at
        shifted places and zeros elsewhere. Same sums, same codes; both reshapes move nothing.
        """
        _, lead, time, _ = self.extent(x)
        wide = _folded(taps, fold)
        x = self.reshaped(x, (1, lead, time // fold, fold))
        return self.reshaped(self.convolved(x, wide, (1, lead, time // fold, len(wide.weight)), scale), shape)

    def convolved(self, x: int, taps: Taps, shape, scale: float) -> int:
        """A convolution that sees as many zeros behind the end as `shape` needs."""
        time, weight, padding = self.extent(x)[2], taps.weight, VALID
        right = (shape[2] - 1) * taps.stride + weight.shape[2] - time - taps.left
        if taps.left or right > 0:
            more = taps_to_same(time, shape[2], weight.shape[2], taps.stride, taps.left)
            if more is None:
                x = self.padded(x, taps.left, max(right, 0), 0, taps.unit)
            else:
                weight, padding = np.pad(weight, ((0, 0), (0, 0), (0, more))), SAME
        codes = weight.transpose(1, 2, 0)[None] if taps.depthwise else weight.transpose(0, 2, 1)[:, None]
        filters = self.weight(np.ascontiguousarray(codes), taps.grid, 3 if taps.depthwise else 0)
        bias = self.weight(taps.bias, taps.unit * taps.grid, 0)
        options = {"depthMultiplier": 1} if taps.depthwise else {}
        return self.op("DEPTHWISE_CONV_2D" if taps.depthwise else "CONV_2D", [x, filters, bias], shape, scale,
                       padding=padding, strideW=taps.stride, strideH=1,
                       fusedActivationFunction=RELU if taps.relu else NONE, **options)

    def padded(self, x: int, left: int, right: int, code: int, scale: float) -> int:
        """Columns of one code in front of and behind time; side by side with it, because PAD is slow."""
        batch, lead, time, channel = self.extent(x)
        front, back = (self.entries(np.full((batch, lead, size, channel), code, np.int8), scale) if size else None
                       for size in (left, right))
        parts = [v for v in (front, x, back) if v is not None]
        return self.op("CONCATENATION", parts, (batch, lead, left + time + right, channel), scale, axis=2)

    def dense(self, node: Node) -> None:
        """A convolution of one column: every runtime has one scale per channel there, not in FULLY_CONNECTED."""
        x = self.reshaped(self.value(node.inputs[0]), (1, 1, 1, *self.shape(node.inputs[0])))
        taps = Taps(node.params["weight"][..., None], node.params["weight_scale"].astype(float), node.params["bias"],
                    self.scale(node.inputs[0]), relu=node.attrs["relu"])
        y = self.convolved(x, taps, (1, 1, 1, *self.shape(node.output)), self.scale(node.output))
        self.store(node.output, self.reshaped(y, self.file_shape(node.output)))

    # ---- layers that meet on the output's grid

    def add(self, node: Node) -> None:
        """Sum, or with a negative second multiplier a difference; axes of size 1 are repeated."""
        kind = "SUB" if node.attrs["mul"][1] < 0 else "ADD"
        self.store(node.output, self.op(kind, [self.value(t) for t in node.inputs], self.file_shape(node.output),
                                        self.scale(node.output),
                                        fusedActivationFunction=RELU if node.attrs["relu"] else NONE))

    def mul(self, node: Node) -> None:
        """Elementwise product; axes of size 1 are repeated."""
        self.store(node.output, self.op("MUL", [self.value(t) for t in node.inputs], self.file_shape(node.output),
                                        self.scale(node.output)))

    def meanpool(self, node: Node) -> None:
        """A depthwise convolution of equal weights: padding counts as 0, and the output has its own scale."""
        a, channel = node.attrs, self.shape(node.output)[0]
        taps = Taps(np.ones((channel, 1, a["kernel"]), np.int8), np.full(channel, 1 / a["kernel"]),
                    np.zeros(channel, np.int32), self.scale(node.inputs[0]), a["stride"], a["pad"][0], depthwise=True)
        self.store(node.output, self.convolved(self.value(node.inputs[0]), taps, self.file_shape(node.output),
                                               self.scale(node.output)))

    def mean(self, node: Node) -> None:
        """Over whole axes."""
        self.reduced(node, "MEAN")

    def reduced(self, node: Node, kind: str) -> None:
        """An operator over whole axes."""
        source = node.inputs[0]
        order = axes_in_file(len(self.shape(source)))
        left = [a for a in order if a not in node.attrs["axes"]]
        axes = self.ints(*(i + 1 for i, a in enumerate(order) if a in node.attrs["axes"]))
        shape = (1, *(self.shape(source)[a] for a in left))
        y = self.op(kind, [self.value(source), axes], shape, self.scale(node.output), keepDims=False)
        self.store(node.output, self.in_order(y, left))

    def in_order(self, value: int, axes: list[int]) -> int:
        """A value whose axes are the graph's `axes`, as a tensor whose axes ascend."""
        kept = sorted(axes)
        wanted = [kept[i] for i in axes_in_file(len(kept))]
        return self.turned(value, [0, *(axes.index(a) + 1 for a in wanted)])

    def concat(self, node: Node) -> None:
        """Parts brought to the output's scale, then side by side."""
        parts = [self.rescaled(self.value(t), self.scale(node.output)) for t in node.inputs]
        axis = axes_in_file(len(self.shape(node.output))).index(node.attrs["axis"]) + 1
        self.store(node.output, self.op("CONCATENATION", parts, self.file_shape(node.output), self.scale(node.output),
                                        axis=axis))

    def rescaled(self, value: int, scale: float) -> int:
        """Codes on another grid, by a product with 1: QUANTIZE knows the factor to eight bits only."""
        if self.dtype == "float32" or np.float32(self.grid(value)) == np.float32(scale):
            return value
        codes = self.data(value)
        if codes is not None:
            return self.constant(np.clip(np.floor(codes * (self.grid(value) / scale) + 0.5), -128, 127).astype(np.int8),
                                 scale)
        one = self.constant(np.full((1,) * len(self.extent(value)), 64, np.int8), 1 / 64)
        return self.op("MUL", [value, one], self.extent(value), scale)

    # ---- layers that change no code

    def maxpool(self, node: Node) -> None:
        """Padding never wins: it holds the smallest code."""
        a, x = node.attrs, self.value(node.inputs[0])
        time, shape, scale = self.extent(x)[2], self.file_shape(node.output), self.scale(node.output)
        left = a["pad"][0]
        right = (shape[2] - 1) * a["stride"] + a["kernel"] - time - left
        padding = VALID
        if left or right > 0:
            if taps_to_same(time, shape[2], a["kernel"], a["stride"], left) == 0:
                padding = SAME
            else:
                x = self.padded(x, left, max(right, 0), -128, scale)
        self.store(node.output, self.op("MAX_POOL_2D", [x], shape, scale, padding=padding, strideW=a["stride"],
                                        strideH=1, filterWidth=a["kernel"], filterHeight=1))

    def max(self, node: Node) -> None:
        """Over whole axes."""
        self.reduced(node, "REDUCE_MAX")

    def slice(self, node: Node) -> None:
        """A part of one axis."""
        a, x = node.attrs, self.value(node.inputs[0])
        begin = [0] * len(self.extent(x))
        begin[axes_in_file(len(begin) - 1).index(a["axis"]) + 1] = a["start"]
        shape = self.file_shape(node.output)
        self.store(node.output, self.op("SLICE", [x, self.ints(*begin), self.ints(*shape)], shape,
                                        self.scale(node.output)))

    def reshape(self, node: Node) -> None:
        """The graph's order of elements is kept: they are turned to it and back where the file's differs."""
        source, target = self.shape(node.inputs[0]), self.shape(node.output)
        x, shape = self.value(node.inputs[0]), self.file_shape(node.output)
        order = np.arange(math.prod(source)).reshape(source)
        lies = order.transpose(axes_in_file(len(source)))
        wanted = order.reshape(target).transpose(axes_in_file(len(target)))
        if np.array_equal(lies.ravel(), wanted.ravel()):
            self.store(node.output, self.reshaped(x, shape))
            return
        if len(source) == 3:
            x = self.turned(x, [0, 3, 1, 2])
        if len(target) == 3:
            x = self.turned(self.reshaped(x, (1, *target)), [0, 2, 3, 1])
        self.store(node.output, self.reshaped(x, shape))

    def reshaped(self, value: int, shape) -> int:
        """The same elements in the same order; a reshape of a reshape goes back to the first value."""
        value = self.origins.get(value, value)
        if self.extent(value) == tuple(shape):
            return value
        if self.data(value) is not None:
            return self.constant(self.data(value).reshape(shape), self.grid(value))
        y = self.copied(value, shape)
        self.origins[y] = value
        return y

    def copied(self, value: int, shape=None) -> int:
        """A value of its own with the same elements."""
        shape = shape or self.extent(value)
        return self.op("RESHAPE", [value, self.ints(*shape)], shape, self.grid(value),
                       newShape=np.array(shape, np.int32))

    def transpose(self, node: Node) -> None:
        """Other order of the graph's axes."""
        source, perm = axes_in_file(len(self.shape(node.inputs[0]))), node.attrs["perm"]
        target = axes_in_file(len(perm))
        self.store(node.output, self.turned(self.value(node.inputs[0]),
                                            [0, *(source.index(perm[a]) + 1 for a in target)]))

    def turned(self, value: int, perm: list[int]) -> int:
        """Axes in the order `perm`; a reshape where only axes of size 1 change places."""
        shape = [self.extent(value)[a] for a in perm]
        moved = [a for a in perm if self.extent(value)[a] > 1]
        if moved == sorted(moved):
            return self.reshaped(value, shape)
        if self.data(value) is not None:
            return self.constant(self.data(value).transpose(perm), self.grid(value))
        return self.op("TRANSPOSE", [value, self.ints(*perm)], shape, self.grid(value))


def axes_in_file(rank: int) -> list[int]:
    """Graph axes of a tensor in the order of the file, without the batch axis."""
    return list(BEFORE_FILE) if rank == 3 else list(range(rank))


def taps_to_same(time: int, columns: int, kernel: int, stride: int, left: int) -> int | None:
    """Taps of weight 0 behind the kernel for which SAME padding begins `left` steps early; None with too many."""
    if columns != -(-time // stride):
        return None
    for more in range(MORE_TAPS + 1):
        if max((columns - 1) * stride + kernel + more - time, 0) // 2 == left:
            return more
    return None


def _joined(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights (out, in / groups, kernel) with zeros between, as few groups joined as make WIDE outputs each."""
    out, depth, kernel = weight.shape
    joined = next((m for m in range(1, groups) if groups % m == 0 and m * (out // groups) >= WIDE), groups)
    wide = np.zeros((out, joined, depth, kernel), weight.dtype)
    wide[np.arange(out), np.arange(out) // (out // groups) % joined] = weight
    return wide.reshape(out, joined * depth, kernel)


def _fold(taps: Taps, source, target) -> int:
    """Samples that a convolution may take at once, at most FOLD; 1 for one with more than one input channel."""
    if source[3] > 1 or target[2] * taps.stride != source[2]:
        return 1
    return max((f for f in range(taps.stride, FOLD + 1, taps.stride) if source[2] % f == 0), default=1)


def _folded(taps: Taps, fold: int) -> Taps:
    """The convolution of blocks of `fold` samples: fold / stride times as many outputs, stride 1."""
    out, _, kernel = taps.weight.shape
    phases = fold // taps.stride
    before, after = -(-taps.left // fold), max((taps.stride * (phases - 1) - taps.left + kernel - 1) // fold, 0)
    wide = np.zeros((phases, out, fold, before + after + 1), np.int8)
    for phase in range(phases):
        for tap in range(kernel):
            block, place = divmod(taps.stride * phase - taps.left + tap, fold)
            wide[phase, :, place, block + before] = taps.weight[:, 0, tap]
    return replace(taps, weight=wide.reshape(phases * out, fold, -1), grid=np.tile(taps.grid, phases),
                   bias=np.tile(taps.bias, phases), stride=1, left=before)
