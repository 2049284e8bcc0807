# SPDX-License-Identifier: Apache-2.0
"""Every moment gets its index: counters unwrapped, holes measured, nothing duplicated and nothing invented.

A device's counter wraps (Cyton: after 256 moments), so a hole is ambiguous by whole turns; the arrival time decides
between them. A counter that leaps and at once leaps back was damaged on the line: its moment is refused, the count goes
on. Without a counter the decoder tells of damaged frames, and silence of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_bridge.clock import Clock
from firmware_bridge.profiles import Profile
from firmware_bridge.session import Gap
from firmware_bridge.wire import Block

SILENCE_S = 0.5             # without a counter a pause longer than this is a hole of that length


@dataclass(frozen=True)
class Run:
    """Moments without a hole, before leads are mapped: first index, int32 (moment, channel), uint32 (moment,), host
    seconds of arrival."""

    first: int
    counts: np.ndarray
    lead_off: np.ndarray
    arrived: float


@dataclass
class Tally:
    """Where moments stayed. taken + missing = next index. refused: of a damaged counter or an implausible frame, they
    are among the missing; repeated: seen before, dropped."""

    taken: int = 0
    missing: int = 0
    refused: int = 0
    repeated: int = 0


class Timeline:
    """Blocks -> runs and gaps, in order. fs: moments a second of the index; watched: places of the channels whose
    implausible values cost the moment, by default all."""

    def __init__(self, profile: Profile, fs: float, watched: tuple[int, ...] | None = None):
        self.profile, self.fs = profile, fs
        self.watched = slice(None) if watched is None else list(watched)
        self.clock, self.tally = Clock(fs), Tally()
        self.next = 0                       # index of the next moment
        self._counter = None                # its counter; None when the next block decides
        self._held: Block | None = None     # one moment whose counter leapt: the one after it says which was right
        self._why, self._since = "lost", None
        self._down = False

    def push(self, block: Block) -> list[Run | Gap]:
        """What a block of moments brings."""
        if self._held is not None:
            block = _joined(self._held, block)
            self._held = None
        out: list[Run | Gap] = []
        parts = self._plausible(block)
        silent = self._silent(block.arrived, sum(len(p.counts) for p in parts))
        for part in parts:
            out += self._placed(part, silent)
            silent, self._since = 0.0, block.arrived
        if len(out) and isinstance(out[-1], Run):
            self.clock.arrived(self.next - 1, block.arrived)
        return out

    def broken(self, reason: str) -> None:
        """The line went down or the device started anew: what comes next has no counter to follow. reason: of GAPS."""
        self._counter, self._why, self._down, self._held = None, reason, True, None

    def index(self, counter: int) -> int | None:
        """Of the moment to which the device gives this number; None while it is not known."""
        if self._counter is None:
            return None
        ahead, turn = counter - self._counter, self.profile.counter
        if turn is not None:
            ahead = (ahead + turn // 2) % turn - turn // 2
        return self.next + ahead // self._step()

    # ---- counters

    def _plausible(self, block: Block) -> list[Block]:
        """Cut where the counter leaps, without the moments that their check or their neighbours prove wrong."""
        wrong = None if block.suspect is None else block.suspect[:, self.watched].any(1)
        if wrong is not None and wrong.any():
            self.tally.refused += int(wrong.sum())
            block = _taken(block, ~wrong)
        if block.counter is None or not len(block.counts):
            return [block] if len(block.counts) else []
        if self.profile.counter is None:            # the decoder's numbers are not damaged on the way
            edges = np.flatnonzero(np.diff(block.counter) != 1) + 1
            return [_taken(block, part) for part in np.split(np.arange(len(block.counts)), edges)]
        modulus = self.profile.counter
        counter = block.counter.astype(np.int64)
        step = self._step()
        first = counter[0] if self._counter is None else self._counter
        if counter[0] == first and (len(counter) == 1 or (np.diff(counter) % modulus == step).all()):
            return [block]
        return self._cut(block, counter, step)

    def _cut(self, block: Block, counter: np.ndarray, step: int) -> list[Block]:
        """A leap stands when the next moment follows it; the last moment of a portion waits for the next portion."""
        modulus, keep = self.profile.counter, np.ones(len(counter), bool)
        expected = self._counter
        for i in range(len(counter)):
            wrong = expected is not None and counter[i] != expected
            if wrong and i + 1 == len(counter):
                self._held = _taken(block, np.arange(len(counter)) == i)
                keep[i] = False
                break
            if wrong and counter[i + 1] == (expected + step) % modulus:
                keep[i] = False                 # the count goes on behind it: its counter was damaged
                self.tally.refused += 1
                expected = (expected + step) % modulus
                continue
            expected = (counter[i] + step) % modulus
        kept, numbers = _taken(block, keep), counter[keep]
        edges = np.flatnonzero(np.diff(numbers) % modulus != step) + 1
        return [_taken(kept, part) for part in np.split(np.arange(len(numbers)), edges) if len(part)]

    def _step(self) -> int:
        """Counts between two moments."""
        return round(self.profile.ticks / self.fs) if self.profile.ticks else 1

    # ---- indices

    def _placed(self, part: Block, silent: float) -> list[Run | Gap]:
        """A part without leaps, behind a gap where there is one."""
        hole = self._hole(part, silent)
        if hole < 0:
            self.tally.repeated += min(-hole, len(part.counts))
            part, hole = _taken(part, slice(-hole, None)), 0
            if not len(part.counts):
                return []
        out: list[Run | Gap] = []
        if hole:
            out.append(Gap(self.next, hole, self._why))
            self.tally.missing += hole
            self.next += hole
        self._why, self._down = "lost", False
        out.append(Run(self.next, part.counts, part.lead_off, part.arrived))
        self.tally.taken += len(part.counts)
        self.next += len(part.counts)
        if part.counter is not None:
            after = int(part.counter[-1]) + self._step()
            self._counter = after if self.profile.counter is None else after % self.profile.counter
        return out

    def _hole(self, part: Block, silent: float) -> int:
        """Moments missing in front of a part after a silence of so many; negative when it repeats some."""
        if self._since is None:
            return 0
        if self._counter is None or part.counter is None or self.profile.counter is None:
            known = int(part.counter[0]) - self._counter if self._counter is not None else 0
            return round(silent) if self._down or silent - known > SILENCE_S * self.fs else known
        step, modulus = self._step(), self.profile.counter
        ahead = int(part.counter[0] - self._counter) % modulus
        turn = modulus / step
        if ahead == 0 and silent < turn / 2:
            return 0
        near = ahead / step
        hole = near + max(round((silent - near) / turn), 0) * turn
        if modulus >= 1 << 24 and near > turn / 2:
            return -round((modulus - ahead) / step)     # a long counter does not turn: it went back
        return round(hole)

    def _silent(self, arrived: float, count: int) -> float:
        """Moments that should have come between the last portion and the first of the `count` moments of this one."""
        return 0.0 if self._since is None else (arrived - self._since) * self.fs - count


def _taken(block: Block, which) -> Block:
    return Block(block.counts[which], None if block.counter is None else block.counter[which], block.lead_off[which],
                 block.arrived, None)


def _joined(a: Block, b: Block) -> Block:
    counter = None if b.counter is None else np.concatenate([a.counter, b.counter])
    suspect = None if b.suspect is None else np.concatenate([np.zeros(a.counts.shape, bool), b.suspect])
    return Block(np.concatenate([a.counts, b.counts]), counter, np.concatenate([a.lead_off, b.lead_off]), b.arrived,
                 suspect)
