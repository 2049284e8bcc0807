# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM, lookup and table of the .tflite file against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from compress import reference
from compress.graph import Graph, Tensor
from targets import litert, tflite_lowering
from targets.tflite_lstm import together
from tests import graphs as make
from train.say import GraphError

absent = litert.missing()
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))


def alone(kind: str, shape: tuple[int, ...], scale: float = 0.03, **how) -> Graph:
    """A node by itself behind an input of a shape; `how`: arguments of the builder's method."""
    b = make.Builder(how.pop("seed", 0), {"ecg": (1, 16)})
    b.tensors["x"] = Tensor(shape, scale)
    b.values["x"] = b.rng.normal(0, 40, (make.SAMPLES, *shape)).clip(-128, 127).astype(np.int8)
    y = getattr(b, kind)("x", **how)
    return Graph(["x"], y, {t: b.tensors[t] for t in ("x", y)}, b.nodes[-1:])


def codes(graph: Graph, windows: int, spread: float = 40.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal codes."""
    shape = (windows, *graph.tensors["x"].shape)
    return {"x": np.random.default_rng(seed).normal(0, spread, shape).clip(-128, 127).astype(np.int8)}


def evaluated(graph: Graph, inputs, form: str = "int8") -> np.ndarray:
    """What the file computes, (window, *shape)."""
    return litert.Session(tflite_lowering.lower(graph, form), graph).run(inputs)


def near(graph: Graph, inputs, worst: int, equal: float, form: str = "int8") -> None:
    """Few codes differ from the reference, and by little."""
    gap = np.abs(evaluated(graph, inputs, form).astype(int) - reference.run(graph, inputs))
    assert gap.max() <= worst and (gap == 0).mean() >= equal, (gap.max(), (gap == 0).mean())


# ---- norm

NORMS = {"a token": ((24, 1, 1), 1), "columns": ((16, 1, 20), 1), "leads": ((16, 3, 12), 1), "heads": ((24, 2, 9), 4),
         "a vector": ((40,), 1), "a vector in groups": ((40,), 5), "rows": ((12, 7), 1), "many": ((128, 1, 4), 1)}


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("shape, groups", NORMS.values(), ids=NORMS)
def test_a_norm_is_near_the_reference(shape, groups, rms):
    graph = alone("norm", shape, groups=groups, rms=rms)
    inputs = codes(graph, 12)
    # a vector of length 1 counts 1/128: with more channels each is a smaller part of it
    near(graph, inputs, worst=6 if shape[0] == 128 else 2, equal=0.3 if shape[0] == 128 else 0.5)


@pytest.mark.parametrize("rms", [False, True])
def test_the_floor_of_a_norm_counts(rms):
    # an eps of nine codes squared beside values of two codes: without it the output would be three times as large
    graph = alone("norm", (16, 1, 24), scale=0.01, rms=rms, eps=(9 * 0.01) ** 2)
    small = codes(graph, 12, spread=2.0)
    assert reference.run(graph, small).std() < 20
    near(graph, small, worst=4, equal=0.4)
    near(graph, codes(graph, 12), worst=2, equal=0.5)


@pytest.mark.parametrize("rms", [False, True])
def test_equal_codes_leave_the_offset(rms):
    graph = alone("norm", (16, 1, 8), rms=rms)
    inputs = codes(graph, 3)
    inputs["x"][:] = 0 if rms else np.array([-128, 5, 127])[:, None, None, None]
    near(graph, inputs, worst=1, equal=0.5)


def test_outliers_far_from_the_mean_keep_their_place():
    graph = alone("norm", (16, 1, 8))
    inputs = codes(graph, 8, spread=10.0)
    inputs["x"][:, 3] = 127
    inputs["x"][:, [0, 1, 2, *range(4, 16)]] -= 40
    near(graph, inputs, worst=3, equal=0.4)


def test_the_float_form_of_a_norm_rounds_nothing():
    for rms in (False, True):
        graph = alone("norm", (24, 1, 9), groups=2, rms=rms)
        near(graph, codes(graph, 8), worst=1, equal=0.97, form="float")


@pytest.mark.parametrize("shape, eps", [((16, 1, 4), 1e4), ((160, 1, 2), 1e-5)])
def test_a_norm_without_an_integer_form_is_refused_by_name(shape, eps):
    graph = alone("norm", shape, eps=eps)
    with pytest.raises(GraphError, match=graph.nodes[0].name):
        tflite_lowering.lower(graph, "int8")


# ---- LSTM

@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("steps, features, hidden", [(1, 5, 6), (2, 1, 4), (16, 5, 12), (24, 12, 20)])
def test_an_lstm_is_near_the_reference(steps, features, hidden, sequence):
    graph = alone("lstm", (steps, features), hidden=hidden, sequence=sequence)
    near(graph, codes(graph, 8), worst=3, equal=0.65)


@pytest.mark.parametrize("scale", [1 / 512, 1 / 32, 0.5])
def test_an_lstm_takes_inputs_on_any_grid(scale):
    graph = alone("lstm", (12, 4), scale=scale, hidden=8)
    near(graph, codes(graph, 8), worst=2, equal=0.65)


def test_an_lstm_begins_anew_in_every_window():
    graph = alone("lstm", (16, 5), hidden=12)
    inputs = codes(graph, 6, seed=3)
    first = evaluated(graph, inputs)
    order = [5, 0, 0, 3, 1, 4, 2]
    assert np.array_equal(evaluated(graph, {"x": inputs["x"][order]}), first[order])


def test_the_float_form_of_an_lstm_is_as_near():
    graph = alone("lstm", (16, 5), hidden=12, sequence=True)
    near(graph, codes(graph, 6), worst=2, equal=0.65, form="float")


def waiting() -> Graph:
    """Three LSTMs of equal length, the third of which reads the first one's states, and a shorter one."""
    b = make.Builder(5, {"beats": (16, 9), "pulse": (8, 3)})
    first = b.lstm(b.slice("beats", 1, 0, 4), hidden=6, sequence=True)
    second = b.lstm(b.slice("beats", 1, 4, 9), hidden=10, sequence=True)
    third = b.lstm(first, hidden=5, sequence=True)
    last = b.lstm("pulse", hidden=4)
    rows = [b.reshape(x, (b.tensors[x].shape[0] * b.tensors[x].shape[1],)) for x in (second, third)]
    return b.graph(b.concat([*rows, last]))


def test_lstms_take_their_steps_together_where_none_waits_for_another():
    graph = waiting()
    groups = [nodes for nodes in together(graph) if nodes[0].kind == "lstm"]
    lstms = [n for n in graph.nodes if n.kind == "lstm"]
    assert groups == [lstms[:2], lstms[2:3], lstms[3:]]
    held = set(graph.inputs)
    for nodes in together(graph):
        assert all(held.issuperset(n.inputs) for n in nodes)
        held.update(n.output for n in nodes)
    assert sorted(n.name for nodes in together(graph) for n in nodes) == sorted(n.name for n in graph.nodes)


@pytest.mark.parametrize("form", ["int8", "float"])
def test_lstms_that_take_their_steps_together_stay_apart(form):
    graph = waiting()
    inputs = make.inputs_of(graph, 8)
    expected, got = reference.run(graph, inputs, trace=True), litert.traced(graph, form, inputs)
    for node in graph.nodes:
        if node.kind == "lstm":
            gap = np.abs(expected[node.output].astype(int) - got[node.output])
            assert gap.max() <= 5 and (gap == 0).mean() >= 0.6, (node.name, gap.max(), (gap == 0).mean())


@pytest.mark.parametrize("larger", [0.05, 20.0])
def test_weights_of_an_lstm_may_be_of_different_sizes(larger):
    graph = alone("lstm", (16, 4), hidden=8)
    graph.nodes[0].params["mul_x"] = (graph.nodes[0].params["mul_x"] * larger).astype(np.int32)
    near(graph, codes(graph, 8), worst=4, equal=0.6)


# ---- what is looked up

@pytest.mark.parametrize("form", ["int8", "float"])
@pytest.mark.parametrize("low", [-3, 0, 40])
def test_a_lookup_gives_the_row_of_each_code(low, form):
    graph = alone("lookup", (1,), entries=9, width=5, low=low)
    near(graph, {"x": np.arange(-128, 128, dtype=np.int8)[:, None]}, worst=0, equal=1, form=form)


@pytest.mark.parametrize("form", ["int8", "float"])
@pytest.mark.parametrize("shape", [(256,), (8, 2, 16), (16, 16)])
def test_a_table_gives_the_entry_of_each_code(shape, form):
    graph = alone("table", shape, function=lambda v: np.cos(9 * v) * v)
    every = np.random.default_rng(0).permutation(np.arange(-128, 128)).astype(np.int8).reshape(1, *shape)
    near(graph, {"x": every}, worst=0, equal=1, form=form)


# ---- integers only

@pytest.mark.parametrize("kind, shape, how", [
    ("norm", (24, 1, 4), {"groups": 2}), ("norm", (24,), {"rms": True}), ("lstm", (6, 4), {"hidden": 5}),
    ("lookup", (1,), {"entries": 4, "width": 3, "low": 0}), ("table", (8, 1, 4), {})])
def test_nothing_in_the_int8_file_is_float(kind, shape, how):
    file = tflite_lowering.Lowering(alone(kind, shape, **how), "int8")
    file.build()
    assert {v.dtype for v in file.values} <= {"int8", "int16", "int32"}
