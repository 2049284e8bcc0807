# SPDX-License-Identifier: Apache-2.0
"""A session as lines of JSON for programs, one object each: `{"type": "beat", "index": 250, "seconds": 1.0, ...}`.

The first line is the session. Samples are left out unless asked for.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from train.say import UserError


def heading(session: Session) -> dict:
    """What everything else refers to."""
    m = session.manifest
    return {"type": "session", "session": session.id, "started": round(session.started, 3), "fs": session.fs,
            "front_end": session.profile.name, "leads": list(session.leads), "model": m.name if m else None,
            "identity": m.identity.hex() if m else None, "classes": [c.name for c in m.classes] if m else []}


def record(item, session: Session) -> dict:
    """An item as what JSON can hold. seconds: since the session's first moment, by the nominal rate."""
    if isinstance(item, Stretch):
        return _at("samples", item.first, session) | {"uv": dict(zip(session.leads, item.uv.tolist(), strict=True)),
                                                      "off": _off(item, session)}
    if isinstance(item, Gap):
        return _at("gap", item.first, session) | {"length": item.length, "reason": item.reason}
    if isinstance(item, Beat):
        return _at("beat", item.index, session) | {"bpm": None if item.bpm is None else round(item.bpm, 1)}
    if isinstance(item, Quality):
        leads = zip(session.leads, item.grades, item.reasons, strict=True)
        return _at("quality", item.index, session) | {"leads": {n: {"grade": g, "reason": r} for n, g, r in leads}}
    if isinstance(item, Event):
        return _at("event", item.index, session) | {"kind": item.kind, "text": item.text, "level": item.level}
    return _at("decision", item.index, session) | _decision(item)


def _decision(d: Decision) -> dict:
    return {"present": list(d.present), "unreliable": d.unreliable, "beat": d.beat, "logits": d.logits.tolist(),
            "latency_ms": round(float(d.latency_ms), 1), "agrees": None if d.agrees is None else bool(d.agrees)}


def _at(kind: str, index: int, session: Session) -> dict:
    return {"type": kind, "index": int(index), "seconds": round(index / session.fs, 3)}


def _off(s: Stretch, session: Session) -> list[str]:
    """Leads that are off at some moment of a stretch."""
    return [lead for k, lead in enumerate(session.leads) if (s.lead_off >> k & 1).any()]


class JsonLines:
    """path: of a file, which must not be there yet, or "-" for standard output. samples: leads in microvolts too."""

    def __init__(self, path: str | Path, samples: bool = False):
        self.samples = samples
        if str(path) == "-":
            self._file = sys.stdout
            return
        try:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}", "a new file in a folder that exists",
                            f"take {path} away" if isinstance(error, FileExistsError) else "") from error

    def begin(self, session: Session) -> None:
        """The first line."""
        self.session = session
        self._line(heading(session))

    def take(self, item) -> None:
        """A line."""
        if self.samples or not isinstance(item, Stretch):
            self._line(record(item, self.session))

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Close the file; standard output is not ours."""
        if self._file is not sys.stdout:
            self._file.close()

    def _line(self, what: dict) -> None:
        print(json.dumps(what), file=self._file, flush=True)
