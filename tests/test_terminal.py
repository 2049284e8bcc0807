# SPDX-License-Identifier: Apache-2.0
"""The session on a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import select

import numpy as np
import pytest

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.session import Beat, Decision, Event, Gap, Quality, Session, Stretch
from firmware_bridge.sinks.terminal import Terminal

BOARD = Profile("plain", "test", "a test board", (Channel("ch1", 1000.0, -100, 100),), 250.0)
ITEMS = [
    Stretch(0, np.zeros((250, 1), np.int32), np.zeros((1, 250), np.int32), np.zeros(250, np.uint32), 0.0, 1.0),
    Beat(200, 71.6), Quality(250, ("A",), ("",)), Event(250, "lead-off", "lead I is off", "warning"),
    Decision(2500, ("N",), np.zeros(3, np.int8), latency_ms=12.0, agrees=True),
    Decision(2750, ("N",), np.zeros(3, np.int8), latency_ms=12.0, agrees=True),
    Decision(3000, (), np.zeros(3, np.int8), "lead-off", latency_ms=14.0, agrees=False),
    Gap(3000, 3, "lost"), Gap(3003, 500, "unplugged"),
]


def played(stream) -> Terminal:
    terminal = Terminal(stream)
    terminal.begin(Session(BOARD, 250.0, ("I",), None, 0.0))
    for item in ITEMS:
        terminal.take(item)
        terminal.tick(0.0)
    terminal.end()
    return terminal


def test_a_pipe_gets_one_line_for_each_thing_that_changes():
    out = io.StringIO()
    played(out)
    lines = out.getvalue().splitlines()
    assert "a test board, 250 Hz, leads I; no model" in lines[0]
    assert lines[1:] == ["0:00:01.0  lead-off: lead I is off", "0:00:10.0  N",
                         "0:00:12.0  the device and its twin disagree", "0:00:12.0  unreliable: lead-off",
                         "0:00:12.0  gap of 2.00 s: unplugged",
                         "0:00:01.0  end: 250 moments, missing: 3 lost, 500 unplugged; decisions: N 2, "
                         "unreliable: lead-off 1; twin agrees 2 of 3"]


def test_a_terminal_has_a_line_that_is_rewritten():
    pytest.importorskip("rich")
    ours, theirs = os.openpty()
    out, text = os.fdopen(theirs, "w"), ""
    terminal = played(out)
    terminal.drawn = 0.0
    terminal.tick(0.0)
    while select.select([ours], [], [], 0.1)[0]:
        text += os.read(ours, 65536).decode()
    out.close()
    os.close(ours)
    assert "72/min" in text and "signal IA" in text and "missing 503" in text and "\r\x1b[K" in text
