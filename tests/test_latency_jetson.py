# SPDX-License-Identifier: Apache-2.0
"""bench/latency.py --target jetson with stand-ins for a board and its tools, and without any."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import jetson_rows, latency
from targets import jetson_ssh, target
from targets.target import Built
from tests import graphs as make
from tests.jetson_fakes import boards
from train import manifest as manifests
from train import say


def cli(*words) -> int:
    """Exit code of latency.py --target jetson."""
    return say.run(latency.main, latency.parser(), ["--target", "jetson", *map(str, words)])


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> Path:
    """A quantized run that nothing was built of."""
    b = make.Builder(3, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 5)
    graph = b.graph(b.classifier(b.reduce("mean", x), 3))
    return make.write_run(tmp_path_factory.mktemp("jetson") / "r", graph, golden=4)


@pytest.fixture
def run(frozen, tmp_path) -> Path:
    """The run with a jetson folder in which everything but the model is as deploy.py writes it."""
    folder = Path(shutil.copytree(frozen, tmp_path / "r"))
    identity = manifests.load(folder).identity
    boards.job(folder / "jetson", identity=identity.hex())
    target.record_build(folder, "jetson", Built(folder / "jetson" / "model.int8.onnx", 1, None, {}), identity)
    return folder


@pytest.fixture
def board(tmp_path, monkeypatch):
    """This computer as an Orin Nano without supply rails, whose power would be measured for ten seconds."""
    found = boards.Jetson(tmp_path / "board", "orin")
    shutil.rmtree(found.root / "sys/bus/i2c")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


# ---- no Jetson

def test_without_a_jetson_nothing_is_said_but_how_to_get_a_figure(frozen, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", str(tmp_path))
    assert cli("--run", frozen, "--json") == 2
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert "no Jetson was found" in error["what"] and "--device user@host" in error["expected"]
    assert all(key in error["expected"] for key in target.boards("jetson"))
    assert f"--run {frozen} --estimate orin-nano-super" in error["fix"]
    assert " ms" not in said.out + said.err and "measured" not in json.loads(said.out)


def test_required_to_be_measured_an_estimate_is_no_answer(frozen, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", str(tmp_path))
    assert cli("--run", frozen, "--estimate", "orin-nano", "--require-measured", "--json") == 2
    said = capsys.readouterr()
    assert "no Jetson was found" in said.err and "estimate" not in json.loads(said.out)


def test_the_command_that_the_error_names_works(frozen, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", str(tmp_path))
    cli("--run", frozen, "--json")
    words = json.loads(capsys.readouterr().out)["error"]["fix"].split()[2:]
    assert say.run(latency.main, latency.parser(), words) == 0
    assert "not measured" in capsys.readouterr().out


# ---- a Jetson

def test_on_a_jetson_it_is_measured_and_an_estimate_stands_apart(run, board, capsys):
    assert cli("--run", run, "--seconds", 0.2, "--estimate", "orin-nano-super", "--require-measured", "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    rows = {r["form"]: r for r in found["measured"] if r["on"] == "GPU"}
    assert set(rows) == {"int8", "fp16", "fp32"} and found["shipped"] == "int8"
    for row in rows.values():
        assert row["samples"] > 100 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert rows["int8"]["float_over_this"] == pytest.approx(rows["fp32"]["p50_ms"] / rows["int8"]["p50_ms"])
    assert found["machine"]["tensorrt"] == "10.3.0" and found["jetson"]["parity"]["int8"]["holds"]
    assert f"{rows['fp16']['p50_ms']:.3f}" in said.err and "golden outputs hold" in said.err
    assert all("p50_ms" not in row and "ms" in row for row in found["estimate"]["rows"])


def test_a_run_that_is_not_deployed_names_the_command(frozen, board, capsys):
    assert cli("--run", frozen) == 1
    assert f"targets/deploy.py --run {frozen} --target jetson" in capsys.readouterr().err


def test_a_result_of_another_model_is_refused(run, board, result, capsys, monkeypatch):
    monkeypatch.setattr(jetson_ssh, "measure", lambda device, folder, seconds: result)
    assert cli("--run", run, "--device", "user@jetson") == 1
    assert "measured another model (abababababababab)" in capsys.readouterr().err


def test_a_result_from_behind_ssh_is_shown_alike(run, result, capsys, monkeypatch):
    identity = manifests.load(run).identity.hex()
    asked = []
    monkeypatch.setattr(jetson_ssh, "measure", lambda *words: asked.append(words) or result | {"identity": identity})
    assert cli("--run", run, "--device", "user@jetson", "--seconds", 7, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert asked == [("user@jetson", run / "jetson", 7.0)] and found["device"] == "user@jetson"
    assert {r["form"] for r in found["measured"]} == {"fp16", "fp32"} and "int8" in found["failed"]


def test_a_form_that_fails_or_differs_is_no_figure_to_rely_on(run, board, capsys):
    board.set(fail={"fp16": ["[E] no implementation"]}, offset={"int8": 40})
    assert cli("--run", run, "--seconds", 0.2, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "fp16" in found["failed"] and found["shipped"] == "fp32"
    assert "fp16: not measured" in said.err and "int8: golden outputs DIFFER" in said.err


# ---- what is printed

@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    """What jetson_device.py prints on a Nano with supply rails."""
    nano = boards.Jetson(tmp_path_factory.mktemp("nano"), "nano")
    words = [sys.executable, nano.folder / "jetson_device.py", "--seconds", "0.2", "--idle-seconds", "0.2"]
    done = subprocess.run(words, env=os.environ | nano.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_nano_has_no_int8_row_and_says_why(result, capsys):
    jetson_rows.show(result)
    said = capsys.readouterr().out
    assert {r["form"] for r in jetson_rows.rows(result)} == {"fp16", "fp32"}
    assert "int8: not measured" in said and "has no int8" in said and "clocks not locked" in said
    assert "POM_5V_IN" in said and "TensorRT 8.2.1" in said


def test_the_processor_of_the_board_has_its_own_base(result, capsys):
    entry = {"p90_ms": 2.0, "p99_ms": 3.0, "samples": 500}
    cpu = {"onnxruntime": "1.20", "rows": [{"form": f, "threads": t, "p50_ms": p, **entry} for f, t, p in
                                            (("int8", 1, 0.5), ("float", 1, 1.0), ("int8", 6, 0.8), ("float", 6, 0.4))]}
    found = {(r["form"], r["threads"]): r["float_over_this"] for r in jetson_rows.rows(result | {"cpu": cpu})
             if r["on"] == "CPU"}
    assert found == {("int8", 1): 2.0, ("float", 1): 1.0, ("int8", 6): 0.5, ("float", 6): 1.0}
    jetson_rows.show(result | {"cpu": cpu})
    assert "CPU, 6" in capsys.readouterr().out


def test_without_a_form_that_holds_no_form_has_won(result):
    assert any("nothing on this Jetson is to be used" in s for s in jetson_rows.sentences(result | {"won": None}))
