# SPDX-License-Identifier: Apache-2.0
"""How good the signal is, second by second and lead by lead, and how fast the heart beats.

Grades after Smital et al., IEEE Trans. Biomed. Eng. 67 (2020): A the whole wave can be read (SNR from 18 dB), B the QRS
complexes (5 to 18 dB), C nothing. The SNR is estimated from what repeats: the most similar other beat is the signal,
half of the difference noise; so a bigeminy has its two shapes. Taking the most similar one flatters noise and beats
differ without any, hence the limits. bench/quality.py measures how often the grade is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.frontend import SETTLE_S
from train.rpeak import Detector

LIMIT_A, LIMIT_C = 16.5, 8.5            # estimated dB; chosen on every second record of MIT-BIH with noise of NSTDB
BEFORE_S, AFTER_S = 0.3, 0.4            # of a beat
MEMORY_S, RECENT_S = 10.0, 4.0          # beats that make the signal, beats that are judged
LEAST_BEATS = 3
FLAT_UV = 30                            # a second whose range is smaller has no ECG in it
TOLERATED = 0.1                         # share of a second that may be off or at a rail
RATE_BEATS = 8                          # intervals that the heart rate is the median of


@dataclass(frozen=True)
class Graded:
    """A second that ends before sample `index`: grade and reason of each lead."""

    index: int
    grades: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Peak:
    """An R peak at sample `index`; bpm None before the second beat."""

    index: int
    bpm: float | None


class Monitor:
    """One stream behind the front end. Indices count samples at fs since the last reset; the first lead finds beats."""

    def __init__(self, fs: int, leads: int):
        self.fs, self.leads = fs, leads
        self.before, self.after = round(BEFORE_S * fs), round(AFTER_S * fs)
        self.detector = Detector(fs)
        self.reset()

    def reset(self) -> None:
        """As at a gap."""
        self.detector.reset()
        self.x = np.zeros((self.leads, 0), np.int16)            # the last seconds
        self.bad = np.zeros((2, self.leads, 0), bool)           # off and at a rail, of the second that is being filled
        self.start = 0                                          # index of x[:, 0]
        self.peaks: list[int] = []

    def push(self, x: np.ndarray, off: np.ndarray, rail: np.ndarray) -> list[Graded | Peak]:
        """int16 microvolts, bool, bool, each (lead, n) -> what these samples complete, in order."""
        out: list[Graded | Peak] = []
        while x.shape[1]:
            take = min(self.fs - self.bad.shape[2], x.shape[1])
            out += [self._peak(p) for p in self.detector.push(x[0, :take])]
            self.x = np.concatenate([self.x, x[:, :take]], 1)
            self.bad = np.concatenate([self.bad, np.stack([off[:, :take], rail[:, :take]])], 2)
            x, off, rail = x[:, take:], off[:, take:], rail[:, take:]
            if self.bad.shape[2] == self.fs:
                out.append(self._second())
        return out

    def _peak(self, index: int) -> Peak:
        self.peaks.append(index)
        steps = np.diff(self.peaks[-RATE_BEATS - 1:])
        return Peak(index, float(60 * self.fs / np.median(steps)) if len(steps) else None)

    def _second(self) -> Graded:
        """Grade the second that is full, forget what is too old."""
        now, share = self.start + self.x.shape[1], self.bad.mean(2)
        found = [self._lead(k, now, *share[:, k]) for k in range(self.leads)]
        self.bad = self.bad[:, :, :0]
        drop = max(self.x.shape[1] - round((MEMORY_S + AFTER_S) * self.fs), 0)
        self.x, self.start = self.x[:, drop:], self.start + drop
        self.peaks = [p for p in self.peaks if p >= self.start] or self.peaks[-1:]
        return Graded(now, *(tuple(f) for f in zip(*found, strict=True)))

    def _lead(self, k: int, now: int, off: float, rail: float) -> tuple[str, str]:
        if off > TOLERATED:
            return "C", "lead-off"
        if rail > TOLERATED:
            return "C", "rail"
        if np.ptp(self.x[k, -self.fs:].astype(np.int32)) < FLAT_UV:
            return "C", "flat"
        snr = self._snr(k, now)
        if snr is None:                     # too few beats to tell: not worse than it may be
            return "B", "settling" if now < (SETTLE_S + RECENT_S) * self.fs else "no beats"
        return ("A", "") if snr >= LIMIT_A else ("B", "noise") if snr >= LIMIT_C else ("C", "noise")

    def _snr(self, k: int, now: int) -> float | None:
        """dB; None with too few beats."""
        whole = [p for p in self.peaks if p - self.before >= self.start and p + self.after <= now]
        if len(whole) < LEAST_BEATS:
            return None
        at = np.array(whole)[:, None] - self.start + np.arange(-self.before, self.after)
        beats = self.x[k, at].astype(float)
        recent = [i for i, p in enumerate(whole) if p >= now - RECENT_S * self.fs]
        recent = recent if len(recent) > 1 else [len(whole) - 2, len(whole) - 1]
        apart = (beats[recent][:, None] - beats).var(2)             # (recent beat, beat)
        apart[range(len(recent)), recent] = np.inf
        noise, whole_wave = np.median(apart.min(1)) / 2, np.median(beats[recent].var(1))
        return float(10 * np.log10(max(whole_wave - noise, 1.0) / max(noise, 1.0)))


class Polarity:
    """Is a lead upside down? Counts beats whose QRS complex and T wave both point down.

    In I, II, V5, V6 and MLII of an adult most of both points up; a lead in which both point down in nearly every beat
    was probably put on the wrong way round. A guess, worth a warning, never a correction.
    """

    LIKELY = ("I", "II", "MLII", "V5", "V6")
    BEATS, SHARE = 40, 0.9

    def __init__(self, fs: int, lead: str):
        self.fs, self.watched = fs, lead in self.LIKELY
        self.seen = self.down = 0

    def beat(self, around: np.ndarray) -> bool:
        """int16 microvolts from BEFORE_S before R to AFTER_S after it; True once, when the lead is likely inverted."""
        if not self.watched or self.seen >= self.BEATS:
            return False
        r, near = round(BEFORE_S * self.fs), round(0.06 * self.fs)
        x = around.astype(float) - np.median(around)
        qrs, t = x[r - near:r + near], x[r + round(0.14 * self.fs):]
        self.seen += 1
        self.down += -qrs.min() > 1.2 * qrs.max() and -t.min() > 1.2 * t.max()
        return self.seen == self.BEATS and self.down >= self.SHARE * self.BEATS
