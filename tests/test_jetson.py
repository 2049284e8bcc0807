# SPDX-License-Identifier: Apache-2.0
"""The target jetson: what goes to the device, what is found out without one, live use with an engine and without."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import targets
from compress import reference
from compress.graph import Graph, Tensor
from targets import deploy, jetson_device, jetson_ssh, target, trt_import
from targets.target import Built, Options
from tests import graphs as make
from tests.jetson_fakes import boards
from train import manifest, runs, say
from train.say import UserError

jetson = targets.load("jetson")
absent = jetson.missing()
if absent:
    pytest.skip(absent, allow_module_level=True)

ALL = {"model.int8.onnx", "model.float.onnx", "model.fp16.onnx"}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A run with side inputs whose names matter."""
    return make.write_run(tmp_path_factory.mktemp("jetson") / "r", make.learned(), golden=70)


@pytest.fixture(scope="module")
def built(frozen):
    """The run, deployed without a JetPack, the importer not asked; and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt_import, "missing", lambda: "it is not installed")
        patch.setenv("LEADEDGE_JETSON_ROOT", "/nowhere")
        assert cli("--run", frozen) == 0
    return frozen


@pytest.fixture
def quick(monkeypatch):
    """Without NVIDIA's importer, on no Jetson."""
    monkeypatch.setattr(trt_import, "missing", lambda: "it is not installed")
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", "/nowhere")


def cli(*words):
    """Exit code of deploy.py --target jetson."""
    return say.run(deploy.main, deploy.parser(), ["--target", "jetson", *map(str, words)])


def opened(run):
    """(manifest, graph, build) of a deployed run."""
    about, graph = target.open_run(run)
    return about, graph, target.open_build(run, "jetson", about)


# ---- the folder

def test_the_folder_holds_what_job_json_names(built):
    folder, (about, graph, _) = built / "jetson", opened(built)
    job = json.loads((folder / "job.json").read_text())
    names = {p.name for p in folder.iterdir()}
    assert names == {"job.json", "jetson_device.py", *job["sha256"]} and names >= ALL
    assert all(runs.sha256(folder / name) == digest for name, digest in job["sha256"].items())
    assert (job["identity"], job["windows"], job["jetpack"], job["opset"]) == (about.identity.hex(), 64, None, 17)
    assert job["classes"] == [c.name for c in about.classes] and job["period_s"] == about.trigger.hop / about.fs
    assert [one["name"] for one in job["inputs"]] == graph.inputs
    assert {f for pair in job["forms"].values() for f in pair.values()} == ALL


def test_the_program_of_the_device_takes_the_folder(built):
    job = jetson_device.read_job(str(built / "jetson"))
    windows, logits = jetson_device.golden(str(built / "jetson"), job)
    about, graph, _ = opened(built)
    inputs, expected = target.golden(built, graph, 64)
    assert len(windows) == 64 and np.array_equal(logits, expected)
    for name, column in zip(graph.inputs, zip(*windows, strict=True), strict=True):
        assert np.allclose(np.reshape(column, inputs[name].shape), inputs[name] * graph.tensors[name].scale)
    labels = [jetson_device.label(job["decision"], list(map(int, row))) for row in expected]
    assert np.array_equal(labels, target.labels(about, expected))


def test_the_same_run_gives_the_same_bytes(built, tmp_path):
    about, graph, _ = opened(built)
    run = make.write_run(tmp_path / "r", graph, golden=70, manifest=about)
    jetson.lower(graph, about, run / "jetson")
    for name in ALL | {"job.json"}:
        assert (run / "jetson" / name).read_bytes() == (built / "jetson" / name).read_bytes()


@pytest.mark.parametrize("jetpack, board, files", [
    ("4.6", None, {"model.float.onnx"}), (None, "nano", {"model.float.onnx"}),
    ("5.1.2", "agx-orin-64", {"model.int8.onnx", "model.float.onnx"}), ("6.2", None, ALL)])
def test_a_jetpack_decides_which_files_there_are(frozen, tmp_path, jetpack, board, files):
    about, graph = target.open_run(frozen)
    run = make.write_run(tmp_path / "r", graph, golden=4)
    facts = target.read_board(board, "jetson") if board else None
    jetson.lower(graph, about, run / "jetson")
    (run / "jetson" / "result.json").write_text("{}")
    jetson.lower(graph, about, run / "jetson", facts, Options(jetpack=jetpack))
    job = json.loads((run / "jetson" / "job.json").read_text())
    assert {p.name for p in (run / "jetson").glob("*.onnx")} == files == {f for f in job["sha256"] if "model" in f}
    assert {f for pair in job["forms"].values() for f in pair.values()} == files
    assert ("int8" in job["forms"]) == ("model.int8.onnx" in files)
    assert not (run / "jetson" / "result.json").exists()        # was of other files
    jetson.lower(graph, about, run / "jetson", facts, Options(jetpack=jetpack))
    assert {p.name for p in (run / "jetson").glob("*.onnx")} == files


