# SPDX-License-Identifier: Apache-2.0
"""ONNX files for TensorRT, executed by ONNX Runtime: near the reference, with the graph's own weights and scales."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import targets
from compress import reference
from targets import target
from targets.target import Built
from tests import graphs as make
from tests import tiny
from tests.test_targets import FORMS, GRAPHS
from train.say import GraphError, UserError

jetson = targets.load("jetson")
absent = jetson.missing()
if absent:
    pytest.skip(absent, allow_module_level=True)

import onnx  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402

from targets import onnx_qdq, onnx_tensorrt, trt_lint  # noqa: E402

KINDS = GRAPHS | FORMS
HALF_READER = {form: "6.1" if "fp16" in form else None for form in onnx_tensorrt.FORMS}
RELEASED = (None, "4.6", "5.1", "6.0", "7.2")


@functools.cache
def graph_of(name):
    """One of KINDS with windows of clear labels and the reference's logits."""
    graph = KINDS[name]()
    inputs = make.clear_inputs(graph, 30)
    return graph, inputs, reference.run(graph, inputs)


def execute(graph, form, inputs, **words):
    """int8 logits of a form."""
    return jetson.Session(onnx_tensorrt.lower(graph, form, **words), graph).run(inputs)


def trace(graph, inputs):
    """Every tensor of the int8 form."""
    return jetson.trace(graph, Built(jetson.Path(), 0, None, {"form": "int8", "jetpack": None}), inputs)


# ---- numbers

@pytest.mark.parametrize("name", KINDS)
def test_the_form_with_pairs_stays_near_the_reference(name):
    near(name, "int8", 6, 8)


@pytest.mark.parametrize("name", ["every kind", "block", "neighbourhood with bias, all keys", "pair", "pair that adds",
                                  "half the queries"])
def test_attention_in_codes_stays_near_the_reference(name):
    near(name, "int8", 9, 12, attention="int8")


def near(name, form, p99, worst, **words):
    """Differences of logits, and labels of windows with clear labels."""
    graph, inputs, expected = graph_of(name)
    got = execute(graph, form, inputs, **words)
    gap = np.abs(expected.astype(int) - got)
    assert np.percentile(gap, 99) <= p99 and gap.max() <= worst
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.98


@pytest.mark.parametrize("name", KINDS)
def test_the_float_forms_find_the_labels_and_each_other(name):
    graph, inputs, expected = graph_of(name)
    wide, half = (execute(graph, form, inputs) for form in ("float", "fp16"))
    assert (wide.argmax(1) == expected.argmax(1)).mean() >= 0.7      # a random net amplifies what rounding adds
    assert np.abs(wide.astype(int) - half).max() <= 3


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_differs_by_ties_only(name):
    from bench.parity import layers
    graph, inputs, _ = graph_of(name)
    few = {key: x[:8] for key, x in inputs.items()}
    for row in layers(graph, reference.run(graph, few, trace=True), trace(graph, few)):
        codes = 8 * math.prod(graph.tensors[next(n.output for n in graph.nodes if n.name == row.name)].shape)
        allowed = 0.3 if row.kind == "lstm" else 0.05       # its states are rounded in the reference only
        assert row.own_worst <= 2 and (1 - row.own_equal) * codes <= max(allowed * codes, 3), row


@pytest.mark.parametrize("name", ["every kind", "gates, constants, other axes", "norms, LSTMs, a lookup", "pair"])
def test_both_placements_of_pairs_agree(name):
    from targets import arm
    graph, inputs, _ = graph_of(name)
    other = arm.Session(onnx_qdq.lower(graph, "mixed"), graph).run(inputs)
    gap = np.abs(execute(graph, "int8", inputs).astype(int) - other)
    assert np.percentile(gap, 99) <= 6 and gap.max() <= 8


@pytest.mark.parametrize("form", onnx_tensorrt.FORMS)
@pytest.mark.parametrize("low", [-128, -3, 60])
def test_a_lookup_finds_the_row_of_every_code(form, low):
    b = make.Builder(4, {"age": (1,)})
    graph = b.graph(b.lookup("age", 9, 4, low=low))
    inputs = {"age": np.arange(-128, 128).astype(np.int8)[:, None]}
    np.testing.assert_array_equal(execute(graph, form, inputs), reference.run(graph, inputs))


