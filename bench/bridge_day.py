# SPDX-License-Identifier: Apache-2.0
"""A long recording through the bridge, byte by byte as a front-end sends it, with every moment compared with the truth.

The synthetic patient's minutes go round; the simulator's own device end makes bytes of them, faults.py damages these,
and a sink that knows what was sent looks at every moment that comes out: its value at its index. Time is the signal's.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass, field, replace

import numpy as np

from firmware_bridge import faults as fault
from firmware_bridge import leads, profiles, sources
from firmware_bridge.bridge import Bridge
from firmware_bridge.session import Beat, Decision, Gap, Quality, Session, Stretch
from firmware_bridge.watch import Watch
from train import say

PORTION_S = 0.1             # of signal that a portion of bytes holds
PIECE_S = 10.24             # of signal made at once: whole turns of an 8-bit counter at 250 Hz
ROUND = 60                  # pieces of the patient, before they come again
CALM_S = 1.0                # without damage at the start, around an unplugged line and at the end
USUAL = "skip=1e-4,drop=2e-6,flip=2e-6,insert=2e-6,noise=1e-4,lead-off=0.05"
WIRED = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def rss() -> float:
    """MB of memory that this process holds now; 0.0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


@dataclass
class Auditor:
    """A sink that knows what was sent. taken: moments; wrong: indices of those with another value than was sent there;
    doubled: that came twice; gaps: (first, length)."""

    taken: int = 0
    wrong: list[int] = field(default_factory=list)
    doubled: int = 0
    decisions: int = 0
    unreliable: int = 0
    beats: int = 0
    grades: int = 0
    events: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    next: int = 0
    truth: dict[int, np.ndarray] = field(default_factory=dict)      # number of the first moment -> counts

    def begin(self, session: Session) -> None:
        """Nothing to prepare."""

    def take(self, item) -> None:
        """Compare, count."""
        if isinstance(item, Stretch):
            self.taken += len(item.counts)
            self.doubled += max(self.next - item.first, 0)
            self.next = item.first + len(item.counts)
            wrong = (item.counts != self._sent(item.first, len(item.counts))).any(1)
            if wrong.any():
                self.wrong += (item.first + np.flatnonzero(wrong)).tolist()
        elif isinstance(item, Gap):
            self.gaps.append((item.first, item.length))
            self.next = max(self.next, item.first + item.length)
        elif isinstance(item, Decision):
            self.decisions += 1
            self.unreliable += bool(item.unreliable)
        elif isinstance(item, Beat):
            self.beats += 1
        elif isinstance(item, Quality):
            self.grades += 1
        else:
            self.events += 1

    def _sent(self, first: int, n: int) -> np.ndarray:
        """int32 (n, channel); where nothing was sent under these numbers, a value that no converter has."""
        out = None
        for start, counts in self.truth.items():
            low, high = max(first, start), min(first + n, start + len(counts))
            if low < high:
                out = np.full((n, counts.shape[1]), -(1 << 31), np.int32) if out is None else out
                out[low - first:high - first] = counts[low - start:high - start]
        return np.int32(-(1 << 31)) if out is None else out

    def remember(self, first: int, counts: np.ndarray) -> None:
        """What is sent next; what is older than two pieces cannot come any more."""
        self.truth[first] = counts
        for old in [k for k in self.truth if k < first - 2 * len(counts)]:
            del self.truth[old]

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Nothing to close."""


class Timed:
    """A classifier, and the seconds that it took."""

    def __init__(self, classifier):
        self.classifier, self.seconds = classifier, 0.0

    def push(self, item) -> list:
        """As the classifier's."""
        started = time.process_time()
        out = self.classifier.push(item)
        self.seconds += time.process_time() - started
        return out

    def poll(self) -> list:
        """As the classifier's."""
        return self.classifier.poll()

    def close(self) -> None:
        """As the classifier's."""
        self.classifier.close()