def test_a_jetpack_that_is_not_for_the_board_is_refused(built):
    about, graph, _ = opened(built)
    with pytest.raises(UserError, match=r"6\.2 is not for Jetson Nano") as error:
        jetson.lower(graph, about, built / "jetson", target.read_board("nano", "jetson"), Options(jetpack="6.2"))
    assert error.value.fix == "--jetpack 4.6"


# ---- without a device

def test_a_build_says_that_no_jetson_and_no_tensorrt_was_there(built, quick, capsys):
    _, _, build = opened(built)
    notes = jetson.build(built / "jetson", None).notes
    said = capsys.readouterr().out
    for words in (said, json.dumps(notes)):
        assert "not built on a Jetson: the engine is built there" in words
        assert "ONNX Runtime, not by TensorRT" in words
    assert notes == build.notes and set(notes["forms"]) == {"int8", "float", "fp16"}
    assert notes["forms"]["int8"]["agrees"] and "not asked" in notes["forms"]["int8"]["importer"]


def test_nvidias_importer_takes_every_form(built, monkeypatch):
    if trt_import.missing():
        pytest.skip(trt_import.missing())
    monkeypatch.setenv("LEADEDGE_JETSON_ROOT", "/nowhere")
    notes = jetson.build(built / "jetson", None).notes
    assert {entry["importer"] for entry in notes["forms"].values()} == {"taken"}


@pytest.mark.parametrize("stage, refused", [("parse", True), ("build", True), ("crash", False), ("time", False)])
def test_what_the_importer_refuses_is_not_built_and_a_crash_is_no_answer(built, quick, monkeypatch, capsys, stage,
                                                                          refused):
    verdict = trt_import.Verdict(False, stage, ("conv1d1/Conv: no",), 0.1, {}, 0)
    monkeypatch.setattr(trt_import, "missing", lambda: None)
    monkeypatch.setattr(trt_import, "check", lambda models: [verdict] * len(models))
    if refused:
        with pytest.raises(UserError, match="conv1d1/Conv: no"):
            jetson.build(built / "jetson", None)
    else:
        assert jetson.build(built / "jetson", None).notes["forms"]["int8"]["importer"] == stage
        assert "did not finish" in capsys.readouterr().err


def test_a_file_that_tensorrt_would_refuse_is_refused_with_rule_and_node(frozen, tmp_path, quick):
    import onnx
    about, graph = target.open_run(frozen)
    run = make.write_run(tmp_path / "r", graph, golden=4)
    jetson.lower(graph, about, run / "jetson")
    path = run / "jetson" / "model.int8.onnx"
    model = onnx.load(path)
    pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    del pair.input[2]
    onnx.save(model, path)
    with pytest.raises(UserError, match="zero-point-missing at") as error:
        jetson.build(run / "jetson", None)
    assert pair.name in error.value.what


def test_int8_that_does_not_agree_is_refused(built, quick, monkeypatch):
    honest = jetson.Session.run
    monkeypatch.setattr(jetson.Session, "run", lambda self, inputs: np.roll(honest(self, inputs), 1, axis=1))
    with pytest.raises(UserError, match="does not agree") as error:
        jetson.build(built / "jetson", None)
    assert "bench/parity.py" in error.value.fix and "not by TensorRT" in error.value.what


def test_a_build_for_a_jetson_without_int8_is_the_float_file(frozen, tmp_path, quick):
    about, graph = target.open_run(frozen)
    run = make.write_run(tmp_path / "r", graph, golden=8)
    jetson.lower(graph, about, run / "jetson", None, Options(jetpack="4.6"))
    build = jetson.build(run / "jetson", None)
    assert build.path.name == "model.float.onnx" and build.notes["form"] == "float"
    inputs, _ = target.golden(run, graph)
    assert jetson.run(build, inputs).shape == (8, 3)


def test_a_trace_holds_every_tensor_and_the_logits_of_the_build(built, quick):
    _, graph, build = opened(built)
    inputs, _ = target.golden(built, graph, 6)
    values = jetson.trace(graph, build, inputs)
    assert set(values) == set(graph.tensors)
    assert np.array_equal(values[graph.output], jetson.run(build, inputs))
    assert all(x.shape[1:] == graph.tensors[t].shape and x.dtype == np.int8 for t, x in values.items())


