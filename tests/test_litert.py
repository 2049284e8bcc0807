# SPDX-License-Identifier: Apache-2.0
"""The litert target: plain layers against the reference, its two forms, what it ships and what it refuses."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

from compress import reference
from targets import deploy, litert, target, tflite_lowering
from targets.target import Agreement
from targets.tflite_layers import taps_to_same
from tests import graphs as make
from tests.random_graphs import random_graph
from train import manifest, say
from train.say import GraphError, MissingError, UserError

absent = litert.missing()
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))

# kinds whose codes are the reference's, and those whose ties may round to the other side
EXACT = {"conv1d", "dense", "constant", "maxpool", "max", "slice", "reshape", "transpose", "lookup"}
TIES = {"add", "mul", "mean", "meanpool", "concat"}


def rows(graph, inputs):
    """Every layer of the int8 file against the reference, given its own inputs."""
    from bench.parity import layers
    return layers(graph, reference.run(graph, inputs, trace=True), litert.traced(graph, "int8", inputs))


def evaluate(graph, form, inputs):
    """Logits of a form."""
    return litert.Session(tflite_lowering.lower(graph, form), graph).run(inputs)


def plain():
    """A small net of plain layers, whose logits differ by ties only."""
    b = make.Builder(5, {"ecg": (1, 96)})
    x = b.maxpool(b.separable(b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2), 8, 3), 2, 2)
    x = b.meanpool(b.add(b.mul(x, b.constant((8, 1, 1))), b.slice(b.conv(x, 16, groups=2), 0, 0, 8)), 2, 2)
    return b.graph(b.classifier(b.concat([b.reduce("mean", x), b.reduce("max", x)]), 3))


def exact(graph, windows=8):
    """Every code of every layer is the reference's."""
    different = [r for r in rows(graph, make.inputs_of(graph, windows)) if r.own_equal < 1]
    assert different == []


# ---- convolutions

@pytest.mark.parametrize("kernel, stride, pad", [
    (1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (1, 1)), (5, 2, (2, 2)), (7, 2, (3, 3)), (4, 3, (2, 1)), (5, 1, (4, 0)),
    (5, 1, (0, 4)), (3, 1, (0, 0)), (9, 1, (0, 1)), (40, 1, (20, 19)), (2, 2, (0, 0)), (3, 4, (1, 1))])
