# SPDX-License-Identifier: Apache-2.0
"""The paper presets as ONNX: PyTorch's numbers in float, near them with Q/DQ, taken by linter and importer."""

import json
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime", reason='pip install -e ".[jetson]"')
pytest.importorskip("onnxscript", reason='pip install -e ".[compress]"')
from compress import export_onnx, placement
from compress.onnx_portable import checked, constants, portable, shapes
from targets import trt_import, trt_lint
from tests.frozen import lively
from train import say
from train.models import ARCHS, build
from train.say import GraphError
from train.sides import SIDES

WHICH = ARCHS if os.environ.get("LEADEDGE_ALL") else ("lga", "efficient")   # all five take two minutes
LEADS, CLASSES = 2, 5
MILLIVOLT = 0.016
DEMANDED = 1e-4         # difference of logits from PyTorch that is left to the order of sums


def _windows(net, count):
    """Waves with noise on the device's grid, and side inputs of any value."""
    rng = np.random.default_rng(count)
    t = np.arange(net.geometry.window)
    made = []
    for _ in range(count):
        wave = 60 * np.sin(t / rng.uniform(8, 40, (1, LEADS, 1))) + rng.normal(0, 12, (1, LEADS, len(t)))
        sides = {name: rng.integers(0, 3, (1, *SIDES[name].shape)) * SIDES[name].one for name in net.sides}
        made.append({"ecg": np.clip(np.rint(wave), -128, 127) * MILLIVOLT} | sides)
    return [{name: x.astype(np.float32) for name, x in window.items()} for window in made]


class Exported:
    """A paper preset with random weights, its two files, and windows that neither has seen."""

    def __init__(self, arch):
        torch.manual_seed(0)
        self.net = lively(build(arch, "paper", "cinc2020", LEADS, CLASSES))
        self.shapes = {"ecg": (LEADS, self.net.geometry.window), **{n: SIDES[n].shape for n in self.net.sides}}
        self.float = export_onnx.floating(self.net, self.shapes)
        self.int8, self.chosen = export_onnx.quantized(self.float, _windows(self.net, 3), {"ecg": MILLIVOLT})
        self.held = _windows(self.net, 4)
        self.want = export_onnx.truth(self.net, self.held)


@pytest.fixture(scope="module")
def exported():
    made = {}

    def of(arch):
        if arch not in made:
            made[arch] = Exported(arch)
        return made[arch]
    return of


@pytest.mark.parametrize("arch", WHICH)
def test_the_float_file_computes_what_the_network_does(exported, arch):
    e = exported(arch)
    found = export_onnx.faithful(e.net, e.float, e.held, False)
    assert found["worst_nats"] <= DEMANDED * max(1, np.abs(e.want).max()) and found["labels"] == 1


@pytest.mark.parametrize("arch", WHICH)
def test_int8_costs_little_of_what_tells_classes_apart(exported, arch):
    e = exported(arch)
    found = export_onnx.agreement(e.want, export_onnx.logits(e.int8, e.held), False)
    assert 0 < found["rms_nats"] < 0.1 * found["spread_nats"], found


@pytest.mark.parametrize("arch", WHICH)
def test_the_linter_has_nothing_against_either_file(exported, arch):
    for model in (exported(arch).float, exported(arch).int8):
        for jetpack in (None, "6.2", "7.2"):
            assert trt_lint.lint(model.SerializeToString(), jetpack) == []


@pytest.mark.parametrize("arch", WHICH)
def test_every_layer_is_quantized_on_both_inputs_or_has_a_reason(exported, arch):
    e = exported(arch)
    kinds = [n.op_type for n in e.int8.graph.node]
    weighted = sum(k in ("Conv", "Gemm", "MatMul") for k in kinds)
    assert e.chosen["layers_int8"] + sum(e.chosen["layers_float"].values()) == weighted
    assert e.chosen["layers_int8"] > 40 and set(e.chosen["layers_float"]) <= {"grouped", "vector", "long", "softmax"}
    writer = {v: n.op_type for n in e.int8.graph.node for v in n.output}
    both = [n for n in e.int8.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")
            and all(writer.get(v) == "DequantizeLinear" for v in n.input[:2])]
    assert len(both) == e.chosen["layers_int8"]
    held = constants(e.int8)
    scales = [held[n.input[1]] for n in e.int8.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "ecg"]
    assert all(float(s) == np.float32(MILLIVOLT) for s in scales)       # the device's grid, not one of ours


