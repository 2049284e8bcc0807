# SPDX-License-Identifier: Apache-2.0
"""The evidence scripts: parity names the layer, latency measures every form, doctor ends in the next command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import targets
from bench import doctor, latency, parity
from compress import reference
from tests import graphs as make
from train import manifest, runs, say

ROOT = Path(__file__).parents[1]
SCRIPTS = ["targets/deploy.py", "bench/parity.py", "bench/latency.py", "bench/doctor.py"]
absent = targets.load("arm").missing()
needs_arm = pytest.mark.skipif(absent is not None, reason=str(absent))


def cli(script, *words):
    """Exit code of a script's main."""
    return say.run(script.main, script.parser(), list(map(str, words)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_heavy_package(script):
    program = f"""
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "wfdb", "onnx", "onnxruntime", "rich", "numpy"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
sys.argv = [{script!r}, "--help"]
runpy.run_path({script!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_from_any_directory(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0


# ---- parity

def test_parity_reports_every_layer_as_one_json_object(built, capsys):
    assert cli(parity, "--run", built, "--n", 40, "--json") == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["agreement"]["windows"] == 40 and result["first_differing_layer"] is None
    assert [row["name"] for row in result["layers"]] == [n.name for n in make.every_kind().nodes]


def test_parity_prints_all_layers_when_asked(built, capsys):
    assert cli(parity, "--run", built, "--layers") == 0
    out = capsys.readouterr().out
    assert all(n.name in out for n in make.every_kind().nodes) and "none" in out.splitlines()[-1]


@pytest.mark.parametrize("kind", ["conv1d", "attention", "add", "dense"])
def test_the_first_layer_that_differs_is_named(kind):
    graph = make.every_kind()
    inputs = make.inputs_of(graph, 6)
    at = next(i for i, n in enumerate(graph.nodes) if n.kind == kind)
    node = graph.nodes[at]
    changed = {"conv1d": {"params": node.params | {"bias": node.params.get("bias", 0) + np.int32(2000)}},
               "dense": {"params": node.params | {"bias": node.params.get("bias", 0) + np.int32(2000)}},
               "attention": {"attrs": node.attrs | {"out_mul": int(node.attrs.get("out_mul", 0) * 0.9)}},
               "add": {"attrs": node.attrs | {"shift": node.attrs.get("shift", 1) + 1}}}[kind]
    wrong = replace(graph, nodes=[*graph.nodes[:at], replace(node, **changed), *graph.nodes[at + 1:]])
    rows = parity.layers(graph, reference.run(graph, inputs, trace=True), reference.run(wrong, inputs, trace=True))
    assert next(r.name for r in rows if r.differs) == node.name
    assert [r.name for r in rows if r.own_equal < 1] == [node.name]
    assert sum(r.equal < 1 for r in rows) > 1       # it spreads


def test_a_build_that_disagrees_fails_and_names_the_layer(built, capsys, monkeypatch):
    from targets import arm
    honest = arm.run
    monkeypatch.setattr(arm, "run", lambda build, inputs: np.roll(honest(build, inputs), 1, axis=1))
    assert cli(parity, "--run", built) == 1
    assert "does not agree" in capsys.readouterr().err


@pytest.mark.parametrize("words, code, said", [
    (["--n", "0"], 1, "--n 0"), (["--n", "many"], 1, "many"), (["--target", "fpga"], 2, "fpga")])
def test_parity_refuses_wrong_words(built, capsys, words, code, said):
    assert cli(parity, "--run", built, *words) == code
    assert said in capsys.readouterr().err


# ---- latency

def test_latency_measures_every_form_with_one_thread_and_all(built, capsys):
    assert cli(latency, "--run", built, "--target", "arm", "--seconds", 0.05, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {r["form"] for r in result["measured"]} == {"int8", "mixed", "float"}
    assert {r["threads"] for r in result["measured"]} == {1, result["machine"]["cores"]}
    for row in result["measured"]:
        assert row["samples"] > 0 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert all(r["float_over_this"] == 1 for r in result["measured"] if r["form"] == "float")
    assert result["machine"]["versions"]["onnxruntime"] and "estimate" not in json.dumps(result)


@pytest.mark.parametrize("words, code, said", [
    (["--target", "fpga"], 2, "fpga"),
    (["--target", "arm", "--seconds", "0"], 1, "--seconds 0")])
def test_latency_refuses_what_it_cannot_measure(built, capsys, words, code, said):
    assert cli(latency, "--run", built, *words) == code
    assert said in capsys.readouterr().err


@needs_arm
def test_latency_of_a_run_that_is_not_built_names_the_command(tmp_path, capsys):
    run = make.write_run(tmp_path / "r", make.streaming(), golden=4)
    assert cli(latency, "--run", run, "--target", "arm") == 1
    assert f"targets/deploy.py --run {run} --target arm" in capsys.readouterr().err


# ---- doctor

def state(name, **changes):
    return {"run": name, "arch": "local-lead", "task": "t", "trained": True, "quantized": False, "built": [],
            "stale": [], "broken": None} | changes


@pytest.mark.parametrize("missing, found, step", [
    (["core", "train"], [], "pip install -e ."),
    ([], [], "compress/qat.py --arch local-lead"),
    (["train"], [], '".[train]"'),
    (["arm"], [state("runs/a", quantized=True)], '".[arm]"'),
    ([], [state("runs/a")], "compress/qat.py --arch local-lead --run runs/a"),
    ([], [state("runs/a", quantized=True)], "targets/deploy.py --run runs/a --target arm"),
    (["train"], [state("runs/a", quantized=True)], "targets/deploy.py --run runs/a --target arm"),
    ([], [state("runs/a", quantized=True, built=["arm"])], "bench/parity.py --run runs/a --target arm"),
    ([], [state("runs/a", quantized=True, stale=["arm"])], "targets/deploy.py --run runs/a"),
    ([], [state("runs/a", broken="model.json is not JSON")], "compress/qat.py --arch local-lead --run runs/a"),
])
def test_doctor_advises_one_next_command(missing, found, step):
    assert step in doctor.advise(missing, found)


def test_doctor_tells_the_state_of_every_run(built, tmp_path):
    for name, graph in (("quantized", make.streaming()), ("flipped", make.streaming())):
        make.write_run(tmp_path / name, graph, golden=2)
    damaged = bytearray((tmp_path / "flipped" / "graph.json").read_bytes())
    damaged[5] ^= 1
    (tmp_path / "flipped" / "graph.json").write_bytes(damaged)
    draft = replace(make.manifest_of(make.streaming(), "0" * 64), decision=None, graph_sha256=None)
    runs.write(tmp_path / "trained", {"weights.safetensors": b"", "model.json": manifest.dumps(draft)})
    runs.write(tmp_path / "torn", {"model.json": "{"})
    (tmp_path / "notes").mkdir()
    found = {Path(r["run"]).name: r for r in doctor.find_runs(tmp_path)}
    assert set(found) == {"quantized", "flipped", "trained", "torn"}
    assert found["quantized"]["quantized"] and not found["quantized"]["trained"] and not found["quantized"]["built"]
    assert "vouches" in found["flipped"]["broken"] and not found["flipped"]["quantized"]
    assert found["trained"]["trained"] and not found["trained"]["quantized"] and found["trained"]["broken"] is None
    assert "JSON" in found["torn"]["broken"]
    assert doctor.find_runs(built.parent)[0]["built"] == ["arm"]


def test_doctor_calls_a_build_of_another_model_stale(built, tmp_path):
    run = make.write_run(tmp_path / "r", make.streaming(), golden=2)
    (run / "builds.json").write_bytes((built / "builds.json").read_bytes())
    assert doctor.find_runs(tmp_path)[0]["stale"] == ["arm"]


def test_doctor_ends_with_the_next_command(tmp_path):
    words = [sys.executable, ROOT / "bench/doctor.py", "--runs", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("next: ")


def test_doctor_gives_every_missing_package_a_command(monkeypatch, capsys):
    rows = [{"package": "torch", "extra": "train", "for": "training", "version": None},
            {"package": "numpy", "extra": "core", "for": "every stage", "version": "2.0"}]
    monkeypatch.setattr(doctor, "packages", lambda: rows)
    assert cli(doctor, "--runs", "nowhere") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("torch"))
    assert "missing" in line and 'pip install -e ".[train]"' in line


def test_doctor_works_before_numpy_is_there(tmp_path):
    program = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numpy", "serial", "rich"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from importlib import metadata
real = metadata.version
def version(name):
    if name in ("numpy", "pyserial", "rich"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
sys.argv = ["bench/doctor.py"]
runpy.run_path("bench/doctor.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "next: pip install -e .", done.stderr


def test_doctor_knows_the_packages_that_the_project_asks_for():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"core": project["dependencies"], **project["optional-dependencies"]}
    for extra, (_, names) in doctor.EXTRAS.items():
        asked = {w.split(";")[0].split("=")[0].split(">")[0].split("[")[0].strip() for w in wanted[extra]}
        assert set(names) <= asked, extra
