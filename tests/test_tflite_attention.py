# SPDX-License-Identifier: Apache-2.0
"""Attention of the .tflite file against the reference: windows, heads, leads, biases, pairs, and what is hidden."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compress import reference
from compress.graph import Graph
from compress.reference_attention import EXP_STEP, reach, scores, split
from targets import litert, tflite_lowering
from targets.tflite_attention import LANES, LONG, ROWS, tiled
from tests import graphs as make

absent = litert.missing()
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))

WINDOWS = {"global": ("global", 0), "band": ("band", 3), "wide band": ("band", 9), "block": ("block", 8),
           "blocks with a short end": ("block", 7), "neighbourhood": ("neighbourhood", 7),
           "even neighbourhood": ("neighbourhood", 4)}


BIASED = 4          # LSB: a bias of two nats, the scores' steps wider by as much and rounded twice


def alone(**form) -> Graph:
    """The attention node of `attending` by itself: q, k and v are inputs."""
    graph = make.attending(**form)
    node = next(n for n in graph.nodes if n.kind == "attention")
    names = [*dict.fromkeys(node.inputs)]
    return Graph(names, node.output, {t: graph.tensors[t] for t in (*names, node.output)}, [node])


def codes_of(graph: Graph, windows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal codes for every input; the scores that they make become the graph's."""
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(0, 40, (windows, *graph.tensors[name].shape)).clip(-128, 127).astype(np.int8)
              for name in graph.inputs}
    node = graph.nodes[0]
    q, k, _, *pair = (split(inputs[name], node.attrs["heads"]) for name in node.inputs)
    bias = np.abs(node.params["bias"]).max() if "bias" in node.params else 0
    for which, one, other, more in (("", q, k, bias), *([("2", *pair, 0)] if pair else [])):
        nats = node.attrs["score_mul" + which] * 2.0 ** (node.attrs["score_shift" + which] - 32) * EXP_STEP
        node.attrs["export_scales"]["score" + which] = (np.abs(scores(one, other)).max() + more) * nats / 127
    return inputs


def evaluated(graph: Graph, inputs, form: str = "int8") -> np.ndarray:
    """What the file computes, (window, *shape)."""
    return litert.Session(tflite_lowering.lower(graph, form), graph).run(inputs)


def gap(graph: Graph, inputs, form: str = "int8") -> np.ndarray:
    """Differences from the reference in LSB."""
    return np.abs(evaluated(graph, inputs, form).astype(int) - reference.run(graph, inputs))


def near(found: np.ndarray, worst: int = 2, equal: float = 0.65) -> None:
    """Few codes differ, and by little. Outputs here count 0.7 of a value's step, probabilities 1/256."""
    assert found.max() <= worst and (found == 0).mean() >= equal, (found.max(), (found == 0).mean())


# ---- near the reference

@pytest.mark.parametrize("form", make.FORMS.values(), ids=make.FORMS)
def test_every_form_of_attention_is_near_the_reference(form):
    graph = alone(**form)
    near(gap(graph, codes_of(graph, 6)), worst=BIASED if form.get("bias") else 2)


@pytest.mark.parametrize("pair", [None, 0.4, -0.3])
@pytest.mark.parametrize("leads", [1, 3])
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_leads_and_pairs_are_near_the_reference(window, leads, pair):
    kind, size = WINDOWS[window]
    graph = alone(window=kind, size=size, leads=leads, lam=pair, time=90)
    near(gap(graph, codes_of(graph, 3)), equal=0.85 if pair else 0.65)


@pytest.mark.parametrize("time", [10, 16, 58, 128, 250])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_bias_goes_with_the_distance_at_every_length(time, size):
    graph = alone(window="neighbourhood", size=size, bias=True, time=time)
    near(gap(graph, codes_of(graph, 3)), worst=BIASED)


@pytest.mark.parametrize("queries, time", [(1, 64), (1, 200), (16, 64), (40, 180)])
def test_queries_and_keys_may_differ_in_number(queries, time):
    graph = alone(queries=queries, time=time)
    near(gap(graph, codes_of(graph, 6)), worst=3, equal=0.6)


@pytest.mark.parametrize("lam", [None, 0.6, -0.3])
@pytest.mark.parametrize("leads", [1, 3])
@pytest.mark.parametrize("queries, time", [(1, 30), (1, 180), (3, 150)])
def test_few_queries_take_their_keys_as_weights(queries, time, leads, lam):
    graph = alone(queries=queries, time=time, leads=leads, lam=lam)
    file = tflite_lowering.Lowering(graph, "int8")
    file.build()
    keys = graph.tensors[graph.nodes[0].inputs[1]].shape[2]
    int16 = lam or keys > LONG
    if int16:
        products = math.prod(graph.tensors[graph.nodes[0].inputs[0]].shape) * keys
        assert ("FULLY_CONNECTED" in {o.kind for o in file.operators}) == (products >= ROWS)
    near(gap(graph, codes_of(graph, 6)), worst=1 if int16 else 2, equal=0.75 if int16 else 0.65)