class Device:
    """Pieces of signal as frames. words: which channel measures what, None for the usual."""

    def __init__(self, profile, fs: float, faults: fault.Faults, seed: int):
        self.profile, self.fs = profile, fs
        self.length = round(PIECE_S * fs) // profile.per_frame * profile.per_frame
        patient = sources.Patient(WIRED[:len(profile.ecg)], "sinus,af@120,pvc@240,pac@360,sinus@480", seed, "clinic")
        self.adc = sources.adc(profile, patient.leads)
        self.server = profiles.module(profile.protocol).Server(profile, fs)
        self.count = fault.Count()
        self._off = fault.LeadOff(faults.lead_off, len(patient.leads), self.count, seed)
        self._uv = [patient.take(self.length, fs)[0] for _ in range(ROUND)]
        patient.close()
        self._made = 0
        # frames of a piece are the same bytes again where the counter has come round
        self._again = profile.counter and profile.ticks is None and self.length % profile.counter == 0
        self._frames: dict[int, list[bytes]] = {}

    def piece(self) -> tuple[np.ndarray, list[bytes]]:
        """The next counts int32 (moment, channel), and their frames."""
        place, first = self._made % ROUND, self._made * self.length
        self._made += 1
        uv = self._uv[place]
        off = self._off.over(np.zeros(uv.shape, bool), self.fs)
        counts, mask = self.adc.counts(uv, off)
        if not self._again or off.any():
            return counts, self.server.encode(counts, mask, first)
        if place not in self._frames:
            self._frames[place] = self.server.encode(counts, mask, first)
        return counts, self._frames[place]


@dataclass
class Truth:
    """What was done to frames of `each` moments: runs (first moment, moments) that did not arrive as they were made."""

    each: int
    touched: list[int] = field(default_factory=list)
    unplugged: list[tuple[int, int]] = field(default_factory=list)

    def moments(self) -> np.ndarray:
        """Sorted numbers of the moments in them."""
        frames = np.array(self.touched, np.int64)[:, None] * self.each + np.arange(self.each)
        return np.unique(np.concatenate([frames.ravel(), *(np.arange(a, a + n) for a, n in self.unplugged)]))


def made_bridge(name: str, fs: float, run: str | None, sink) -> Bridge:
    """A bridge of all leads without a model, or of those that the run's wants, by the C twin."""
    from train.frontend import design
    profile = replace(profiles.find(name), fs=fs)
    manifest = graph = classifier = None
    if run is not None:
        from targets import target
        manifest, graph = target.open_run(run)
    channels = [profile.channels[i].name for i in profile.ecg]
    words = ",".join(f"{c}={lead}" for c, lead in zip(channels, WIRED, strict=False))
    wiring = leads.wire(profile, None, words)
    if manifest is not None:
        from firmware_bridge import classify
        have = {lead: c for c, lead in zip(channels, WIRED, strict=False)}
        wanted = manifest.waveform.leads
        helps = [lead for lead in have if lead in wanted or (lead in ("I", "II") and len(wanted) > 1)]
        words = ",".join(f"{have[lead]}={lead}" for lead in helps) or f"{channels[0]}={wanted[0]}"
        wiring = leads.wire(profile, wanted, words)
        classifier = Timed(classify.local(run, "host", manifest, graph, fs))
    spec = manifest.frontend if manifest else design(250)
    session = Session(profile, fs, wiring.leads, manifest, time.time())
    return Bridge(session, profiles.module(profile.protocol).Decoder(profile), wiring,
                  Watch(spec, fs, wiring.leads), [sink], classifier)


