# SPDX-License-Identifier: Apache-2.0
"""What every architecture offers: local columns, a decision on finished columns, and votes over a longer crop.

A subclass sets `geometry` and, when it takes inputs beside the waveform, `sides`: their names in train.sides.SIDES, in
the order in which `decide` takes them. It defines `columns` and `decide`; the rest follows.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from train.models.geometry import Geometry


class Network(nn.Module):
    """ecg (batch, 1, lead, time) in millivolt, side inputs (batch, *shape) -> logits (batch, class).

    `columns` holds everything local and may be computed once over an endless record; `decide` sees exactly
    geometry.columns finished columns. Both are all there is to `forward`.
    """

    PRESETS: ClassVar[dict] = {}
    RECIPE: ClassVar[dict] = {}         # what the architecture trains best with, over the task's recipe
    geometry: Geometry
    sides: tuple[str, ...] = ()

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, time), time a multiple of the stride -> columns (batch, channel, lead, time / stride)."""
        raise NotImplementedError

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """geometry.columns finished columns and the side inputs -> logits (batch, class)."""
        raise NotImplementedError

    def prepare(self, source, indices, seed: int) -> dict:
        """What is trained before the labels are, on records `indices` only; returns figures for training.json."""
        return {}

    def forward(self, ecg: Tensor, *sides: Tensor) -> Tensor:
        """One window (batch, 1, lead, geometry.window) in millivolt -> logits (batch, class)."""
        columns = self.columns(ecg)
        if self.geometry.left or self.geometry.right:
            columns = columns[..., self.geometry.left:self.geometry.left + self.geometry.columns]
        return self.decide(columns, *sides)

    def vote(self, ecg: Tensor, *sides: Tensor, every: int = 1) -> Tensor:
        """A longer crop (batch, 1, lead, time) -> logits (batch, window, class) of its windows, one per `every` hops.

        Side inputs are (batch, window, *shape). Equal to `forward` on each window, but each column is computed once.
        """
        g = self.geometry
        columns = self.columns(ecg)
        columns = columns[..., g.left:columns.shape[-1] - g.right]
        windows = columns.unfold(-1, g.columns, every * g.hop // g.stride).movedim(-2, 1)     # (batch, window, ...)
        flat = (side.flatten(0, 1) for side in sides)
        return self.decide(windows.flatten(0, 1), *flat).unflatten(0, windows.shape[:2])


class WholeWindow(Network):
    """A network whose every layer depends on where the window lies: windows are evaluated one by one."""

    def vote(self, ecg: Tensor, *sides: Tensor, every: int = 1) -> Tensor:
        """A longer crop -> logits (batch, window, class), each window from scratch."""
        g = self.geometry
        windows = ecg.unfold(-1, g.window, every * g.hop).movedim(-2, 1)
        flat = (side.flatten(0, 1) for side in sides)
        return self(windows.flatten(0, 1), *flat).unflatten(0, windows.shape[:2])
