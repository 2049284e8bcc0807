# SPDX-License-Identifier: Apache-2.0
"""Attention as one torch.library op that evaluates the integer graph's exp table: training sees what devices compute.

q, k, v are (batch, heads * d, lead, time); the lead-joint score sums over leads and d and is scaled by 1 / sqrt(d).
"""

from __future__ import annotations

import math

import torch

from compress.reference import EXP_ONE, EXP_STEP, exp_table

GLOBAL = -1     # the value of `half` that means: every key


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, heads * d, lead, time) -> (batch, head, time, d * lead)."""
    batch, channel, lead, time = x.shape
    return x.reshape(batch, heads, channel // heads * lead, time).transpose(2, 3)


def _join(x: torch.Tensor, shape) -> torch.Tensor:
    """(batch, head, time, d * lead) -> (batch, heads * d, lead, time)."""
    return x.transpose(2, 3).reshape(shape)


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float, half: int) -> torch.Tensor:
    """Probabilities from the table: (batch, head, query, key)."""
    score = q @ k.transpose(2, 3) * scale
    if half != GLOBAL:
        at = torch.arange(score.shape[-1], device=score.device)
        hidden = (at[:score.shape[-2], None] - at).abs() > half
        score = score.masked_fill(hidden, -math.inf)
    index = ((score.amax(-1, keepdim=True) - score) / EXP_STEP + 0.5).floor_().clamp_(max=255).long()
    e = torch.from_numpy(exp_table().astype("float32")).to(score.device)[index] / EXP_ONE
    return e / e.sum(-1, keepdim=True)


@torch.library.custom_op("leadedge::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, half: int) -> torch.Tensor:
    """Lead-joint attention over the keys t-half..t+half that exist, or over all keys when half is GLOBAL."""
    scale = 1 / math.sqrt(q.shape[1] // heads)
    p = _weights(_split(q, heads), _split(k, heads), scale, half)
    return _join(p @ _split(v, heads), v.shape).contiguous()


@attention.register_fake
def _(q, k, v, heads, half):
    return torch.empty_like(v)


def _setup(ctx, inputs, output):
    q, k, v, ctx.heads, ctx.half = inputs
    ctx.save_for_backward(q, k, v)


def _backward(ctx, gradient):
    """The softmax's own derivative at the table's probabilities (straight through the table)."""
    shape = ctx.saved_tensors[0].shape
    q, k, v = (_split(x, ctx.heads) for x in ctx.saved_tensors)
    scale = 1 / math.sqrt(shape[1] // ctx.heads)
    p = _weights(q, k, scale, ctx.half)
    g = _split(gradient, ctx.heads)
    dp = g @ v.transpose(2, 3)
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    dq, dk, dv = ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ g
    return _join(dq, shape), _join(dk, shape), _join(dv, shape), None, None


attention.register_autograd(_backward, setup_context=_setup)


def attend(q, k, v, heads: int, window: int | None) -> torch.Tensor:
    """The op behind the signature of train.models.attention.attend."""
    return torch.ops.leadedge.attention(q, k, v, heads, GLOBAL if window is None else window)
