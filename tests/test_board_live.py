# SPDX-License-Identifier: Apache-2.0
"""live.py with a board: a Cyton on one pseudo terminal, the emulated STM32F405 on another, its decisions recorded and
scored against the twin's; and a board with a sensor of its own."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import boards
import graphs
import numpy as np
import pytest
from boards import FS, Kind, ecg
from test_board import Wire, feed, make  # noqa: F401
from test_bridge import BOARD, Kept, Plain

from firmware_bridge import live, replay
from firmware_bridge.board import Board, Mirror
from firmware_bridge.bridge import Bridge
from firmware_bridge.classify import Local
from firmware_bridge.leads import wire
from firmware_bridge.loop import Loop
from firmware_bridge.ports import Plug
from firmware_bridge.protocols import edgelink
from firmware_bridge.results import OnSensor
from firmware_bridge.session import Decision, Event, Gap, Session
from firmware_bridge.simulate import Simulator
from firmware_bridge.watch import Watch
from targets import deploy, emulate, live_emulation, target, toolchain, twin
from train import say, score
from train.manifest import Decision as Rule
from train.manifest import Trigger
from train.say import UserError

GRAPH, MANIFEST = boards.models()["model"]
absent = emulate.missing() or toolchain.missing("m4") or toolchain.missing("host")
emulated = pytest.mark.skipif(absent is not None, reason=str(absent))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A streaming model's run, built for the STM32F405 and for this computer."""
    graph = graphs.streaming()
    manifest = replace(graphs.manifest_of(graph, "0" * 64), trigger=Trigger("hop", hop=32), streaming=True,
                       decision=Rule("argmax", (0, 300, -200), 1 << 12, 0))
    folder = graphs.write_run(tmp_path_factory.mktemp("mcu") / "r", graph, golden=4, manifest=manifest)
    for words in (("--target", "mcu", "--board", "stm32f405"), ("--target", "host")):
        assert say.run(deploy.main, deploy.parser(), ["--run", str(folder), *words]) == 0
    return folder


