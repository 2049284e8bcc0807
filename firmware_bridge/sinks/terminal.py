# SPDX-License-Identifier: Apache-2.0
"""A session on a terminal: what happens as lines, how it stands as one that is rewritten. Plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque

from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch

EVERY_S = 0.5           # the status line
LATENCIES = 200         # decisions that the median latency is of
STYLE = {"info": "", "warning": "yellow", "error": "bold red", "debug": "dim"}


class Terminal:
    """stream: where to (standard error, so that --json keeps standard output)."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.counts, self.missing = Counter(), Counter()
        self.latency: deque[float] = deque(maxlen=LATENCIES)
        self.bpm, self.quality, self.last, self.moments, self.drawn = None, None, None, 0, 0.0
        self.compared = self.equal = 0
        self.console = None

    def begin(self, session: Session) -> None:
        """The session's heading."""
        self.session = session
        if self.live:
            from rich.console import Console
            self.console = Console(file=self.stream, highlight=False)
        m = session.manifest
        model = f"model {m.name} {m.identity.hex()[:16]}" if m else "no model, nothing is classified"
        leads = ", ".join(session.leads)
        self._line(f"session {session.id}: {session.profile.title}, {session.fs:g} Hz, leads {leads}; {model}")

    def take(self, item) -> None:
        """What happens."""
        if isinstance(item, Stretch):
            self.moments = item.first + len(item.counts)
        elif isinstance(item, Beat):
            self.bpm = item.bpm or self.bpm
        elif isinstance(item, Quality):
            self.quality = item
        elif isinstance(item, Gap):
            self.missing[item.reason] += item.length
            if item.length > self.session.fs / 2:
                seconds = item.length / self.session.fs
                self._line(f"{self._at(item.first)}  gap of {seconds:.2f} s: {item.reason}", "warning")
        elif isinstance(item, Event):
            self._line(f"{self._at(item.index)}  {item.kind}: {item.text}", item.level)
        elif isinstance(item, Decision):
            self._decision(item)

    def _decision(self, d: Decision) -> None:
        self.latency.append(d.latency_ms)
        if d.agrees is not None:
            self.compared += 1
            self.equal += d.agrees
            if not d.agrees:
                self._line(f"{self._at(d.index)}  the device and its twin disagree", "error")
        said = "unreliable: " + d.unreliable if d.unreliable else " + ".join(d.present) or "none of the classes"
        self.counts[said] += 1
        if said != self.last:
            self._line(f"{self._at(d.index)}  {said}")
        self.last = said

    def tick(self, now: float) -> None:
        """The status line, twice a second at most."""
        if self.live and time.monotonic() - self.drawn >= EVERY_S:
            self.drawn = time.monotonic()
            self.stream.write("\r\x1b[K" + self._status()[:self.console.width - 1])
            self.stream.flush()

    def _status(self) -> str:
        rate = f"{self.bpm:.0f}/min" if self.bpm else "--/min"
        parts = [self._at(self.moments), rate, self.last or "no decision yet"]
        if self.quality:
            parts.append("signal " + " ".join(map("".join, zip(self.session.leads, self.quality.grades, strict=True))))
        if self.latency:
            parts.append(f"{sorted(self.latency)[len(self.latency) // 2]:.0f} ms")
        if self.missing:
            parts.append(f"missing {sum(self.missing.values())}")
        if self.compared:
            parts.append(f"twin {self.equal}/{self.compared}")
        return "  ".join(parts)

    def _at(self, index: int) -> str:
        """h:mm:ss.t of a moment."""
        tenths = round(index / self.session.fs * 10)
        return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"

    def _line(self, text: str, level: str = "info") -> None:
        if self.console is not None:
            self.stream.write("\r\x1b[K")
            self.console.print(text, style=STYLE.get(level, ""), markup=False)
        else:
            print(text, file=self.stream, flush=True)

    def end(self) -> None:
        """The sum of the session."""
        missing = ", ".join(f"{n} {why}" for why, n in self.missing.items()) or "none"
        said = ", ".join(f"{what} {n}" for what, n in self.counts.most_common()) or "none"
        self._line(f"{self._at(self.moments)}  end: {self.moments} moments, missing: {missing}; decisions: {said}"
                   + (f"; twin agrees {self.equal} of {self.compared}" if self.compared else ""))
