# SPDX-License-Identifier: Apache-2.0
"""A recording again through the bridge, and whether it says what was said live.

    python firmware_bridge/replay.py --recording recordings/0f3a_20260101T120000Z --run runs/demo
    python firmware_bridge/replay.py --recording REC --run runs/demo --target arm --speed 1

Moments keep their indices and gaps their reasons, so decisions, beats and gaps are those of the session, whatever the
portions were in which its moments arrived.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say

PORTION_S = 0.04        # of moments that come at once


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Replay a recording, and compare what is found with what was found live.")
    p.add_argument("--recording", required=True, metavar="REC", help="folder that live.py --record made")
    p.add_argument("--run", metavar="R", help="run folder, built by targets/deploy.py; none: beats and gaps only")
    p.add_argument("--target", default="host", metavar="T", help="what classifies: host, arm, litert, jetson (host)")
    p.add_argument("--threads", type=int, default=1, help="of the runtime (1)")
    p.add_argument("--speed", type=float, default=0.0, metavar="X", help="times real time; 0: as fast as it goes (0)")
    p.add_argument("--age", type=int, default=-1, help="of the patient in years, for models that ask")
    p.add_argument("--sex", choices=("M", "F"), help="of the patient, for models that ask")
    p.add_argument("--jsonl", metavar="FILE", help="what is found, as lines of JSON; - for standard output")
    p.add_argument("--quiet", action="store_true", help="print only how far they agree")
    return p


class Tape:
    """A recording as the bridge's decoder and timeline at once: moments that have their indices already.

    sources: place of the channel of each lead that comes straight from one; began: host seconds of the first moment.
    """

    def __init__(self, recording, places: dict[str, int], began: float = 0.0):
        from firmware_bridge.clock import Clock
        from firmware_bridge.timeline import Tally
        from firmware_bridge.wire import Stats
        self.recording, self.places, self.began = recording, places, began
        self.profile, self.stats = recording.profile, Stats()
        self.clock, self.tally, self.next = Clock(recording.fs), Tally(), 0
        self.clock_now = began
        self._gaps, (self._turns, self._masks) = recording.gaps(), recording.lead_off()
        self._portion = max(round(PORTION_S * recording.fs), 1)

    @property
    def over(self) -> bool:
        """Nothing is left."""
        return self.next >= self.recording.moments

    @property
    def due(self) -> float:
        """Host seconds at which the next portion comes."""
        return self.began + min(self.next + self._portion, self.recording.moments) / self.recording.fs

    def feed(self, data: bytes, now: float) -> list:
        """The next gap, or the moments up to the next one."""
        from firmware_bridge.session import Gap
        from firmware_bridge.timeline import Run
        if self._gaps and self._gaps[0].first <= self.next:
            gap = self._gaps.pop(0)
            return [Gap(self.next, gap.first + gap.length - self.next, gap.reason)]
        until = min(self._gaps[0].first if self._gaps else self.recording.moments, self.next + self._portion)
        counts = self.recording.counts(self.next, until - self.next)
        return [Run(self.next, counts, self._off(len(counts)), now)]

    def push(self, item) -> list:
        """A gap or moments, counted."""
        from firmware_bridge.session import Gap
        if isinstance(item, Gap):
            self.tally.missing += item.length
            self.next += item.length
        else:
            self.tally.taken += len(item.counts)
            self.next += len(item.counts)
            self.clock.arrived(self.next - 1, item.arrived)
        return [item]

    def _off(self, count: int):
        """uint32 (moment,) by channel: masks by lead turned back. A derived lead is off with I or II; where neither is
        shown, both are taken to be off, which says the same of every lead that is."""
        import numpy as np
        at = np.searchsorted(self._turns, np.arange(self.next, self.next + count), side="right")
        by_lead = np.concatenate([np.zeros(1, np.uint32), self._masks])[at]
        out = np.zeros(count, np.uint32)
        for k, lead in enumerate(self.recording.leads):
            off = by_lead >> np.uint32(k) & np.uint32(1)
            for name in (lead,) if lead in self.places else ("I", "II"):
                if name in self.places and (name == lead or name not in self.recording.leads):
                    out |= off << np.uint32(self.places[name])
        return out


class Found:
    """What the bridge says, as a sink."""

    def __init__(self):
        self.decisions, self.beats, self.gaps = [], [], []

    def begin(self, session) -> None:
        """Nothing to prepare."""

    def take(self, item) -> None:
        """Keep what can be compared."""
        from firmware_bridge.session import Beat, Decision, Gap
        for kind, kept in ((Decision, self.decisions), (Beat, self.beats), (Gap, self.gaps)):
            if isinstance(item, kind):
                kept.append(item)

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Nothing is open."""


