# SPDX-License-Identifier: Apache-2.0
"""Lead-joint attention: one map per head, shared by all leads. One function serves every architecture.

Tensors are (batch, heads * d, lead, time). For head h, query t and key s:
    score[t, s] = scale * sum over leads l and channels c of head h of q[c, l, t] * k[c, l, s]
                  + bias[h, s - t + size - 1] of a neighbourhood
    out[c, l, t] = sum over s of softmax_s(score)[t, s] * v[c, l, s]
A `Window` says which keys a query sees. A pair (q2, k2, lam) subtracts lam times a second map from the first:
differential attention, Ye et al. 2025. Lead-joint band: Manimaran et al., Computing in Cardiology 2023.
Neighbourhood: Hassani et al., CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.blocks import conv, conv_bn
from train.models.geometry import Span

KINDS = ("global", "band", "block", "neighbourhood")


@dataclass(frozen=True)
class Window:
    """Which keys a query t of T sees. Only `global` lets queries and keys have lengths of their own.

    global: all.  band: t - size .. t + size, clipped at the ends.  block: those of its own block of `size`, the last
    of which may be short.  neighbourhood: always `size`, from t - (size - 1) // 2 on, moved inwards at the ends.
    """

    kind: str
    size: int = 0

    def __post_init__(self):
        least = 1 if self.kind in ("block", "neighbourhood") else 0
        if self.kind not in KINDS or self.size < least:
            raise ValueError(f"no window {self.kind!r} of {self.size}; known are {', '.join(KINDS)}")

    def seen(self, query: Tensor, key: Tensor, time: int) -> Tensor:
        """Does a query at `query` see a key at `key`, of `time` steps? For local windows; the two broadcast."""
        inside = (key >= 0) & (key < time)
        if self.kind == "band":
            return inside & ((query - key).abs() <= self.size)
        if self.kind == "block":
            return inside & (query // self.size == key // self.size)
        first = (query - (self.size - 1) // 2).clamp(0, time - self.size)
        return inside & (key >= first) & (key < first + self.size)

    def blocks(self) -> tuple[int, int, int]:
        """(queries of a block, keys before it, keys behind it): what a blockwise evaluation has to look at."""
        if self.kind == "band":
            return max(2 * self.size, 1), self.size, self.size
        if self.kind == "block":
            return self.size, 0, 0
        # the last query may be alone in its block, and is moved inwards to see the last `size` keys
        return self.size, self.size - 1, self.size // 2


GLOBAL = Window("global")


def Band(half: int) -> Window:
    """`half` keys on either side, fewer at the ends."""
    return Window("band", half)


def Block(size: int) -> Window:
    """The keys of the query's own block."""
    return Window("block", size)


def Neighbourhood(size: int) -> Window:
    """Always `size` keys."""
    return Window("neighbourhood", size)


def softmax(score: Tensor) -> Tensor:
    """Scores (..., key) to probabilities."""
    return score.softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, window: Window = GLOBAL, weigh=softmax, *,
           bias: Tensor | None = None, pair: tuple[Tensor, Tensor, Tensor] | None = None,
           scale: float | None = None) -> Tensor:
    """Lead-joint attention in float; see the module for the formula. Returns (batch, v's channels, lead, q's time).

    bias: (heads, 2 * size - 1), a neighbourhood's relative positions. pair: (q2, k2, lam), shaped like q and k, and a
    scalar. scale: d ** -0.5 when None. `weigh` turns scores (..., key) into weights that sum to 1; hidden keys come as
    the least finite number.
    """
    fits(q, k, v, heads, window, bias, pair)
    batch, channels, leads, time = q.shape
    scale = (channels // heads) ** -0.5 if scale is None else scale
    if pair is not None:
        pair = split(pair[0], heads), split(pair[1], heads), pair[2]
    out = joined(split(q, heads), split(k, heads), split(v, heads), scale, window, weigh, bias, pair)
    return out.reshape(batch, -1, leads, time)


def split(x: Tensor, heads: int) -> Tensor:
    """(batch, heads * d, lead, time) -> (batch, head, d * lead, time)."""
    return x.reshape(x.shape[0], heads, -1, x.shape[3])


def fits(q: Tensor, k: Tensor, v: Tensor, heads: int, window: Window, bias, pair) -> None:
    """ValueError when the arguments of `attend` do not belong together."""
    for x in (q, k, v):
        if x.shape[1] % heads:
            raise ValueError(f"{x.shape[1]} channels cannot be split over {heads} heads")
    time = q.shape[3]
    if q.shape[1:3] != k.shape[1:3] or k.shape[2:] != v.shape[2:]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: equal leads, channels of q and "
                         "k and lengths of k and v are expected")
    if window.kind != "global" and time != k.shape[3]:
        raise ValueError(f"{time} queries and {k.shape[3]} keys; only global attention takes unequal lengths")
    if window.kind == "neighbourhood" and time < window.size:
        raise ValueError(f"a neighbourhood of {window.size} keys does not fit {time} steps")
    if bias is not None and (window.kind != "neighbourhood" or pair is not None
                             or bias.shape != (heads, 2 * window.size - 1)):
        raise ValueError(f"a bias {tuple(bias.shape)}; only a neighbourhood without a pair takes one, of "
                         f"(heads, 2 * size - 1) = {(heads, 2 * window.size - 1)}")
    if pair is not None and (pair[0].shape[1:] != q.shape[1:] or pair[1].shape[1:] != k.shape[1:]
                             or pair[2].numel() != 1):
        raise ValueError(f"a pair of {[tuple(x.shape) for x in pair]}; q2 like q, k2 like k and a scalar are expected")


