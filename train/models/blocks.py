# SPDX-License-Identifier: Apache-2.0
"""Blocks shared by the edge presets: Conv2d with kernel (1, k), BatchNorm right behind it so that it folds, ReLU.

Tensors are (batch, channel, lead, time); a kernel never spans two leads, so all leads share the weights.
"""

from __future__ import annotations

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
    """Depthwise convolution, BN, ReLU, pointwise convolution, BN; adds its input when the shape stays, else ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and channels == out
        self.depth = conv_bn(channels, channels, kernel, stride, groups=channels, relu=True)
        self.point = conv_bn(channels, out, 1, relu=not self.residual)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return s.conv(self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        y = self.point(self.depth(x))
        return x + y if self.residual else y


class Stem(nn.Module):
    """The first convolution: one waveform channel to `out`, BN, ReLU."""

    def __init__(self, out: int, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = conv_bn(1, out, kernel, stride, relu=True)

    def span(self, s: Span) -> Span:
        """The receptive field behind this block."""
        return s.conv(self.kernel, self.stride)

    def forward(self, x: Tensor) -> Tensor:     # (batch, 1, lead, time)
        return self.conv(x)


HIDDEN_WAVEFORMS = 0.4      # share of training beats whose waveform features the head does not see


class Head(nn.Module):
    """Columns to logits: mean over time of every lead, maximum over time and leads, RR code, two dense layers.

    The mean keeps the leads apart, so that the dense layer can tell V1 from II; the maximum does not, so that its
    size does not grow with them. In training the waveform's features of some beats are hidden: twenty patients' shapes
    are soon learnt by heart, and the beat features, which compare a beat with its own patient, would be left unused.
    """

    def __init__(self, channels: int, leads: int, hidden: int, classes: int, rr: int = 0, rr_hidden: int = 32):
        super().__init__()
        self.rr = nn.Sequential(nn.Linear(rr, rr_hidden), nn.ReLU()) if rr else None
        width = channels * (leads + 1) + (rr_hidden if rr else 0)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.logits = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, rr: Tensor | None = None) -> Tensor:     # (batch, channel, lead, column)
        parts = [x.mean(3).flatten(1), x.amax((2, 3))]
        if self.rr is not None and self.training:
            seen = (torch.rand(len(x), 1, device=x.device) >= HIDDEN_WAVEFORMS).to(x.dtype)
            parts = [part * seen for part in parts]
        if self.rr is not None:
            parts.append(self.rr(rr))
        return self.logits(self.hidden(torch.cat(parts, 1)))