def test_long_rows_of_few_queries_keep_their_mass():
    graph = alone(queries=2, time=400)          # 200 keys: of equal scores none would be left at 1 / 256
    inputs = codes_of(graph, 8)
    inputs[graph.inputs[0]][:] = 0
    inputs[graph.inputs[2]] = (inputs[graph.inputs[2]] // 2 + 60).clip(-128, 127).astype(np.int8)
    near(gap(graph, inputs), worst=1, equal=0.9)


@pytest.mark.parametrize("window", ["global", "band", "neighbourhood"])
@pytest.mark.parametrize("sharper", [4, 12])
def test_sharp_maps_are_as_near(window, sharper):
    kind, size = WINDOWS[window]
    graph = alone(window=kind, size=size, time=90)
    graph.nodes[0].attrs["score_mul"] *= sharper
    near(gap(graph, codes_of(graph, 6)))


def test_scores_beyond_those_that_were_seen_do_little_harm():
    graph = alone(window="band", size=5, time=90)
    inputs = codes_of(graph, 6)
    inputs[graph.inputs[0]][:, :, :, 7] = 127       # the scores of one query are three times as large
    near(gap(graph, inputs))


@pytest.mark.parametrize("form", ["neighbourhood with bias", "pair in a band", "half the queries"])
def test_the_float_form_rounds_nothing(form):
    graph = alone(**make.FORMS[form])
    near(gap(graph, codes_of(graph, 4), "float"), worst=1, equal=0.95)


# ---- what a query does not see

OUTSIDE = {"plain": {}, "leads": {"leads": 2}, "pair": {"lam": 0.5}, "bias": {"bias": True}}
LOCAL = ("band", "block", "blocks with a short end", "neighbourhood", "even neighbourhood")


@pytest.mark.parametrize("window, form", [(window, form) for window in LOCAL for form in OUTSIDE
                                          if form != "bias" or "neighbourhood" in window])
def test_a_key_outside_the_window_changes_nothing(window, form):
    kind, size = WINDOWS[window]
    form = OUTSIDE[form]
    graph = alone(window=kind, size=size, time=90, **form)
    node, inputs = graph.nodes[0], codes_of(graph, 1)
    before, time = evaluated(graph, inputs)[0].astype(int), graph.tensors[node.output].shape[2]
    first, stop = reach(node, np.arange(time), time)
    session = litert.Session(tflite_lowering.lower(graph, "int8"), graph)
    for key in (0, 1, time // 2, time - 2, time - 1):
        changed = {name: x.copy() for name, x in inputs.items()}
        for name in (*node.inputs[1:3], *node.inputs[4:]):
            changed[name][..., key] = np.where(inputs[name][..., key] > 0, 127, -128)
        moved = np.abs(session.run(changed)[0].astype(int) - before).max((0, 1))
        seen = (key >= first) & (key < stop)
        # with a bias the last code still counts e^-5.5 of a row's mass
        assert moved[~seen].max() <= (1 if form.get("bias") else 0) and moved[seen].max() > 1, (key, moved)


# ---- blocks

@pytest.mark.parametrize("time", [9, 33, 124, 250])
@pytest.mark.parametrize("window", [w for w in WINDOWS if w != "global"])
def test_a_block_holds_every_key_that_its_queries_see(window, time):
    kind, size = WINDOWS[window]
    node = alone(window=kind, size=size, time=90).nodes[0]
    tiles = tiled(node, time, time)
    first, stop = reach(node, np.arange(time), time)
    seen = tiles.seen.reshape(-1, tiles.seen.shape[2])[:time].sum(1)
    assert tiles.count * tiles.block >= time and np.array_equal(seen, stop - first)
    halo = tiles.left + tiles.right
    if tiles.count > 1 and halo:
        assert halo <= tiles.block and (tiles.block + halo) % LANES == 0
        assert tiles.seen.size < time * time - 400


def test_a_local_window_never_costs_its_square():
    node = alone(window="band", size=5, time=90).nodes[0]
    sizes = [tiled(node, time, time).seen.size for time in (124, 248, 496)]
    assert sizes[1] < 2.2 * sizes[0] and sizes[2] < 4.4 * sizes[0]


# ---- integers only

@pytest.mark.parametrize("form", make.FORMS.values(), ids=make.FORMS)
def test_nothing_in_the_int8_file_is_float(form):
    file = tflite_lowering.Lowering(alone(**form), "int8")
    file.build()
    assert {v.dtype for v in file.values} <= {"int8", "int16", "int32"}
