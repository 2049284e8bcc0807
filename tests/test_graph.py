# SPDX-License-Identifier: Apache-2.0
"""The integer graph's files: what goes in comes out, and what is damaged is refused by name."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import graph as graphs
from compress import reference, reference_attention
from compress.graph import Graph, Node, Tensor
from tests import graphs as make
from train import runs
from train.say import GraphError

BUILDERS = [make.every_kind, make.streaming, make.gated, make.learned]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A frozen run folder."""
    return make.write_run(tmp_path_factory.mktemp("runs") / "r", make.every_kind(), golden=4)


def sha256(run):
    return runs.sha256(run / "graph.json", run / "graph.npz")


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_graph_survives_its_files_bit_for_bit(builder):
    graph = builder()
    document, arrays = graphs.dumps(graph)
    again = graphs.loads(document, arrays)
    assert graphs.dumps(again) == (document, arrays)
    inputs = make.inputs_of(graph, 3)
    np.testing.assert_array_equal(reference.run(graph, inputs), reference.run(again, inputs))
    assert again.boundary == graph.boundary


def test_the_builders_use_every_node_kind():
    assert {n.kind for builder in BUILDERS for n in builder().nodes} == set(graphs.KINDS)


def test_a_run_loads_with_the_sha256_of_its_manifest(run):
    assert graphs.load(run, sha256(run)).output == make.every_kind().output


def test_a_missing_graph_names_the_file_and_the_command(tmp_path):
    with pytest.raises(GraphError, match=r"graph\.json") as error:
        graphs.load(tmp_path)
    assert "compress/qat.py" in error.value.fix


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(["graph.json", "graph.npz"]), place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found_by_its_sha256(run, name, place, bit):
    good, digest = (run / name).read_bytes(), sha256(run)
    bad = bytearray(good)
    bad[int(place * len(bad))] ^= 1 << bit
    try:
        (run / name).write_bytes(bad)
        with pytest.raises(GraphError, match="sha256"):
            graphs.load(run, digest)
    finally:
        (run / name).write_bytes(good)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_a_graph_error_or_load_whole(data):
    files = [bytearray(f) for f in graphs.dumps(make.streaming())]
    damaged = files[data.draw(st.integers(0, 1))]
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))):]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        graphs.check(graphs.loads(*map(bytes, files)))
    except GraphError:
        pass


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_graph_json_with_a_wrong_value_is_a_graph_error_or_loads_whole(data):
    document, arrays = graphs.dumps(make.streaming())
    place = changed = json.loads(document)
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 4))):
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from([None, -1, 0, 1.5, "x", [], {}, True, 10**12, [1, 2]]))
    try:
        graphs.loads(json.dumps(changed).encode(), arrays)
    except GraphError:
        pass


def test_a_pickled_array_is_refused():
    document, _ = graphs.dumps(make.streaming())
    packed = io.BytesIO()
    np.savez(packed, **{"1.weight": np.array([{"a": 1}], object)})
    with pytest.raises(GraphError, match="cannot be read"):
        graphs.loads(document, packed.getvalue())


def test_another_schema_is_refused_by_its_number():
    document, arrays = graphs.dumps(make.streaming())
    data = json.loads(document)
    data["schema"] = 99
    with pytest.raises(GraphError, match="99"):
        graphs.loads(json.dumps(data).encode(), arrays)


def conv_graph(**changes) -> Graph:
    """(1, 1, 12) -> conv -> (2, 1, 12), with one thing changed."""
    params = {"weight": np.ones((2, 1, 3), np.int8), "bias": np.zeros(2, np.int32), "mul": np.full(2, 1 << 28, "int32"),
              "shift": np.zeros(2, np.int8), "weight_scale": np.ones(2, np.float32)}
    node = Node("stem", "conv1d", ["x"], "y", {"stride": 1, "pad": [1, 1], "groups": 1, "relu": False}, params)
    tensors = {"x": Tensor((1, 1, 12), 0.1), "y": Tensor((2, 1, 12), 0.1)}
    return replace(Graph(["x"], "y", tensors, [node]), **changes)


def changed_node(**changes) -> Graph:
    graph = conv_graph()
    return replace(graph, nodes=[replace(graph.nodes[0], **changes)])


def changed_params(**changes) -> Graph:
    graph = conv_graph()
    return changed_node(params=graph.nodes[0].params | changes)


def two_writers() -> Graph:
    graph = conv_graph()
    return replace(graph, nodes=[graph.nodes[0], replace(graph.nodes[0], name="second")])


