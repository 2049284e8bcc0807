# SPDX-License-Identifier: Apache-2.0
"""A session as lines of JSON, in a file and in a pipe."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recorded import items, session, stretch

from firmware_bridge import live
from firmware_bridge.sinks.jsonl import JsonLines
from train.say import UserError

ROOT = Path(__file__).parents[1]


def written(path, samples):
    sink = JsonLines(path, samples)
    sink.begin(session())
    for item in items(6):
        sink.take(item)
        sink.tick(0.0)
    held = Path(path).read_text()               # before it is closed: every line is there at once
    sink.end()
    return [json.loads(line) for line in held.splitlines()]


def test_every_line_is_an_object_with_its_place(tmp_path):
    lines = written(tmp_path / "lines", False)
    assert lines[0]["type"] == "session" and lines[0]["leads"] == ["I", "II"] and lines[0]["identity"] is None
    assert {line["type"] for line in lines[1:]} == {"beat", "quality", "gap", "decision"}
    assert all(line["seconds"] == pytest.approx(line["index"] / 250, abs=5e-4) for line in lines[1:])
    assert stat.S_IMODE((tmp_path / "lines").stat().st_mode) == 0o600


def test_samples_are_there_when_asked_for(tmp_path):
    first = next(line for line in written(tmp_path / "lines", True) if line["type"] == "samples")
    assert first["uv"] == {"I": [0] * 25, "II": [0] * 25} and first["off"] == []
    sink = JsonLines(tmp_path / "more", True)
    sink.begin(session())
    sink.take(stretch(500, 25, off=[510]))
    sink.end()
    assert json.loads((tmp_path / "more").read_text().splitlines()[1])["off"] == ["II"]


def test_a_file_that_is_there_is_kept(tmp_path):
    (tmp_path / "lines").write_text("mine")
    with pytest.raises(UserError, match="File exists"):
        JsonLines(tmp_path / "lines")
    assert (tmp_path / "lines").read_text() == "mine"


def test_standard_output_has_one_owner():
    with pytest.raises(UserError, match="both want standard output"):
        live.others(live.parser().parse_args(["--port", "sim", "--json", "--jsonl", "-"]))


def test_live_py_that_is_killed_leaves_what_it_recorded_and_said(tmp_path):
    wfdb = pytest.importorskip("wfdb", reason='wfdb is not installed: pip install -e ".[train]"')
    words = ["firmware_bridge/live.py", "--port", "sim", "--record", str(tmp_path / "kept"), "--jsonl", "-"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines, until = [], time.monotonic() + 60
    while sum(line["type"] == "quality" for line in lines) < 4 and time.monotonic() < until:
        lines.append(json.loads(process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait(10)
    path, = (tmp_path / "kept").glob("*/*.hea")
    found = wfdb.rdrecord(str(path.with_suffix("")))
    assert path.stem.startswith(lines[0]["session"]) and len(found.p_signal) >= 2.5 * found.fs
    assert not np.isnan(found.p_signal).any() and 0.2 < np.ptp(found.p_signal[:, 1]) < 10
    beats = wfdb.rdann(str(path.with_suffix("")), "atr").sample
    assert set(beats) <= {line["index"] for line in lines if line["type"] == "beat"} | set(range(3 * 250, 5 * 250))
