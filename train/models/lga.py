# SPDX-License-Identifier: Apache-2.0
"""LGA-ECG: local queries, averaged over neighbouring time steps, attend to global keys and values.

ecg (batch, 1, lead, window) -> leads become channels -> local columns (batch, channel, 1, column) -> logits (batch,
class). After Buzelin et al., ECML PKDD 2025. The preset `paper` is the authors' network, in lga_paper.py. `small` and
`tiny` keep its mechanism in integer-friendly form: a separable stem that streams, then blocks that halve time, each
with averaged queries, a max-pooled skip and an MLP whose width stays; BatchNorm that folds and ReLU. `small-plain` and
`tiny-plain` have a strided convolution of about equal cost in place of the attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import attend
from train.models.blocks import Head, Stage, conv, conv_bn, stem
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.lga_paper import PaperLga
from train.models.network import Network


@dataclass(frozen=True)
class Preset:
    """The width and depth of an edge network; the first stage's convolution is dense over the leads."""

    stem: tuple[Stage, ...]
    width: int                  # of the blocks
    blocks: int
    heads: int
    expand: int                 # MLP width / width
    hidden: int                 # width of the head's dense layer
    plain: int = 0              # inner width / width of the convolutions in place of attention; 0: attention


SMALL = Preset(stem=(Stage(16, 11, 2, 0), Stage(24, 7, 2, 0), Stage(32, 7, 2, 1), Stage(48, 7, 2, 1)),
               width=64, blocks=3, heads=4, expand=2, hidden=48)
TINY = Preset(stem=(Stage(8, 11, 2, 0), Stage(16, 7, 2, 0), Stage(24, 7, 2, 1), Stage(32, 7, 2, 1)),
              width=32, blocks=2, heads=2, expand=2, hidden=24)
PLAIN_KERNEL = 10   # even, so that a stride of 2 lies on the pairs that the skip pools
BRANCH = 0.2    # first gain of what a block adds to its input: near the identity, deep sums learn sooner


class AveragedQueries(nn.Module):
    """Global attention with half as many queries as keys: each asks for a pair of neighbouring steps.

    The seed averages projected queries; as averaging and projection are both linear, averaging comes first here, which
    gives the same queries for half the multiplications. As in the seed, nothing is projected behind the attention.
    """

    def __init__(self, channels: int, out: int, heads: int):
        super().__init__()
        self.heads, self.attend_fn = heads, attend
        self.mix = conv_bn(channels, channels, 3, groups=channels)
        self.q, self.k, self.v = (conv(channels, out, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channels, 1, time) -> (batch, out, 1, time // 2)
        u = self.mix(x)
        q = self.q(F.avg_pool2d(u, (1, 2)))
        return self.attend_fn(q, self.k(u), self.v(u), self.heads)


class PlainMix(nn.Module):
    """What attention is compared with: widening pointwise, strided depthwise and pointwise convolution."""

    def __init__(self, channels: int, out: int, wide: int):
        super().__init__()
        self.widen = conv_bn(channels, wide, 1, relu=True)
        self.mix = conv_bn(wide, wide, PLAIN_KERNEL, 2, groups=wide, relu=True)
        self.out = conv_bn(wide, out, 1)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channels, 1, time) -> (batch, out, 1, time // 2)
        return self.out(self.mix(self.widen(x)))


class LgaBlock(nn.Module):
    """y = attention(x) + pointwise(max-pooled x); y + MLP(y). An odd last step is a key, but asks no query."""

    def __init__(self, channels: int, p: Preset):
        super().__init__()
        self.attention = (PlainMix(channels, p.width, p.plain * p.width) if p.plain
                          else AveragedQueries(channels, p.width, p.heads))
        self.skip = conv_bn(channels, p.width, 1)
        wide = p.expand * p.width
        self.mlp = nn.Sequential(conv_bn(p.width, wide, 1, relu=True), conv_bn(wide, p.width, 1))
        nn.init.constant_(self.mlp[1][1].weight, BRANCH)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channels, 1, time) -> (batch, width, 1, time // 2)
        y = self.skip(F.max_pool2d(x, (1, 2))) + self.attention(x)
        return y + self.mlp(y)


class Lga(Network):
    """The edge network: the separable stem is local, blocks of global attention and head decide."""

    PRESETS: ClassVar = {"paper": PaperLga, "small": SMALL, "tiny": TINY,
                         "small-plain": replace(SMALL, plain=2), "tiny-plain": replace(TINY, plain=3)}

    def __init__(self, preset: str | Preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        p = preset if isinstance(preset, Preset) else self.PRESETS[preset]
        self.local = stem(p.stem, channels=leads)
        width = p.stem[-1].channels
        self.whole = nn.Sequential(*(LgaBlock(width if i == 0 else p.width, p) for i in range(p.blocks)))
        self.head = Head(p.width, 1, p.hidden, classes, rr)
        span = Span()
        for block in self.local:
            span = block.span(span)
        self.geometry = geometry(span, window)
        self.sides = ("rr",) if rr else ()

    def columns(self, ecg: Tensor) -> Tensor:
        """The stem, on leads as channels: (batch, 1, lead, time) -> (batch, channel, 1, time / stride)."""
        return self.local(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """Averaged queries, global keys and values; head."""
        return self.head(self.whole(columns), *sides)
