# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm as one custom op, so that export, training and conversion leave them one node.

Gain and bias are not quantized: the integer graph keeps them in 24 and 32 bits (`reference_norm.py`), which is far
below one output code.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from compress.fold import layer
from train.models import norm as float_norm
from train.say import GraphError

aten = torch.ops.aten


@library.custom_op("leadedge::norm", mutates_args=())
def norm_op(x: Tensor, gain: Tensor, bias: Tensor | None, groups: int, rms: bool, eps: float) -> Tensor:
    """train.models.norm.norm in float64: what is rounded is the result, as in the integer graph."""
    wide = (None if a is None else a.double() for a in (x, gain, bias))
    return float_norm.norm(*wide, groups, rms, eps).to(x.dtype).contiguous()


@norm_op.register_fake
def _(x, gain, bias, groups, rms, eps):
    return x.new_empty(x.shape)


def _setup(ctx, inputs, output):
    *tensors, ctx.groups, ctx.rms, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    """The norm is computed again rather than kept."""
    with torch.enable_grad():
        tensors = [None if a is None else a.detach().requires_grad_() for a in ctx.saved_tensors]
        out = float_norm.norm(*tensors, ctx.groups, ctx.rms, ctx.eps)
    given = [a for a in tensors if a is not None]
    found = [g.contiguous() for g in torch.autograd.grad(out, given, gradient)]
    return (*found, *[None] * (6 - len(found)))


norm_op.register_autograd(_backward, setup_context=_setup)


def norm(x, gain, bias, groups: int, rms: bool, eps: float = float_norm.EPS) -> Tensor:
    """The op behind the signature of train.models.norm.norm."""
    return torch.ops.leadedge.norm(x, gain, bias, groups, rms, eps)


NORM = {torch.ops.leadedge.norm.default, aten.layer_norm.default, aten.rms_norm.default}


def arguments(node: torch.fx.Node) -> tuple:
    """(x, gain, bias, groups, rms, eps) of a node in NORM; GraphError when it is not over the channels of x."""
    if node.target is torch.ops.leadedge.norm.default:
        return node.args
    x, axes, shape = node.args[0], list(node.args[1]), list(node.meta["val"].shape)
    if len(shape) != 2 or len(axes) != 1:
        raise GraphError(f"{layer(node)}: {node.target} over {axes} of (batch, {', '.join(map(str, shape[1:]))})",
                         "vectors (batch, feature)", "Norm of train/models/norm.py for (batch, channel, lead, time)")
    rest = [*node.args[2:], *[None] * 5]
    if node.target is aten.rms_norm.default:
        gain, eps = rest[:2]
        return x, gain, None, 1, True, torch.finfo(torch.float32).eps if eps is None else eps
    gain, bias, eps = rest[:3]
    return x, gain, bias, 1, False, float_norm.EPS if eps is None else eps
