# SPDX-License-Identifier: Apache-2.0
"""The leads as an outlet of the Lab Streaming Layer: type ECG, float32 microvolts, missing moments as NaN.

Time stamps come from the session's fitted clock, so they neither jump nor bunch up. source_id stays the same from one
session to the next with the same front-end, port and leads: a receiver that lost us finds us again.

The layer has no access control and listens on every address. Unless the network is asked for, the stream is announced
on this computer only; one who guesses its port may read it all the same, and the user is told so.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time

import numpy as np

from firmware_bridge.session import Session, Stretch
from train.say import choose, need, warn

KEPT_S = 360            # of signal that an outlet keeps for receivers; of a longer gap only the end is sent
PIECE = 1 << 14         # moments handed over at once
SCOPES = {"computer": "machine", "network": "link"}


def source_id(session: Session) -> str:
    """Tells nothing of the computer or the port, but is their own."""
    about = (platform.node(), session.settings.get("port", ""), session.profile.name, *session.leads)
    return "leadedge-" + hashlib.sha256("|".join(about).encode()).hexdigest()[:16]


class LslOutlet:
    """scope: who is told of the stream, "computer" or "network". name: of the stream."""

    def __init__(self, scope: str = "computer", name: str = "LeadEdge"):
        need("pylsl", "lsl")
        import pylsl
        self.name, self.outlet, where = name, None, SCOPES[choose(scope, SCOPES, "scope")]
        # heeded by the first use of the library in a process; a file that the user names in LSLAPICFG goes first
        if not os.environ.get("LSLAPICFG"):
            pylsl.set_config_content(f"[multicast]\nResolveScope = {where}\n[log]\nlevel = -1\n")
        warn("LSL has no access control: every computer that reaches this one may read the leads")

    def begin(self, session: Session) -> None:
        """The stream is there from now on."""
        import pylsl
        self.session, self._origin, self._end = session, None, None
        info = pylsl.StreamInfo(self.name, "ECG", len(session.leads), session.fs, pylsl.cf_float32, source_id(session))
        about = info.desc()
        about.append_child_value("manufacturer", "LeadEdge").append_child_value("session", session.id)
        about.append_child_value("device", session.profile.title)
        if session.manifest is not None:
            about.append_child_value("model", session.manifest.identity.hex())
        channels = about.append_child("channels")
        for lead in session.leads:
            channel = channels.append_child("channel")
            for key, value in (("label", lead), ("unit", "microvolts"), ("type", "ECG")):
                channel.append_child_value(key, value)
        self._shift = pylsl.local_clock() - time.monotonic()
        self.outlet = pylsl.StreamOutlet(info, 0, KEPT_S)

    def take(self, item) -> None:
        """Moments go out, in front of them those that are missing: only now their time is known."""
        if isinstance(item, Stretch):
            n, fs = len(item.counts), self.session.fs
            if self._origin is None:
                self._origin = item.arrived - (n - 1) / fs - item.time
            first = self._origin + item.time
            if self._end is not None and item.first > self._end:
                self._push(np.full((min(item.first - self._end, int(KEPT_S * fs)), len(item.uv)), np.nan, np.float32),
                           first - 1 / fs)
            self._push(item.uv.T.astype(np.float32), first + (n - 1) / fs)
            self._end = item.first + n

    def tick(self, now: float) -> None:
        """Nothing waits."""

    def end(self) -> None:
        """Receivers are told that the stream is over."""
        self.outlet = None

    def _push(self, rows: np.ndarray, last: float) -> None:
        """float32 (moment, lead), the last one at host second `last`."""
        fs = self.session.fs
        for at in range(0, len(rows), PIECE):
            part = np.ascontiguousarray(rows[at:at + PIECE])
            behind = len(rows) - at - len(part)
            self.outlet.push_chunk(part, last - behind / fs + self._shift)