@pytest.mark.parametrize("groups, channel, out", [(1, 3, 5), (6, 6, 6), (2, 6, 4), (3, 3, 9)])
def test_a_convolution_sees_the_padding_of_the_graph(kernel, stride, pad, groups, channel, out):
    time = 31
    b = make.Builder(kernel, {"ecg": (channel, time)})
    x = b.transpose(b.reshape("ecg", "channel"), (1, 0, 2))
    columns = (time + sum(pad) - kernel) // stride + 1
    b._layer("conv1d", x, (out, 1, columns), *b._random(x, (out, channel // groups, kernel)),
             {"stride": stride, "pad": list(pad), "groups": groups, "relu": True})
    exact(b.graph(b.nodes[-1].output), windows=4)


@pytest.mark.parametrize("stride, kernel, time", [(1, 3, 16), (2, 11, 48), (3, 7, 48), (5, 15, 40), (2, 4, 64),
                                                  (2, 5, 31), (1, 9, 7)])
def test_a_stem_of_one_channel_gives_the_same_codes(stride, kernel, time):
    b = make.Builder(0, {"ecg": (2, time)})
    x = b.conv(b.reshape("ecg", "channel"), 6, kernel, stride=stride)
    exact(b.graph(b.reduce("max", x)))


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_groups_that_are_joined_stay_apart(groups):
    b = make.Builder(groups, {"ecg": (12, 40)})
    x = b.transpose(b.reshape("ecg", "channel"), (1, 0, 2))
    exact(b.graph(b.conv(b.conv(x, 48, 5, stride=2, groups=groups), 24, groups=groups)))


@pytest.mark.parametrize("time, columns, kernel, stride, left, taps", [
    (32, 32, 3, 1, 1, 0),       # SAME as it is
    (32, 16, 5, 2, 2, 1),       # SAME of five taps begins one step early
    (32, 32, 3, 1, 2, 2),
    (32, 28, 5, 1, 0, None),    # fewer columns than SAME has
    (32, 32, 9, 1, 8, None)])   # too many taps of weight 0
def test_padding_is_said_with_taps_of_weight_zero_where_a_few_do(time, columns, kernel, stride, left, taps):
    assert taps_to_same(time, columns, kernel, stride, left) == taps


# ---- the other plain layers

def test_layers_that_move_codes_keep_them():
    b = make.Builder(1, {"ecg": (3, 48)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    x = b.maxpool(b.maxpool(x, 3, 2), 4, 1)
    y = b.slice(b.transpose(b.slice(x, 2, 1, 10), (1, 2, 0)), 0, 1, 3)
    y = b.reshape(b.transpose(b.reshape(y, (6, 3, 8)), (2, 1, 0)), (3, 8, 6))
    z = b.reshape(b.slice(x, 1, 0, 2), (16, 12))
    exact(b.graph(b.dense(b.concat([b.reduce("max", y), b.reduce("max", z, (1,)), b.reduce("max", x, (0, 2))]), 5)))


@pytest.mark.parametrize("kernel, stride, pad", [(2, 2, (0, 0)), (3, 1, (1, 1)), (3, 2, (1, 1)), (4, 1, (3, 0)),
                                                 (5, 3, (0, 4))])
@pytest.mark.parametrize("kind", ["maxpool", "meanpool"])
def test_pools_see_the_padding_of_the_graph(kind, kernel, stride, pad):
    b = make.Builder(2, {"ecg": (2, 30)})
    x = b.conv(b.reshape("ecg", "channel"), 5, 3, relu=False)       # also codes below 0, which padding must not beat
    attrs = {"kernel": kernel, "stride": stride, "pad": list(pad)}
    scale = b.tensors[x].scale
    if kind == "meanpool":
        attrs["mul"], attrs["shift"] = make.multiplier(1 / kernel / 0.7)
        scale *= 0.7
    y = b._put(kind, [x], (5, 2, (30 + sum(pad) - kernel) // stride + 1), scale, attrs)
    for row in rows(b.graph(y), make.inputs_of(b.graph(y), 8)):
        assert row.own_equal == 1 if kind == "maxpool" else row.own_worst <= 1 and row.own_equal > 0.9, row


def consistent(graph) -> bool:
    """Whether sums say with their multipliers what their scales say; a random graph may have other ones."""
    for n in graph.nodes:
        for t, mul in zip(n.inputs, n.attrs["mul"], strict=True) if n.kind == "add" else ():
            real = graph.tensors[t].scale / graph.tensors[n.output].scale
            if abs(abs(mul) * 2.0 ** -n.attrs["shift"] - real) > 0.002 * real + 2.0 ** -n.attrs["shift"]:
                return False
    return True


def test_plain_layers_of_random_graphs_are_the_reference_s():
    seen = 0
    for seed in range(60):
        graph = random_graph(seed)
        if not consistent(graph):
            continue
        for row in rows(graph, make.inputs_of(graph, 3, seed)):
            if row.kind in EXACT:
                assert row.own_equal == 1, (seed, row)
            elif row.kind in TIES:
                assert row.own_worst <= 1, (seed, row)
            seen += row.kind in EXACT | TIES
    assert seen > 200


@pytest.mark.parametrize("graph", [lambda: make.gated(), lambda: make.every_kind(leads=3), lambda: make.streaming(),
                                   lambda: make.learned()], ids=["gated", "every kind", "streaming", "learned"])
def test_whole_graphs_stay_near_the_reference(graph):
    graph = graph()
    inputs = make.clear_inputs(graph, 40)
    expected, got = reference.run(graph, inputs), evaluate(graph, "int8", inputs)
    gap = np.abs(expected.astype(int) - got)
    assert np.percentile(gap, 99) <= 8 and gap.max() <= 12
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.97


# ---- forms

def types_of(file: bytes) -> set:
    """Types of the file's tensors."""
    session = litert.runtime()(model_content=file)
    return {np.dtype(d["dtype"]).name for d in session.get_tensor_details()}


@pytest.mark.parametrize("graph", [make.streaming, make.every_kind, make.learned, make.gated])
def test_the_int8_form_holds_no_float(graph):
    assert types_of(tflite_lowering.lower(graph(), "int8")) <= {"int8", "int16", "int32"}


def test_the_float_form_holds_no_codes():
    assert types_of(tflite_lowering.lower(make.streaming(), "float")) <= {"float32", "int32"}


def test_files_of_one_graph_have_equal_bytes():
    for form in tflite_lowering.FORMS:
        assert tflite_lowering.lower(make.learned(), form) == tflite_lowering.lower(make.learned(), form)


def test_the_float_form_finds_the_labels():
    graph = make.every_kind()
    inputs = make.clear_inputs(graph, 30)
    got = evaluate(graph, "float", inputs)
    assert (got.argmax(1) == reference.run(graph, inputs).argmax(1)).mean() >= 0.8      # a random net amplifies noise


@pytest.mark.parametrize("form", tflite_lowering.FORMS)
def test_the_logits_of_the_traced_file_are_those_of_the_file(form):
    graph = make.gated()
    inputs = make.inputs_of(graph, 6)
    got = evaluate(graph, form, inputs)
    gap = np.abs(got.astype(int) - litert.traced(graph, form, inputs)[graph.output])
    assert gap.max() <= (1 if form == "float" else 0)


def test_an_unknown_form_is_refused():
    with pytest.raises(UserError, match="int4"):
        tflite_lowering.lower(make.streaming(), "int4")


def test_a_kind_that_has_no_operators_is_refused_by_the_layer_s_name(monkeypatch):
    graph = make.gated()
    product = next(n for n in graph.nodes if n.kind == "mul")
    monkeypatch.delattr(tflite_lowering.Layers, "mul")
    with pytest.raises(GraphError, match=f"{product.name}: mul has no TFLite form"):
        tflite_lowering.lower(graph, "int8")


def test_what_no_input_reaches_is_data_of_the_file():
    b = make.Builder(3, {"ecg": (1, 16)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 3)
    y = b.conv(b.add(b.constant((4, 1, 1)), b.constant((4, 1, 1))), 4, relu=False)
    graph = b.graph(b.reduce("max", b.add(x, y)))
    kinds = [o.kind for o in _lowered(graph).operators]
    assert kinds.count("CONV_2D") == 1 and kinds.count("ADD") == 1
    assert all(r.own_worst <= 1 and r.equal > 0.99 for r in rows(graph, make.inputs_of(graph, 4)))


def _lowered(graph):
    lowering = tflite_lowering.Lowering(graph, "int8")
    lowering.build()
    return lowering


@pytest.mark.parametrize("output", ["constant", "input"])
def test_an_output_that_nothing_computes_is_copied(output):
    b = make.Builder(4, {"x": (6,)})
    graph = b.graph(b.constant((3,)) if output == "constant" else b.reshape("x", "vector"))
    inputs = make.inputs_of(graph, 2)
    got = evaluate(graph, "int8", inputs)
    np.testing.assert_array_equal(got, reference.run(graph, inputs))


# ---- what is shipped

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A run deployed for litert."""
    run = make.write_run(tmp_path_factory.mktemp("litert") / "r", plain(), golden=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "SECONDS", 0.05)
        assert say.run(deploy.main, deploy.parser(), ["--run", str(run), "--target", "litert"]) == 0
    return run


def test_deploy_leaves_two_forms_a_choice_and_an_entry(built):
    note = json.loads((built / "litert" / "chosen.json").read_text())
    entry = json.loads((built / "builds.json").read_text())["litert"]
    assert set(note["forms"]) == {"int8", "float"} and note["form"] == "int8"
    assert entry["path"] == "litert/model.int8.tflite" == f"litert/{note['file']}"
    assert entry["flash"] == (built / entry["path"]).stat().st_size and note["runtime"] in litert.RUNTIMES
    assert all(f["samples"] > 0 and 0 < f["p50_ms"] <= f["p99_ms"] for f in note["forms"].values())
    assert note["forms"]["int8"]["labels"] >= 0.98 and "float" in note["why"]


def test_a_build_gives_the_logits_of_the_reference(built):
    model, graph = target.open_run(built)
    inputs, expected = target.golden(built, graph)
    got = litert.run(target.open_build(built, "litert", model), inputs)
    assert got.dtype == np.int8 and target.compare(model, expected, got).ok


def test_both_forms_can_be_timed(built):
    model, graph = target.open_run(built)
    inputs, _ = target.golden(built, graph, 1)
    calls = litert.calls(graph, target.open_build(built, "litert", model), inputs, 2)
    assert set(calls) == {"int8", "float"} and [call() for call in calls.values()] == [None, None]


@pytest.mark.parametrize("ratio, words", [(1.5, "1.50x faster than float"), (0.8, "float is 1.25x faster")])
def test_the_measurement_is_said_as_it_is(ratio, words):
    assert words in litert.verdict(ratio)


def test_an_int8_file_that_does_not_agree_is_not_shipped(tmp_path, monkeypatch, capsys):
    run = make.write_run(tmp_path / "r", plain(), golden=16)
    lowered = tflite_lowering.Layers.maxpool

    def wrong(self, node):
        """The window's neighbour."""
        lowered(self, node)
        shifted = self.op("ADD", [self.value(node.output)] * 2, self.file_shape(node.output), self.scale(node.output))
        self.store(node.output, shifted)
    monkeypatch.setattr(tflite_lowering.Layers, "maxpool", wrong)
    assert say.run(deploy.main, deploy.parser(), ["--run", str(run), "--target", "litert"]) == 1
    said = capsys.readouterr().err
    name = next(n.name for n in target.open_run(run)[1].nodes if n.kind == "maxpool")
    assert f"first layer that differs by more than ties: {name}" in said and "--target arm" in said
    assert not (run / "builds.json").exists() and not (run / "litert" / "chosen.json").exists()


def test_small_differences_that_add_up_are_said_to():
    graph = plain()
    with pytest.raises(UserError, match="small differences add up"):
        litert.require(Agreement(2000, 0.9, 5, 20), graph, make.inputs_of(graph, 2))


def test_a_runtime_that_rounds_twice_gets_a_warning_with_the_figures(monkeypatch, capsys):
    graph = plain()
    inputs, far = make.inputs_of(graph, 2), Agreement(256, 0.98, 9, 55)
    monkeypatch.setattr(litert, "runtime_name", lambda: "tflite_runtime")
    litert.require(Agreement(256, 1.0, 1, 2), graph, inputs)
    assert capsys.readouterr().err == ""
    litert.require(far, graph, inputs)
    said = capsys.readouterr().err
    assert all(word in said for word in ("tflite_runtime", "98.00%", "p99 9", "55 LSB"))
    with pytest.raises(UserError, match=r"equal labels 96\.00%"):
        litert.require(Agreement(256, 0.96, 9, 55), graph, inputs)
    monkeypatch.setattr(litert, "runtime_name", lambda: "ai_edge_litert")
    with pytest.raises(UserError, match=r"equal labels 98\.00%"):
        litert.require(far, graph, inputs)


def test_a_file_that_only_nearly_agrees_is_not_said_to_agree():
    assert "agrees" not in litert.verdict(1.5, agrees=False) and "nearly all" in litert.verdict(0.8, agrees=False)


def test_the_boards_of_arm_run_litert_as_well():
    assert target.boards("litert") == target.boards("arm")
    assert target.read_board("pi4", "litert")["machine"] == "aarch64"


# ---- runtimes

def test_an_older_runtime_is_used_where_it_is_what_is_installed(monkeypatch):
    module = types.ModuleType("tflite_runtime.interpreter")
    module.Interpreter = type("Interpreter", (), {"__module__": "tflite_runtime.interpreter"})
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    monkeypatch.setattr(litert, "find_spec", lambda name: name == "tflite_runtime")
    assert litert.runtime() is module.Interpreter and litert.runtime_name() == "tflite_runtime"
    assert litert.missing() is None


def test_without_a_runtime_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(litert, "find_spec", lambda name: None)
    assert 'pip install -e ".[litert]"' in litert.missing()
    with pytest.raises(MissingError, match="ai-edge-litert"):
        litert.runtime()


def test_without_the_schema_no_file_is_written(monkeypatch):
    monkeypatch.setattr(say.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="ai_edge_litert") as error:
        tflite_lowering.lower(make.streaming(), "int8")
    assert '".[litert]"' in error.value.fix


def test_plain_layers_are_one_piece_of_the_fast_kernels():
    session = litert.runtime()(model_content=tflite_lowering.lower(plain(), "int8"))
    session.allocate_tensors()
    pieces = [o for o in session._get_ops_details() if o["op_name"] == "DELEGATE"]
    assert len(pieces) == 1 and len(pieces[0]["inputs"]) > 10


def test_flashing_linux_is_a_sentence_about_copying(built, capsys):
    litert.flash(target.open_build(built, "litert", manifest.load(built)), None)
    assert str(built) in capsys.readouterr().out
