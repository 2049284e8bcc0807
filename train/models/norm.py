# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm over the channels of each group, at each lead and time by itself.

    y = (x - mean) / sqrt(variance + eps) * gain + bias         rms: y = x / sqrt(mean of x^2 + eps) * gain

Tensors are (batch, channel, lead, time) or (batch, channel). Where a BatchNorm behind a convolution does as well, it
is the cheaper one: it folds away. (Ba et al. 2016; Zhang and Sennrich 2019.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5


def norm(x: Tensor, gain: Tensor, bias: Tensor | None, groups: int, rms: bool, eps: float = EPS) -> Tensor:
    """The norm in float; gain and bias are (channel,), and a bias of None adds nothing."""
    batch, channels, *rest = x.shape
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be split over {groups} groups")
    y = x.reshape(batch, groups, channels // groups, *rest)
    if not rms:
        y = y - y.mean(2, keepdim=True)
    y = y * (y.square().mean(2, keepdim=True) + eps).rsqrt()
    shape = (channels, *[1] * len(rest))
    y = y.reshape(x.shape) * gain.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


class Norm(nn.Module):
    """A norm with a learnable gain per channel, and a bias unless `rms`.

    `norm_fn` is `norm` or another function of the same signature, e.g. one that stays one node of an exported program.
    """

    def __init__(self, channels: int, groups: int = 1, rms: bool = False):
        super().__init__()
        self.groups, self.rms = groups, rms
        self.norm_fn = norm
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = None if rms else nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time) or (batch, channel)
        return self.norm_fn(x, self.gain, self.bias, self.groups, self.rms)
