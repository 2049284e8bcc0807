# SPDX-License-Identifier: Apache-2.0
"""Attention as one custom op of PyTorch that evaluates the integer exp table: training sees what devices compute.

Arguments, windows and formula are those of train.models.attention; only its softmax is replaced. A device adds the
relative bias as an int32 on the grid of the score's accumulator, and holds lambda in 24 bits behind the point; both
steps lie far below one step of the exp table, so the op takes the real values.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from compress.reference_attention import EXP_ENTRIES, EXP_ONE, EXP_STEP, exp_table
from train.models import attention as float_attention
from train.models.attention import GLOBAL, Window


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
def attention(q: Tensor, k: Tensor, v: Tensor, q2: Tensor | None, k2: Tensor | None, lam: Tensor | None,
              bias: Tensor | None, heads: int, window: str, size: int, scale: float) -> Tensor:
    """`attend` with flat arguments; q2, k2 and lam are all None or all tensors."""
    pair = None if q2 is None else (q2, k2, lam)
    return float_attention.attend(q, k, v, heads, Window(window, size), TableSoftmax.apply, bias=bias, pair=pair,
                                  scale=scale).contiguous()


@attention.register_fake
def _(q, k, v, q2, k2, lam, bias, heads, window, size, scale):
    return v.new_empty(v.shape[0], v.shape[1], v.shape[2], q.shape[3])


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _backward(ctx, gradient):
    """The weights are computed again rather than kept. Clones make the layout of every gradient certain to tracers."""
    heads, window, size, scale = ctx.rest
    given = [x for x in ctx.saved_tensors if x is not None]
    with torch.enable_grad():
        inputs = [float_attention.split(x.detach(), heads) if x.dim() == 4 else x.detach() for x in given]
        tensors = iter([x.requires_grad_() for x in inputs])
        q, k, v, q2, k2, lam, bias = (x if x is None else next(tensors) for x in ctx.saved_tensors)
        pair = None if q2 is None else (q2, k2, lam)
        out = float_attention.joined(q, k, v, scale, Window(window, size), TableSoftmax.apply, bias, pair)
    found = torch.autograd.grad(out, inputs, gradient.reshape(out.shape))
    shaped = (torch.clone(g, memory_format=torch.contiguous_format).view(x.shape)
              for g, x in zip(found, given, strict=True))
    return (*(x if x is None else next(shaped) for x in ctx.saved_tensors), None, None, None, None)


attention.register_autograd(_backward, setup_context=_setup)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, window: Window = GLOBAL, *, bias: Tensor | None = None,
           pair: tuple[Tensor, Tensor, Tensor] | None = None, scale: float | None = None) -> Tensor:
    """The op behind the signature of train.models.attention.attend."""
    float_attention.fits(q, k, v, heads, window, bias, pair)
    scale = (q.shape[1] // heads) ** -0.5 if scale is None else scale
    return torch.ops.leadedge.attention(q, k, v, *(pair or (None, None, None)), bias, heads, window.kind, window.size,
                                        scale)
