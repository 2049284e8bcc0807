# SPDX-License-Identifier: Apache-2.0
"""The bridge's numbers in small: every moment accounted for, no byte raises, and a tampered bridge is found out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from test_engine import hop_model

from bench import bridge as bench
from bench import bridge_day, bridge_fuzz, bridge_live, tables
from compress import reference
from firmware_bridge import classify, profiles
from firmware_bridge.engine import Engine
from firmware_bridge.session import Stretch
from train import say

FAULTS = "skip=2e-3,drop=2e-5,flip=2e-5,insert=2e-5,noise=2e-3,lead-off=2,unplug=20/2"
HOURS = 41 / 3600               # four pieces


def cli(*words):
    """(exit code, what --json says)."""
    return say.run(bench.main, bench.parser(), list(map(str, words)))


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """Where a run is asked for: a model of two leads, by the reference."""
    m, graph = hop_model(leads=2)

    def local(run, name, manifest, _, fs):
        def runner(inputs):
            return reference.run(graph, {k: v[None] for k, v in inputs.items()})[0]
        return classify.Local(manifest, Engine(manifest, runner, fs), fs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("targets.target.open_run", lambda run: (m, graph))
        patch.setattr(classify, "local", local)
        yield


@pytest.mark.parametrize("protocol", ["cyton", "edgelink"])
def test_every_moment_of_a_damaged_line_is_accounted_for(protocol):
    r = bridge_day.endurance(protocol, HOURS, None, FAULTS)
    assert r["sent"] == r["taken"] + r["missing"] and r["came_out"] == r["taken"] and r["unaccounted"] == 0
    assert r["missing"] == r["lost_touched"] + r["lost_untouched"] >= 2 * r["fs"]       # it was pulled out for 2 s
    assert r["wrong_untouched"] == r["doubled"] == 0 and r["lost_untouched"] <= 1e-3 * r["sent"]
    assert r["lost_touched"] + r["wrong"] <= r["touched"] and r["frames_damaged"]["skipped"] > 0
    assert bench.broken_rules(r) == []
    if profiles.find(protocol).check == "crc16":
        assert r["wrong"] == 0


def test_without_faults_nothing_is_missing_and_the_classifier_decides(classified):
    r = bridge_day.endurance("cyton", HOURS, "run", "")
    assert (r["missing"], r["wrong"], r["touched"], r["sent"]) == (0, 0, 0, r["taken"])
    assert r["decisions"] > 20 and r["grades"] == pytest.approx(r["sent"] / r["fs"], abs=1) and r["beats"] > 20
    assert r["times_real_time"] > 1 and r["leads"] == ["I", "II"] and r["classifier_cpu_seconds"] > 0


@pytest.mark.parametrize("wrong, words", [
    (lambda s: Stretch(s.first + 1, s.counts, s.uv, s.lead_off, s.time, s.arrived), "another index"),
    (lambda s: Stretch(s.first, s.counts[:-1], s.uv, s.lead_off, s.time, s.arrived), "unaccounted")])
def test_a_bridge_that_moves_or_loses_moments_is_found_out(monkeypatch, wrong, words):
    take, seen = bridge_day.Auditor.take, []

    def tampered(self, item):
        seen.append(item)
        take(self, wrong(item) if isinstance(item, Stretch) and len(seen) % 50 == 7 else item)
    monkeypatch.setattr(bridge_day.Auditor, "take", tampered)
    assert any(words in w for w in bench.broken_rules(bridge_day.endurance("cyton", HOURS / 2, None, "")))


@pytest.mark.parametrize("name", [next(iter(profiles.module(p).PROFILES)) for p in profiles.PROTOCOLS])
def test_damaged_bytes_raise_nowhere_and_nothing_grows(name):
    r = bridge_fuzz.fuzz(name, 60_000, seed=3)
    assert r["bytes"] >= 60_000 and r["touched"] > 100 and r["unread"] == r["unaccounted"] == 0
    assert 0.3 * r["moments_sent"] < r["moments"] < 1.1 * r["moments_sent"]
    assert r["held_bytes"] < r["held_bytes_first_tenth"] + 65536
    if r["check"] in bridge_fuzz.FULL:
        assert r["wrong"] <= bench.unseen(r)


def test_what_hangs_on_a_decoder_is_weighed():
    class Grows:
        def __init__(self):
            self.rows = [np.zeros(1000), {"a": b"x" * 500}]
    one = Grows()
    before = bridge_fuzz.held(one)
    one.rows.append(bytearray(100_000))
    assert before > 8500 and bridge_fuzz.held(one) > before + 100_000


def test_a_wrong_moment_is_told_from_one_that_was_sent():
    block = type("Block", (), {"counts": np.array([[1, 9], [2, 9]], np.int32), "suspect": None})
    sent = [{np.array([1], np.int32).tobytes()}]
    assert bridge_fuzz._wrong(block, sent, [0]) == 1
    block.suspect = np.array([[False, False], [True, False]])
    assert bridge_fuzz._wrong(block, sent, [0]) == 0


def test_live_tells_share_and_delays(classified):
    r = bridge_live.live("cyton", "run", 8)
    total, own, wait = (r["latency"][k] for k in ("from_the_last_moment", "bridge", "from_any_moment"))
    assert r["missing"] == 0 and r["moments"] > 5 * 250 and 0 < r["share_of_a_core"] < 1
    assert 0 < own["p50_ms"] <= total["p50_ms"] < wait["p99_ms"] and own["count"] == total["count"] > 3
    assert wait["count"] > 100


def test_percentiles_of_nothing_are_none():
    assert bridge_live.percentiles([]) == {"count": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None}


def test_the_script_says_one_object_and_keeps_parts_that_were_measured_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RESULT", tmp_path / "bridge.json")
    assert cli("--only", "endurance", "--hours", HOURS / 2, "--fault", "skip=1e-2", "--write", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["endurance"]["unaccounted"] == 0 and said["machine"]["cores"]
    assert cli("--only", "fuzz", "--profiles", "cyton", "--bytes", 30_000, "--write", "--json") == 0
    kept = json.loads((tmp_path / "bridge.json").read_text())
    assert set(kept) == {"endurance", "fuzz"} and kept["endurance"]["machine"]["cores"]
    assert math.isfinite(kept["endurance"]["times_real_time"]) and "/" not in kept["endurance"]["protocol"]
    monkeypatch.setattr(tables, "BRIDGE", tmp_path / "bridge.json")
    shown = tables.bridge_table()
    assert "0 of" in shown and "cyton" in shown
    monkeypatch.setattr(tables, "BRIDGE", tmp_path / "none.json")
    assert "python bench/bridge.py" in tables.bridge_table()
