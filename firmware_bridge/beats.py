# SPDX-License-Identifier: Apache-2.0
"""Beats of one lead as they come: R peaks, and their features in any portions, with the bits of whole records.

What train/rpeak.py, template.py and rhythm.py define over records, kept up over an endless stream in bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train import rhythm, rpeak, template

MEMORY_S = 3        # seconds of signal behind the detector's latency: the farthest that a feature looks back
LONGEST_S = 10      # intervals are clipped there: no later beat changes a row
HISTORY = 68        # peaks that the RR features of the last two beats depend on


@dataclass(frozen=True)
class Row:
    """A beat whose features are complete. rr: int8 (12,), beats: int8 (16, 9) or None where no input asks for it."""

    r: int
    rr: np.ndarray
    beats: np.ndarray | None


class Beats:
    """Samples in, complete beats out. after: beats that must follow before a row is complete, 0 or 1."""

    def __init__(self, fs: int, after: int = 0, sequences: bool = False):
        self.fs, self.after = fs, after
        self.detector = rpeak.Detector(fs)
        self.template = template.Template(fs)
        self.rhythm = rhythm.Rhythm(fs) if sequences else None
        self.x, self.start = np.zeros(0, np.int16), 0       # samples from `start` on
        self.peaks: list[int] = []
        self.shape: list[int] = []                          # template features of the last beat
        self.rows = np.zeros((0, len(rhythm.NAMES)), np.int8)
        self.waiting = False                                # the last beat has not been given away

    @property
    def now(self) -> int:
        """Samples so far."""
        return self.start + len(self.x)

    def push(self, x: np.ndarray) -> list[Row]:
        """int16 microvolts (n,) -> the rows that they complete."""
        self.x = np.concatenate([self.x, x])
        out = [row for r in self.detector.push(x) for row in self._beat(r)]
        overdue = self.peaks and self.now - 1 - self.peaks[-1] >= LONGEST_S * self.fs + self.detector.latency
        if self.after and self.waiting and overdue:
            self.waiting = False
            out.append(self._row(self.peaks[-1] + LONGEST_S * self.fs))
        self._forget()
        return out

    def sequence(self, end: int) -> np.ndarray:
        """int8 (16, 9): the last beats that were known before sample `end`; the detector's latency counts."""
        known = int(np.searchsorted(np.array(self.peaks[-len(self.rows):]) + self.detector.latency, end))
        return rhythm.sequences(self.rows, np.array([known]))[0] if len(self.rows) else \
            np.zeros((rhythm.STEPS, len(rhythm.NAMES)), np.int8)

    def _beat(self, r: int) -> list[Row]:
        """A beat was decided; the row of the one before, or its own."""
        out = []
        if self.after and self.waiting:
            out.append(self._row(r))
        self.peaks.append(r)
        t = self.template
        place, reach = r - self.start, t.before + t.reach
        around = np.pad(self.x, (max(reach - place, 0), 0))[max(place - reach, 0):][:t.before + t.after + 2 * t.reach]
        self.shape = t.compare(around.astype(np.int64))
        if self.rhythm is not None:
            self.rows = np.concatenate([self.rows, self.rhythm.beats(self.x, [r - self.start])])
        self.waiting = self.after > 0
        return out if self.after else [self._row(None)]

    def _row(self, following: int | None) -> Row:
        """The row of the last beat; `following` is the next R, None where nobody asks for it."""
        ask = following is not None and len(self.peaks) > 1         # all is usual around the first beat
        peaks = [*self.peaks[-HISTORY:], *([following] if ask else [])]
        rr = rpeak.rr_features(np.array(peaks), self.fs)[-2 if ask else -1]
        sides = np.concatenate([rr, np.array(self.shape, np.int8)])
        beats = None if self.rhythm is None else rhythm.sequences(self.rows, np.array([len(self.rows)]))[0]
        return Row(self.peaks[-1], sides, beats)

    def _forget(self) -> None:
        """Only what features can look back on."""
        drop = max(len(self.x) - self.detector.latency - MEMORY_S * self.fs, 0)
        if drop > self.fs:
            self.x, self.start = self.x[drop:], self.start + drop
            if self.rhythm is not None:
                self.rhythm.moved(drop)
        self.peaks = self.peaks[-HISTORY:]
        self.rows = self.rows[-2 * rhythm.STEPS:]
