# SPDX-License-Identifier: Apache-2.0
"""Lead-joint attention: one map per head, shared by all leads, within a band of time steps or over all of them.

Tensors are (batch, heads * d, lead, time). For head h and times t, s:
    score[t, s] = (1 / sqrt(d)) * sum over leads l and channels c of head h of q[c, l, t] * k[c, l, s]
    out[c, l, t] = sum over s of softmax_s(score)[t, s] * v[c, l, s]
With `window` w only s in t - w .. t + w is seen, clipped at the ends; None sees every s.
Local Lead-Attention: Manimaran et al., Computing in Cardiology 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.blocks import conv, conv_bn
from train.models.geometry import Span


def softmax(score: Tensor) -> Tensor:
    """Scores (..., key) to probabilities."""
    return score.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int | None = None, weigh=softmax) -> Tensor:
    """Lead-joint attention in float; see the module for shapes and the formula. Returns a tensor shaped like v.

    `weigh` turns scores (..., key) into weights that sum to 1; hidden keys come as -inf or the least finite number.
    """
    batch, channels, leads, time = q.shape
    if channels % heads:
        raise ValueError(f"{channels} channels cannot be split over {heads} heads")
    q, k, v = (x.reshape(batch, heads, -1, time) for x in (q, k, v))
    return joined(q, k, v, (channels // heads) ** -0.5, window, weigh).reshape(batch, -1, leads, time)


def joined(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, weigh=softmax) -> Tensor:
    """Attention of heads whose leads are joined already: (batch, head, d * lead, time); scores are times `scale`."""
    q = q * scale
    if window is None or q.shape[-1] <= 4 * window:     # a square this small costs no more than blocks and halos
        return _square(q, k, v, window, weigh)
    return _blocks(q, k, v, window, weigh)


def _square(q: Tensor, k: Tensor, v: Tensor, window: int | None, weigh) -> Tensor:
    score = q.transpose(-1, -2) @ k             # (batch, head, query, key)
    if window is not None:
        t = torch.arange(q.shape[-1], device=q.device)
        score = score.masked_fill((t[:, None] - t).abs() > window, float("-inf"))
    return v @ weigh(score).transpose(-1, -2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, window: int, weigh) -> Tensor:
    """Band attention: queries in blocks of 2w, keys and values in the same blocks with a halo of w on either side."""
    batch, heads, depth, time = q.shape
    block = 2 * window
    count = -(-time // block)
    rest = count * block - time
    q = F.pad(q, (0, rest)).reshape(batch, heads, depth, count, block).permute(0, 1, 3, 4, 2)
    k, v = (F.pad(x, (window, window + rest)).unfold(-1, block + 2 * window, block) for x in (k, v))
    score = q @ k.permute(0, 1, 3, 2, 4)        # (batch, head, block, query, key)
    query = torch.arange(block, device=q.device)[:, None]
    key = torch.arange(block + 2 * window, device=q.device) - window
    place = key + block * torch.arange(count, device=q.device)[:, None, None]
    seen = ((query - key).abs() <= window) & (place >= 0) & (place < time)     # (block, query, key)
    # Queries of the padding may see no key at all: a finite floor keeps their rows, cut off below, free of NaN.
    score = score.masked_fill(~seen, torch.finfo(score.dtype).min)
    out = weigh(score) @ v.permute(0, 1, 3, 4, 2)
    return out.permute(0, 1, 4, 2, 3).reshape(batch, heads, depth, count * block)[..., :time]


class PerLead(nn.Module):
    """A pointwise convolution with weights of its own for each lead: slices of the lead axis, joined again."""

    def __init__(self, channels: int, out: int, leads: int):
        super().__init__()
        self.lead = nn.ModuleList(conv(channels, out, 1) for _ in range(leads))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        return torch.cat([f(x[:, :, i:i + 1]) for i, f in enumerate(self.lead)], 2)


class LeadJointAttention(nn.Module):
    """x -> BN'd depthwise convolution (kernel 3, `stride`) -> q, k, v pointwise -> attention -> pointwise, BN.

    `window` is the half-width of the band in output steps, None for global. `per_lead` gives each lead q, k and v
    projections of its own (the poster's form); otherwise the leads share one (the released code's). `attend_fn` is
    `attend` or another function of the same signature, e.g. one that evaluates integer tables.
    """

    def __init__(self, channels: int, out: int, heads: int, window: int | None, stride: int = 1, leads: int = 1,
                 per_lead: bool = False):
        super().__init__()
        self.heads, self.window = heads, window
        self.attend_fn = attend
        self.mix = conv_bn(channels, channels, 3, stride, groups=channels)
        make = (lambda: PerLead(channels, out, leads)) if per_lead and leads > 1 else (lambda: conv(channels, out, 1))
        self.q, self.k, self.v = make(), make(), make()
        self.out = conv_bn(out, out, 1)

    def span(self, s: Span) -> Span:
        """The receptive field behind this layer, given the one before it; global attention sees no more than its x."""
        s = s.conv(3, self.mix[0].stride[1])
        return s.band(self.window or 0)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        u = self.mix(x)
        return self.out(self.attend_fn(self.q(u), self.k(u), self.v(u), self.heads, self.window))
