# SPDX-License-Identifier: Apache-2.0
"""local-lead: attention maps that all leads share, first within a band of time, then over the whole window.

ecg (batch, 1, lead, window) in millivolt -> columns (batch, channel, lead, column) -> logits (batch, class).
After Manimaran et al., "Reading Between the Leads", Computing in Cardiology 2023. The preset `paper` is the authors'
network, in local_lead_paper.py. `small` and `tiny` keep its mechanism in integer-friendly form: separable stem,
lead-joint attention in a fixed band, stride-2 branch blocks with a max-pooled skip, BatchNorm that folds and ReLU.
`small-stream` and `tiny-stream` have no attention over the whole window, for wearables that decide every second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import LeadJointAttention
from train.models.blocks import Head, Separable, Stage, Stem, conv_bn
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.local_lead_paper import PaperLocalLead
from train.models.network import Network


@dataclass(frozen=True)
class Attention:
    """A lead-joint attention block; `window` is the band's half-width in steps behind the stride, None: global."""

    channels: int
    heads: int
    stride: int
    window: int | None


@dataclass(frozen=True)
class Preset:
    """The width and depth of an edge network; the first stage's convolution is dense, its input has one channel."""

    stem: tuple[Stage, ...]
    local: tuple[Stage | Attention, ...]
    whole: tuple[Stage | Attention, ...]
    expand: int                 # MLP width / channels
    hidden: int                 # width of the head's dense layer
    per_lead: bool = False      # q, k, v projections of each lead's own
    plain: bool = False         # convolutions in place of attention: what the mechanism is compared with


SMALL = Preset(
    stem=(Stage(16, 11, 2, 0), Stage(24, 7, 2, 1), Stage(32, 7, 2, 1), Stage(48, 7, 2, 1)),
    local=(Attention(48, 3, 1, 5), Stage(64, 5, 2, 1)),
    whole=(Attention(64, 4, 2, None), Stage(96, 5, 2, 0)),
    expand=2, hidden=48)
TINY = Preset(
    stem=(Stage(8, 11, 2, 0), Stage(16, 7, 2, 1), Stage(24, 7, 2, 1), Stage(32, 7, 2, 1)),
    local=(Attention(32, 2, 1, 5), Stage(40, 5, 2, 0)),
    whole=(Attention(40, 2, 1, None),),
    expand=2, hidden=24)
# All attention in bands in front of the boundary: at a hop only the new columns cost anything.
TINY_STREAM = replace(TINY, local=(*TINY.local, Attention(40, 2, 1, 5)), whole=())
SMALL_STREAM = replace(SMALL, local=(*SMALL.local, Attention(64, 4, 1, 5)), whole=())
PLAIN_KERNEL = 11   # of the convolution in place of attention: the span of the presets' band
BRANCH = 0.2    # first gain of what a block adds to its input: near the identity, deep sums learn sooner


class PlainMix(nn.Module):
    """A convolution in place of attention: depthwise over the span of a band, wide pointwise, pointwise; BN, ReLU."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.mix = conv_bn(channels, channels, PLAIN_KERNEL, stride, groups=channels, relu=True)
        self.widen = conv_bn(channels, 2 * out, 1, relu=True)       # as many weights as q, k, v and out
        self.out = conv_bn(2 * out, out, 1)

    def span(self, s: Span) -> Span:
        """The receptive field behind this layer."""
        return s.conv(PLAIN_KERNEL, self.mix[0].stride[1])

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        return self.out(self.widen(self.mix(x)))


class AttentionBlock(nn.Module):
    """Attention and MLP, each added to its input; a stride halves time and max-pools the skip.

    x' = skip(x) + attention(x);  y = x' + BN(pointwise(ReLU(BN(pointwise(x')))))
    """

    def __init__(self, channels: int, spec: Attention, p: Preset, leads: int):
        super().__init__()
        self.stride, expand = spec.stride, p.expand
        self.attention = PlainMix(channels, spec.channels, spec.stride) if p.plain else LeadJointAttention(
            channels, spec.channels, spec.heads, spec.window, spec.stride, leads, p.per_lead)
        self.widen = conv_bn(channels, spec.channels, 1) if channels != spec.channels else None
        wide = spec.channels * expand
        self.mlp = nn.Sequential(conv_bn(spec.channels, wide, 1, relu=True), conv_bn(wide, spec.channels, 1))
        for branch in (self.attention.out, self.mlp[1]):
            nn.init.constant_(branch[1].weight, BRANCH)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return self.attention.span(s).join(s.conv(3, self.stride) if self.stride > 1 else s)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        skip = F.max_pool2d(x, (1, 3), (1, self.stride), (0, 1)) if self.stride > 1 else x
        if self.widen is not None:
            skip = self.widen(skip)
        x = skip + self.attention(x)
        return x + self.mlp(x)


def _blocks(specs, width: int, p: Preset, leads: int) -> tuple[list[nn.Module], int]:
    """(the blocks of stages and attentions one behind the other, channels behind them)."""
    blocks: list[nn.Module] = []
    for spec in specs:
        if isinstance(spec, Attention):
            blocks.append(AttentionBlock(width, spec, p, leads))
        else:
            blocks.append(Separable(width, spec.channels, spec.kernel, spec.stride))
            blocks += [Separable(spec.channels, spec.channels, spec.kernel) for _ in range(spec.depth)]
        width = spec.channels
    return blocks, width


class LocalLead(Network):
    """The edge network: separable stem and band attention are local, global attention and head decide."""

    PRESETS: ClassVar = {"paper": PaperLocalLead, "small": SMALL, "tiny": TINY,
                         "small-plain": replace(SMALL, plain=True), "tiny-plain": replace(TINY, plain=True),
                         "small-stream": SMALL_STREAM, "tiny-stream": TINY_STREAM}

    def __init__(self, preset: str | Preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        p = preset if isinstance(preset, Preset) else self.PRESETS[preset]
        first, *stages = p.stem
        stem = [Stem(first.channels, first.kernel, first.stride)]
        stem += [Separable(first.channels, first.channels, first.kernel) for _ in range(first.depth)]
        local, width = _blocks((*stages, *p.local), first.channels, p, leads)
        whole, width = _blocks(p.whole, width, p, leads)
        self.local, self.whole = nn.Sequential(*stem, *local), nn.Sequential(*whole)
        self.head = Head(width, leads, p.hidden, classes, rr)
        span = Span()
        for block in self.local:
            span = block.span(span)
        self.geometry = geometry(span, window)
        self.sides = ("rr",) if rr else ()

    def columns(self, ecg: Tensor) -> Tensor:
        """Stem and band attention."""
        return self.local(ecg)

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """Global attention and head."""
        return self.head(self.whole(columns), *sides)