def replay(recording, manifest=None, classifier=None, speed: float = 0.0, sinks=()):
    """(bridge, Found) after the whole recording went through. classifier: None for beats and gaps only."""
    import time

    from firmware_bridge import leads
    from firmware_bridge.bridge import Bridge
    from firmware_bridge.session import Session
    from firmware_bridge.watch import Watch
    from train.frontend import design
    recorded = manifest is None and recording.model is not None
    wanted = manifest.waveform.leads if manifest else recording.leads if recorded else None
    wiring = leads.wire(recording.profile, wanted, recording.settings.get("leads") or None,
                        recording.settings.get("nv_per_count"))
    session = Session(recording.profile, recording.fs, wiring.leads, manifest, recording.about["started"],
                      recording.settings, recording.about["session"])
    began = time.monotonic()
    tape, found = Tape(recording, {lead: s.place for lead, s in wiring.sources.items()}, began), Found()
    spec = manifest.frontend if manifest else recording.about["frontend"] or design(250)
    if classifier is not None and speed != 1:
        classifier.clock = lambda: tape.clock_now       # what is not in its own time has no latency
    bridge = Bridge(session, tape, wiring, Watch(spec, recording.fs, wiring.leads), [found, *sinks], classifier)
    bridge.timeline = tape
    ticked = began
    while not tape.over:
        due = tape.clock_now = tape.due
        if speed:
            time.sleep(max(began + (due - began) / speed - time.monotonic(), 0))
        bridge.feed(b"", due)
        if due - ticked >= 0.1:
            ticked = due
            bridge.tick(due)
    bridge.close()
    return bridge, found


def compared(recording, found, classified: bool = True) -> dict:
    """How many of the decisions, beats and gaps of a recording were found again, with what was only in one of them.

    A recording that was cut off may lack what its last second brought: nothing behind its last word is compared.
    """
    from firmware_bridge.sinks.recorder import words

    def fewer(items, last):
        return items if recording.complete else [i for i in items if i[0] <= last]

    def counted(then, now):
        now = fewer(now, then[-1][0] if then else -1)
        same = len(set(then) & set(now))
        return {"recorded": len(then), "found": len(now), "same": same, "agree": then == now}
    beats = counted([(i,) for i in recording.beats()], [(b.index,) for b in found.beats])
    gaps = counted([(g.first, g.length, g.reason) for g in recording.gaps()],
                   [(g.first, g.length, g.reason) for g in found.gaps])
    if not classified:
        return {"beats": beats, "gaps": gaps}
    then = [(d.index, d.words, d.beat, d.logits) for d in recording.decisions()]
    now = [(d.index, words(d), d.beat, d.logits.astype("int8").tobytes()) for d in found.decisions]
    return {"decisions": counted(then, now), "beats": beats, "gaps": gaps}


def classifier_of(args, recording):
    """(manifest, classifier) of the run; (None, None) without one."""
    if args.run is None:
        return None, None
    from firmware_bridge import classify
    from targets import target
    from train.sides import sex_code
    manifest, graph = target.open_run(args.run)
    local = classify.local(args.run, args.target, manifest, graph, recording.fs, args.threads)
    local.decider.patient(args.age, sex_code(args.sex))
    return manifest, local


def main(args) -> dict:
    """Replay and compare; what differs is told, not an error."""
    from firmware_bridge.recordings import Recording
    from firmware_bridge.sinks.jsonl import JsonLines
    from firmware_bridge.sinks.terminal import Terminal
    if args.speed < 0:
        raise say.UserError(f"--speed {args.speed:g}", "0 or more")
    recording = Recording(args.recording)
    manifest, classifier = classifier_of(args, recording)
    sinks = ([] if args.quiet else [Terminal()]) + ([JsonLines(args.jsonl)] if args.jsonl else [])
    bridge, found = replay(recording, manifest, classifier, args.speed, sinks)
    same = manifest is not None and recording.model is not None and \
        manifest.identity.hex() == recording.model["identity"]
    if manifest is not None and not same:
        say.warn(f"recorded with {recording.model['name'] if recording.model else 'no model'}, which is not this one: "
                 "decisions are not compared")
    result = compared(recording, found, same)
    say.table([[what, n["recorded"], n["found"], n["same"], "yes" if n["agree"] else "no"]
               for what, n in result.items()], ("", "recorded", "found", "same", "agree"))
    return {"session": bridge.session.id, "moments": recording.moments, "fs": recording.fs,
            "complete": recording.complete, "missing": bridge.timeline.tally.missing, **result}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