@pytest.mark.parametrize("form", onnx_tensorrt.FORMS)
def test_a_table_has_an_entry_for_every_code(form):
    b = make.Builder(4, {"x": (256,)})
    graph = b.graph(b.table("x", np.tanh))
    inputs = {"x": np.arange(-128, 128).astype(np.int8)[None]}
    np.testing.assert_array_equal(execute(graph, form, inputs), reference.run(graph, inputs))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("jetpack", [None, "6.2"])
def test_a_norm_of_what_does_not_vary_is_its_bias(rms, jetpack):
    b = make.Builder(5, {"x": (24,)})
    graph = b.graph(b.norm(b.reshape("x", (8, 1, 3)), 2, rms))
    inputs = {"x": np.random.default_rng(6).integers(-127, 128, (30, 24)).astype(np.int8)}
    inputs["x"][0], inputs["x"][1], inputs["x"][2] = 0, 77, -128        # the floor of the root decides
    gap = np.abs(reference.run(graph, inputs).astype(int) - execute(graph, "int8", inputs, jetpack=jetpack))
    assert gap.max() <= 1 and (gap > 0).mean() < 0.005


def test_large_values_do_not_leave_float16():
    """Hidden keys, large codes and a norm of large values, whose squares float16 cannot hold."""
    b = make.Builder(9, {"ecg": (1, 64)}, input_scale=8.0)
    x = b.norm(b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2, relu=False))
    y = b.attention(b.conv(x, 8, relu=False), b.conv(x, 8, relu=False), b.conv(x, 8, relu=False), 2, "band", 3)
    graph = b.graph(b.classifier(b.reduce("mean", y), 3))
    inputs = make.clear_inputs(graph, 20)
    gap = np.abs(execute(graph, "float", inputs).astype(int) - execute(graph, "fp16", inputs))
    assert np.percentile(gap, 99) <= 2


# ---- what TensorRT asks of a file

