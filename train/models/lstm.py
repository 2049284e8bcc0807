# SPDX-License-Identifier: Apache-2.0
"""One LSTM layer without peepholes, for short sequences such as the last sixteen beats.

    i, f, o = sigmoid(w_ih x + w_hh h + bias)   g = tanh(...)       rows of the weights in the order i, f, g, o
    c' = f c + i g                              h' = o tanh(c')     both start at zero

x is (batch, step, feature), w_ih (4 * hidden, feature), w_hh (4 * hidden, hidden), bias (4 * hidden,).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lstm(x: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, sequence: bool = False) -> Tensor:
    """The LSTM in float. Returns the last h (batch, hidden), or every h (batch, step, hidden) with `sequence`."""
    driven = x @ w_ih.t() + bias                # (batch, step, 4 * hidden)
    h = cell = x.new_zeros(len(x), w_hh.shape[1])
    states = []
    for step in driven.unbind(1):
        i, f, g, o = (step + h @ w_hh.t()).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.tanh()
        states.append(h)
    return torch.stack(states, 1) if sequence else h


class Lstm(nn.Module):
    """(batch, step, inputs) to the last state (batch, hidden), or to all of them with `return_sequence`.

    `lstm_fn` is `lstm` or another function of the same signature, e.g. the recurrence in integers.
    """

    def __init__(self, inputs: int, hidden: int, return_sequence: bool = False):
        super().__init__()
        self.return_sequence = return_sequence
        self.lstm_fn = lstm
        bound = hidden ** -0.5
        self.w_ih = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.w_hh = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        with torch.no_grad():
            self.bias[hidden:2 * hidden] = 1        # a cell that keeps what it has (Jozefowicz et al. 2015)

    def forward(self, x: Tensor) -> Tensor:     # (batch, step, inputs)
        return self.lstm_fn(x, self.w_ih, self.w_hh, self.bias, self.return_sequence)
