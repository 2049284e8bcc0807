# SPDX-License-Identifier: Apache-2.0
"""How ONNX Runtime's integer kernels want sequences laid out: whole vectors of channels, few channels in wide columns.

Its depthwise kernel takes LANES channels at a time and the rest slowly, so that some tensors get channels of zeros. A
tensor of few channels is folded: `fold` neighbouring samples are channels of one column, and a convolution of it has
the same weights at shifted places and zeros elsewhere. Groups of several channels are slow as well: they become one,
with zeros between them. Same sums, same codes.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node

LANES = 16      # channels that the depthwise kernel takes at once
FOLD = 8        # samples of a one-channel input that a convolution takes at once
WIDEST = 32     # channels of a folded column; beyond, the zeros cost more than they save
KEEP = ("add", "maxpool", "meanpool")   # layers that act on every channel alike


def depthwise(node: Node) -> bool:
    """A convolution of each channel by itself."""
    return node.kind == "conv1d" and node.attrs["groups"] == len(node.params["weight"]) > 1


def widths(graph: Graph) -> dict[str, int]:
    """Channels that a tensor has in the file, for those that get more than they have in the graph.

    They are read or written depthwise, and every other layer that touches them can do with more channels.
    """
    sets = _Sets()
    for node in graph.nodes:
        ends = [*node.inputs, node.output]
        if _alike(node):
            sets.join(ends)
        elif node.kind != "conv1d" or node.attrs["groups"] != 1:
            sets.refused.update(ends)
    sets.refused.update(graph.inputs, [graph.output], [n.output for n in graph.nodes if _shared(graph, n)])
    wanted = {sets.root(n.output) for n in graph.nodes if depthwise(n)}
    refused = {sets.root(t) for t in sets.refused}
    channels = {t: graph.tensors[t].shape[0] for t in sets.parent if sets.root(t) in wanted - refused}
    return {t: -(-c // LANES) * LANES for t, c in channels.items() if c > LANES and c % LANES}


def _alike(node: Node) -> bool:
    """Does a layer treat every channel alike and leave it where it is?"""
    return depthwise(node) or node.kind in KEEP or (node.kind == "slice" and node.attrs["axis"] > 0)


def _shared(graph: Graph, node: Node) -> bool:
    """Is a convolution one of several that read the same input in the same way? They are merged, side by side."""
    return node.kind == "conv1d" and node.attrs["groups"] == 1 and sum(
        n.kind == "conv1d" and n.inputs == node.inputs and n.attrs["groups"] == 1 for n in graph.nodes) > 1


class _Sets:
    """Tensors that must have equally many channels."""

    def __init__(self):
        self.parent: dict[str, str] = {}
        self.refused: set[str] = set()

    def root(self, tensor: str) -> str:
        """The one that stands for its set."""
        while self.parent.setdefault(tensor, tensor) != tensor:
            tensor = self.parent[tensor]
        return tensor

    def join(self, tensors: list[str]) -> None:
        """Put them in one set."""
        for tensor in tensors[1:]:
            self.parent[self.root(tensor)] = self.root(tensors[0])


def widened(weight: np.ndarray, before: int, out: int) -> np.ndarray:
    """(out, in, 1, kernel) with zeros up to `out` output and `before` input channels."""
    return np.pad(weight, ((0, out - len(weight)), (0, before - weight.shape[1]), (0, 0), (0, 0)))


def ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """(out, in / groups, 1, kernel) -> (out, in, 1, kernel) with zeros between the groups."""
    out, each, _, kernel = weight.shape
    wide = np.zeros((out, groups, each, 1, kernel), weight.dtype)
    wide[np.arange(out), np.arange(out) // (out // groups)] = weight
    return wide.reshape(out, groups * each, 1, kernel)


def first_fold(stride: int, source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Samples of a one-channel tensor that a convolution may take at once, at most FOLD; 1 otherwise."""
    if source[0] > 1 or output[2] * stride != source[2]:
        return 1
    return max((f for f in range(stride, FOLD + 1, stride) if source[2] % f == 0), default=1)


def folds(node: Node, fold: int, source: tuple[int, ...], output: tuple[int, ...]) -> bool:
    """Does a convolution gain from reading a folded tensor of several channels as it is?"""
    stride = node.attrs["stride"]
    if depthwise(node):
        gains = source[0] % LANES > 0
    else:
        gains = node.params["weight"].shape[2] == 1
    return gains and fold % stride == 0 and output[2] * stride == source[2] and fold * source[0] <= WIDEST


def folded_weight(weight: np.ndarray, groups: int, fold: int, stride: int, left: int) -> tuple[np.ndarray, int, int]:
    """(out, in / groups, 1, kernel) -> (fold / stride * out, fold * in, 1, blocks), blocks of padding before and after.

    Channels of a folded column are ordered sample by sample.
    """
    out, each, _, kernel = weight.shape
    phases = fold // stride
    before, after = -(-left // fold), max((stride * (phases - 1) - left + kernel - 1) // fold, 0)
    wide = np.zeros((phases, out, fold, groups, each, before + after + 1), weight.dtype)
    group = np.arange(out) // (out // groups)
    for phase in range(phases):
        for tap in range(kernel):
            block, place = divmod(stride * phase - left + tap, fold)
            wide[phase, np.arange(out), place, group, :, block + before] = weight[:, :, 0, tap]
    return wide.reshape(phases * out, fold * groups * each, 1, -1), before, after
