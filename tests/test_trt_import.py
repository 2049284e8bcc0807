# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's importer takes what is right, refuses what the linter refuses; a crash or a standstill is no acceptance."""

import os

import numpy as np
import pytest

pytest.importorskip("onnx", reason='pip install -e ".[jetson]"')
from targets import onnx_tensorrt, target, trt_import, trt_lint
from tests import tiny
from tests.onnx_pieces import CHANNELS, good
from train.say import MissingError

FORMS = onnx_tensorrt.FORMS if os.environ.get("LEADEDGE_ALL") else ("int8",)
needs = pytest.mark.skipif(trt_import.missing() is not None, reason=str(trt_import.missing()))


def _int32_bias(d):
    d.constants |= {"b.codes": np.ones(16, np.int32), "b.scale": np.full(16, 1e-3, np.float32),
                    "b.zero": np.zeros(16, np.int32)}
    d.add("DequantizeLinear", "b.dq", ["b.codes", "b.scale", "b.zero"], axis=0)
    d.nodes = {"b.dq": d.nodes.pop("b.dq")} | d.nodes
    d.read("conv", 2, "b.dq")


def _channels(d):
    d.grid("x", np.full(CHANNELS, 0.1))
    for part in ("x.q", "x.dq"):
        d.nodes[part].attribute.add(name="axis", i=1, type=2)


def _codes_only(d):
    d.constants["codes"] = np.ones((16, CHANNELS, 1, 3), np.int8)
    d.nodes.pop("w.q")
    d.read("w.dq", 0, "codes")


def _half(d):
    d.read("conv", 0, "x")
    d.nodes.pop("x.q"), d.nodes.pop("x.dq")


MODELS = {      # what is done to a good model: (how, does the importer take it, words of its refusal)
    "nothing": (lambda d: None, True, ""),
    "a bias in int32 codes": (_int32_bias, False, "Int32"),
    "zero point 5": (lambda d: d.grid("x", 0.1, np.int8(5)), False, "zero point"),
    "uint8 with zero point 128": (lambda d: d.grid("x", 0.1, np.uint8(128)), False, "zero point"),
    "a negative scale": (lambda d: d.grid("x", -0.1), False, "positive"),
    "an operator of ONNX Runtime alone": (lambda d: d.nodes.update(y=_qlinear()), False, "QLinearMatMul"),
    "int8 weights without their Q": (_codes_only, True, ""),
    "one of two inputs quantized": (_half, True, ""),
    "an activation with a scale per channel": (_channels, True, ""),
}


def _qlinear():
    from onnx import helper
    grid = ["h.scale", "h.zero"]
    return helper.make_node("QLinearMatMul", ["h.q", *grid, "v.q", *grid, *grid], ["y"], name="y")


def _model(what):
    draft = good()
    MODELS[what][0](draft)
    return draft.model()


@pytest.fixture(scope="module")
def verdicts():
    return dict(zip(MODELS, trt_import.check([_model(what) for what in MODELS]), strict=True))


@needs
@pytest.mark.parametrize("what", MODELS)
def test_the_importer_parses_and_builds_or_says_why_not(verdicts, what):
    _, accepted, words = MODELS[what]
    verdict = verdicts[what]
    assert verdict.accepted == accepted, verdict
    if accepted:
        assert verdict.stage == "done" and verdict.bytes > 1000 and verdict.seconds > 0
        assert verdict.layers["convolution"] == 1 and verdict.layers["matrix_multiply"] == 1
    else:
        assert verdict.stage == "parse" and any(words in m for m in verdict.messages), verdict.messages


@needs
def test_the_linter_refuses_all_that_the_importer_refuses(verdicts):
    for what, verdict in verdicts.items():
        if not verdict.accepted:
            assert trt_lint.errors(trt_lint.lint(_model(what), "7.2")), what


@needs
def test_bytes_that_are_no_model_are_refused_and_the_next_is_looked_at(tmp_path):
    path = tmp_path / "good.onnx"
    path.write_bytes(good().model())
    found = trt_import.check([b"no model", tmp_path / "none.onnx", path])
    assert [v.accepted for v in found] == [False, False, True] and all(v.messages for v in found[:2])


@needs
@pytest.mark.parametrize("body, stage, words", [
    ("import os; os.abort()", "crash", "signal 6"),
    ("import sys; sys.exit('no room')", "crash", "exit code 1: no room"),
    ("import time; time.sleep(60)", "time", "not parsed and built within 1 s")])
def test_a_process_that_falls_is_no_acceptance(tmp_path, monkeypatch, body, stage, words):
    (tmp_path / f"{trt_import.MODULE}.py").write_text(body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = trt_import.check([good().model()], seconds=1)
    assert [(v.accepted, v.stage) for v in found] == [(False, stage)] and words in found[0].messages[0]


CRASHES = """
import os, time
from pathlib import Path
class NetworkDefinitionCreationFlag: STRONGLY_TYPED = 0
class ILogger:
    class Severity: WARNING = 2
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): pass
class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def parse_from_file(self, path):
        if Path(path).read_bytes() == b"crash": os.abort()
        return False
"""


@needs
def test_a_model_that_crashes_the_importer_spoils_no_other(tmp_path, monkeypatch):
    (tmp_path / f"{trt_import.MODULE}.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = trt_import.check([b"a", b"crash", b"b", b"crash"])
    assert [v.stage for v in found] == ["parse", "crash", "parse", "crash"]


def test_without_the_importer_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setattr(trt_import, "MODULE", "no_such_module")
    assert '".[jetson-check]"' in trt_import.missing()
    with pytest.raises(MissingError, match="jetson-check"):
        trt_import.check([good().model()])


@needs
def test_the_importer_takes_every_architecture(tmp_path_factory):
    pytest.importorskip("torchao")
    graphs = [target.open_run(tiny.run(tmp_path_factory, arch))[1] for arch in tiny.TINY]
    models = [onnx_tensorrt.lower(graph, form) for graph in graphs for form in FORMS]
    assert [v.messages for v in trt_import.check(models) if not v.accepted] == []
