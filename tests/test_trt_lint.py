# SPDX-License-Identifier: Apache-2.0
"""The linter names rule and node of what TensorRT refuses, takes what is right, and survives any bytes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason='pip install -e ".[jetson]"')
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from targets import jetpacks, trt_lint
from targets.trt_rules import RULES
from tests.onnx_pieces import CHANNELS, OUT, TIME, good
from train.say import UserError

ROOT = Path(__file__).parents[1]


def _int32_bias(d):
    d.constants |= {"b.codes": np.ones(OUT, np.int32), "b.scale": np.full(OUT, 1e-3, np.float32),
                    "b.zero": np.zeros(OUT, np.int32)}
    d.nodes = {"b.dq": helper.make_node("DequantizeLinear", ["b.codes", "b.scale", "b.zero"], ["b.dq"], name="b.dq",
                                        axis=0)} | d.nodes
    d.read("conv", 2, "b.dq")


def _int8_bias(d):
    d.grid("b", 0.01)
    made = {name: d.nodes[name] for name in (d.pair("b", "conv.b").replace("dq", "q"), "b.dq")}
    d.nodes = made | d.nodes
    d.read("conv", 2, "b.dq")


def _computed(kind):
    def broken(d):
        d.nodes = {"late": helper.make_node("Abs", [f"x.{kind}"], ["late"], name="late")} | d.nodes
        for node in ("x.q", "x.dq"):
            d.read(node, 1 if kind == "scale" else 2, "late")
    return broken


def _codes_only(d):
    d.constants["codes"] = np.ones((OUT, CHANNELS, 1, 3), np.int8)
    d.nodes.pop("w.q")
    d.read("w.dq", 0, "codes")


def _layer_norm(d):
    d.constants["gain"] = np.ones(24, np.float32)
    d.add("LayerNormalization", "norm", ["y", "gain"], axis=-1)
    d.output = "norm"


def _operator(kind, inputs=("y",), **attrs):
    def broken(d):
        d.add(kind, "odd", list(inputs), **attrs)
        d.output = "odd"
    return broken


def _drop_zero_point(d):
    for node in ("x.q", "x.dq"):
        del d.nodes[node].input[2]


def _half(d):
    d.read("conv", 0, "x")
    d.nodes.pop("x.q"), d.nodes.pop("x.dq")


def _residual(d):
    d.nodes["y"].output[0] = "product"
    d.grid("r", 0.1)
    d.add("Add", "y", [d.pair("r", "product"), "product"])


def _vector(d):
    d.constants["shape"] = np.array([OUT * TIME // 512, 512], np.int64)
    d.constants["dense.w"] = np.ones((512, 24), np.float32)


def _axis(node, axis):
    def broken(d):
        for part in ("q", "dq"):
            del d.nodes[f"{node}.{part}"].attribute[:]
            if axis is not None:
                d.nodes[f"{node}.{part}"].attribute.append(helper.make_attribute("axis", axis))
    return broken


def _long(d):
    """The scores of 1024 queries and keys, both in codes."""
    d.nodes.pop("y")
    d.constants |= {"queries": np.array([1, 1024, 1], np.int64), "keys": np.array([1, 1, 1024], np.int64)}
    for name in ("q", "k"):
        d.grid(name, 0.1)
    d.add("Concat", "both", ["rows", "rows"], axis=1)
    d.add("MatMul", "y", [d.pair("q", d.add("Reshape", "queries.rows", ["both", "queries"])),
                          d.pair("k", d.add("Reshape", "keys.rows", ["both", "keys"]))])


def _set(**arrays):
    def broken(d):
        d.constants |= {name.replace("_", "."): array for name, array in arrays.items()}
    return broken


def _attribute(name, value):
    def broken(d):
        setattr(d, name, value)
    return broken


def _grid(name, scale, zero=None):
    return lambda d: d.grid(name, scale, zero)


BROKEN = {      # what is done to a good model: (how, rule, node, JetPack)
    "a bias in int32 codes": (_int32_bias, "int32-dequantize", "b.dq", None),
    "a bias in int8 codes": (_int8_bias, "quantized-bias", "conv", None),
    "zero point 5": (_set(x_zero=np.int8(5)), "zero-point-nonzero", "x.q", None),
    "uint8 with zero point 128": (_set(x_zero=np.uint8(128)), "zero-point-type", "x.q", None),
    "codes in uint8": (_set(x_zero=np.uint8(128)), "data-type", "x.dq", None),
    "no zero point": (_drop_zero_point, "zero-point-missing", "x.dq", None),
    "a zero point that is computed": (_computed("zero"), "zero-point-not-static", "x.q", None),
    "fewer zero points than scales": (_set(w_zero=np.zeros(2, np.int8)), "zero-point-shape", "w.q", None),
    "a negative scale": (_grid("x", -0.02), "scale-not-positive", "x.q", None),
    "a scale of 0": (_grid("w", np.r_[np.full(OUT - 1, 0.1), 0]), "scale-not-positive", "w.dq", None),
    "a scale that is no number": (_grid("x", np.nan), "scale-not-positive", "x.dq", None),
    "a scale that is computed": (_computed("scale"), "scale-not-static", "x.q", None),
    "an activation with a scale per channel": (lambda d: (d.grid("x", np.full(CHANNELS, 0.1)), _axis("x", 1)(d)),
                                               "per-channel-activation", "x.q", None),
    "scales along the wrong axis": (lambda d: (_axis("w", 1)(d), d.grid("w", np.full(CHANNELS, 0.1))), "weight-axis",
                                    "w.q", None),
    "an axis that the weight does not have": (_axis("w", 7), "weight-axis", "w.dq", None),
    "scales without an axis": (_axis("w", None), "weight-axis", "w.q", None),
    "a matrix scaled along its rows": (lambda d: (_axis("v", 0)(d), d.grid("v", np.full(TIME, 0.1))), "weight-axis",
                                       "v.q", None),
    "too few scales": (_grid("w", np.full(5, 0.1)), "scale-length", "w.q", None),
    "a scale per block": (_grid("w", np.ones((OUT, 2))), "block-scale", "w.q", None),
    "int8 weights without their Q on TensorRT 8": (_codes_only, "prequantized-weight", "w.dq", "6.0"),
    "codes that reach another layer": (lambda d: d.read("relu", 0, "x.q"), "codes-used", "x.q", None),
    "an opset that is too new": (_attribute("opset", 18), "opset", "the file", "6.0"),
    "scales per channel before there was an axis": (_attribute("opset", 12), "opset", "w.q", None),
    "LayerNormalization on TensorRT 8.5": (_layer_norm, "unsupported-op", "norm", "5.1"),
    "Gelu on TensorRT 8.6": (lambda d: (_operator("Gelu")(d), _attribute("opset", 20)(d)), "unsupported-op", "odd",
                             "6.0"),
    "an operator of ONNX Runtime alone": (_operator("QLinearConv", ["y"] * 8), "unsupported-op", "odd", "7.2"),
    "products in integers": (_operator("MatMulInteger", ["y", "y"]), "unsupported-op", "odd", "7.2"),
    "convolutions in integers": (_operator("ConvInteger", ["y", "y"]), "unsupported-op", "odd", "7.2"),
    "scales found on the way": (_operator("DynamicQuantizeLinear"), "unsupported-op", "odd", "7.2"),
    "somebody's own operator": (_operator("Gelu", domain="com.example"), "domain", "odd", "7.2"),
    "a number of leads left open": (_attribute("leads", "n"), "static-shape", "x", None),
    "int8 for a Nano": (lambda d: _attribute("opset", 13)(d), "no-int8", "x.q", "4.6"),
    "a weight that is computed": (lambda d: (d.add("Abs", "w2", ["w.dq"]), d.nodes.update(conv=d.nodes.pop("conv")),
                                             d.read("conv", 1, "w2")), "weight-not-static", "conv", None),
    "one of two inputs quantized": (_half, "half-quantized", "conv", None),
    "a residual sum in codes": (_residual, "quantized-float-op", "y", None),
    "a softmax of codes": (lambda d: (d.nodes.pop("y"), d.add("Softmax", "y", ["h.dq"])), "quantized-float-op", "y",
                           None),
    "a vector times a matrix": (_vector, "gemv", "y", None),
    "attention over 1024 steps": (_long, "long-attention", "y", None),
    "an output in int64": (lambda d: d.nodes.update(y=helper.make_node("Shape", ["rows"], ["y"], name="y")), "io-type",
                           "y", None),
    "a pool that tells where": (lambda d: (d.add("MaxPool", "odd", ["relu"], kernel_shape=[1, 2]),
                                           d.nodes["odd"].output.append("places")), "extra-output", "odd", None),
    "a pool in one dimension": (lambda d: d.add("AveragePool", "flat", ["rows"], kernel_shape=[2]), "rank", "flat",
                                None),
    "a layer that reads what nobody wrote": (lambda d: d.read("relu", 0, "nothing"), "invalid", "the file", None),
}


def test_what_tensorrt_takes_has_no_findings():
    for jetpack in (None, "5.1", "6.2.1", "7.2"):
        assert trt_lint.lint(good().model(), jetpack) == []


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused_with_rule_and_node(what):
    change, rule, node, jetpack = BROKEN[what]
    draft = good()
    change(draft)
    found = trt_lint.lint(draft.model(), jetpack)
    match = [f for f in found if (f.rule, f.node) == (rule, node)]
    assert match, [str(f) for f in found]
    assert match[0].level == RULES[rule][0] and RULES[rule][1] in match[0].message
    if match[0].level == "error":
        with pytest.raises(UserError):
            trt_lint.demand(draft.model(), jetpack)


def test_a_warning_does_not_refuse():
    draft = good()
    _half(draft)
    assert [f.level for f in trt_lint.demand(draft.model())] == ["warning"]


def test_a_node_is_told_a_rule_once():
    draft = good()
    _int32_bias(draft)
    _codes_only(draft)
    told = [(f.rule, f.node) for f in trt_lint.lint(draft.model())]
    assert len(told) == len(set(told)) and [f.level for f in trt_lint.lint(draft.model())] == ["error"] * len(told)


def test_weights_in_another_file_are_refused():
    import onnx
    model = onnx.ModelProto.FromString(good().model())
    tensor = next(t for t in model.graph.initializer if t.name == "conv.b")
    tensor.data_location = TensorProto.EXTERNAL
    assert ("external-data", "conv.b") in [(f.rule, f.node) for f in trt_lint.lint(model.SerializeToString())]


def test_newer_tensorrt_takes_what_older_refuses():
    for change, old, new in ((_codes_only, "6.0", "6.2"), (_layer_norm, "5.1", "6.0"),
                             (_attribute("opset", 18), "6.0", "6.2")):
        draft = good()
        change(draft)
        assert trt_lint.errors(trt_lint.lint(draft.model(), old))
        assert not trt_lint.errors(trt_lint.lint(draft.model(), new))


def test_every_rule_is_tested():
    assert {rule for _, rule, _, _ in BROKEN.values()} | {"external-data"} == set(RULES)


def test_a_jetpack_is_found_by_its_release():
    assert jetpacks.find("6.2.1") is jetpacks.JETPACKS["6.2"] and jetpacks.find(None) is jetpacks.PORTABLE
    with pytest.raises(UserError, match="unknown JetPack"):
        jetpacks.find("9.9")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_are_a_user_error_or_findings(data):
    try:
        trt_lint.lint(data)
    except UserError:
        pass


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_a_damaged_model_is_a_user_error_or_findings(changes, cut):
    data = bytearray(good().model())
    for place, value in changes:
        data[place % len(data)] = value
    if cut:
        del data[changes[0][0] % len(data):]
    try:
        trt_lint.lint(bytes(data))
    except UserError:
        pass


def test_the_command_lists_findings_and_fails(tmp_path):
    draft = good()
    _int32_bias(draft)
    (tmp_path / "bad.onnx").write_bytes(draft.model())
    (tmp_path / "good.onnx").write_bytes(good().model())
    command = [sys.executable, str(ROOT / "targets" / "trt_lint.py")]
    bad = subprocess.run([*command, tmp_path / "bad.onnx", "--json"], capture_output=True, text=True)
    told = json.loads(bad.stdout)
    assert bad.returncode == 1 and not told["accepted"]
    assert {"rule": "int32-dequantize", "node": "b.dq"}.items() <= told["findings"][0].items()
    assert "error: int32-dequantize at b.dq" in bad.stderr


def test_the_command_is_quiet_about_a_good_file_and_clear_about_none(tmp_path, capsys):
    (tmp_path / "good.onnx").write_bytes(good().model())
    assert trt_lint.script([str(tmp_path / "good.onnx"), "--jetpack", "6.2"]) == 0
    assert "0 errors, 0 warnings, for JetPack 6.2" in capsys.readouterr().out
    for path in (tmp_path, tmp_path / "none.onnx", ROOT / "README.md"):
        assert trt_lint.script([str(path)]) == 1
        assert "error: " in capsys.readouterr().err
