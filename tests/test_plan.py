# SPDX-License-Identifier: Apache-2.0
"""Memory plans: nothing alive is overwritten, executing in the arena gives the reference's bits, little is wasted."""

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import graph as graphs
from compress import reference
from targets import plan, ram, stream
from tests import arena
from tests import graphs as make
from train.say import GraphError

SLACK = 1.1         # of the largest sum of live tensors
KINDS = {"every_kind": make.every_kind, "learned": make.learned, "gated": make.gated, "streaming": make.streaming,
         **{f"attending {name}": lambda form=form: make.attending(**form) for name, form in make.FORMS.items()}}


def random_graph(seed: int, length: int = 14):
    """Nodes of any kind on whatever was made before; the output reads the last tensors."""
    rng = np.random.default_rng(seed)
    b = make.Builder(seed, {"ecg": (int(rng.integers(1, 3)), 24), "rr": (6,)})
    maps = [b.conv(b.reshape("ecg", "channel"), 4, 5, stride=int(rng.integers(1, 3)))]

    def same(x):
        return [t for t in maps if b.tensors[t].shape == b.tensors[x].shape]
    moves = {
        "conv": lambda x: b.conv(x, b.tensors[x].shape[0], 3),
        "wide": lambda x: b.conv(x, 8, 1),
        "add": lambda x: b.add(x, str(rng.choice(same(x)))),
        "mul": lambda x: b.mul(x, b.constant((b.tensors[x].shape[0], 1, 1))),
        "table": b.table,
        "norm": b.norm,
        "attention": lambda x: b.attention(*(str(rng.choice(same(x))) for _ in range(3)), 2, "global"),
        "maxpool": lambda x: b.maxpool(x, 3, 1),
        "slice": lambda x: b.slice(x, 0, 0, max(b.tensors[x].shape[0] // 4 * 2, 2)),
        "cut": lambda x: b.slice(x, 2, 1, b.tensors[x].shape[2]) if b.tensors[x].shape[2] > 6 else b.table(x),
        "turn": lambda x: b.transpose(b.transpose(x, (1, 0, 2)), (1, 0, 2)),
        "shape": lambda x: b.reshape(b.reshape(x, "vector"), b.tensors[x].shape),
        "concat": lambda x: b.concat([x, str(rng.choice(same(x)))]) if b.tensors[x].shape[0] < 9 else b.table(x),
        "constant": lambda x: b.add(x, b.constant(b.tensors[x].shape)),
    }
    for move in rng.choice(list(moves), length):
        maps.append(moves[move](str(rng.choice(maps[-5:]))))
    vectors = [b.reduce(str(rng.choice(["mean", "max"])), x) for x in maps[-3:]]
    return b.graph(b.classifier(b.concat([*vectors, b.norm(b.dense("rr", 4))]), 3))


def sound(planned: plan.Plan) -> None:
    """Each buffer lies alone while it is held, starts on a word and ends inside the arena."""
    for a, b in itertools.combinations(planned.buffers, 2):
        assert not a.meets(b) or a.offset + a.size <= b.offset or b.offset + b.size <= a.offset, (a, b)
    for b in planned.buffers:
        assert b.offset % plan.ALIGN == 0 and b.offset + b.size <= planned.bytes
    assert planned.bytes >= planned.bound


def equal_in_arena(graph, windows: int = 3) -> None:
    """The arena gives the reference's logits, window by window."""
    planned = plan.window(graph)
    sound(planned)
    assert {id(n) for n in planned.order} == {id(n) for n in graph.nodes}
    inputs = make.inputs_of(graph, windows)
    expected = reference.run(graph, inputs)
    for i in range(windows):
        got = arena.window(graph, planned, {name: x[i] for name, x in inputs.items()})
        np.testing.assert_array_equal(got, expected[i])


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_a_graph_computes_the_same_bits_in_its_arena(build):
    equal_in_arena(build())


def test_every_kind_of_node_is_planned():
    seen = {n.kind for build in KINDS.values() for n in build().nodes}
    assert seen == set(graphs.KINDS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_random_graph_computes_the_same_bits_in_its_arena(seed):
    equal_in_arena(random_graph(seed), windows=2)


def test_a_chain_in_place_needs_one_buffer_and_its_input():
    b = make.Builder(0, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 5)
    for _ in range(4):
        x = b.table(b.norm(x))
    planned = plan.window(b.graph(b.classifier(b.reduce("mean", x), 3)))
    assert planned.bytes == planned.bound == 64 + 4 * 64


def test_an_input_that_is_read_again_is_not_overwritten():
    b = make.Builder(0, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 5)
    y = b.add(b.table(b.table(x)), x)
    graph = b.graph(b.classifier(b.reduce("mean", y), 3))
    places = plan.window(graph).place
    tables = [n.output for n in graph.nodes if n.kind == "table"]
    assert places[tables[0]] != places[x] and places[tables[1]] == places[tables[0]]
    equal_in_arena(graph)


def test_attention_takes_the_place_of_its_query_but_never_of_keys_and_values():
    b = make.Builder(0, {"ecg": (1, 32)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5)
    q, k, v = (b.conv(x, 8, relu=False) for _ in range(3))
    graph = b.graph(b.classifier(b.reduce("mean", b.attention(q, k, v, 2, "global")), 3))
    seen = next(n for n in graph.nodes if n.kind == "attention")
    planned = plan.window(graph)
    assert planned.place[seen.output] == planned.place[q]
    b = make.Builder(0, {"ecg": (1, 32)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5)
    alone = b.graph(b.classifier(b.reduce("mean", b.attention(x, x, x, 2, "global")), 3))
    places = plan.window(alone).place
    assert places[next(n for n in alone.nodes if n.kind == "attention").output] != places[x]


def test_a_better_order_than_the_given_one_is_found():
    b = make.Builder(0, {"ecg": (1, 64)})
    x = b.conv(b.reshape("ecg", "channel"), 4, 5)
    wide = [b.conv(x, 16, 3) for _ in range(4)]
    vectors = [b.reduce("mean", w) for w in wide]
    planned = plan.window(b.graph(b.classifier(b.concat(vectors), 3)))
    assert planned.bytes < 4 * 64 + 2 * 16 * 64


def test_a_summary_is_plain_json_and_counts_the_form_that_a_device_runs():
    flat = ram.summary(make.every_kind(), 256)
    assert flat["stream_bytes"] is None
    assert flat["window_bytes"] + flat["scratch_bytes"] <= flat["ram_bytes"] <= flat["window_bytes"] + flat[
        "scratch_bytes"] + 64
    flowing = ram.summary(make.streaming(), 32)
    assert flowing["stream_bytes"] + flowing["scratch_bytes"] < flowing["ram_bytes"]
    assert 0 < flowing["state_bytes"] < flowing["stream_bytes"]


# ---- streaming

STREAMS = {"band": ("band", 3, 32), "wide band": ("band", 4, 16), "block": ("block", 4, 32), "blocks": ("block", 5, 40),
           "neighbourhood": ("neighbourhood", 5, 32), "even neighbourhood": ("neighbourhood", 8, 16)}


@pytest.mark.parametrize("window,size,hop", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("leads", [1, 2])
def test_the_planned_state_is_all_that_a_stream_needs(window, size, hop, leads):
    graph = make.streaming(leads=leads, window=window, size=size)
    equal_in_stream(graph, hop)


def equal_in_stream(graph, hop: int, hops: int = 5) -> None:
    """Hop by hop from planned state and arenas: the bits of reference.stream."""
    planned = stream.stream(graph, hop)
    sound(planned.local)
    sound(planned.decide)
    name, *others = graph.inputs
    leads, window = graph.tensors[name].shape
    rng = np.random.default_rng(3)
    record = rng.integers(-128, 128, (leads, window + (hops - 1) * hop)).astype(np.int8)
    sides = {t: rng.integers(-100, 100, (hops, *graph.tensors[t].shape)).astype(np.int8) for t in others}
    expected = reference.stream(graph, {name: record} | sides, hop)
    streamer, got = arena.Streamer(graph, planned, hop), []
    for end in range(window % hop or hop, record.shape[1] + 1, hop):
        start = streamer.have[name]
        logits = streamer.push(record[:, start:end], {t: x[min(len(got), hops - 1)] for t, x in sides.items()})
        got += [] if logits is None else [logits]
    np.testing.assert_array_equal(np.stack(got), expected)


def test_a_large_graph_streams_from_its_plan_in_less_than_half_the_memory():
    graph = make.like_local_lead()
    equal_in_stream(graph, 256, hops=2)
    found = ram.summary(graph, 256)
    assert found["ram_bytes"] < (found["window_bytes"] + found["scratch_bytes"]) / 2


def test_less_state_than_planned_is_not_enough():
    graph, hop = make.streaming(), 32
    planned = stream.stream(graph, hop)
    inner = [t for t in planned.state if t != graph.local_nodes()[1][0].inputs[0]]
    for t in inner:
        less = stream.Stream(planned.local, planned.decide, planned.state | {t: planned.state[t] - 1}, planned.new, 0)
        streamer = arena.Streamer(graph, less, hop)
        with pytest.raises(AssertionError, match="forgotten"):
            for _ in range(12):
                streamer.push(np.zeros((1, hop), np.int8), {})


def test_a_hop_between_columns_is_refused():
    with pytest.raises(GraphError, match="a hop of 30 samples"):
        stream.stream(make.streaming(), 30)


def test_a_stream_computes_each_column_once():
    graph, window = make.like_local_lead(), 2176
    local = graphs.macs(graphs.Graph(graph.inputs, graph.output, graph.tensors, graph.local_nodes()[0]))
    hops = [stream.macs(graph, hop) for hop in (256, 512)]
    assert hops[1] - hops[0] == pytest.approx(local * 256 / window, rel=1e-3)
    assert hops[0] - (hops[1] - hops[0]) == graphs.macs(graph) - local


# ---- the shipped architectures

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

import importlib.util  # noqa: E402  (torch is optional)
import json  # noqa: E402

from bench import memory  # noqa: E402
from train import say  # noqa: E402
from train.models import ARCHS  # noqa: E402


@pytest.fixture(scope="module", params=[(a, p) for a in ARCHS for p in memory.PRESETS], ids="-".join)
def network(request):
    """(arch, preset, network, graph) at one lead on the rhythm task."""
    torch.set_num_threads(1)
    return *request.param, *memory.untrained(*request.param)


def test_a_preset_keeps_its_budget_of_flash_and_ram(network):
    _, preset, net, graph = network
    flash, room = memory.BUDGET[preset]
    assert graph.weight_bytes <= flash
    assert ram.summary(graph, net.geometry.hop)["ram_bytes"] <= room


def test_the_arenas_of_a_preset_waste_next_to_nothing(network):
    _, _, net, graph = network
    planned = [plan.window(graph)]
    if graph.boundary is not None:
        flow = stream.stream(graph, net.geometry.hop)
        planned += [flow.local, flow.decide]
    for p in planned:
        sound(p)
        assert p.bytes <= SLACK * p.bound


def test_a_preset_computes_the_same_bits_in_its_arena_and_from_its_planned_state(network):
    _, _, net, graph = network
    equal_in_arena(graph, windows=1)
    if graph.boundary is not None:
        equal_in_stream(graph, net.geometry.hop, hops=2)


def test_no_buffer_is_larger_than_what_it_holds(network):
    graph = network[3]
    for b in plan.window(graph).buffers:
        assert all(prod(graph.tensors[t].shape) == b.size for t in b.tensors)


# ---- bench/memory.py

def cli(*words) -> int:
    return say.run(memory.main, memory.parser(), ["--arch", "nat", "--preset", "tiny", *words])


def test_a_board_that_is_large_enough_says_what_is_left(capsys):
    assert cli("--board", "bluepill", "--json") == 0
    found, = json.loads(capsys.readouterr().out)["networks"]
    assert found["board"]["fits"] and found["board"]["left"]["ram_bytes"] == 20_480 - found["ram_bytes"]


def test_what_does_not_fit_is_told_with_what_to_try(capsys):
    found = {"flash_bytes": 137_000, "ram_bytes": 60_000, "preset": "small", "leads": 12, "streams": False}
    verdict = memory.fits(found, {"name": "Small", "flash": 65_536, "ram": 20_480})
    assert not verdict["fits"] and verdict["left"] == {"flash_bytes": -71_464, "ram_bytes": -39_520}
    said = "".join(capsys.readouterr())
    assert "flash 137.0 kB of 65.5 and RAM 60.0 kB of 20.5" in said
    assert all(word in said for word in ("--preset tiny", "--keep 0.4", "--leads 3", "streams"))


def test_a_board_of_another_target_is_refused(capsys):
    assert cli("--board", "pi5") == 1 and "mcu board" in capsys.readouterr().err


def test_without_torch_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli() == 2 and "torch is not installed" in capsys.readouterr().err


def test_the_committed_table_keeps_every_budget():
    found = json.loads((memory.RESULTS / "memory.json").read_text())["networks"]
    assert {(f["arch"], f["preset"], f["leads"]) for f in found} == {
        (arch, preset, leads) for arch in ARCHS for preset in memory.PRESETS
        for leads in (memory.LEADS if preset == "tiny" else (1,))}
    for f in found:
        if f["leads"] == 1:
            assert f["budget"] and not memory.over(f, *memory.BUDGET[f["preset"]])


def test_the_committed_table_is_that_of_todays_networks(network):
    arch, preset, net, graph = network
    found = json.loads((memory.RESULTS / "memory.json").read_text())["networks"]
    row = next(f for f in found if (f["arch"], f["preset"], f["leads"]) == (arch, preset, 1))
    planned = ram.summary(graph, net.geometry.hop)
    now = {"flash_bytes": graph.weight_bytes, "macs": graphs.macs(graph), **planned}
    assert {key: row[key] for key in now} == now, "python bench/memory.py --all-leads --write"
