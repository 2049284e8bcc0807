# SPDX-License-Identifier: Apache-2.0
"""Targets: their verbs, the ONNX forms against the reference, what deploy ships and what it refuses."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import targets
from compress import reference
from targets import deploy, target
from targets.target import Agreement, Built
from tests import graphs as make
from train import manifest, runs, say
from train.say import MissingError, UserError

ROOT = Path(__file__).parents[1]
absent = targets.load("arm").missing()
needs_arm = pytest.mark.skipif(absent is not None, reason=str(absent))


def cli(*words):
    """Exit code of deploy."""
    return say.run(deploy.main, deploy.parser(), list(map(str, words)))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_target_has_every_verb(name):
    module = targets.load(name)
    assert all(callable(getattr(module, verb)) for verb in ("missing", "lower", "build", "run", "flash"))


@pytest.mark.parametrize("name, error", [("amr", UserError), ("fpga", MissingError)])
def test_a_target_that_does_not_exist_names_those_that_do(name, error):
    with pytest.raises(UserError) as raised:
        targets.load(name)
    assert type(raised.value) is error and "arm" in raised.value.expected


@needs_arm
def test_targets_run_without_torch_scipy_and_wfdb(tmp_path):
    make.write_run(tmp_path / "r", make.every_kind(), golden=4)
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchao", "scipy", "wfdb"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import targets.deploy
from targets import arm, target
manifest, graph = target.open_run({str(tmp_path / 'r')!r})
arm.lower(graph, manifest, arm.Path({str(tmp_path / 'r' / 'arm')!r}))
inputs, out = target.golden({str(tmp_path / 'r')!r}, graph)
built = arm.Built(arm.Path({str(tmp_path / 'r' / 'arm' / 'model.mixed.onnx')!r}), 0, None)
assert arm.run(built, inputs).shape == out.shape
assert "train.fit" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# ---- the ONNX forms

GRAPHS = {
    "every kind": lambda: make.every_kind(),
    "every kind, one lead": lambda: make.every_kind(seed=1, leads=1),
    "every kind, three leads": lambda: make.every_kind(seed=2, leads=3),
    "band in blocks": lambda: make.every_kind(seed=3, time=400),
    "band in blocks with a remainder": lambda: make.every_kind(seed=4, leads=1, time=236),
    "no folding of an odd length": lambda: make.every_kind(seed=5, time=101),
    "gates, constants, other axes": lambda: make.gated(),
    "streaming": lambda: make.streaming(),
    "queries of their own length": lambda: unequal_attention(),
    "projections that cannot be merged": lambda: unmerged_attention(),
    "projections of each lead's own": lambda: per_lead_attention(),
    "norms, LSTMs, a lookup": lambda: make.learned(),
    "norms, LSTMs, a lookup, other weights": lambda: make.learned(seed=2, channel=12),
}
FORMS = {name: functools.partial(make.attending, **form) for name, form in make.FORMS.items()}
FORMS["band of the query alone"] = functools.partial(make.attending, "band")
FORMS["neighbourhood of the query alone"] = functools.partial(make.attending, "neighbourhood", 1, bias=True)
FORMS["neighbourhood in blocks, three leads"] = functools.partial(make.attending, "neighbourhood", 5, leads=3, time=250)
FORMS["pair of wide values in blocks"] = functools.partial(make.attending, "block", 9, lam=0.7, wide=12, time=150)
FORMS["pair in a neighbourhood"] = functools.partial(make.attending, "neighbourhood", 8, lam=-0.5, time=300)
# a layer's share of codes that must be equal: the exp table and the states of an LSTM are rounded in the reference only
EQUAL = {"attention": 0.95, "lstm": 0.8}


def unequal_attention():
    """Few queries look at many keys, in two heads of two leads."""
    b = make.Builder(6, {"ecg": (2, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    q = b.slice(b.conv(x, 8, relu=False), 2, 10, 20)
    y = b.attention(q, b.conv(x, 8, relu=False), b.conv(x, 8, relu=False), 2, "global")
    return b.graph(b.classifier(b.concat([b.reduce("mean", y), b.reduce("max", y)]), 3))


def unmerged_attention():
    """q, k and v come from layers of different kinds."""
    b = make.Builder(7, {"ecg": (1, 128)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    q, k, v = b.conv(x, 8, relu=False), b.conv(x, 8, 3, relu=False), b.conv(x, 8, 3, groups=8)
    y = b.attention(q, k, v, 2, "band", 3)
    return b.graph(b.classifier(b.concat([b.reduce("mean", y), b.reduce("max", y)]), 3))


def per_lead_attention():
    """Each lead has its own q, k and v layers; slices of the lead axis, joined again."""
    b = make.Builder(8, {"ecg": (3, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    leads = [b.slice(x, 1, i, i + 1) for i in range(3)]
    q, k, v = (b.concat([b.conv(lead, 8, relu=False) for lead in leads], axis=1) for _ in range(3))
    y = b.attention(q, k, v, 2, "global")
    return b.graph(b.classifier(b.concat([b.reshape(b.reduce("mean", y, axes=(2,)), "vector"), b.reduce("max", y)]), 3))


def evaluate(graph, form, inputs, trace=False):
    from targets import arm, onnx_qdq
    if trace:
        return arm.trace(graph, Built(Path(), 0, None, {"form": form}), inputs)
    return arm.Session(onnx_qdq.lower(graph, form), graph).run(inputs)


@needs_arm
@pytest.mark.parametrize("form, p99, worst", [("mixed", 4, 8), ("int8", 6, 10)])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_quantized_form_stays_near_the_reference(name, form, p99, worst):
    near(GRAPHS[name](), form, p99, worst)


@needs_arm
@pytest.mark.parametrize("form, p99, worst", [("mixed", 4, 8), ("int8", 8, 12)])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_attention_stays_near_the_reference(name, form, p99, worst):
    near(FORMS[name](), form, p99, worst)


def near(graph, form, p99, worst):
    """Differences of logits and labels of windows with clear labels."""
    inputs = make.clear_inputs(graph, 60)
    expected, got = reference.run(graph, inputs), evaluate(graph, form, inputs)
    gap = np.abs(expected.astype(int) - got)
    assert np.percentile(gap, 99) <= p99 and gap.max() <= worst
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.98


@needs_arm
@pytest.mark.parametrize("name", GRAPHS)
def test_every_layer_of_the_mixed_form_differs_by_ties_only(name):
    rows = compared(GRAPHS[name](), 12)
    assert [r.name for r in rows if r.differs and r.kind != "lstm"] == []
    for row in rows:
        assert row.own_equal >= EQUAL.get(row.kind, 0.99) and row.own_worst <= 2, row


@needs_arm
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_attention_differs_by_ties_only(name):
    assert [r for r in compared(FORMS[name](), 24) if r.differs] == []


def compared(graph, windows):
    """Layers of the mixed form against the reference."""
    from bench.parity import layers
    inputs = make.inputs_of(graph, windows)
    return layers(graph, reference.run(graph, inputs, trace=True), evaluate(graph, "mixed", inputs, trace=True))


@needs_arm
@pytest.mark.parametrize("name", FORMS)
def test_the_float_form_of_attention_finds_the_labels(name):
    graph = FORMS[name]()
    inputs = make.clear_inputs(graph, 30)
    assert (evaluate(graph, "float", inputs).argmax(1) == reference.run(graph, inputs).argmax(1)).mean() >= 0.8


@needs_arm
def test_an_lstm_hands_on_every_state_or_the_last_one():
    b = make.Builder(3, {"beats": (12, 5)})
    states = b.lstm("beats", 7, sequence=True)
    last = b.lstm(states, 7)
    graph = b.graph(last)
    inputs = make.inputs_of(graph, 20)
    expected, got = reference.run(graph, inputs, trace=True), evaluate(graph, "mixed", inputs, trace=True)
    assert got[states].shape == (20, 12, 7) and got[last].shape == (20, 7)
    for tensor in (states, last):
        gap = np.abs(expected[tensor].astype(int) - got[tensor])
        assert gap.max() <= 8 and gap.mean() < 0.5      # a rounded state passes from step to step


@needs_arm
@pytest.mark.parametrize("form", ["int8", "mixed", "float"])
@pytest.mark.parametrize("low", [-128, -3, 0, 60])
def test_a_lookup_finds_the_row_of_every_code(form, low):
    b = make.Builder(4, {"age": (1,)})
    graph = b.graph(b.lookup("age", 9, 4, low=low))
    inputs = {"age": np.arange(-128, 128).astype(np.int8)[:, None]}
    np.testing.assert_array_equal(evaluate(graph, form, inputs), reference.run(graph, inputs))


@needs_arm
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8,), (8, 1, 1), (8, 3, 10)])
def test_a_norm_differs_by_ties_only(shape, groups, rms):
    b = make.Builder(5, {"x": (math.prod(shape),)})
    graph = b.graph(b.norm(b.reshape("x", shape), groups, rms))
    rng = np.random.default_rng(6)
    inputs = {"x": rng.integers(-127, 128, (50, math.prod(shape))).astype(np.int8)}
    inputs["x"][0], inputs["x"][1] = 0, 77              # nothing varies: the floor of the root decides
    gap = np.abs(reference.run(graph, inputs).astype(int) - evaluate(graph, "mixed", inputs))
    assert gap.max() <= 1 and (gap > 0).mean() < 0.002


@needs_arm
@pytest.mark.parametrize("form", ["int8", "mixed", "float"])
def test_the_logits_of_the_traced_form_are_those_of_the_form(form):
    graph = make.every_kind()
    inputs = make.inputs_of(graph, 12)
    gap = np.abs(evaluate(graph, form, inputs).astype(int) - evaluate(graph, form, inputs, trace=True)[graph.output])
    assert gap.max() <= (1 if form == "float" else 0)       # float sums change their order with what is fused


@needs_arm
@pytest.mark.parametrize("name", ["every kind", "band in blocks", "streaming"])
def test_the_float_form_rounds_no_activation(name):
    from targets import onnx_qdq
    graph = GRAPHS[name]()
    import onnx
    model = onnx.load_from_string(onnx_qdq.lower(graph, "float"))
    counts = [n.op_type for n in model.graph.node].count("QuantizeLinear")
    assert counts == sum(n.kind == "table" for n in graph.nodes)
    assert not any(n.op_type == "DequantizeLinear" for n in model.graph.node)
    inputs = make.clear_inputs(graph, 30)
    same = evaluate(graph, "float", inputs).argmax(1) == reference.run(graph, inputs).argmax(1)
    assert same.mean() >= 0.8       # a random net amplifies what rounding adds


@needs_arm
def test_q_k_and_v_of_one_input_become_one_convolution():
    import onnx

    from targets import onnx_qdq
    graph = make.streaming()
    model = onnx.load_from_string(onnx_qdq.lower(graph, "mixed"))
    convolutions = sum(n.kind == "conv1d" for n in graph.nodes)
    attentions = sum(n.kind == "attention" for n in graph.nodes)
    assert [n.op_type for n in model.graph.node].count("Conv") == convolutions - 2 * attentions


@needs_arm
@pytest.mark.parametrize("stride, kernel, time", [(1, 3, 16), (2, 11, 48), (3, 7, 48), (5, 15, 40), (2, 4, 64)])
def test_a_folded_stem_gives_the_same_codes(stride, kernel, time):
    b = make.Builder(0, {"ecg": (2, time)})
    b.conv(b.reshape("ecg", "channel"), 6, kernel, stride=stride)
    graph = b.graph(b.reduce("max", b.nodes[-1].output))
    inputs = make.inputs_of(graph, 10)
    got = evaluate(graph, "mixed", inputs, trace=True)
    np.testing.assert_array_equal(got[b.nodes[1].output], reference.run(graph, inputs, trace=True)[b.nodes[1].output])


# task and leads: nat, without training, does not fit the multipliers of a beat task
LITTLE = {"local-lead": ("mitbih", 2), "lga": ("mitbih", 2), "hierarchical": ("mitbih", 2), "nat": ("cinc2017", 1),
          "efficient": ("cinc2017", 1)}


@needs_arm
@pytest.mark.parametrize("arch", LITTLE)
def test_every_architecture_agrees_in_the_mixed_form(arch):
    pytest.importorskip("torchao")
    from tests import frozen
    f = frozen.freeze(arch, "tiny", *LITTLE[arch])
    rng = np.random.default_rng(3)
    inputs = {name: x[rng.integers(0, len(x), 16)] for name, x in f.inputs.items()}
    inputs["ecg"] = make.waveform(rng, 16, *inputs["ecg"].shape[1:])
    expected = reference.run(f.graph, inputs)
    model = make.manifest_of(f.graph, "0" * 64)
    agreement = target.compare(model, expected, evaluate(f.graph, "mixed", inputs))
    assert agreement.ok, agreement
    assert np.percentile(np.abs(expected.astype(int) - evaluate(f.graph, "float", inputs)), 90) <= target.P99


def test_every_architecture_is_tried():
    models = pytest.importorskip("train.models")
    assert set(LITTLE) == set(models.ARCHS)


@needs_arm
def test_an_unknown_form_is_refused():
    from targets import onnx_qdq
    with pytest.raises(UserError, match="int4"):
        onnx_qdq.lower(make.streaming(), "int4")


# ---- what is shipped

GOOD, BAD = Agreement(2000, 0.999, 1.0, 3), Agreement(2000, 0.98, 6.0, 20)


@pytest.mark.parametrize("agreed, p50, form, words", [
    ({"int8": GOOD, "mixed": GOOD, "float": GOOD}, {"int8": 1.0, "mixed": 1.2, "float": 2.0}, "int8", "2.00x faster"),
    ({"int8": BAD, "mixed": GOOD, "float": GOOD}, {"int8": 1.0, "mixed": 1.2, "float": 2.4}, "mixed", "2.00x faster"),
    ({"int8": GOOD, "mixed": GOOD, "float": GOOD}, {"int8": 3.0, "mixed": 2.5, "float": 2.0}, "float", "no other form"),
    ({"int8": GOOD, "mixed": BAD, "float": BAD}, {"int8": 3.0, "mixed": 2.5, "float": 2.0}, "int8", "1.50x faster but"),
])
def test_the_fastest_form_that_agrees_is_shipped(agreed, p50, form, words):
    from targets import arm
    chosen, why = arm.pick(agreed, p50)
    assert chosen == form and words in why


def test_no_form_is_shipped_when_none_agrees():
    from targets import arm
    with pytest.raises(UserError, match=r"98\.00%"):
        arm.pick(dict.fromkeys(("int8", "mixed", "float"), BAD), {"int8": 1.0, "mixed": 1.0, "float": 1.0})


@pytest.mark.parametrize("agreement, ok", [
    (Agreement(2000, 0.995, 4, 12), True), (Agreement(2000, 0.9945, 0, 0), False),
    (Agreement(256, 1 - 3 / 256, 1, 1), True), (Agreement(256, 1 - 4 / 256, 1, 1), False),
    (Agreement(2000, 1.0, 5, 5), False), (Agreement(2000, 1.0, 1, 13), False)])
def test_agreement_means_labels_and_logits(agreement, ok):
    assert agreement.ok is ok


def decided(rule, offsets):
    base = make.manifest_of(make.streaming(), "0" * 64)
    return replace(base, decision=manifest.Decision(rule, offsets, 4096, 1))


def test_labels_follow_the_decision_rule():
    logits = np.array([[10, 9, -5], [10, 11, -5]], np.int8)
    np.testing.assert_array_equal(target.labels(decided("argmax", (0, 0, 0)), logits), [0, 1])
    np.testing.assert_array_equal(target.labels(decided("argmax", (0, 257, 0)), logits), [1, 1])
    present = target.labels(decided("threshold", (10 * 256, 10 * 256, -6 * 256)), logits)
    np.testing.assert_array_equal(present, [[True, False, True], [True, True, True]])


def test_one_different_class_of_several_is_a_different_label():
    rule = decided("threshold", (0, 0, 0))
    a = np.array([[5, 5, -5], [5, 5, -5]], np.int8)
    b = np.array([[5, -1, -5], [5, 5, -5]], np.int8)
    assert target.compare(rule, a, b) == Agreement(2, 0.5, pytest.approx(5.7), 6)


def test_deploy_leaves_three_forms_a_choice_and_an_entry(built):
    note = json.loads((built / "arm" / "chosen.json").read_text())
    entry = json.loads((built / "builds.json").read_text())["arm"]
    assert set(note["forms"]) == {"int8", "mixed", "float"}
    assert all((built / "arm" / f"model.{form}.onnx").is_file() for form in note["forms"])
    assert entry["path"] == f"arm/{note['file']}" and entry["identity"] == manifest.load(built).identity.hex()
    assert entry["flash"] == (built / entry["path"]).stat().st_size
    assert note["forms"][note["form"]]["labels"] >= 0.98 and note["machine"]["versions"]["onnxruntime"]


def test_a_build_gives_the_logits_of_the_reference(built):
    model, graph = target.open_run(built)
    inputs, expected = target.golden(built, graph)
    got = targets.load("arm").run(target.open_build(built, "arm", model), inputs)
    assert got.dtype == np.int8 and target.compare(model, expected, got).ok


def test_a_build_of_an_older_model_is_refused(built):
    model = replace(manifest.load(built), fs=251)
    with pytest.raises(UserError, match="another model") as error:
        target.open_build(built, "arm", model)
    assert "targets/deploy.py" in error.value.fix


def test_a_target_without_a_build_names_the_command(built):
    with pytest.raises(UserError, match="not built for mcu"):
        target.open_build(built, "mcu", manifest.load(built))


@pytest.mark.parametrize("words, code, said", [
    (["--target", "fpga"], 2, "no target 'fpga'"),
    (["--target", "amr"], 1, "use arm"),
    (["--target", "arm", "--board", "pi6"], 1, "use pi5"),
    (["--target", "arm", "--bord", "pi5"], 1, "--board"),
])
def test_wrong_words_say_what_to_type(built, capsys, words, code, said):
    assert cli("--run", built, *words) == code
    assert said in capsys.readouterr().err


def test_a_run_that_is_not_quantized_names_the_next_command(tmp_path, capsys):
    draft = replace(make.manifest_of(make.streaming(), "0" * 64), decision=None, graph_sha256=None)
    runs.write(tmp_path / "r", {"model.json": manifest.dumps(draft)})
    assert cli("--run", tmp_path / "r", "--target", "arm") == (2 if absent else 1)
    assert absent or "compress/qat.py" in capsys.readouterr().err


def test_a_changed_graph_is_refused_before_anything_is_built(tmp_path, capsys):
    run = make.write_run(tmp_path / "r", make.streaming(), golden=4)
    data = bytearray((run / "graph.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "graph.npz").write_bytes(data)
    assert cli("--run", run, "--target", "arm") == (2 if absent else 1)
    assert absent or "sha256" in capsys.readouterr().err
    assert not (run / "arm").exists()


@pytest.mark.parametrize("damage", ["missing", "garbage", "no logits"])
def test_golden_windows_that_cannot_be_read_name_the_file(tmp_path, damage):
    graph = make.streaming()
    run = make.write_run(tmp_path / "r", graph, golden=4)
    if damage == "missing":
        (run / "golden.npz").unlink()
    elif damage == "garbage":
        (run / "golden.npz").write_bytes(b"no zip")
    else:
        np.savez(run / "golden.npz", **{"in.ecg": np.zeros((4, 1, 160), np.int8)})
    with pytest.raises(UserError, match=r"golden\.npz"):
        target.golden(run, graph)


def test_a_board_that_this_machine_is_not_is_said_to_be_elsewhere(monkeypatch):
    from targets import arm
    board = target.read_board("pi4", "arm")
    monkeypatch.setattr(arm.platform, "machine", lambda: "x86_64")
    assert board["name"].startswith("Raspberry Pi 4") and not arm.on_board(board) and arm.on_board(None)
    monkeypatch.setattr(arm.platform, "machine", lambda: "aarch64")
    assert arm.on_board(board)


def test_interleaved_calls_take_turns():
    order = []
    taken = target.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.001, warm_up=0)
    assert order == ["a", "b"] * (len(order) // 2) and len(taken["a"]) == len(taken["b"]) == len(order) // 2


def test_percentiles_carry_their_sample_count():
    assert target.percentiles(np.array([1, 2, 3]) * 1_000_000) == {
        "p50_ms": pytest.approx(2), "p90_ms": pytest.approx(2.8), "p99_ms": pytest.approx(2.98), "samples": 3}


def test_flashing_linux_is_a_sentence_about_copying(built, capsys):
    arm = targets.load("arm")
    arm.flash(target.open_build(built, "arm", manifest.load(built)), None)
    assert str(built) in capsys.readouterr().out