def initializers(model):
    """name -> array of the constants."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def weights_of(model):
    """Node -> (codes that its weight's pair gives, scales); all of them behind such a pair."""
    constants, writer = initializers(model), {o: n for n in model.graph.node for o in n.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            back = writer[node.input[1]]
            forth = writer[back.input[0]]
            assert (back.op_type, forth.op_type) == ("DequantizeLinear", "QuantizeLinear")
            assert list(back.input[1:]) == list(forth.input[1:])
            assert [a.i for n in (back, forth) for a in n.attribute if a.name == "axis"] == [0, 0]
            real, scale, zero = (constants[name] for name in forth.input)
            assert zero.dtype == np.int8 and not zero.any() and constants[node.input[2]].dtype == real.dtype
            found[node.name.split("/")[0]] = np.rint(real / scale.reshape(-1, *(1,) * (real.ndim - 1))), scale
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_the_weights_are_the_graphs_own_codes_and_scales(name):
    graph = graph_of(name)[0]
    found = weights_of(onnx.load_from_string(onnx_tensorrt.lower(graph, "int8")))
    layers = {n.name: n.params for n in graph.nodes if n.kind in ("conv1d", "dense")}
    assert set(found) == set(layers)
    for layer, (codes, scale) in found.items():
        assert scale.dtype == np.float32
        np.testing.assert_array_equal(codes.reshape(layers[layer]["weight"].shape), layers[layer]["weight"])
        np.testing.assert_array_equal(scale, layers[layer]["weight_scale"])


@pytest.mark.parametrize("name", GRAPHS)
def test_activations_have_the_graphs_scales_and_one_pair(name):
    graph = graph_of(name)[0]
    model = onnx.load_from_string(onnx_tensorrt.lower(graph, "int8"))
    constants = initializers(model)
    pairs = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    scales = {np.float32(t.scale) for t in graph.tensors.values()}
    assert {constants[n.input[1]].item() for n in pairs} <= {s.item() for s in scales}
    assert len({n.input[0] for n in pairs}) == len(pairs)
    assert {constants[n.input[2]].dtype for n in pairs} == {np.dtype(np.int8)}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_linter_finds_no_error_for_any_jetpack(name):
    graph = graph_of(name)[0]
    for jetpack in RELEASED:
        for form in onnx_tensorrt.forms(jetpack):
            assert not trt_lint.errors(trt_lint.lint(onnx_tensorrt.lower(graph, form, jetpack),
                                                     jetpack or HALF_READER[form])), (jetpack, form)


@pytest.mark.parametrize("form", onnx_tensorrt.FORMS)
def test_inputs_and_output_are_float32_and_bear_the_graphs_names(form):
    graph = graph_of("norms, LSTMs, a lookup")[0]
    model = onnx.load_from_string(onnx_tensorrt.lower(graph, form))
    assert [i.name for i in model.graph.input] == graph.inputs
    assert [o.name for o in model.graph.output] == [graph.output]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("form", ["float", "fp16"])
def test_a_form_without_codes_has_no_pairs(form):
    model = onnx.load_from_string(onnx_tensorrt.lower(graph_of("every kind")[0], form))
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in model.graph.node}


@pytest.mark.parametrize("form", onnx_tensorrt.FORMS)
@pytest.mark.parametrize("name", ["band in blocks", "neighbourhood with bias", "block with a short end"])
def test_every_constant_fits_float16(name, form):
    """An engine may choose float16 for a float32 body too."""
    for values in initializers(onnx.load_from_string(onnx_tensorrt.lower(graph_of(name)[0], form))).values():
        assert values.dtype.kind != "f" or np.abs(values).max() < np.finfo(np.float16).max


@pytest.mark.parametrize("jetpack, opset, forms", [
    (None, 17, onnx_tensorrt.FORMS), ("4.6", 13, ("float",)), ("4.6.4", 13, ("float",)),
    ("5.0", 17, ("int8", "float")), ("6.0", 17, ("int8", "float")), ("6.2.1", 17, onnx_tensorrt.FORMS),
    ("7.2", 17, onnx_tensorrt.FORMS)])
def test_a_jetpack_gets_the_forms_that_it_can_build(jetpack, opset, forms):
    graph = graph_of("norms, LSTMs, a lookup")[0]
    assert onnx_tensorrt.forms(jetpack) == forms
    for form in forms:
        model = onnx.load_from_string(onnx_tensorrt.lower(graph, form, jetpack))
        assert model.opset_import[0].version == opset
    for form in set(onnx_tensorrt.FORMS) - set(forms):
        with pytest.raises(UserError, match=form):
            onnx_tensorrt.lower(graph, form, jetpack)


@pytest.mark.parametrize("jetpack, whole", [(None, False), ("4.6", False), ("5.1", False), ("6.0", True)])
def test_layer_normalization_is_written_where_the_jetpack_has_it(jetpack, whole):
    model = onnx.load_from_string(onnx_tensorrt.lower(graph_of("norms, LSTMs, a lookup")[0], "float", jetpack))
    assert ("LayerNormalization" in {n.op_type for n in model.graph.node}) == whole


@pytest.mark.parametrize("jetpack, near", [("6.3", "use 6"), ("orin", "")])
def test_an_unknown_jetpack_is_refused(jetpack, near):
    with pytest.raises(UserError, match="unknown JetPack") as error:
        onnx_tensorrt.lower(graph_of("pair")[0], "int8", jetpack)
    assert "7.2" in error.value.expected and near in error.value.fix


def test_a_scale_of_zero_is_refused_with_the_layers_name():
    graph = make.streaming()
    graph.nodes[1].params["weight_scale"] = np.zeros_like(graph.nodes[1].params["weight_scale"])
    with pytest.raises(GraphError, match=graph.nodes[1].name):
        onnx_tensorrt.lower(graph, "int8")


# ---- architectures

@pytest.fixture(params=tiny.TINY)
def arch(request, tmp_path_factory):
    """(manifest, graph, inputs, logits) of an architecture's `tiny`."""
    pytest.importorskip("torchao")
    run = tiny.run(tmp_path_factory, request.param)
    manifest, graph = target.open_run(run)
    return manifest, graph, *target.golden(run, graph, 24)


def test_every_architecture_agrees(arch):
    manifest, graph, inputs, expected = arch
    assert target.compare(manifest, expected, execute(graph, "int8", inputs)).ok


def test_every_architecture_is_taken_in_every_form(arch):
    for form in onnx_tensorrt.FORMS:
        assert trt_lint.demand(onnx_tensorrt.lower(arch[1], form), HALF_READER[form]) is not None


@pytest.mark.parametrize("arch", tiny.TINY)
def test_twelve_leads_of_a_small_network_are_taken_in_every_form(arch):
    pytest.importorskip("torchao")
    from tests.frozen import freeze
    graph = freeze(arch, "small", "ptbxl", 12).graph
    inputs = make.inputs_of(graph, 2)
    expected = reference.run(graph, inputs)
    for form in onnx_tensorrt.FORMS:
        file = onnx_tensorrt.lower(graph, form)
        assert trt_lint.demand(file, HALF_READER[form]) is not None
        if form == "int8":
            assert np.abs(jetson.Session(file, graph).run(inputs).astype(int) - expected).max() <= target.WORST