@pytest.mark.parametrize("graph, words", [
    (changed_node(kind="conv3d"), ["stem", "conv3d"]),
    (changed_node(inputs=["x", "x"]), ["stem", "2 inputs"]),
    (changed_node(attrs={"stride": 1}), ["stem", "stride"]),
    (changed_params(weight=np.ones((2, 1, 3), np.int16)), ["stem", "weight", "int16"]),
    (changed_params(mul=np.ones(2, np.int64)), ["stem", "mul", "int64"]),
    (changed_node(inputs=["z"]), ["stem", "'z'"]),
    (changed_node(output="z"), ["stem", "'z'"]),
    (two_writers(), ["second", "'y'"]),
    (conv_graph(tensors={"x": Tensor((1, 1, 12), 0.1), "y": Tensor((2, 1, 11), 0.1)}), ["stem", "(2, 1, 11)"]),
    (conv_graph(output="nowhere"), ["nowhere"]),
    (conv_graph(boundary="stem"), ["stem", "slice"]),
])
def test_a_wrong_graph_is_refused_with_the_nodes_name(graph, words):
    with pytest.raises(GraphError) as error:
        graphs.check(graph)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_row_of_too_many_keys_is_refused():
    tensors = {name: Tensor((4, 1, graphs.MAX_ROW + 1), 0.1) for name in "qkvy"}
    attrs = {"heads": 1, "window": "global", "size": 0, "score_mul": 1, "score_shift": 0, "out_mul": 1,
             "export_scales": {}}
    node = Node("wide", "attention", ["q", "k", "v"], "y", attrs, {"table": reference_attention.exp_table()})
    with pytest.raises(GraphError, match="wide"):
        graphs.check(Graph(["q", "k", "v"], "y", tensors, [node]))


def test_adding_unequal_shapes_is_refused():
    tensors = {"a": Tensor((1, 1, 4), 0.1), "b": Tensor((1, 1, 5), 0.1), "y": Tensor((1, 1, 4), 0.1)}
    node = Node("sum", "add", ["a", "b"], "y", {"mul": [1, 1], "shift": 1, "relu": False})
    with pytest.raises(GraphError, match="sum"):
        graphs.check(Graph(["a", "b"], "y", tensors, [node]))


def test_multiply_accumulates_are_counted_by_hand():
    b = make.Builder(0, {"x": (1, 20)})
    x = b.conv(b.reshape("x", "channel"), 4, 5, stride=2)               # 4 x 10 outputs of 5 products
    x = b.conv(x, 4, 3, groups=4)                                       # 4 x 10 outputs of 3
    x = b.attention(x, x, x, 2, "band", 1)                              # 2 x 4 channels x 10 queries x 3 keys
    x = b.attention(x, x, x, 2, "global")                               # 2 x 4 x 10 x 10
    wide = b.conv(x, 6)                                                 # 6 x 10 outputs of 4
    x = b.attention(x, x, wide, 2, "block", 4)                          # (4 + 6) x 10 queries x 4 keys
    x = b.attention(x, x, x, 2, "neighbourhood", 5, pair=(x, x))        # 2 x (6 + 6) x 10 x 5
    graph = b.graph(b.dense(b.reshape(x, "vector"), 3))                 # 3 x 60
    assert graphs.macs(graph) == 200 + 120 + 240 + 800 + 240 + 400 + 1200 + 180


def attention_graph(shapes=None, params=None, inputs="qkv", **attrs) -> Graph:
    """(8, 1, 20) queries in two heads see themselves, with one thing changed."""
    tensors = {name: Tensor((shapes or {}).get(name, (8, 1, 20)), 0.1) for name in "qkvQKy"}
    pair = {"score_mul2": 1, "score_shift2": 0, "out_mul2": 1} if len(inputs) == 5 else {}
    attrs = {"heads": 2, "window": "neighbourhood", "size": 5, "score_mul": 1, "score_shift": 0, "out_mul": 1,
             "export_scales": {}} | pair | attrs
    node = Node("layer", "attention", list(inputs), "y", attrs, {"table": reference_attention.exp_table()}
                | (params or {}))
    return Graph([name for name in "qkvQK" if name in inputs], "y", tensors, [node])


@pytest.mark.parametrize("changes, words", [
    ({"window": "dilated"}, "dilated.*neighbourhood"), ({"size": 21}, "neighbourhood of 21 in 20"),
    ({"size": 0}, "neighbourhood of 0"), ({"window": "band", "size": -1}, "band of -1"),
    ({"inputs": "qkvQ"}, "4 inputs"), ({"shapes": {"q": (8, 1, 10)}}, "equal length"),
    ({"shapes": {"k": (4, 1, 20)}}, "equal leads"), ({"shapes": {"v": (9, 1, 20)}}, "2 heads"),
    ({"inputs": "qkvQK", "shapes": {"Q": (4, 1, 20)}}, "q2 and k2 like q and k"), ({"out_mul2": 1}, "q2 and k2 only"),
    ({"params": {"bias": np.zeros((2, 9))}}, "float64"),
    ({"params": {"bias": np.zeros((2, 10), np.int32)}}, r"bias \(2, 10\)"),
    ({"params": {"bias": np.zeros((2, 9), np.int32)}, "window": "band"}, "band attention"),
    ({"params": {"bias": np.zeros((2, 9), np.int32)}, "inputs": "qkvQK"}, "without a pair")])
def test_attention_whose_parts_do_not_belong_together_is_refused_by_its_name(changes, words):
    graphs.check(attention_graph(params={"bias": np.zeros((2, 9), np.int32)}))
    graphs.check(attention_graph(inputs="qkvQK"))
    with pytest.raises(GraphError, match=f"(?s)layer.*{words}"):
        graphs.check(attention_graph(**changes))


def test_local_nodes_end_before_the_boundary_and_need_one():
    graph = make.streaming()
    local, rest = graph.local_nodes()
    assert rest[0].name == graph.boundary and len(local) + len(rest) == len(graph.nodes)
    with pytest.raises(GraphError, match="stream"):
        make.every_kind().local_nodes()
