# SPDX-License-Identifier: Apache-2.0
"""What was recorded live, replayed through the bridge: the same decisions, beats and gaps. And exported."""

from __future__ import annotations

import json
import os
import signal
import stat
import time

import numpy as np
import pytest
from recorded import FS, forked, items, record, session
from test_bridge import Kept, engine, packed
from test_bridge import bridge as bridge_of_numbers
from test_engine import hop_model, patient

from firmware_bridge import export, leads, ports, profiles, replay
from firmware_bridge.bridge import Bridge
from firmware_bridge.loop import Loop
from firmware_bridge.recordings import Recording
from firmware_bridge.session import Beat, Decision, Event, Gap, Session
from firmware_bridge.simulate import Simulator
from firmware_bridge.sinks import edf
from firmware_bridge.sinks.recorder import Recorder
from firmware_bridge.watch import Watch
from train import say
from train.say import UserError

pytest.importorskip("wfdb", reason='wfdb is not installed: pip install -e ".[train]"')
SPEED, MAP = 8.0, "ch1=I,ch3=-II"


@pytest.mark.parametrize("shown", [("I", "II"), ("I",), ("III", "aVF"), ("I", "III"), ("II", "aVR", "I"),
                                   ("aVL", "II")])
def test_leads_that_are_off_are_off_again_whichever_are_shown(shown):
    board = profiles.find("cyton")
    wiring = leads.wire(board, shown, "ch1=I" if shown == ("I",) else "ch4=I,ch2=-II")
    channels = np.arange(256, dtype=np.uint32)
    masks = wiring.lead_off(channels)
    turns = np.flatnonzero(np.diff(masks, prepend=0))

    class Told:
        profile, fs, leads = board, 250.0, shown
        gaps, lead_off = staticmethod(list), staticmethod(lambda: (turns, masks[turns]))
    tape = replay.Tape(Told, {lead: s.place for lead, s in wiring.sources.items()})
    assert np.array_equal(wiring.lead_off(tape._off(256)), masks)


class Quick(ports.Plug):
    """A port of a simulator that runs faster than time: so does the line's clock."""

    def _opened(self, name):
        line = super()._opened(name)
        line.clock = lambda: time.monotonic() * SPEED
        return line


class Unhurried:
    """Talk in true time: the board has as long for an answer as ever."""

    def __init__(self, talk):
        self.talk, self.keep, self.end = talk, talk.keep, talk.end

    def begin(self, line):
        quick, line.clock = line.clock, time.monotonic
        try:
            return self.talk.begin(line)
        finally:
            line.clock = quick


def live(folder, seconds, faults, classifier=None):
    """(recorder, what the bridge said) of a session with a Cyton that suffers."""
    simulator = Simulator("cyton", rhythm="af", leads=MAP, faults=faults, speed=SPEED, seconds=seconds, seed=4)
    plug = Quick(simulator.start())
    m, profile = hop_model(leads=2)[0], profiles.find("cyton")
    talk = Unhurried(profiles.module("cyton").Talk(profile))
    line = plug.open()
    profile, rest = talk.begin(line)
    wiring = leads.wire(profile, m.waveform.leads, MAP)
    one = Session(profile, profile.fs, wiring.leads, m, time.time(), {"leads": MAP})
    kept, recorder = Kept(), Recorder(folder)
    bridge = Bridge(one, profiles.module("cyton").Decoder(profile), wiring, Watch(m.frontend, profile.fs, wiring.leads),
                    [kept, recorder], classifier, allow=1.0)
    try:
        Loop(bridge, plug, talk).run(line, rest, lambda: not simulator._thread.is_alive())
    finally:
        plug.close()
        simulator.stop()
    return recorder, kept


FAULTS = "drop=2e-5,skip=0.004,flip=2e-5,unplug=16/3,lead-off=6,burst=40"


def test_a_session_with_faults_is_replayed_as_it_was(tmp_path):
    recorder, kept = live(tmp_path, 40, FAULTS, engine())
    assert {"lost", "unplugged"} <= {g.reason for g in kept.of(Gap)} and len(kept.of(Gap)) > 10
    assert len(kept.of(Decision)) > 100 and len({d.unreliable for d in kept.of(Decision)}) > 1
    recording = Recording(recorder.path)
    m, _ = hop_model(leads=2)
    bridge, found = replay.replay(recording, m, engine())
    same = replay.compared(recording, found)
    assert all(part["agree"] for part in same.values()), same
    assert same["decisions"]["recorded"] == len(kept.of(Decision)) and same["beats"]["same"] == len(kept.of(Beat)) > 30
    assert bridge.timeline.tally.missing == sum(g.length for g in kept.of(Gap))
    was, now = kept.of(Decision), found.decisions
    assert [(d.present, d.unreliable, d.beat) for d in was] == [(d.present, d.unreliable, d.beat) for d in now]
    other = replay.compared(recording, replay.replay(recording, m, engine(wrong_after=20))[1])["decisions"]
    assert not other["agree"] and other["same"] == 20


def _killed(folder):
    """A recording whose process was killed after 12 s of signal."""
    def session_until_killed():
        recorder, b = Recorder(folder), bridge_of_numbers(classifier=engine())
        b.session.settings["leads"] = "ch1=I,ch2=II"
        recorder.begin(b.session)
        b.sinks.append(recorder)
        uv = patient(FS, 20, 2)
        for at in range(0, 12 * FS + 100, 25):
            here = np.array([i for i in range(at, at + 25) if i not in (2000, 2001)])
            b.feed(packed(here, uv), (at + 25) / FS)
            b.tick((at + 25) / FS)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(forked(session_until_killed), 0)
    assert os.WIFSIGNALED(status)
    return Recording(folder)


