# SPDX-License-Identifier: Apache-2.0
"""A learnable vector for each value of an integer: age in decades, sex, and "unknown" as one value more."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def row(x: Tensor, entries: int, low: int) -> Tensor:
    """Integer-valued x (batch, 1) -> row number (batch,) of a table whose first row belongs to `low`."""
    return (x[:, 0].round() - low).clamp(0, entries - 1).long()


def lookup(x: Tensor, table: Tensor, low: int) -> Tensor:
    """Row clip(x - low, 0, entries - 1) of a table (entries, width) -> (batch, width)."""
    return table[row(x, len(table), low)]


class Lookup(nn.Module):
    """Values low .. low + entries - 1, and whatever lies beyond at the ends, to vectors (batch, width).

    `lookup_fn` is `lookup` or another function of the same signature, e.g. one that stays one node of an exported
    program.
    """

    def __init__(self, entries: int, width: int, low: int = 0):
        super().__init__()
        self.low = low
        self.lookup_fn = lookup
        self.table = nn.Parameter(torch.randn(entries, width) * width ** -0.5)

    def forward(self, x: Tensor) -> Tensor:     # (batch, 1)
        return self.lookup_fn(x, self.table, self.low)
