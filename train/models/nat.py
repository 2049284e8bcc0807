# SPDX-License-Identifier: Apache-2.0
"""nat: neighbourhood attention at several resolutions, from the detail of a beat to the context of a rhythm.

ecg (batch, 1, lead, window) in millivolt -> columns (batch, channel, 1, column) -> logits (batch, class); the leads are
the channels of the first convolution. After ECG-NAT (Gazeran et al., 2026), of which no more than the abstract could be
read: a hierarchy of neighbourhood attention, pre-trained as a masked autoencoder (train/pretrain.py) and fine-tuned
with a supervised contrastive term (train/contrast.py). Every number here is ours. The preset `paper` follows the habits
of image networks of that kind, in nat_paper.py; `small` and `tiny` keep the mechanism in integer-friendly form:
BatchNorm that folds, ReLU, softmax over 9 or 13 keys. `small-plain` and `tiny-plain` have convolutions of the same span
and cost in place of attention, to show what attention brings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from train.models.attention import Neighbourhood, attend
from train.models.blocks import Head, Separable, Stem, conv_bn
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.nat_paper import PaperNat
from train.models.network import Network


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution; `size` is the number of keys of a query, odd."""

    channels: int
    heads: int
    size: int
    depth: int = 1


@dataclass(frozen=True)
class Preset:
    """The width and depth of an edge network. The tokeniser's convolutions halve time; the stages behind the first
    begin with one that halves it again, and see the whole window."""

    tokeniser: tuple[tuple[int, int], ...]      # channels, kernel
    stages: tuple[Stage, ...]
    expand: int                                 # MLP width / channels
    hidden: int                                 # width of the head's dense layer
    plain: bool = False


# Keys at the three resolutions reach 0.26 s, 0.77 s and 1.5 s to either side: a QRS complex with its waves, the
# neighbouring beats, the rhythm around them.
SMALL = Preset(tokeniser=((16, 7), (24, 7), (32, 7), (40, 7)),
               stages=(Stage(40, 2, 9), Stage(56, 2, 13), Stage(80, 4, 13)), expand=2, hidden=48)
TINY = Preset(tokeniser=((8, 7), (16, 7), (16, 7), (24, 7)),
              stages=(Stage(24, 2, 9), Stage(32, 2, 13), Stage(32, 2, 13)), expand=2, hidden=24)
BRANCH = 0.2    # first gain of what a block adds to its input: near the identity, deep sums learn sooner


class NeighbourhoodAttention(nn.Module):
    """BN'd pointwise q, k and v -> attention of each step to the `size` steps around it -> BN'd pointwise.

    The score gets a learnt bias for each head and distance. A row shorter than `size` is seen whole, with the bias of
    the distances that occur, so that one set of weights serves windows of any length.
    """

    def __init__(self, channels: int, heads: int, size: int):
        super().__init__()
        self.heads, self.size, self.attend_fn = heads, size, attend
        self.q, self.k, self.v, self.out = (conv_bn(channels, channels, 1) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(heads, 2 * size - 1))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        size = min(self.size, x.shape[3])
        bias = self.bias[:, self.size - size:self.size + size - 1] if size < self.size else self.bias
        return self.out(self.attend_fn(self.q(x), self.k(x), self.v(x), self.heads, Neighbourhood(size), bias=bias))


class PlainMix(nn.Module):
    """A convolution in place of attention: depthwise over as many steps, wide pointwise, pointwise; BN, ReLU."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.mix = conv_bn(channels, channels, size, groups=channels, relu=True)
        self.widen = conv_bn(channels, 2 * channels, 1, relu=True)      # as many weights as q, k, v and out
        self.out = conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        return self.out(self.widen(self.mix(x)))


class Block(nn.Module):
    """x' = x + attention(x);  y = x' + BN(pointwise(ReLU(BN(pointwise(x')))))"""

    def __init__(self, s: Stage, p: Preset):
        super().__init__()
        if p.plain:
            self.attention = PlainMix(s.channels, s.size)
        else:
            self.attention = NeighbourhoodAttention(s.channels, s.heads, s.size)
        wide = s.channels * p.expand
        self.mlp = nn.Sequential(conv_bn(s.channels, wide, 1, relu=True), conv_bn(wide, s.channels, 1))
        for branch in (self.attention.out, self.mlp[1]):
            nn.init.constant_(branch[1].weight, BRANCH)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        x = x + self.attention(x)
        return x + self.mlp(x)


class Nat(Network):
    """The edge network: tokeniser and first stage are local, the coarser stages and the head decide."""

    PRESETS: ClassVar = {"paper": PaperNat, "small": SMALL, "tiny": TINY,
                         "small-plain": replace(SMALL, plain=True), "tiny-plain": replace(TINY, plain=True)}

    def __init__(self, preset: str | Preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        p = preset if isinstance(preset, Preset) else self.PRESETS[preset]
        (width, kernel), *others = p.tokeniser
        tokeniser: list[nn.Module] = [Stem(width, kernel, 2, leads)]
        for channels, k in others:
            tokeniser.append(Separable(width, channels, k, 2))
            width = channels
        span = Span()
        for part in tokeniser:
            span = part.span(span)
        first, *coarser = p.stages
        self.local = nn.Sequential(*tokeniser, *(Block(first, p) for _ in range(first.depth)))
        self.whole = nn.ModuleList()
        for s in coarser:
            self.whole.append(nn.Sequential(conv_bn(width, s.channels, 3, 2, relu=True),
                                            *(Block(s, p) for _ in range(s.depth))))
            width = s.channels
        self.head = Head(width, 1, p.hidden, classes, rr)
        self.geometry = geometry(span.band(first.depth * (first.size // 2)), window)
        self.sides = ("rr",) if rr else ()

    def columns(self, ecg: Tensor) -> Tensor:
        """Tokeniser and the finest stage: (batch, 1, lead, time) -> (batch, channel, 1, time / 16)."""
        return self.local(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """The coarser stages, in which the window's ends are the ends, and the head."""
        return self.head(self._coarser(columns)[-1], *sides)

    def levels(self, ecg: Tensor) -> list[Tensor]:
        """The output of every stage over a crop, from fine to coarse: what pre-training reconstructs from."""
        return self._coarser(self.columns(ecg))

    def _coarser(self, columns: Tensor) -> list[Tensor]:
        maps = [columns]
        for stage in self.whole:
            maps.append(stage(maps[-1]))
        return maps
