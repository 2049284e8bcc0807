# SPDX-License-Identifier: Apache-2.0
"""What a classifier is given where the signal has holes: one rule for the twin, for every runtime and for a board.

A hole of at most FILL_S is bridged by straight lines, and each moment of it counts as masked; moments with a lead off,
or at a rail, count as masked too. Where more than BUDGET of the model's last window is masked the moments are handed
over as bad: every window that holds one of them, or what it leaves in the filters, is unreliable. A longer hole begins
a new stream. Recordings and pictures never see a filled moment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from firmware_bridge.session import Gap

FILL_S = 0.1
BUDGET = 0.02


@dataclass(frozen=True)
class Piece:
    """Moments for the classifier. uv: int32 (lead, moment), first: index of the first; bad: why they must not count, ""
    when they may; arrived: host seconds of the last; off, rail: bool (lead, moment), filled ones are neither."""

    first: int
    uv: np.ndarray
    bad: str
    arrived: float
    off: np.ndarray
    rail: np.ndarray


@dataclass(frozen=True)
class Begin:
    """A new stream starts at moment `first`; reason: of session.GAPS, or "start"."""

    first: int
    reason: str


class Conditioner:
    """window: moments of the model's window at the front-end's rate."""

    def __init__(self, fs: float, window: int):
        self.fill, self.window = int(FILL_S * fs), window
        self.allowed = int(BUDGET * window)
        self._start()
        self.held: Gap | None = None        # short: filled when the next moment is there
        self.fresh = "start"                # why a new stream has to begin

    def _start(self) -> None:
        self.masked = np.zeros(self.window, np.int32)       # of the last window
        self.last: np.ndarray | None = None                 # (lead,), the last moment

    def gap(self, gap: Gap) -> None:
        """Moments are missing."""
        if gap.length > self.fill or self.last is None or gap.reason in ("reset", "unplugged") or self.held is not None:
            self.held, self.fresh = None, gap.reason if self.last is not None else self.fresh
            self._start()
        else:
            self.held = gap

    def push(self, uv: np.ndarray, off: np.ndarray, rail: np.ndarray, first: int,
             arrived: float) -> list[Piece | Begin]:
        """int32, bool and bool (lead, moment) -> what the classifier is to do, in order."""
        out: list[Piece | Begin] = []
        if self.fresh:
            out.append(Begin(first, self.fresh))
            self.fresh = ""
        if self.held is not None:
            gap, self.held = self.held, None
            line, none = self._line(uv[:, 0], gap.length), np.zeros((len(uv), gap.length), bool)
            out += self._pieces(Piece(gap.first, line, "", arrived, none, none), {"gap": np.ones(gap.length, bool)})
        out += self._pieces(Piece(first, uv, "", arrived, off, rail), {"lead-off": off.any(0), "signal": rail.any(0)})
        self.last = uv[:, -1]
        return out

    def _line(self, to: np.ndarray, length: int) -> np.ndarray:
        """Straight from the last moment to the next one, both left out."""
        share = np.arange(1, length + 1) / (length + 1)
        return np.rint(self.last[:, None] * (1 - share) + to[:, None] * share).astype(np.int32)

    def _pieces(self, whole: Piece, masks: dict[str, np.ndarray]) -> list[Piece]:
        """Cut where moments begin and cease to be bad; masks: reason -> bool (moment,)."""
        masked = np.any(list(masks.values()), axis=0)
        held = np.concatenate([self.masked, masked])
        if not masked.any():
            self.masked = held[-self.window:]
            return [whole]
        total, n = np.cumsum(held), len(masked)
        over = masked & (total[self.window:] - total[:n] > self.allowed)
        self.masked = held[-self.window:]
        edges = [0, *(np.flatnonzero(np.diff(over)) + 1).tolist(), n]
        return [Piece(whole.first + a, whole.uv[:, a:b], self._why(masks, slice(a, b)) if over[a] else "",
                      whole.arrived, whole.off[:, a:b], whole.rail[:, a:b])
                for a, b in itertools.pairwise(edges) if b > a]

    @staticmethod
    def _why(masks: dict[str, np.ndarray], where: slice) -> str:
        """The reason that most of the moments have."""
        return max(masks, key=lambda reason: int(masks[reason][where].sum()))
