# SPDX-License-Identifier: Apache-2.0
"""live.py as a user starts it: the simulator on a port, a classifier, unplugging, captures, and what goes wrong."""

from __future__ import annotations

import json

import graphs as make
import pytest
from test_engine import hop_model

from firmware_bridge import live
from firmware_bridge.simulate import Simulator
from targets import deploy, toolchain
from train import say

needs_compiler = pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small streaming model, built for this computer."""
    m, graph = hop_model()
    folder = make.write_run(tmp_path_factory.mktemp("live") / "r", graph, golden=16, manifest=m)
    assert say.run(deploy.main, deploy.parser(), ["--run", str(folder), "--target", "host"]) == 0
    return folder


def lived(capsys, *words, code=0):
    """(the JSON object, what was said on the way)."""
    assert say.run(live.main, live.parser(), ["--json", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


@needs_compiler
def test_the_simulator_needs_no_hardware(run, capsys):
    found, said = lived(capsys, "--run", run, "--port", "sim", "--seconds", 5)
    assert found["profile"] == "cyton" and found["moments"]["missing"] == 0 and found["moments"]["taken"] > 1000
    assert found["wire"]["noise"] == 0 and "OpenBCI Cyton, 250 Hz" in said and "end:" in said


@needs_compiler
def test_unplugging_is_an_event_and_the_session_goes_on(run, capsys):
    found, said = lived(capsys, "--run", run, "--port", "sim", "--seconds", 7, "--fault", "unplug=2/1.5")
    assert found["unplugged"] == 1 and "unplugged:" in said and "back:" in said and "gap of" in said
    assert found["moments"]["missing"] / 250 == pytest.approx(1.5, abs=1.0)
    assert found["moments"]["taken"] + found["moments"]["missing"] > 5 * 250


@needs_compiler
def test_what_was_captured_is_heard_again_with_the_same_bytes(run, capsys, tmp_path):
    tee = tmp_path / "raw"
    first, _ = lived(capsys, "--run", run, "--port", "sim", "--seconds", 4, "--tee", tee)
    again, _ = lived(capsys, "--run", run, "--port", f"file:{tee}", "--protocol", "cyton")
    assert again["wire"]["frames"] == pytest.approx(first["wire"]["frames"], abs=2)
    assert again["moments"]["missing"] == 0 and again["model"] == first["model"]


def test_without_a_model_leads_are_watched(capsys):
    found, said = lived(capsys, "--port", "sim", "--protocol", "ads1293", "--seconds", 3)
    assert found["leads"] == ["I", "II"] and found["model"] is None and "nothing is classified" in said


def test_a_front_end_that_names_no_rate_is_measured(capsys):
    with Simulator("ad8232", fs=190.0) as simulator:
        found, said = lived(capsys, "--port", simulator.port, "--protocol", "ad8232", "--nv-per-count", 2930,
                            "--leads", "ecg=I", "--seconds", 2)
    assert found["fs"] == pytest.approx(190, abs=2) and "measured: " in said


@needs_compiler
@pytest.mark.parametrize("words, code, what", [
    (["--port", "/dev/nothing-here", "--protocol", "cyton"], 2, "/dev/nothing-here"),
    (["--port", "sim", "--protocol", "cytn"], 1, "cytn"),
    (["--port", "sim", "--leads", "ch1=V1"], 1, "does not know lead V1"),
    (["--port", "sim", "--target", "fpga"], 2, "fpga"),
    (["--port", "sim", "--target", "arm"], 1, "not built for arm"),
    (["--port", "sim", "--protocol", "ad8232"], 1, "does not tell what a count"),
])
def test_what_goes_wrong_is_said_in_a_sentence(run, capsys, words, code, what):
    found, _ = lived(capsys, "--run", run, *words, "--seconds", 2, code=code)
    assert what in found["error"]["what"]