@pytest.mark.parametrize("arch", WHICH)
def test_a_file_tells_nothing_of_the_machine_that_wrote_it(exported, arch):
    data = exported(arch).float.SerializeToString()
    assert b".py" not in data and b"stack_trace" not in data and b"site-packages" not in data


@pytest.mark.skipif(trt_import.missing() is not None, reason=str(trt_import.missing()))
def test_nvidias_importer_builds_every_paper_preset(exported):
    verdicts = trt_import.check([exported(arch).int8.SerializeToString() for arch in WHICH]
                                + [exported("lga").float.SerializeToString()])
    assert [v.messages for v in verdicts if not v.accepted] == []
    assert all(v.layers["quantize"] > 80 for v in verdicts[:-1]) and "quantize" not in verdicts[-1].layers


def test_opset_13_is_for_the_oldest_jetpack(exported):
    old = portable(exported("lga").float, 13)
    assert trt_lint.errors(trt_lint.lint(old.SerializeToString(), "4.6")) == []
    held = exported("lga").held
    assert np.allclose(export_onnx.logits(old, held), export_onnx.logits(exported("lga").float, held), atol=1e-5)


# ---- the parts, on small models

def _model(nodes, inits, shape=(1, 4, 1, 8), opset=18):
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("ecg", TensorProto.FLOAT, shape)],
                              [helper.make_empty_tensor_value_info("logits")],
                              [numpy_helper.from_array(np.asarray(a), n) for n, a in inits.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def _node(kind, inputs, output, **attrs):
    return helper.make_node(kind, inputs, [output] if isinstance(output, str) else output, name=f"{output}.node",
                            **attrs)


@pytest.mark.parametrize("opset", [13, 17])
def test_newer_operators_become_older_ones_with_the_same_numbers(opset):
    nodes = [_node("ReduceMean", ["ecg", "axes"], "mean", keepdims=1), _node("Abs", ["mean"], "positive"),
             _node("Reciprocal", ["positive"], "inverse"), _node("Mul", ["ecg", "inverse"], "scaled"),
             _node("Split", ["scaled"], ["a", "b"], axis=1, num_outputs=2), _node("Sub", ["a", "b"], "gap"),
             _node("Add", ["one", "two"], "three"), _node("Where", ["yes", "gap", "floor"], "masked"),
             _node("Mul", ["masked", "three"], "product"),
             _node("Reshape", ["product", "shape"], "logits", allowzero=1)]
    model = _model(nodes, {"axes": np.array([1, 3]), "one": np.float32(1), "two": np.float32(2), "yes": np.array(True),
                           "floor": np.float32(-3.4e38), "shape": np.array([1, -1])})
    made = portable(model, opset)
    window = {"ecg": np.random.default_rng(0).normal(size=(1, 4, 1, 8)).astype(np.float32)}
    assert made.opset_import[0].version == opset
    assert np.allclose(export_onnx.logits(made, [window]), export_onnx.logits(model, [window]), rtol=1e-6)
    assert {"Reciprocal", "Add"}.isdisjoint(n.op_type for n in made.graph.node)     # 1 / x, and 3 is known
    assert min(a.min() for a in constants(made).values()) == -6e4                   # fits float16


def test_what_an_opset_lacks_is_refused_by_name():
    model = _model([_node("Gelu", ["ecg"], "logits")], {}, opset=20)
    with pytest.raises(GraphError, match="Gelu"):
        portable(model, 17)


def test_products_with_one_row_long_attention_and_groups_stay_float():
    weight = np.ones((4, 1, 1, 1), np.float32)
    nodes = [_node("Conv", ["ecg", "w"], "grouped", group=4), _node("Reshape", ["grouped", "rows"], "long"),
             _node("Transpose", ["long"], "turned", perm=[1, 0]), _node("MatMul", ["long", "turned"], "scores"),
             _node("MatMul", ["scores", "long"], "mixed"), _node("Reshape", ["mixed", "flat"], "vector"),
             _node("MatMul", ["vector", "column"], "logits")]
    model = checked(_model(nodes, {"w": weight, "rows": np.array([600, 2]), "flat": np.array([1, 1200]),
                                   "column": np.ones((1200, 3), np.float32)}, (1, 4, 1, 300)))
    plan = placement.plan(model)
    assert plan.layers == () and plan.kept == {"grouped.node": "grouped", "scores.node": "long", "mixed.node": "long",
                                               "logits.node": "vector"}


def _attention(scale):
    """Scores scale * x x', softmax, times x."""
    nodes = [_node("Reshape", ["ecg", "rows"], "x"), _node("Transpose", ["x"], "t", perm=[1, 0]),
             _node("MatMul", ["x", "t"], "scores"), _node("Mul", ["scores", "scale"], "sharp"),
             _node("Softmax", ["sharp"], "weights", axis=-1), _node("MatMul", ["weights", "x"], "logits")]
    return checked(_model(nodes, {"rows": np.array([400, 2]), "scale": np.array(scale, np.float32)}, (1, 2, 1, 400)))


@pytest.mark.parametrize("scale, lost", [(np.full((400, 400), 0.001), False), ([[40.0]] + [[0.001]] * 399, True)])
def test_a_softmax_that_int8_cannot_hold_stays_float(scale, lost):
    """Rows that look at one key beside rows that look at all 400 of them."""
    model = _attention(scale)
    rng = np.random.default_rng(0)
    windows = [{"ecg": 3 * rng.normal(size=(1, 2, 1, 400)).astype(np.float32)} for _ in range(3)]
    made, chosen = export_onnx.quantized(model, windows, {"ecg": 0.1})
    assert chosen["layers_float"] == ({"softmax": 1} if lost else {})
    error = np.abs(export_onnx.logits(made, windows) - export_onnx.logits(model, windows)).max()
    assert error < 0.2


def test_weights_have_a_scale_per_output_channel_and_reach_127():
    rng = np.random.default_rng(0)
    inits = {"w": rng.normal(size=(8, 4, 1, 3)).astype(np.float32), "rows": np.array([6, 8]),
             "m": rng.normal(size=(8, 5)).astype(np.float32)}
    inits["w"][2] = 0
    nodes = [_node("Conv", ["ecg", "w"], "y"), _node("Reshape", ["y", "rows"], "r"),
             _node("MatMul", ["r", "m"], "logits")]
    model = checked(_model(nodes, inits))
    made, _ = export_onnx.quantized(model, [{"ecg": np.ones((1, 4, 1, 8), np.float32)}], {"ecg": 0.016})
    held = constants(made)
    assert np.allclose(held["w/0/scale"], np.r_[np.abs(inits["w"]).max((1, 2, 3))[:2] / 127, 1,
                                                np.abs(inits["w"]).max((1, 2, 3))[3:] / 127])
    assert np.allclose(held["m/1/scale"], np.abs(inits["m"]).max(0) / 127)
    assert shapes(made)["logits"] == (6, 5) and "ecg/scale" in held
    assert not any(name.endswith("zero") and a.any() for name, a in held.items())


def test_a_file_that_computes_something_else_is_refused(exported):
    e = exported("lga")
    wrong = onnx.ModelProto.FromString(e.float.SerializeToString())
    bias = next(t for t in wrong.graph.initializer if numpy_helper.to_array(t).shape == (CLASSES,))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    with pytest.raises(GraphError, match="differs from the network"):
        export_onnx.faithful(e.net, wrong, e.held, False)


def test_the_command_exports_a_trained_run(tmp_path, capsys, paper_run):
    assert say.run(export_onnx.main, export_onnx.parser(), ["--run", str(paper_run), "--windows", "6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    folder = paper_run / "jetson"
    assert told == json.loads((folder / "export.json").read_text()) and told["int8"]["windows"] > 0
    for name in ("model.float.onnx", "model.int8.onnx"):
        assert trt_lint.lint(folder / name) == [] and (folder / name).stat().st_size == told["bytes"][name]


def test_a_frozen_run_is_sent_to_deploy(tmp_path, capsys, paper_run):
    about = json.loads((paper_run / "model.json").read_text())
    about |= {"graph_sha256": "0" * 64, "decision": {"rule": "argmax", "offsets": [0] * len(about["classes"]),
                                                     "nats_per_lsb_q16": 65536, "vote": 0}}
    for name in ("weights.safetensors", "training.json"):
        (tmp_path / name).symlink_to(paper_run / name)
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert say.run(export_onnx.main, export_onnx.parser(), ["--run", str(tmp_path)]) == 1
    assert f"deploy.py --run {tmp_path} --target jetson" in capsys.readouterr().err


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory):
    """A run as train/fit.py leaves it, with random weights: the run's own writer, no training."""
    from train.fit import Fit, Job
    from train.loop import workers
    run = tmp_path_factory.mktemp("paper") / "run"
    with workers("cpu") as crew:
        torch.manual_seed(0)
        fit = Fit(Job(run=str(run), arch="lga", preset="paper", task="synthetic"), crew)
        fit._write(lively(fit.build()).state_dict(), {"epochs": 0})
    return run
