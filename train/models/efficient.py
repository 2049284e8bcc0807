# SPDX-License-Identifier: Apache-2.0
"""efficient: MBConv over time, and four side tokens (age, sex, R-peak code, P-wave code) that attend to it.

ecg (batch, 1, lead, window) in millivolt -> leads become channels -> local columns (batch, channel, 1, column) ->
cross-attention of the tokens to the columns -> logits (batch, class). After EfficientECG (Deng et al., 2025), of which
abstract and captions could be read: a 1-D EfficientNet, R and P features through an LSTM autoencoder, age and sex by
cross-attention. Every number here is ours. The preset `paper` is of EfficientNet-B0's shape, in efficient_paper.py.
`small` and `tiny` keep the mechanism in integer-friendly form: ReLU for SiLU, and no squeeze-and-excitation, whose
mean over the window would tie every column to where the window lies, so that nothing could stream. `small-plain` and
`tiny-plain` have no tokens: another convolution and a wider head of about equal cost, to show what fusion brings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from train.models.blocks import Head, Stem, conv_bn
from train.models.efficient_paper import PaperEfficient
from train.models.fusion import HIDDEN_PATIENT, HIDDEN_PATIENT_BEATS, TOKENS, CrossAttention, SideTokens
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.network import Network


@dataclass(frozen=True)
class Stage:
    """One MBConv: widened `expand` times, depthwise `kernel` with `stride`, down to `channels`."""

    expand: int
    channels: int
    stride: int
    kernel: int


@dataclass(frozen=True)
class Preset:
    """The width and depth of an edge network."""

    stem: tuple[int, int, int]  # channels, kernel, stride
    stages: tuple[Stage, ...]
    columns: int                # channels behind the last pointwise convolution
    width: int                  # of a token
    heads: int
    code: int                   # hidden units of each LSTM
    hidden: int                 # width of the head's dense layer
    plain: int = 0              # channels of the convolution in place of the tokens; 0: tokens


SMALL = Preset(stem=(16, 11, 4),
               stages=(Stage(1, 16, 1, 5), Stage(3, 24, 2, 5), Stage(3, 32, 2, 5), Stage(4, 48, 2, 5),
                       Stage(3, 48, 1, 3), Stage(3, 64, 1, 3), Stage(3, 64, 1, 3)),
               columns=64, width=32, heads=4, code=16, hidden=48)
TINY = Preset(stem=(8, 11, 4),
              stages=(Stage(1, 8, 1, 5), Stage(2, 16, 2, 5), Stage(3, 24, 2, 5), Stage(3, 32, 2, 5),
                      Stage(2, 32, 1, 3), Stage(3, 40, 1, 3)),
              columns=40, width=16, heads=2, code=12, hidden=24)


class MbConv(nn.Module):
    """Pointwise widening, depthwise, pointwise down to `channels` without activation; its input added if shapes allow.

    BatchNorm behind each convolution, ReLU behind the first two.
    """

    def __init__(self, channels: int, s: Stage):
        super().__init__()
        wide = s.expand * channels
        self.stage, self.residual = s, s.stride == 1 and channels == s.channels
        self.widen = conv_bn(channels, wide, 1, relu=True) if s.expand > 1 else None
        self.depth = conv_bn(wide, wide, s.kernel, s.stride, groups=wide, relu=True)
        self.project = conv_bn(wide, s.channels, 1)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return s.conv(self.stage.kernel, self.stage.stride)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, 1, time)
        y = self.project(self.depth(x if self.widen is None else self.widen(x)))
        return x + y if self.residual else y


class Efficient(Network):
    """The edge network: stem and MBConv blocks are local; tokens, cross-attention and head decide."""

    PRESETS: ClassVar = {"paper": PaperEfficient, "small": SMALL, "tiny": TINY,
                         "small-plain": replace(SMALL, plain=96, hidden=56),
                         "tiny-plain": replace(TINY, plain=56, hidden=32)}

    def __init__(self, preset: str | Preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        p = preset if isinstance(preset, Preset) else self.PRESETS[preset]
        width, kernel, stride = p.stem
        local: list[nn.Module] = [Stem(width, kernel, stride, leads)]
        for s in p.stages:
            local.append(MbConv(width, s))
            width = s.channels
        span = Span()
        for block in local:
            span = block.span(span)
        self.local = nn.Sequential(*local, conv_bn(width, p.columns, 1, relu=True))
        self.geometry = geometry(span, window)
        self.rr = bool(rr)
        if p.plain:
            self.tokens, self.whole = None, conv_bn(p.columns, p.plain, 1, relu=True)
            self.head = Head(p.plain, 1, p.hidden, classes, rr)
        else:
            self.tokens = SideTokens(p.width, p.code, HIDDEN_PATIENT_BEATS if rr else HIDDEN_PATIENT)
            self.fuse = CrossAttention(p.columns, p.width, p.heads)
            # mean and maximum of the columns, and all tokens, are what the head takes for pooled features
            self.head = Head(p.columns + TOKENS * p.width // 2, 1, p.hidden, classes, rr + 2 * p.code if rr else 0)
        self.sides = (*(("rr",) if rr else ()), *(() if p.plain else ("beats", "age", "sex")))

    def prepare(self, source, indices, seed: int) -> dict:
        """The codes learn to describe 16 beats, see train/autoencoder.py."""
        from train.autoencoder import pretrain
        return {} if self.tokens is None else {"autoencoder": pretrain(self.tokens, source, indices, seed)}

    def columns(self, ecg: Tensor) -> Tensor:
        """Stem and MBConv blocks, on leads as channels: (batch, 1, lead, time) -> (batch, channel, 1, time / 32)."""
        return self.local(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """Tokens look at the columns; pooled columns and tokens go to the head, on beat tasks with rr and the codes."""
        if self.tokens is None:
            return self.head(self.whole(columns), *sides)
        tokens, r, p = self.tokens(*sides[-3:])
        fused = self.fuse(tokens, columns)
        pooled = torch.cat([columns.mean(3).flatten(1), columns.amax((2, 3)), fused.flatten(1)], 1)
        return self.head.classify(pooled, torch.cat([sides[0], r, p], 1) if self.rr else None)
