# SPDX-License-Identifier: Apache-2.0
"""What a person sees beside the decisions: heart beats, rate and signal quality, on the moments of the session.

It has a front end of its own, so that it says the same whichever target classifies, or none.
"""

from __future__ import annotations

import math

import numpy as np

from firmware_bridge.conditioner import Begin, Piece
from firmware_bridge.quality import AFTER_S, BEFORE_S, Graded, Monitor, Peak, Polarity
from firmware_bridge.session import Beat, Event, Quality
from train.frontend import FrontEnd, delay
from train.resample import ratio

MEMORY_S = 4        # of filtered signal, for beats that are looked at once they are whole
GATHER_S = 0.2      # a port may bring moments one by one; nobody sees sooner than so


class Watch:
    """Conditioned pieces -> beats and grades. spec: a front end's constants; leads: names, in order."""

    def __init__(self, spec: dict, fs_in: float, leads: tuple[str, ...]):
        self.fs, self.ratio = spec["fs"], float(ratio(fs_in, spec["fs"]))       # samples out for one in
        self.late = delay(spec, fs_in) / self.ratio                             # moments from R to its peak behind
        self.front, self.monitor = FrontEnd(spec, fs_in, len(leads)), Monitor(self.fs, len(leads))
        self.leads, self.polarity = leads, [Polarity(self.fs, lead) for lead in leads]
        self.gather = round(GATHER_S * fs_in)                       # moments
        self.pieces, self.held = [], 0                              # what waits to be so many, and how many it is
        self._begin(0)

    def _begin(self, first: int) -> None:
        self.front.reset()
        self.monitor.reset()
        self.origin, self.taken, self.made = first, 0, 0
        self.x, self.start = np.zeros((len(self.leads), 0), np.int16), 0
        self.waiting: list[int] = []

    def push(self, item: Piece | Begin) -> list[Beat | Quality | Event]:
        """What these moments tell."""
        if isinstance(item, Begin):
            out = self.flush()
            self._begin(item.first)
            return out
        self.pieces.append(item)
        self.held += item.uv.shape[1]
        return self.flush() if self.held >= self.gather else []

    def flush(self) -> list[Beat | Quality | Event]:
        """What the moments tell that still wait."""
        if not self.pieces:
            return []
        uv, off, rail = (np.concatenate([getattr(p, name) for p in self.pieces], 1) for name in ("uv", "off", "rail"))
        self.pieces, self.held = [], 0
        x = self.front.push(uv)
        off, rail = (self._stretched(mask, x.shape[1]) for mask in (off, rail))
        self.made += x.shape[1]
        self.x = np.concatenate([self.x, x], 1)
        out = [self._told(found) for found in self.monitor.push(x, off, rail)]
        out += self._upside_down()
        drop = max(self.x.shape[1] - MEMORY_S * self.fs, 0)
        self.x, self.start = self.x[:, drop:], self.start + drop
        return out

    @staticmethod
    def _stretched(mask: np.ndarray, length: int) -> np.ndarray:
        """bool (lead, moment) at the rate behind the front end."""
        n = mask.shape[1]
        return mask[:, np.arange(length) * n // max(length, 1)] if n else np.zeros((len(mask), length), bool)

    def _moment(self, sample: float) -> int:
        """The moment at which a sample behind the front end was taken."""
        return self.origin + math.floor(sample / self.ratio + 0.5)

    def _told(self, found: Graded | Peak) -> Beat | Quality:
        if isinstance(found, Graded):
            return Quality(self._moment(found.index), found.grades, found.reasons)
        self.waiting.append(found.index)
        return Beat(max(self._moment(found.index) - round(self.late), self.origin), found.bpm)

    def _upside_down(self) -> list[Event]:
        """Leads that are likely on the wrong way round, each told once."""
        before, after = round(BEFORE_S * self.fs), round(AFTER_S * self.fs)
        whole = [r for r in self.waiting if r + after <= self.made]
        self.waiting = self.waiting[len(whole):]
        return [Event(self._moment(r), "inverted", f"lead {lead} is probably the wrong way round", "warning")
                for r in whole if r - before >= self.start for k, lead in enumerate(self.leads)
                if self.polarity[k].beat(self.x[k, r - before - self.start:r + after - self.start])]
