# SPDX-License-Identifier: Apache-2.0
"""The LSTM in integers: int8 inputs, states and weights, int16 cell, one table for every gate.

Grids: h 1/128 (int8), cell 2^-11 (int16, +-16), gates 2^-15, pre-activations 1/64 (10 bits, +-8; those of the cell gate
g and of tanh(cell) count 2z, so that one table serves, with tanh(z) = 2 sigmoid(2z) - 1). For row r of the weights,
rows in the order i, f, g, o, and S = table of 1024 sigmoids:
    z   = (sum(weight_x x) * mul_x[r] + sum(weight_h h) * mul_h[r] + bias[r] * 2^16 + 2^31) >> 32
    a   = S[clip(z, -512, 511) + 512]                           g: 2 a - 2^15
    c'  = clip((f * c + (i * g >> 4) + 2^14) >> 15, -2^15, 2^15 - 1)
    u   = 2 S[clip((c' + 8) >> 4, -512, 511) + 512] - 2^15      tanh(c')
    h'  = clamp8((o * u + 2^22) >> 23)
mul_x[r] = 64 * grid of x * grid of weight_x[r] * 2^32, mul_h[r] = 64 * 1/128 * grid of weight_h[r] * 2^32, bias[r] in
2^-16 of 1/64; all three twice that for the rows of g. Sums are int32, the two products and z int64 (SMULL, SMLAL);
f * c, i * g and o * u fit int32. h and c start at 0.
"""

from __future__ import annotations

import numpy as np

from compress.fixed import clamp8
from compress.graph import Node

ENTRIES = 1024
STEPS = 64              # pre-activation steps per unit
ONE = 1 << 15           # of a gate
H_ONE = 128


def sigmoid_table() -> np.ndarray:
    """uint16 (1024,): sigmoid((i - 512) / 64) in 15 bits."""
    return np.rint(ONE / (1 + np.exp(-(np.arange(ENTRIES) - ENTRIES // 2) / STEPS))).astype(np.uint16)


def lstm(n: Node, args, endless: bool) -> np.ndarray:
    """(batch, step, feature) -> the last h (batch, hidden), or all of them (batch, step, hidden) with `sequence`."""
    p = n.params
    weight_x, weight_h = (p[k].T.astype(np.float64) for k in ("weight_x", "weight_h"))      # sums below 2^53 are exact
    mul_x, mul_h, bias, table = (p[k].astype(np.int64) for k in ("mul_x", "mul_h", "bias", "table"))
    driven = (args[0] @ weight_x).astype(np.int64) * mul_x + (bias << 16) + (1 << 31)       # (batch, step, 4 * hidden)
    h = cell = np.zeros((len(driven), len(weight_h)), np.int64)
    states = np.empty((*driven.shape[:2], len(weight_h)), np.int8)
    for t in range(driven.shape[1]):
        z = (driven[:, t] + (h @ weight_h).astype(np.int64) * mul_h) >> 32
        i, f, g, o = np.split(_gate(table, z), 4, 1)
        cell = np.clip((f * cell + (i * (2 * g - ONE) >> 4) + (1 << 14)) >> 15, -1 << 15, (1 << 15) - 1)
        states[:, t] = clamp8((o * (2 * _gate(table, (cell + 8) >> 4) - ONE) + (1 << 22)) >> 23)
        h = states[:, t].astype(np.int64)
    return states if n.attrs["sequence"] else states[:, -1]


def _gate(table: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The sigmoid of z steps."""
    return table[np.clip(z, -ENTRIES // 2, ENTRIES // 2 - 1) + ENTRIES // 2]
