# SPDX-License-Identifier: Apache-2.0
"""Blocks shared by the edge presets: Conv2d with kernel (1, k), BatchNorm right behind it so that it folds, ReLU.

Tensors are (batch, channel, lead, time); a kernel never spans two leads, so all leads share the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.geometry import Span


def conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution over time, zero-padded so that a length divisible by `stride` gives length / stride."""
    return nn.Conv2d(channels, out, (1, kernel), (1, stride), (0, (kernel - 1) // 2), groups=groups, bias=bias)


def conv_bn(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = False):
    """conv -> BatchNorm, -> ReLU when asked: one integer node after folding."""
    parts = [conv(channels, out, kernel, stride, groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


class Separable(nn.Module):
    """Depthwise convolution, BN, ReLU, pointwise convolution, BN; adds its input when the shape stays, else ReLU.

    `groups` keeps that many groups of channels apart in the pointwise convolution too.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and channels == out
        self.depth = conv_bn(channels, channels, kernel, stride, groups=channels, relu=True)
        self.point = conv_bn(channels, out, 1, groups=groups, relu=not self.residual)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return s.conv(self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        y = self.point(self.depth(x))
        return x + y if self.residual else y


class Stem(nn.Module):
    """The first convolution: `channels` waveforms to `out`, BN, ReLU. One where leads share the weights."""

    def __init__(self, out: int, kernel: int, stride: int, channels: int = 1, groups: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = conv_bn(channels, out, kernel, stride, groups, relu=True)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return s.conv(self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channels, lead, time)
        return self.conv(x)


@dataclass(frozen=True)
class Stage:
    """Separable convolutions: one to `channels` with `stride`, then `depth` residual ones."""

    channels: int
    kernel: int
    stride: int
    depth: int


def stem(stages: Sequence[Stage], channels: int, groups: int = 1) -> nn.Sequential:
    """Stages one behind the other; the first one's convolution is not separable, and reads `channels` waveforms."""
    first, *rest = stages
    blocks: list[nn.Module] = [Stem(first.channels, first.kernel, first.stride, channels, groups)]
    blocks += [Separable(first.channels, first.channels, first.kernel, 1, groups) for _ in range(first.depth)]
    for before, stage in zip(stages, rest, strict=False):
        blocks.append(Separable(before.channels, stage.channels, stage.kernel, stage.stride, groups))
        blocks += [Separable(stage.channels, stage.channels, stage.kernel, 1, groups) for _ in range(stage.depth)]
    return nn.Sequential(*blocks)


HIDDEN_WAVEFORMS = 0.5      # share of training beats whose waveform features the head does not see
SQUEEZE = 2                 # what is left of them where beats bring features of their own


class Head(nn.Module):
    """Columns to logits: mean over time of every lead, maximum over time and leads, RR code, two dense layers.

    The mean keeps the leads apart, so that the dense layer can tell V1 from II; the maximum does not, so that its
    size does not grow with them. With beat features, the waveform's pass a layer of SQUEEZE units and are hidden from
    some training beats: the shapes of twenty patients are soon learnt by heart, and the beat features, which compare a
    beat with its own patient, would go unused (supraventricular Se out of fold at equal false alarms: 0.18 without the
    narrow layer, 0.44 with it).
    """

    def __init__(self, channels: int, leads: int, hidden: int, classes: int, rr: int = 0, rr_hidden: int = 32):
        super().__init__()
        width = channels * (leads + 1)
        self.rr = nn.Sequential(nn.Linear(rr, rr_hidden), nn.ReLU()) if rr else None
        self.squeeze = nn.Sequential(nn.Linear(width, SQUEEZE), nn.ReLU()) if rr else None
        self.hidden = nn.Sequential(nn.Linear(SQUEEZE + rr_hidden if rr else width, hidden), nn.ReLU())
        self.logits = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, rr: Tensor | None = None) -> Tensor:   # (batch, channel, lead, column)
        return self.classify(torch.cat([x.mean(3).flatten(1), x.amax((2, 3))], 1), rr)

    def classify(self, pooled: Tensor, rr: Tensor | None = None) -> Tensor:
        """Features (batch, channels * (leads + 1)) to logits, for columns that were summed up in another way."""
        if self.rr is None:
            return self.logits(self.hidden(pooled))
        if self.training:
            seen = torch.rand(len(pooled), 1, device=pooled.device) >= HIDDEN_WAVEFORMS
            pooled = pooled * seen.to(pooled.dtype)
        return self.logits(self.hidden(torch.cat([self.squeeze(pooled), self.rr(rr)], 1)))