def test_every_form_can_be_called_and_says_by_what(built):
    _, graph, build = opened(built)
    inputs, expected = target.golden(built, graph, 1)
    calls = jetson.calls(graph, build, inputs, 1)
    assert set(calls) == {f"{f}, ONNX Runtime" for f in ("int8", "float", "fp16")}
    assert np.abs(calls["int8, ONNX Runtime"]().astype(int) - expected[0]).max() <= 4


def test_flashing_is_one_sentence_about_copying(built, capsys):
    jetson.flash(opened(built)[2], None)
    said = capsys.readouterr().out
    assert f"scp -r {built / 'jetson'}" in said and "jetson_device.py" in said and len(said.splitlines()) == 1


# ---- live

@pytest.mark.parametrize("able, first", [
    (["CPUExecutionProvider"], "CPUExecutionProvider"),
    (["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
    (["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"], "TensorrtExecutionProvider")])
def test_live_asks_for_the_fastest_provider_that_there_is(built, quick, monkeypatch, capsys, able, first):
    import onnxruntime
    asked = []

    class Recorded(jetson.Session):
        def __init__(self, file, graph, threads, providers):
            asked.extend(p if isinstance(p, str) else p[0] for p in providers)
            super().__init__(file, graph, threads)
            self.session.get_providers = lambda: [first]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: able)
    monkeypatch.setattr(jetson, "Session", Recorded)
    _, graph, build = opened(built)
    jetson.runner(build, graph)
    said = capsys.readouterr().out
    assert asked == [p for p in jetson.PROVIDERS if p in able] and asked[0] == first
    assert ("by its TensorRT" in said) == (first == "TensorrtExecutionProvider")
    assert ("not by TensorRT" in said) != ("by its TensorRT" in said)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return boards.cudart(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def engine(tmp_path, library, monkeypatch):
    """(stand-in of a Jetson with an int8 engine of its job, a graph with the job's inputs, the build)."""
    board = boards.Jetson(tmp_path, windows=2)
    for name, value in (board.environment | {"LEADEDGE_CUDART": library, "STANDIN_API": "10",
                                             "PYTHONPATH": str(boards.HERE / "python")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jetson_ssh, "SYSTEM_PYTHON", "/nowhere")
    engines = board.folder / "engines"
    engines.mkdir()
    tensors = json.loads(board.settings.read_text())["tensors"]
    (engines / "int8.engine").write_text(json.dumps({"form": "int8", "tensors": tensors}))
    made = {"model": "model.int8.onnx", "model_sha256": board.job["sha256"]["model.int8.onnx"]}
    (engines / "int8.json").write_text(json.dumps({"key": {}, "engine": made}))
    places = {one["name"]: Tensor(tuple(one["shape"][1:]), one["scale"])
              for one in (*board.job["inputs"], board.job["output"])}
    graph = Graph([one["name"] for one in board.job["inputs"]], board.job["output"]["name"], places, [])
    return board, graph, Built(board.folder / "model.int8.onnx", 1, None, {"form": "int8"})


def test_live_on_a_jetson_is_its_engine(engine, capsys):
    board, graph, build = engine
    live = jetson.runner(build, graph)
    assert "live by TensorRT 10" in capsys.readouterr().out
    inputs, logits = boards.golden(board)
    for i, expected in enumerate(logits):
        assert np.array_equal(live({name: x[i] for name, x in inputs.items()}), expected)
    with pytest.raises(UserError, match="is missing"):
        live({})


@pytest.mark.parametrize("damage, words", [("other", "of another model"), ("note", "of another model"),
                                           ("module", "cannot be used")])
def test_an_engine_that_does_not_fit_is_passed_over_with_the_reason(engine, monkeypatch, capsys, damage, words):
    board, graph, build = engine
    note = board.folder / "engines" / "int8.json"
    if damage == "other":
        note.write_text(note.read_text().replace(board.job["sha256"]["model.int8.onnx"], "0" * 64))
    elif damage == "note":
        note.unlink()
    else:
        monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(jetson, "_providers", lambda *words: lambda inputs: "by ONNX Runtime")
    inputs, _ = boards.golden(board)
    assert jetson.runner(build, graph)({name: x[0] for name, x in inputs.items()}) == "by ONNX Runtime"
    assert words in capsys.readouterr().err


def test_a_run_that_is_no_longer_the_one_deployed_is_refused(built):
    with pytest.raises(UserError, match="another model"):
        target.open_build(built, "jetson", replace(manifest.load(built), fs=251))


def test_the_build_is_near_the_reference(built, quick):
    about, graph, build = opened(built)
    inputs, expected = target.golden(built, graph)
    assert np.array_equal(expected, reference.run(graph, inputs))
    assert target.compare(about, expected, jetson.run(build, inputs)).ok
