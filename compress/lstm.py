# SPDX-License-Identifier: Apache-2.0
"""The LSTM as one custom op that walks the integer recurrence: training sees what devices compute.

Its derivative is that of the float LSTM at the same weights and inputs; roundings and table steps count as identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from compress.reference_lstm import ENTRIES, H_ONE, ONE, STEPS, sigmoid_table
from train.models import lstm as float_lstm

H_SCALE = 1 / H_ONE


@library.custom_op("leadedge::lstm", mutates_args=())
def lstm_op(x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, sequence: bool) -> Tensor:
    """See reference_lstm.py. Pre-activations are summed in float64, gates, cell and h are its integers."""
    table = torch.from_numpy(sigmoid_table().astype("int64")).to(x.device)

    def gate(z: Tensor) -> Tensor:
        return table[z.clamp(-ENTRIES // 2, ENTRIES // 2 - 1) + ENTRIES // 2]
    hidden = w_hh.shape[1]
    steps = torch.full((4, hidden), STEPS, dtype=torch.float64, device=x.device)
    steps[2] *= 2                                       # the rows of g count 2z
    driven = (x.double() @ w_ih.double().t() + bias.double()) * steps.flatten()     # (batch, step, 4 * hidden)
    recurrent = (w_hh.double() * steps.reshape(-1, 1) / H_ONE).t()
    h = cell = torch.zeros(len(x), hidden, dtype=torch.int64, device=x.device)
    states = []
    for t in range(x.shape[1]):
        z = (driven[:, t] + h.double() @ recurrent + 0.5).floor().long()
        i, f, g, o = gate(z).chunk(4, 1)
        cell = (f * cell + (i * (2 * g - ONE) >> 4) + (1 << 14)) >> 15
        cell = cell.clamp(-1 << 15, (1 << 15) - 1)
        h = ((o * (2 * gate((cell + 8) >> 4) - ONE) + (1 << 22)) >> 23).clamp(-128, 127)
        states.append(h)
    out = torch.stack(states, 1) if sequence else h
    return out.to(x.dtype) / H_ONE


@lstm_op.register_fake
def _(x, w_ih, w_hh, bias, sequence):
    hidden = w_hh.shape[1]
    return x.new_empty((*x.shape[:2], hidden) if sequence else (x.shape[0], hidden))


def _setup(ctx, inputs, output):
    *tensors, ctx.sequence = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    with torch.enable_grad():
        tensors = [a.detach().requires_grad_() for a in ctx.saved_tensors]
        out = float_lstm.lstm(*tensors, ctx.sequence)
    return (*(g.contiguous() for g in torch.autograd.grad(out, tensors, gradient)), None)


lstm_op.register_autograd(_backward, setup_context=_setup)


def lstm(x, w_ih, w_hh, bias, sequence: bool = False) -> Tensor:
    """The op behind the signature of train.models.lstm.lstm."""
    return torch.ops.leadedge.lstm(x, w_ih, w_hh, bias, sequence)


LSTM = {torch.ops.leadedge.lstm.default}