class Player:
    """Frames -> damaged portions -> bridge, in the signal's time."""

    def __init__(self, bridge: Bridge, faults: fault.Faults, total: int, portion_s: float):
        self.bridge, self.faults, self.total = bridge, faults, total
        profile = bridge.session.profile
        self.fs, self.each = bridge.session.fs, profile.per_frame
        self.portion = max(round(portion_s * self.fs) // self.each, 1)          # frames
        self.damage, self.truth = fault.Damage(faults), Truth(self.each)
        self.calm = round(CALM_S * self.fs)
        self.down = [(round(at * self.fs), round((at + s) * self.fs)) for at, s in faults.unplug]
        self.at = self.frames = self.bytes = 0
        self.seconds = self.cpu = 0.0                                           # in the bridge
        self._gone = False

    def play(self, frames: list[bytes]) -> None:
        """Frames that follow each other."""
        for k in range(0, len(frames), self.portion):
            self._portion(frames[k:k + self.portion])

    def _portion(self, frames: list[bytes]) -> None:
        first, n = self.at, len(frames) * self.each
        self.at += n
        self.frames += len(frames)
        if any(a <= first < b for a, b in self.down):
            self.truth.unplugged.append((first, n))
            if not self._gone:
                self._timed(lambda: self.bridge.broken("unplugged", "the line was pulled out"))
            self._gone = True
            return
        if self._gone:
            self._gone = False
            module = profiles.module(self.bridge.session.profile.protocol)
            decoder = module.Decoder(self.bridge.decoder.profile)
            self._timed(lambda: self.bridge.back("the line is there again", decoder))
        data = b"".join(frames) if self._calm(first, n) else self._damaged(frames, first // self.each)
        self.bytes += len(data)
        now = self.at / self.fs
        self._timed(lambda: (self.bridge.feed(data, now), self.bridge.tick(now)))

    def _calm(self, first: int, n: int) -> bool:
        near = [(0, self.calm), (self.total - 2 * self.calm, self.total),
                *((a - self.calm, b + self.calm) for a, b in self.down)]
        return any(first < b and first + n > a for a, b in near)

    def _damaged(self, frames: list[bytes], number: int) -> bytes:
        before = self.damage.count.frames
        data = self.damage.send(frames)
        self.truth.touched += [number + k - before for k in self.damage.touched]
        self.damage.touched.clear()
        return data

    def _timed(self, call) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self.seconds += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def endurance(name: str, hours: float, run: str | None, words: str, portion_s: float = PORTION_S,
              seed: int = 0) -> dict:
    """So many hours, and what became of every moment."""
    profile = profiles.find(name)
    fs = profile.fs or 250.0
    faults = fault.parse(words, seed)
    device = Device(profile, fs, faults, seed)
    auditor = Auditor()
    bridge = made_bridge(profile.name, fs, run, auditor)
    pieces = max(round(hours * 3600 * fs / device.length), 1)
    player = Player(bridge, faults, pieces * device.length, portion_s)
    memory, hour = [], 0
    with say.progress("pieces", pieces) as advance:
        for k in range(pieces):
            counts, frames = device.piece()
            auditor.remember(k * device.length, counts)
            player.play(frames)
            advance(1)
            if (k + 1) * device.length >= (hour + 1) * 3600 * fs:
                hour += 1
                gc.collect()
                memory.append(round(rss(), 1))
    bridge.close()
    count = replace(player.damage.count, lead_offs=device.count.lead_offs, unplugs=len(player.down))
    return _result(bridge, auditor, player, count, memory) | {"protocol": profile.name, "faults_asked": words,
                                                               "portion_s": portion_s}


def _result(bridge: Bridge, auditor: Auditor, player: Player, count: fault.Count, memory: list[float]) -> dict:
    """Every moment's fate. lost_untouched: frames that came as they were sent, and did not come out."""
    tally, sent = bridge.timeline.tally, player.at
    touched = player.truth.moments()            # wrong_untouched: moved, for their frames came whole
    lost = np.concatenate([np.zeros(0, np.int64), *(np.arange(a, a + n) for a, n in auditor.gaps)])
    seconds = sent / player.fs
    return {"hours": round(seconds / 3600, 4), "fs": player.fs, "channels": len(bridge.session.profile.channels),
            "leads": list(bridge.session.leads), "bytes": player.bytes,
            "model": bridge.session.manifest.name if bridge.session.manifest else None,
            "sent": sent, "taken": tally.taken, "missing": tally.missing, "refused": tally.refused,
            "unaccounted": sent - tally.taken - tally.missing, "doubled": auditor.doubled,
            "wrong": len(auditor.wrong), "wrong_untouched": int((~np.isin(auditor.wrong, touched)).sum()),
            "came_out": auditor.taken, "touched": len(touched), "lost_touched": int(np.isin(lost, touched).sum()),
            "lost_untouched": int((~np.isin(lost, touched)).sum()), "frames_damaged": vars(count) | {},
            "decisions": auditor.decisions, "unreliable": auditor.unreliable, "beats": auditor.beats,
            "grades": auditor.grades, "seconds": round(player.seconds, 3), "cpu_seconds": round(player.cpu, 3),
            "classifier_cpu_seconds": round(bridge.classifier.seconds, 3) if bridge.classifier else None,
            "times_real_time": round(seconds / player.seconds, 1),
            "times_real_time_cpu": round(seconds / player.cpu, 1), "rss_mb_by_hour": memory}
