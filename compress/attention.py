# SPDX-License-Identifier: Apache-2.0
"""Attention as one custom op of PyTorch that evaluates the integer exp table: training sees what devices compute.

q, k, v are (batch, heads * d, lead, time); windows and the lead-joint score are those of train.models.attention,
only its softmax is replaced.
"""

from __future__ import annotations

import torch
from torch import library

from compress.reference_attention import EXP_ENTRIES, EXP_ONE, EXP_STEP, exp_table
from train.models import attention as float_attention

EVERY = -1     # the value of `half` that means: every key


class TableSoftmax(torch.autograd.Function):
    """e = table[(max - score) / EXP_STEP, rounded]; e / sum(e). Its derivative is the softmax's at these weights."""

    @staticmethod
    def forward(ctx, score):
        below = score.amax(-1, keepdim=True) - score
        index = below.div_(EXP_STEP).add_(0.5).floor_().clamp_(max=EXP_ENTRIES - 1).int()
        table = torch.from_numpy(exp_table().astype("float32") / EXP_ONE).to(score.device)
        e = torch.nn.functional.embedding(index, table[:, None])[..., 0]
        p = e / e.sum(-1, keepdim=True)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, gradient):
        p, = ctx.saved_tensors
        return p * (gradient - (gradient * p).sum(-1, keepdim=True))


@library.custom_op("leadedge::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, half: int) -> torch.Tensor:
    """Lead-joint attention over the keys t-half..t+half that exist, or over all keys when half is EVERY."""
    window = float_attention.GLOBAL if half == EVERY else float_attention.Band(half)
    return float_attention.attend(q, k, v, heads, window, TableSoftmax.apply).contiguous()


@attention.register_fake
def _(q, k, v, heads, half):
    return torch.empty_like(v)


def _setup(ctx, inputs, output):
    q, k, v, ctx.heads, ctx.half = inputs
    ctx.save_for_backward(q, k, v)


def _backward(ctx, gradient):
    """The weights are computed again rather than kept. Clones make the layout of every gradient certain to tracers."""
    batch, channels, _, time = gradient.shape
    window = float_attention.GLOBAL if ctx.half == EVERY else float_attention.Band(ctx.half)
    with torch.enable_grad():
        inputs = [x.detach().reshape(batch, ctx.heads, -1, time).requires_grad_() for x in ctx.saved_tensors]
        out = float_attention.joined(*inputs, (channels // ctx.heads) ** -0.5, window, TableSoftmax.apply)
    found = torch.autograd.grad(out, inputs, gradient.reshape(out.shape))
    return (*(torch.clone(g, memory_format=torch.contiguous_format).view(gradient.shape) for g in found), None, None)


attention.register_autograd(_backward, setup_context=_setup)


def attend(q, k, v, heads: int, window: float_attention.Window = float_attention.GLOBAL) -> torch.Tensor:
    """The op behind the signature of train.models.attention.attend."""
    return torch.ops.leadedge.attention(q, k, v, heads, EVERY if window.kind == "global" else window.size)
