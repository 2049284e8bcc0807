# SPDX-License-Identifier: Apache-2.0
"""A session as a WFDB record that can be read at any moment, also after a kill, to the last second that was flushed.

DIR/<session>_<UTC time>/<the same>.hea and beside it

    .dat    raw counts of all channels, 16, 24 or 32 bits as their range asks; missing moments are WFDB's missing value,
            so that the place in the file is the index of the moment
    .json   what a replay needs exactly: profile, leads, settings, identity of the model
    .atr    R peaks (N, as other detectors write them: it says nothing of their kind), text: heart rate
    .dec    decisions, text: classes, "none" or "unreliable:why", with "@ beat" and "# logits" as said()
    .gap    text: why, and how many moments
    .off    text: leads that are off from here on
    .qua    changes of the quality, text: grade and reason of each lead
    .evt    events, text: kind and words

Samples are appended; the header, rewritten beside and put in place at once, tells how many are valid. Files are for
their owner only and hold no name. A lost power supply costs what the operating system had not yet written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import numpy as np

from firmware_bridge import leads
from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from firmware_bridge.sinks.annotations import Marks, private, write
from train.say import UserError

FLUSH_S = 1.0
MOST_S = 5.0                # of samples that wait for a flush, when nobody ticks
CHUNK = 1 << 14             # missing moments that are written at once
BUDGET = 32 << 20           # bytes a flush: hours of missing moments must not hold up the line
PRIVATE = ("port", "age", "sex")        # settings that stay here: a path may hold a name
KINDS = ("atr", "dec", "gap", "off", "qua", "evt")
COMPLETE = "complete"       # a comment of the header when the session came to its end


def bits(profile: Profile) -> int:
    """Of a sample in the file: every count must fit beside the missing value. Text may hold any number."""
    wide = max(max(c.high, -c.low) for c in profile.channels)
    return 32 if profile.check == "text" or wide >= 1 << 23 else 24 if wide >= 1 << 15 else 16


def pack(counts: np.ndarray, width: int) -> bytes:
    """int32 (moment, channel) -> samples of 16, 24 or 32 bits, little-endian, moment after moment."""
    return counts.astype("<i4").view("u1").reshape(-1, 4)[:, :width // 8].tobytes()


def words(decision: Decision) -> str:
    """What a decision says: classes joined by "+", "none", or "unreliable:why"."""
    return f"unreliable:{decision.unreliable}" if decision.unreliable else "+".join(decision.present) or "none"


def said(decision: Decision) -> str:
    """A decision as text: `AF+PVC @1234 #0af1`, with the beat where there is one and the logits as bytes in hex."""
    beat = "" if decision.beat is None else f" @{decision.beat}"
    return f"{words(decision)}{beat} #{np.asarray(decision.logits, np.int8).tobytes().hex()}"


class Recorder:
    """folder: where recordings go; made when it is not there."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}", "a folder for recordings") from error
        self.path: Path | None = None           # of the record, without a suffix
        self._data, self._failed = None, False

    def begin(self, session: Session) -> None:
        """The header, before the first sample."""
        self.session, self.width = session, bits(session.profile)
        name = f"{session.id}_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(session.started))}"
        (self.folder / name).mkdir(mode=0o700)
        self.path = self.folder / name / name
        self.channels = len(session.profile.channels)
        self.marks = {kind: Marks(self._at(kind)) for kind in KINDS}
        self._signals = _signals(session)
        self._next = self._written = 0                          # moments taken, moments in the file
        self._held: deque[np.ndarray | int] = deque()           # counts, or how many moments are missing
        self._waiting = 0                                       # moments of counts among them
        self._sum, self._initial = np.zeros(self.channels, np.int64), None
        self._off, self._grades, self._flushed = 0, None, -float("inf")
        self._replace("json", json.dumps(_about(session), indent=1) + "\n")
        self._data = private(self._at("dat"))
        self._head()

    def take(self, item) -> None:
        """Keep it; nothing is written here but what is more than a few seconds."""
        with self._failing():
            if isinstance(item, Stretch):
                self._stretch(item)
            elif isinstance(item, Gap):
                self.marks["gap"].add(item.first, '"', f"{item.reason} {item.length}")
                self._missing(item.first + item.length)
            elif isinstance(item, Beat):
                self.marks["atr"].add(item.index, "N", "" if item.bpm is None else f"{item.bpm:.1f}")
            elif isinstance(item, Decision):
                self.marks["dec"].add(item.index, '"', said(item))
            elif isinstance(item, Quality):
                self._quality(item)
            elif isinstance(item, Event):       # readers take a note at moment 0 for a definition
                self.marks["evt"].add(max(item.index, 1), '"', f"{item.kind}: {item.text}")

    def tick(self, now: float) -> None:
        """Flush once a second."""
        if now - self._flushed >= FLUSH_S:
            self._flushed = now
            with self._failing():
                self._flush()

    def end(self) -> None:
        """Everything to the disk. After a failure only what is whole stays."""
        if self._data is None:
            return
        try:
            if not self._failed:
                self._flush(math.inf)
                for mark in self.marks.values():
                    mark.close()
                os.fsync(self._data)
                self._head(COMPLETE)
        finally:
            for mark in self.marks.values():
                with contextlib.suppress(OSError):
                    mark.drop()
            os.close(self._data)
            self._data = None

    # ---- samples

    def _stretch(self, s: Stretch) -> None:
        self._missing(s.first)
        most = (1 << self.width - 1) - 1        # only a damaged value of a channel that nobody uses is beyond
        self._held.append(np.clip(s.counts, -most, most))
        self._next += len(s.counts)
        self._waiting += len(s.counts)
        before = np.concatenate([[self._off], s.lead_off[:-1]])
        for at in np.flatnonzero(before != s.lead_off).tolist():
            names = [lead for k, lead in enumerate(self.session.leads) if int(s.lead_off[at]) >> k & 1]
            self.marks["off"].add(s.first + at, "~", ",".join(names) or "none")
        self._off = int(s.lead_off[-1])
        if self._waiting > MOST_S * self.session.fs:
            self._flush()

    def _missing(self, until: int) -> None:
        """Moments that never came, up to index `until`."""
        if until > self._next:
            self._held.append(until - self._next)
            self._next = until

    def _samples(self, budget: float) -> None:
        """Append what is held, as long as fewer than `budget` bytes are written."""
        while self._held and budget > 0:
            part = self._held.popleft()
            if isinstance(part, int):
                counts = np.full((min(part, CHUNK), self.channels), -1 << self.width - 1, np.int32)
                if part > CHUNK:
                    self._held.appendleft(part - CHUNK)
            else:
                counts = part
                self._waiting -= len(counts)
            data = pack(counts, self.width)
            write(self._data, data)
            budget -= len(data)
            self._initial = counts[0] if self._initial is None else self._initial
            self._sum += counts.sum(0, dtype=np.int64)
            self._written += len(counts)

    def _flush(self, budget: float = BUDGET) -> None:
        """Samples, then what is told about them, then the header that makes them valid."""
        self._samples(budget)
        for mark in self.marks.values():
            mark.flush()
        self._head()

    # ---- words

    def _quality(self, q: Quality) -> None:
        grades = " ".join(g + (f":{r}" if r else "") for g, r in zip(q.grades, q.reasons, strict=True))
        if grades != self._grades:
            self.marks["qua"].add(q.index, "~", grades)
        self._grades = grades

    def _head(self, *more: str) -> None:
        """The header, whole at every moment. Without samples it tells no number of them: readers then look."""
        s, name = self.session, self.path.name
        began = time.strftime("%H:%M:%S %d/%m/%Y", time.gmtime(s.started))
        count = f" {self._written} {began}" if self._written else ""
        lines = [f"{name} {self.channels} {s.fs:.10g}{count}"]
        initial = self._initial if self._initial is not None else np.zeros(self.channels, np.int64)
        for (gain, about, name_of), first, total in zip(self._signals, initial, self._sum, strict=True):
            check = (int(total) + (1 << 15) & 0xFFFF) - (1 << 15)
            lines.append(f"{name}.dat {self.width} {gain} {about} {int(first)} {check} 0 {name_of}")
        lines += [f"# {text}" for text in (*_comments(s), *more)]
        self._replace("hea", "\n".join(lines) + "\n")

    # ---- files

    def _at(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _replace(self, suffix: str, text: str) -> None:
        """A small file, all of it or the one before."""
        beside = self._at(suffix + ".new")
        try:
            file = private(beside, new=False)
            try:
                write(file, text.encode())
            finally:
                os.close(file)
            os.replace(beside, self._at(suffix))
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _failing(self):
        """After a failure nothing more is written: the header still tells what is valid."""
        try:
            yield
        except OSError:
            self._failed = True
            raise


def _about(session: Session) -> dict:
    """What a replay needs to know."""
    m = session.manifest
    model = m and {"name": m.name, "identity": m.identity.hex(), "classes": [c.name for c in m.classes]}
    return {"format": 1, "session": session.id, "started": round(session.started, 3), "fs": session.fs,
            "leads": list(session.leads), "model": model, "settings": _settings(session),
            "profile": asdict(session.profile), "frontend": m.frontend if m else None}


def _settings(session: Session) -> dict:
    return {k: v for k, v in session.settings.items() if k not in PRIVATE}


def _comments(session: Session) -> list[str]:
    """What a reader of the header is told."""
    m = session.manifest
    settings = [f"{'lead map' if k == 'leads' else k}: {v}" for k, v in _settings(session).items() if v]
    return [f"session: {session.id}", f"front-end: {session.profile.name} ({session.profile.title})",
            f"model: {m.name} {m.identity.hex()}" if m else "model: none", f"leads: {', '.join(session.leads)}",
            *settings]


def _signals(session: Session) -> list[tuple[str, str, str]]:
    """Of each channel: gain, baseline and units; resolution and zero; description."""
    p = session.profile
    wanted = session.manifest.waveform.leads if session.manifest else None
    wiring = leads.wire(p, wanted, session.settings.get("leads") or None, session.settings.get("nv_per_count"))
    mapped = {s.place: (("-" if s.uv < 0 else "") + lead, abs(s.uv)) for lead, s in wiring.sources.items()}
    return [_signal(c, *mapped.get(k, (c.name, None))) for k, c in enumerate(p.channels)]


def _signal(c: Channel, name: str, uv: float | None) -> tuple[str, str, str]:
    """uv: microvolts a count where a lead comes from the channel. Counts without a known scale have no unit."""
    if uv is None and c.kind == "ecg" and c.nv_per_count is not None:
        uv = c.nv_per_count / 1000
    gain, units = (1.0, "NU") if uv is None else (1000 / uv, "mV")
    return (f"{gain:.10g}({c.zero})/{units}", f"{(c.high - c.low).bit_length()} {c.zero}",
            re.sub(r"\s+", " ", name).strip() or "?")