def joined(q: Tensor, k: Tensor, v: Tensor, scale: float, window: Window, weigh=softmax, bias: Tensor | None = None,
           pair: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """`attend` of heads whose leads are joined already: (batch, head, d * lead, time)."""
    if pair is not None:
        q2, k2, lam = pair
        return joined(q, k, v, scale, window, weigh) - lam * joined(q2, k2, v, scale, window, weigh)
    q = q * scale
    # a square this small costs no more than blocks and halos
    if window.kind == "global" or q.shape[-1] <= 2 * sum(window.blocks()):
        return _square(q, k, v, window, weigh, bias)
    return _blocks(q, k, v, window, weigh, bias)


def _square(q: Tensor, k: Tensor, v: Tensor, window: Window, weigh, bias: Tensor | None) -> Tensor:
    score = q.transpose(-1, -2) @ k             # (batch, head, query, key)
    if window.kind != "global":
        t = torch.arange(q.shape[-1], device=q.device)
        score = _hidden(score, ~window.seen(t[:, None], t, len(t)), _spread(bias, t[:, None], t, window))
    return v @ weigh(score).transpose(-1, -2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, window: Window, weigh, bias: Tensor | None) -> Tensor:
    """Local attention: queries in blocks, keys and values in the same blocks with a halo on either side."""
    batch, heads, _, time = q.shape
    block, left, right = window.blocks()
    count = -(-time // block)
    rest = count * block - time
    q = F.pad(q, (0, rest)).reshape(batch, heads, -1, count, block).permute(0, 1, 3, 4, 2)
    k, v = (F.pad(x, (left, right + rest)).unfold(-1, left + block + right, block) for x in (k, v))
    score = q @ k.permute(0, 1, 3, 2, 4)        # (batch, head, block, query, key)
    query = torch.arange(block, device=q.device)[:, None]
    key = torch.arange(-left, block + right, device=q.device)
    place = block * torch.arange(count, device=q.device)[:, None, None]
    score = _hidden(score, ~window.seen(query + place, key + place, time), _spread(bias, query, key, window))
    out = weigh(score) @ v.permute(0, 1, 3, 4, 2)
    return out.permute(0, 1, 4, 2, 3).reshape(batch, heads, -1, count * block)[..., :time]


def _spread(bias: Tensor | None, query: Tensor, key: Tensor, window: Window) -> Tensor | None:
    """The bias of every query and key, (heads, query, key); hidden keys get any."""
    return None if bias is None else bias[:, (key - query + window.size - 1).clamp(0, bias.shape[1] - 1)]


def _hidden(score: Tensor, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """Scores (batch, head, ..., query, key) plus bias (head, query, key), very low at the keys that are hidden.

    A query of a block's padding may see no key at all: a finite floor keeps its row, cut off later, free of NaN.
    """
    floor = torch.finfo(score.dtype).min
    if bias is None:
        return score.masked_fill(hidden, floor)
    bias = bias if score.dim() == 4 else bias[:, None]
    return score + bias.masked_fill(hidden, floor)      # one pass over the scores instead of two


class PerLead(nn.Module):
    """A pointwise convolution with weights of its own for each lead: slices of the lead axis, joined again."""

    def __init__(self, channels: int, out: int, leads: int):
        super().__init__()
        self.lead = nn.ModuleList(conv(channels, out, 1) for _ in range(leads))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        return torch.cat([f(x[:, :, i:i + 1]) for i, f in enumerate(self.lead)], 2)


class LeadJointAttention(nn.Module):
    """x -> BN'd depthwise convolution (kernel 3, `stride`) -> q, k, v pointwise -> attention -> pointwise, BN.

    `half` is the half-width of the band in output steps, None for global. `per_lead` gives each lead q, k and v
    projections of its own (the poster's form); otherwise the leads share one (the released code's). `attend_fn` is
    `attend` or another function of the same signature, e.g. one that evaluates integer tables.
    """

    def __init__(self, channels: int, out: int, heads: int, half: int | None, stride: int = 1, leads: int = 1,
                 per_lead: bool = False):
        super().__init__()
        self.heads, self.window = heads, GLOBAL if half is None else Band(half)
        self.attend_fn = attend
        self.mix = conv_bn(channels, channels, 3, stride, groups=channels)
        make = (lambda: PerLead(channels, out, leads)) if per_lead and leads > 1 else (lambda: conv(channels, out, 1))
        self.q, self.k, self.v = make(), make(), make()
        self.out = conv_bn(out, out, 1)

    def span(self, s: Span) -> Span:
        """The receptive field behind this layer, given the one before it; global attention sees no more than its x."""
        s = s.conv(3, self.mix[0].stride[1])
        return s.band(self.window.size)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        u = self.mix(x)
        return self.out(self.attend_fn(self.q(u), self.k(u), self.v(u), self.heads, self.window))