def test_a_recording_that_was_killed_is_replayed_and_exported_as_far_as_it_goes(tmp_path):
    reader = pytest.importorskip("pyedflib", reason='pyedflib is not installed: pip install -e ".[edf]"')
    recording = _killed(tmp_path / "killed")
    assert not recording.complete and 12 * FS <= recording.moments < 13 * FS
    m, _ = hop_model(leads=2)
    _, found = replay.replay(recording, m, engine())
    same = replay.compared(recording, found)
    assert all(part["agree"] for part in same.values()), same
    assert same["decisions"]["same"] > 50 and same["gaps"]["same"] == 1
    out = tmp_path / "killed.edf"
    assert say.run(export.main, export.parser(), [str(tmp_path / "killed"), "--edf", str(out)]) == 0
    with reader.EdfReader(str(out)) as file:
        assert file.getNSamples()[0] == 13 * FS and file.datarecords_in_file == 13


def test_the_commands_say_how_far_they_agree(tmp_path, capsys):
    record(tmp_path, items(12))
    lines = tmp_path / "lines.jsonl"
    words = ["--recording", str(tmp_path), "--quiet", "--json", "--jsonl", str(lines), "--speed", "100"]
    assert say.run(replay.main, replay.parser(), words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["moments"] == 12 * FS and told["missing"] == 30 and told["complete"]
    assert told["gaps"] == {"recorded": 1, "found": 1, "same": 1, "agree": True} and "decisions" not in told
    kinds = [json.loads(line)["type"] for line in lines.read_text().splitlines()]
    assert kinds[0] == "session" and "gap" in kinds and stat.S_IMODE(lines.stat().st_mode) == 0o600


def test_replay_keeps_to_the_time_that_is_asked_for(tmp_path):
    recorder, began = record(tmp_path, items(4)), time.monotonic()
    replay.replay(Recording(recorder.path), speed=5.0)
    assert 0.75 < time.monotonic() - began < 5


@pytest.mark.parametrize("width, suffix", [(16, ".edf"), (24, ".edf"), (24, ".bdf"), (32, ".edf")])
def test_an_export_holds_counts_gaps_and_words(width, suffix, tmp_path):
    reader = pytest.importorskip("pyedflib", reason='pyedflib is not installed: pip install -e ".[edf]"')
    recorder = record(tmp_path, items(12, width)[:-4], session(width))
    recording, out = Recording(recorder.path), tmp_path / f"out{suffix}"
    done = edf.export(recording, out)
    whole = recording.counts(0, recording.moments).astype(float)
    missing = recording.missing(whole)
    with reader.EdfReader(str(out)) as file:
        assert file.getSignalLabels() == ["I", "-II", "belt"] and file.getSampleFrequencies().tolist() == [FS] * 3
        assert str(file.getStartdatetime()) == "2023-11-14 22:13:20"
        for k, (scale, zero) in enumerate(((0.5, 0), (0.25, 512), (1.0, 0))):
            step = done["steps"][file.getLabel(k)]
            exact = width == 16 or suffix == ".bdf" or k
            assert step == 1 if exact else step > 1
            found, expected = file.readSignal(k)[:recording.moments], (whole[:, k] - zero) * scale
            apart = np.abs(found - expected)[~missing].max()
            assert apart <= (0.51 if not exact else 0.02) * step * scale + 2e-7 * np.ptp(expected)
            assert np.ptp(found[missing]) == 0
        assert file.getPhysicalDimension(0) == "uV"
        at, long, words = (list(part) for part in file.readAnnotations())
    marks = dict(zip(words, zip(at, map(float, long), strict=True), strict=True))
    assert marks["BAD_gap lost"] == pytest.approx((5.0, 30 / FS)) and marks["decision unreliable:gap"][0] == 6.0
    assert words.count("beat") == len(recording.beats()) and "lead off: II" in words
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with pytest.raises(UserError, match="is there already"):
        edf.export(recording, out)


@pytest.mark.parametrize("fs", (125.0, 128.0, 250.0, 360.0, 512.0, 1000 / 3, 122.07, 249.37, 977.517))
def test_a_data_record_lasts_as_the_format_can_say(fs):
    size, seconds = edf.division(fs)
    assert seconds * 100_000 == pytest.approx(round(seconds * 100_000), abs=1e-6) and 0 < seconds <= 60
    assert size / seconds == pytest.approx(fs, rel=1e-6)


def test_an_event_of_a_recorder_that_fails_reaches_the_others(tmp_path, monkeypatch):
    """The classification goes on: on a disk that is really full where one can be made, else with a file size limit."""
    kept, recorder = Kept(), Recorder(tmp_path)
    b = bridge_of_numbers(kept, classifier=engine())
    b.session.settings["leads"] = "ch1=I,ch2=II"
    recorder.begin(b.session)
    b.sinks.append(recorder)
    uv = patient(FS, 20, 2)
    for at in range(0, 20 * FS, 25):
        if at == 8 * FS:
            os.dup2(os.open("/dev/full", os.O_WRONLY), recorder._data)      # every write from here on: ENOSPC
        b.feed(packed(np.arange(at, at + 25), uv), (at + 25) / FS)
        b.tick((at + 25) / FS)
    b.close()
    told, = (e for e in kept.of(Event) if e.kind == "sink")
    assert told.level == "error" and "recorder stopped" in told.text and "No space left" in told.text
    assert len(kept.of(Decision)) > 100 and kept.of(Decision)[-1].index > 19 * FS
    found = Recording(recorder.path)
    assert 7 * FS - 50 <= found.moments <= 8 * FS and not found.complete
