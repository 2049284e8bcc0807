# SPDX-License-Identifier: Apache-2.0
"""What targets/c/ecg.c does with samples, around any runtime: front end, windows, beats, votes, decisions.

The methods are those of targets.twin.Twin, so either can stand in the other's place; with the integer reference as its
runner every decision has the C's bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_bridge.beats import Beats
from train import score
from train.frontend import SETTLE_S, FrontEnd, quantize
from train.manifest import Manifest
from train.sides import age_code

PORTION_S = 0.5         # samples taken at a time: what beats remember is good for more


def decisions(classes: int) -> np.dtype:
    """A row of targets.twin: sample at the model's rate, bit k of `present` for class k, the class of an argmax rule or
    -1, whether it counts for nothing, the window's logits."""
    return np.dtype([("sample", "<u4"), ("present", "<u4"), ("top", "<i4"), ("unreliable", "<i4"),
                     ("logits", "i1", (classes,))])


class Engine:
    """runner: {name: int8 (*shape)} -> int8 logits (class,), see targets.target.Runner. fs_in: Hz of the samples."""

    def __init__(self, manifest: Manifest, runner: Callable, fs_in: float | None = None):
        self.manifest, self.runner = manifest, runner
        self.front = FrontEnd(manifest.frontend, fs_in or manifest.fs, len(manifest.waveform.leads))
        self.settle = SETTLE_S * manifest.fs
        self.sides = [i for i in manifest.inputs if i.kind != "waveform"]
        self.age = self.sex = np.int8(0)
        self.patient()
        self.reset()

    def patient(self, age: int = -1, sex: int = 0) -> None:
        """Years or -1; 1 male, 2 female, 0 unknown."""
        self.age, self.sex = np.int8(age_code(age)), np.int8(sex if sex in (1, 2) else 0)

    def reset(self) -> None:
        """A new record begins."""
        m, kinds = self.manifest, {i.kind for i in self.sides}
        self.front.reset()
        self.now = self.good = 0                            # samples so far; windows from `good` on count
        self.codes = np.zeros((len(m.waveform.leads), 0), np.int8)
        self.start = 0                                      # sample of codes[:, 0]
        self.votes = np.zeros((0, len(m.classes)), np.int64)
        self.sums, self.windows = np.zeros(len(m.classes), np.int64), 0
        beats = m.trigger.kind == "r-peak" or kinds & {"rr", "beats"}
        self.beats = Beats(m.fs, m.trigger.beats_after, "beats" in kinds) if beats else None
        self.queue = []                                     # rows whose window is not whole

    def bad(self) -> None:
        """The samples so far are bad: windows that hold one, or what it leaves in the filters, count for nothing."""
        self.good = self.now + self.settle

    def decide(self, uv: np.ndarray) -> np.ndarray:
        """int32 microvolts (lead, n) -> the decisions they complete."""
        step = max(round(PORTION_S * self.manifest.fs), 1)
        parts = (uv[:, at:at + step] for at in range(0, uv.shape[1], step))
        rows = [row for part in parts for row in self._portion(self.front.push(part))]
        return np.array(rows, decisions(len(self.manifest.classes)))

    def _portion(self, x: np.ndarray) -> list[tuple]:
        """int16 microvolts (lead, n) behind the front end."""
        m, before = self.manifest, self.now
        self.codes = np.concatenate([self.codes, quantize(x, round(m.waveform.lsb))], 1)
        self.now += x.shape[1]
        if self.beats is not None:
            self.queue += self.beats.push(x[0])
        rows = self._around() if m.trigger.kind == "r-peak" else self._hops(before)
        self._forget()
        return rows

    # ---- triggers

    def _hops(self, before: int) -> list[tuple]:
        """Windows that end in (before, now]; the first samples are not looked at while the filters settle."""
        m, hop, rows = self.manifest, self.manifest.trigger.hop, []
        first = self.settle + m.window
        passed = max(-(-(before + 1 - first) // hop), 0)
        for end in range(first + passed * hop, self.now + 1, hop):
            sequence = self.beats.sequence(end) if self.beats is not None else None
            logits = self._logits(end - m.window, None, sequence)
            rows.append(self._decided(logits, self._counts(end - m.window), end - 1))
        return rows

    def _around(self) -> list[tuple]:
        """Windows around beats, once they are whole; before the start lies silence."""
        m, rows = self.manifest, []
        while self.queue and self.queue[0].r - m.trigger.offset + m.window <= self.now:
            beat = self.queue.pop(0)
            first = beat.r - m.trigger.offset
            logits = self._logits(first, beat.rr, beat.beats)
            good = beat.r >= self.settle and self._counts(first)
            rows.append(self._decided(logits, good, beat.r))
        return rows

    def _logits(self, first: int, rr, sequence) -> np.ndarray:
        m = self.manifest
        window = self.codes[:, max(first - self.start, 0):first - self.start + m.window]
        window = np.pad(window, ((0, 0), (m.window - window.shape[1], 0)))
        known = {"rr": rr, "beats": sequence, "age": self.age[None], "sex": self.sex[None]}
        sides = {i.name: known[i.kind] for i in self.sides}
        return self.runner({m.waveform.name: np.ascontiguousarray(window)} | sides)

    # ---- decisions

    def _counts(self, first: int) -> bool:
        """Nothing from sample `first` on was marked bad."""
        return first >= self.good

    def _decided(self, logits: np.ndarray, good: bool, sample: int) -> tuple:
        rule = self.manifest.decision
        logits = np.array(logits, np.int8)
        if not good:
            return sample, 0, -1, 1, logits
        self._vote(logits)
        count = min(self.windows, rule.vote) if rule.vote else self.windows
        found = score.decide(self.sums[None], np.array([count]), rule.rule, rule.offsets)[0]
        if rule.rule == "argmax":
            return sample, 1 << int(found), int(found), 0, logits
        return sample, sum(1 << k for k in np.flatnonzero(found).tolist()), -1, 0, logits

    def _vote(self, logits: np.ndarray) -> None:
        """Sums over the last `vote` windows, or over all; full after 2^24 of these, as in C."""
        vote = self.manifest.decision.vote
        if not vote and self.windows == 1 << 24:
            return
        self.windows += 1
        self.sums = self.sums + logits
        if vote:
            self.votes = np.concatenate([self.votes, logits[None].astype(np.int64)])
            if len(self.votes) > vote:
                self.sums = self.sums - self.votes[0]
                self.votes = self.votes[1:]

    def _forget(self) -> None:
        """Codes that no window can hold any more: a beat may wait 10 s for the next one."""
        m = self.manifest
        room = m.window if m.trigger.kind == "hop" else 12 * m.fs + m.window
        drop = self.now - self.start - room
        if drop > m.window:
            self.codes, self.start = self.codes[:, drop:], self.start + drop