def lived(capsys, *words, code=0):
    """(the JSON object, what was said on the way)."""
    assert say.run(live.main, live.parser(), ["--json", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


@emulated
def test_from_the_front_end_to_the_emulated_board_to_the_recording_to_the_score(run, capsys, tmp_path):
    pytest.importorskip("wfdb", reason='wfdb is not installed: pip install -e ".[train]"')
    faults = "skip=0.004,lead-off=5,unplug=10/0.8"
    with Simulator("cyton", leads="ch1=I", faults=faults, seed=7, link=tmp_path / "cyton") as device:
        found, said = lived(capsys, "--run", run, "--port", device.port, "--protocol", "cyton", "--leads", "ch1=I",
                            "--target", "mcu", "--board-port", "emulate:stm32f405", "--shadow", "--seconds", 16,
                            "--record", tmp_path / "recordings")
    agreement = found["agreement"]
    assert agreement["compared"] == agreement["equal"] > 40, said
    assert found["board"] == {"moments_not_sent": 0, "results_lost": 0} and found["unplugged"] == 1
    recording, = (tmp_path / "recordings").iterdir()
    again = say.run(replay.main, replay.parser(), ["--json", "--quiet", "--recording", str(recording), "--run",
                                                   str(run)])
    told = json.loads(capsys.readouterr().out)
    assert again == 0 and told["complete"] and told["gaps"]["recorded"] > 5
    assert told["decisions"]["agree"] and told["decisions"]["recorded"] == agreement["compared"]
    assert scored(recording, run) == 1.0


def scored(recording, run) -> float:
    """Mean F1 of the board's recorded decisions, the reliable ones, with the twin's as the truth."""
    from firmware_bridge import classify
    from firmware_bridge.recordings import Recording
    manifest, graph = target.open_run(run)
    kept = Recording(recording)
    _, twin = replay.replay(kept, manifest, classify.local(run, "host", manifest, graph, kept.fs))
    names = [c.name for c in manifest.classes]
    truth = {d.index: names.index(d.present[0]) for d in twin.decisions if not d.unreliable}
    board = {d.index: names.index(d.words) for d in kept.decisions() if d.words in names}
    assert set(truth) == set(board) and len(truth) > 20 and len(set(truth.values())) > 1
    confusion = score.confusion(np.array([truth[i] for i in truth]), np.array([board[i] for i in truth]), len(names))
    return float(score.f1_mean(confusion, sorted(set(truth.values()))))


@emulated
def test_what_a_board_needs_is_said_before_it_is_missed(run, capsys):
    for words, code, what in [((), 1, "--board-port emulate"), (("--board-port", "emulate:pico"), 1, "is built for"),
                              (("--board-port", "/dev/nothing-here"), 2, "/dev/nothing-here"),
                              (("--board-port", "emulate", "--protocol", "lines"), 1, "lines")]:
        said = say.run(live.main, live.parser(), ["--run", str(run), "--port", "sim", "--target", "mcu", *words])
        text = capsys.readouterr().err
        assert said == code and what in text
    for words, what in [(("--board-port", "x"), "--target mcu"), (("--shadow",), "--target mcu")]:
        assert say.run(live.main, live.parser(), ["--run", str(run), "--port", "sim", *words]) == 1
        assert what in capsys.readouterr().err


@emulated
def test_an_emulated_board_that_is_pulled_out_and_plugged_in_again_goes_on(run, tmp_path):
    manifest, graph = target.open_run(run)
    image, name = target.open_build(run, "mcu", manifest).path, target.read_board("stm32f405", "mcu")
    link, kept, uv = tmp_path / "board", Kept(), ecg(90, seed=3)
    local = Local(manifest, twin.Twin(target.open_build(run, "host", manifest).path, graph, FS, FS), FS)
    at = 0

    def until(ready):
        """Stream in real time until it holds."""
        nonlocal at
        begun, first = time.monotonic(), at
        while not ready() and time.monotonic() < begun + 40:
            while at < first + (time.monotonic() - begun) * FS and at + 10 <= len(uv):
                feed(b, uv, at, 10, (), (), time.monotonic())
                at += 10
            b.tick(time.monotonic())
            time.sleep(0.01)
        assert ready()
    with live_emulation.started(image, name) as (_, port, _):
        link.symlink_to(port)
        board = Board(Plug(str(link)), manifest, FS)
        b = Bridge(Session(BOARD, FS, ("I",), manifest, 0.0), Plain(), wire(BOARD, ("I",), "ch1=I"),
                   Watch(manifest.frontend, FS, ("I",)), [kept], board, Mirror(board, local))
        until(lambda: len(kept.of(Decision)) >= 5)
        link.unlink()
    until(lambda: any("is gone" in e.text for e in kept.of(Event)))
    before = len(kept.of(Decision))
    with live_emulation.started(image, name) as (_, port, _):
        link.symlink_to(port)
        until(lambda: any("is back" in e.text for e in kept.of(Event)) and len(kept.of(Decision)) >= before + 5)
        b.close()
    assert b.agreement.compared == b.agreement.equal == len(kept.of(Decision)) and board.lost > 0


# ---- a board with a sensor of its own

def test_a_board_in_the_simulator_is_captured_and_heard_again(run, capsys, tmp_path):
    tee = tmp_path / "raw"
    words = ("--run", run, "--protocol", "edgelink", "--leads", "ch2=I")
    first, _ = lived(capsys, *words, "--port", "sim", "--seconds", 5, "--tee", tee)
    again, _ = lived(capsys, *words, "--port", f"file:{tee}")
    assert again["moments"]["taken"] == pytest.approx(first["moments"]["taken"], abs=20) and again["fs"] == 250
    assert again["wire"]["frames"] > 90 and not again["wire"]["damaged"]
    tee.write_bytes(tee.read_bytes()[2000:])
    assert say.run(live.main, live.parser(), [str(w) for w in (*words, "--port", f"file:{tee}")]) == 1
    assert "no HELLO" in capsys.readouterr().err


class There:
    """A board in memory whose port is always there."""

    port = "memory"

    def __init__(self, line):
        self.line = line

    def again(self):
        return self.line


def sensing(make, uv, off=None, manifest=MANIFEST):     # noqa: F811
    """(line, what the sink kept, loop, bytes read too far) of a board that sees int32 (moment, 1)."""
    line = Wire(make.board(Kind(sensor=True)))
    line.board.sense(uv, off)
    talk = edgelink.Talk(edgelink.PROFILES["edgelink"].hearing(edgelink.Heard()))
    profile, rest = talk.begin(line)
    classifier, kept = OnSensor(profile.heard, manifest, profile.fs), Kept()
    b = Bridge(Session(profile, profile.fs, ("I",), MANIFEST, 0.0), edgelink.Decoder(profile),
               wire(profile, ("I",), "ch1=I"), Watch(MANIFEST.frontend, profile.fs, ("I",)), [kept], classifier)
    classifier.timeline = b.timeline
    return line, kept, Loop(b, There(line), talk), rest


def test_a_board_with_a_sensor_tells_its_decisions_and_their_moments(make):     # noqa: F811
    uv = ecg(20)
    off = np.zeros(len(uv), int)
    off[3000:3100] = 1
    line, kept, loop, rest = sensing(make, uv, off)
    end = line.clock() + 21
    loop.run(line, rest, lambda: line.clock() > end)
    found = kept.of(Decision)
    samples = np.concatenate([s.uv for s in kept.items if hasattr(s, "uv")], 1)[0]
    start = next(k for k in range(200) if np.array_equal(uv[k:k + 500, 0], samples[:500]))     # the first to be sent
    assert np.array_equal(samples, uv[start:start + len(samples), 0]) and not kept.of(Gap)
    expected = boards.expected("model", uv)
    for d in found:                 # the board's stream began with its first sample
        number = (d.index + start - 2 * FS - MANIFEST.window) / MANIFEST.trigger.hop
        assert number == int(number) and np.array_equal(d.logits, expected[int(number)])
    assert len(found) >= len(expected) - 2 and {d.unreliable for d in found} == {"", "lead-off"}
    assert all(0 <= d.latency_ms < 100 for d in found)


def test_a_reset_of_a_board_with_a_sensor_is_a_gap_and_it_goes_on(make):        # noqa: F811
    line, kept, loop, rest = sensing(make, ecg(12))
    done, begun = [], line.clock()

    def stop():
        if line.clock() > begun + 10 and not done:
            done.append(True)
            line.board.boot()
            line.board.sense(ecg(40, seed=7))
        return line.clock() > begun + 24
    loop.run(line, rest, stop)
    gap, = kept.of(Gap)
    assert gap.reason == "reset" and gap.length < 5 * FS and "reset" in [e.kind for e in kept.of(Event)]
    indices = np.array([d.index for d in kept.of(Decision)])
    assert (indices < gap.first).sum() > 20 and (indices > gap.first + gap.length).sum() > 30
    assert not ((indices > gap.first + 5) & (indices < gap.first + gap.length)).any()


def test_decisions_of_another_model_are_refused(make):      # noqa: F811
    with pytest.raises(UserError, match="the device runs model"):
        sensing(make, ecg(5), manifest=boards.models()["other"][1])
