# SPDX-License-Identifier: Apache-2.0
"""Results of our firmware -> decisions on the moments of the session."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

from firmware_bridge.classify import named
from firmware_bridge.conditioner import Begin, Piece
from firmware_bridge.session import Decision
from targets import edgelink
from targets.edgelink import Result
from train.frontend import SETTLE_S
from train.manifest import Manifest


@dataclass
class Stream:
    """Moments without a hole on the board. since: number of the first result that it may bring; first: index in the
    session; base: index at the model's rate that the firmware gives its first sample; bad: (index, reason, when handed
    to the line), where bad moments have another reason than the last ones."""

    since: int
    first: int
    base: int
    bad: deque = field(default_factory=lambda: deque(maxlen=64))


class Reader:
    """Results -> decisions on the moments of the session."""

    def __init__(self, manifest: Manifest, fs: float):
        self.manifest, self.fs, self.ratio = manifest, fs, fs / manifest.fs
        self.streams: deque[Stream] = deque(maxlen=16)
        self._sent: deque = deque(maxlen=4096)          # (index behind the last moment, arrived, handed to the line)

    def begin(self, first: int, index: int, since: int) -> None:
        """The firmware's sample `index` is moment `first`, and nothing came before it."""
        base = (index & 0xFFFFFFFF) * self.manifest.fs // Fraction(self.fs)         # at_model() of app_stream.c
        self.streams.append(Stream(since, first, base))

    def sent(self, piece: Piece, now: float) -> None:
        """A piece has left."""
        self._sent.append((piece.first + piece.uv.shape[1], piece.arrived, now))
        bad = self.streams[-1].bad
        if piece.bad and (not bad or bad[-1][1] != piece.bad):
            bad.append((piece.first, piece.bad, now))

    def decision(self, result: Result, now: float) -> Decision | None:
        """None for a result of no stream that is known."""
        last = result.first_index + result.n - 1
        for stream in reversed(self.streams):
            sample = (last - stream.base) & 0xFFFFFFFF
            if stream.since <= result.number and sample < 1 << 31:
                break
        else:
            return None
        m = self.manifest
        at = stream.first + math.ceil((sample + 1) * self.ratio)
        beat = stream.first + round(sample * self.ratio) if m.trigger.kind == "r-peak" else None
        why = ""
        if result.flags & edgelink.UNRELIABLE:
            by = now - result.latency_ms / 1000
            bad = [reason for first, reason, sent in stream.bad if (first < at if beat is None else sent <= by)]
            why = bad[-1] if bad and sample >= SETTLE_S * m.fs else "settling"
        waited = 1000 * (now - self._needed(at, result, now))
        return Decision(at, named(m, result.present), result.scores.copy(), why, beat, waited)

    def _needed(self, at: int, result: Result, now: float) -> float:
        """When the last moment that a decision needed arrived: for a beat the last one that the board had by then."""
        found, sent_by = now, now - result.latency_ms / 1000
        for end, arrived, sent in reversed(self._sent):
            if self.manifest.trigger.kind == "r-peak":
                if sent <= sent_by:
                    return arrived
            elif end < at:
                break
            found = arrived
        return found


class OnSensor:
    """Decisions of a board with its own sensor, which come over the line of its samples (protocols/edgelink.py).

    heard: of the talk. timeline: of the bridge, set once it is there; it knows which moment a number of the board is.
    latency_ms is what the board measured: from the sample to the decision.
    """

    def __init__(self, heard, manifest: Manifest, fs: float):
        edgelink.refuse_other_model(heard.about.model[0].identity, manifest.identity, heard.about.board_name)
        self.heard, self.manifest, self.ratio, self.timeline = heard, manifest, fs / manifest.fs, None
        self.origin, self.settled = 0, SETTLE_S * fs
        self._bad: deque = deque(maxlen=64)

    def push(self, item: Piece | Begin) -> list[Decision]:
        """The board has these moments already; here they only tell why a decision does not count."""
        if isinstance(item, Begin):
            self.origin = item.first
            self._bad.clear()
        elif item.bad:
            self._bad.append((item.first, item.bad))
        return self.poll()

    def poll(self) -> list[Decision]:
        """What has come in, but for what was decided before the first moment."""
        out = []
        while self.heard.results:
            result, _ = self.heard.results.popleft()
            last = result.first_index + result.n - 1
            at = self.timeline.index(math.ceil((last + 1) * self.ratio))
            if at is not None and at > 0:
                out.append(self._decision(result, at, last))
        return out

    def close(self) -> None:
        """The talk gives the lease back."""

    def counts(self) -> dict[str, int]:
        """For a summary."""
        return {"results_lost": self.heard.skipped}

    def _decision(self, result: Result, at: int, last: int) -> Decision:
        m, why = self.manifest, ""
        if result.flags & edgelink.UNRELIABLE:
            bad = [reason for first, reason in self._bad if first < at]
            young = at - self.origin < self.settled + m.window * self.ratio
            why = bad[-1] if bad else "settling" if young else "signal"
        beat = self.timeline.index(round(last * self.ratio)) if m.trigger.kind == "r-peak" else None
        return Decision(at, named(m, result.present), result.scores.copy(), why, beat, float(result.latency_ms))
