# SPDX-License-Identifier: Apache-2.0
"""The bridge: bytes of one front-end in; stretches, gaps, beats and decisions out to every sink.

    decoder -> timeline -> leads -> stretches -> sinks
                                 -> conditioner -> classifier, shadow, watch -> sinks

Nothing here waits or reads: whoever owns the line feeds it, so live use, replay and tests are the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from firmware_bridge.classify import Classifier
from firmware_bridge.clock import REFUSE, judge
from firmware_bridge.conditioner import Conditioner
from firmware_bridge.leads import Wiring
from firmware_bridge.session import Decision, Event, Gap, Session, Sink, Stretch
from firmware_bridge.timeline import Run, Timeline
from firmware_bridge.watch import Watch
from firmware_bridge.wire import Decoder, Note
from train.say import UserError

SHADOWED = 64           # decisions that wait for their counterpart


@dataclass
class Agreement:
    """Shadow mode: decisions compared, and those with the same logits."""

    compared: int = 0
    equal: int = 0


class Bridge:
    """One session. classifier: None when nothing is classified; shadow: a second one whose logits must be equal; allow:
    relative difference of the measured rate that is accepted."""

    def __init__(self, session: Session, decoder: Decoder, wiring: Wiring, watch: Watch, sinks: list[Sink],
                 classifier: Classifier | None = None, shadow: Classifier | None = None, allow: float = REFUSE):
        self.session, self.decoder, self.wiring, self.watch = session, decoder, wiring, watch
        self.classifier, self.shadow, self.sinks, self.allow = classifier, shadow, list(sinks), allow
        self.timeline = Timeline(decoder.profile, session.fs, tuple(s.place for s in wiring.sources.values()))
        m = session.manifest
        window = round(m.window * session.fs / m.fs) if m else round(10 * session.fs)
        self.conditioner = Conditioner(session.fs, window)
        self.agreement = Agreement()
        self._ours: dict[int, Decision] = {}        # index -> decision whose counterpart has not come
        self._theirs: dict[int, Decision] = {}
        self._off = np.zeros(len(wiring.leads), bool)
        self._judged, self._began = False, None
        for sink in list(self.sinks):
            self._guarded(sink, lambda s: s.begin(session))

    # ---- in

    def feed(self, data: bytes, now: float) -> None:
        """Bytes that came in at `now` (host seconds, monotonic)."""
        for item in self.decoder.feed(data, now):
            if isinstance(item, Note):
                if item.reset:
                    self.broken("reset", item.text)
                else:
                    self.emit(Event(self.timeline.next, "device", item.text, item.level))
                continue
            for part in self.timeline.push(item):
                if isinstance(part, Gap):
                    self._gap(part)
                else:
                    self._run(part)
        self._rate()

    def broken(self, reason: str, text: str) -> None:
        """The line went down ("unplugged") or the device began anew ("reset")."""
        self.timeline.broken(reason)
        self.emit(Event(self.timeline.next, reason, text, "warning"))

    def quiet(self) -> None:
        """Nothing comes in although the line is there."""
        self.emit(Event(self.timeline.next, "silent", "the device sends nothing", "warning"))

    def back(self, text: str, decoder: Decoder | None = None) -> None:
        """The line is there again; decoder: a fresh one, whose counts go on from the old one's."""
        if decoder is not None:
            decoder.stats = self.decoder.stats
            self.decoder = decoder
        self.timeline.clock.restart()
        self._judged = False
        self.emit(Event(self.timeline.next, "back", text))

    def tick(self, now: float) -> None:
        """About ten times a second, also while nothing comes in."""
        self._poll()
        for sink in list(self.sinks):
            self._guarded(sink, lambda s: s.tick(now))

    def close(self) -> None:
        """The session is over."""
        for one in (self.classifier, self.shadow):
            if one is not None:
                one.close()
        self._poll()
        for index in sorted(self._ours):            # what the shadow has not found
            self.emit(self._ours.pop(index))
        for told in self.watch.flush():
            self.emit(told)
        for sink in list(self.sinks):
            self._guarded(sink, lambda s: s.end())
        self.sinks = []

    # ---- through

    def _run(self, run: Run) -> None:
        uv, mask = self.wiring.uv(run.counts), self.wiring.lead_off(run.lead_off)
        clock = self.timeline.clock
        seconds = clock.time(run.first) if clock.span else run.arrived - (len(run.counts) - 1) / self.session.fs
        self._began = seconds if self._began is None else self._began
        self.emit(Stretch(run.first, run.counts, uv, mask, seconds - self._began, run.arrived))
        off = (mask[None] >> np.arange(len(uv), dtype=np.uint32)[:, None] & 1).astype(bool)
        self._lead_off(off[:, -1], run.first + len(run.counts))
        for item in self.conditioner.push(uv, off, self.wiring.rails(run.counts, self.decoder.profile), run.first,
                                          run.arrived):
            for told in self.watch.push(item):
                self.emit(told)
            if self.classifier is not None:
                self._decided(self.classifier.push(item))
            if self.shadow is not None:
                self._shadowed(self.shadow.push(item))

    def _gap(self, gap: Gap) -> None:
        self.emit(gap)
        self.conditioner.gap(gap)

    def _lead_off(self, off: np.ndarray, index: int) -> None:
        """An event where a lead comes off or is on again."""
        for k in np.flatnonzero(off != self._off):
            words = "is off" if off[k] else "is on again"
            self.emit(Event(index, "lead-off", f"lead {self.wiring.leads[k]} {words}", "warning" if off[k] else "info"))
        self._off = off

    def _rate(self) -> None:
        """Say once what the device's rate really is."""
        verdict = None if self._judged else judge(self.timeline.clock, self.allow)
        if verdict is None:
            return
        self._judged = True
        if verdict.warn:
            self.emit(Event(self.timeline.next, "clock", f"the device sends {verdict.fs:.2f} moments a second, "
                            f"{verdict.off:+.2%} beside its profile's {self.session.fs:g}", "warning"))

    # ---- decisions

    def _poll(self) -> None:
        """What has become ready since."""
        if self.classifier is not None:
            self._decided(self.classifier.poll())
        if self.shadow is not None:
            self._shadowed(self.shadow.poll())

    def _decided(self, decisions: list[Decision | Event]) -> None:
        for decision in decisions:
            if self.shadow is None or isinstance(decision, Event):
                self.emit(decision)
            else:
                self._ours[decision.index] = decision
        self._match()

    def _shadowed(self, decisions: list[Decision]) -> None:
        self._theirs |= {d.index: d for d in decisions}
        self._match()

    def _match(self) -> None:
        """Decisions leave with the shadow's word; one without a counterpart leaves when it has waited too long."""
        for index in sorted(set(self._ours) & set(self._theirs)):
            ours, theirs = self._ours.pop(index), self._theirs.pop(index)
            equal = bool(np.array_equal(ours.logits, theirs.logits))
            self.agreement.compared += 1
            self.agreement.equal += equal
            self.emit(replace(ours, agrees=equal))
        while len(self._ours) > SHADOWED:
            self.emit(self._ours.pop(min(self._ours)))
        while len(self._theirs) > SHADOWED:
            self._theirs.pop(min(self._theirs))

    # ---- out

    def emit(self, item) -> None:
        """To every sink; one that fails is taken out, and the others are told."""
        for sink in list(self.sinks):
            self._guarded(sink, lambda s: s.take(item))

    def _guarded(self, sink: Sink, call) -> None:
        try:
            call(sink)
        except (OSError, UserError) as error:       # a full disk, a broker that went away: the rest goes on
            if sink in self.sinks:
                self.sinks.remove(sink)
            name = type(sink).__name__.lower()
            self.emit(Event(self.timeline.next, "sink", f"{name} stopped: {error}", "error"))
            try:
                sink.end()
            except (OSError, UserError):
                pass
