# SPDX-License-Identifier: Apache-2.0
"""Convolutions of the cores without the M4's DSP extension: SWAR on Cortex-M0+ and M3, MVE on Cortex-M55."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress import reference
from compress.graph import Graph, Node, Tensor, macs
from targets import pack, pack_mve, pack_swar
from tests import cimage, ckernels, graphs
from tests.test_c_conv import SHAPES, codes, conv_graph, dense_graph

SWAR = ("conv.c", "conv_swar.c", "dense_four.c")
SOURCES = {"m0plus": SWAR, "m3": SWAR, "m55": ("conv.c", "conv_mve.c", "dense.c", "dense_mve.c", "fir_mve.c")}
MORE = {     # what the kernels do in blocks, one more or less: vectors of taps, columns, channels
    "sixteen taps": (16, 3, 1, 17, 1, 1, 0, 0, 1), "seventeen taps": (17, 4, 1, 19, 1, 1, 0, 0, 1),
    "thirty-two taps": (32, 5, 1, 64, 1, 1, 0, 0, 1), "thirty-three taps": (33, 2, 2, 67, 1, 1, 0, 0, 1),
    "many channels": (6, 37, 1, 23, 1, 1, 0, 0, 1), "two columns": (4, 3, 1, 4, 3, 1, 0, 0, 1),
    "three columns": (4, 3, 1, 3, 3, 1, 1, 1, 1), "five columns": (8, 2, 1, 5, 1, 1, 0, 0, 1),
    "seven columns": (8, 3, 2, 7, 1, 1, 0, 0, 1), "grouped": (12, 12, 1, 70, 1, 1, 0, 0, 4),
    "leads as channels, stride 4": (12, 8, 1, 170, 11, 4, 5, 5, 1), "stem of stride 4": (1, 8, 1, 700, 11, 4, 5, 5, 1),
    "depthwise, seven columns": (3, 3, 1, 7, 5, 1, 2, 2, 3), "depthwise, thirteen": (3, 3, 2, 13, 5, 1, 2, 2, 3),
    "long filter": (2, 4, 1, 300, 40, 1, 20, 19, 2), "filter of stride 3": (2, 2, 1, 140, 20, 3, 8, 8, 2)}


DENSE = [(1, 1), (2, 3), (3, 4), (15, 9), (16, 8), (17, 5), (64, 64), (37, 6), (130, 7)]       # features, out


def layer_of(graph: Graph, core: str) -> pack.Layer:
    return pack.layer(graph, graph.nodes[0], pack.CORES[core])


def check_swar(graph: Graph, x: np.ndarray, **how) -> None:
    """The portable form of both cores' kernels gives the codes of the reference."""
    want = reference.run(graph, {"x": x[None]})[0]
    for core in ("m0plus", "m3"):
        layer = layer_of(graph, core)
        if layer.struct == "ecg_dense_layer":           # one column: a vector has no rows
            how["pad_pitch"] = 0
        got = ckernels.call(ckernels.build(*SWAR), layer, [x], want.shape, **how)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [*SHAPES, *MORE])
@pytest.mark.parametrize("extreme", [False, True], ids=["any codes", "the largest codes"])
def test_two_products_in_a_word_equal_the_reference(shape, extreme):
    graph = conv_graph(1, *(SHAPES | MORE)[shape], relu=extreme, extreme=extreme)
    check_swar(graph, codes(graph, 2, extreme), pad_pitch=3, offset=1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_convolution_with_two_products_in_a_word_equals_the_reference(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))
    groups, depth, kernel, stride = draw(1, 3), data.draw(st.sampled_from([1, 1, 2, 5, 9])), draw(1, 13), draw(1, 4)
    left, right, time = draw(0, kernel), draw(0, kernel), draw(1, 150)
    assume(time + left + right >= kernel)
    graph = conv_graph(draw(0, 99), groups * depth, groups * draw(1, 19), draw(1, 2), time, kernel, stride, left, right,
                       groups, relu=data.draw(st.booleans()), extreme=data.draw(st.booleans()))
    check_swar(graph, codes(graph, 3, data.draw(st.booleans())), pad_pitch=draw(0, 3), offset=draw(0, 3))


@pytest.mark.parametrize("features,out", DENSE)
@pytest.mark.parametrize("extreme", [False, True], ids=["any codes", "the largest codes"])
def test_dense_layers_four_outputs_at_a_time_equal_the_reference(features, out, extreme):
    graph = dense_graph(1, features, out, relu=extreme, extreme=extreme)
    x = codes(graph, 2, extreme)
    layer = layer_of(graph, "m3")
    assert layer.kernel == "dense_four"
    got = ckernels.call(ckernels.build(*SWAR), layer, [x.reshape(1, 1, -1)], (1, 1, out), offset=1)
    np.testing.assert_array_equal(got[0, 0], reference.run(graph, {"x": x[None]})[0])


@pytest.mark.parametrize("row", [(-127, -127, -1, 1), (127, 127, 1, -1)], ids=["2^15 - 1", "1 - 2^15"])
@pytest.mark.parametrize("depth", [4, 32])
def test_sums_that_fill_both_halves_of_a_word_come_apart(row, depth):
    weight = np.tile(row, depth // 4)
    assert [len(c) for c in pack_swar.chunks(weight, -128, 127)] == [4] * (depth // 4)
    graph = conv_graph(0, depth, 2, 1, 64, 1, 1, 0, 0, 1)
    graph.nodes[0].params["weight"] = np.stack([weight, -weight])[:, :, None].astype(np.int8)
    most, least = np.where(weight < 0, -128, 127), np.where(weight < 0, 127, -128)
    columns = np.random.default_rng(1).integers(0, 2, 64)
    check_swar(graph, np.where(columns, most[:, None], least[:, None])[:, None].astype(np.int8))


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=80), st.sampled_from([(-128, 127), (0, 127), (-3, 90)]))
@settings(deadline=None)
def test_chunks_hold_all_weights_in_order_and_no_sum_leaves_16_bits(row, bounds):
    parts = pack_swar.chunks(np.array(row), *bounds)
    assert np.concatenate(parts).tolist() == row
    for part in parts:
        both = np.outer(part, bounds)
        assert 1 <= len(part) <= pack_swar.LONGEST
        assert both.max(1).sum() < 1 << 15 and both.min(1).sum() > -(1 << 15)


def test_an_input_that_is_never_negative_makes_chunks_longer():
    row = np.random.default_rng(0).normal(0, 40, 2000).clip(-127, 127).astype(int)
    assert len(pack_swar.chunks(row, 0, 127)) < 0.7 * len(pack_swar.chunks(row, -128, 127))


@pytest.mark.parametrize("build", [graphs.every_kind, graphs.streaming])
def test_every_tensor_stays_in_the_range_that_the_packer_expects(build):
    graph = build()
    values = reference.run(graph, graphs.inputs_of(graph, 8), trace=True)
    for name, x in values.items():
        low, high = pack_swar.code_range(graph, name)
        assert low <= x.min() and x.max() <= high, name
    assert any(pack_swar.code_range(graph, n.inputs[0])[0] == 0 for n in graph.nodes if n.kind == "conv1d")


@pytest.mark.parametrize("kind,attrs,negative", [
    ("maxpool", {"kernel": 3, "stride": 1, "pad": [1, 1]}, False),
    ("maxpool", {"kernel": 1, "stride": 1, "pad": [1, 0]}, True),           # -128 where there is only padding
    ("slice", {"axis": 2, "start": 0, "stop": 2}, False)])
def test_the_range_of_a_tensor_is_followed_to_where_its_codes_come_from(kind, attrs, negative):
    graph = conv_graph(0, 2, 2, 1, 9, 1, 1, 0, 0, 1, relu=True)
    graph.tensors["z"] = Tensor((2, 1, 9), 0.1)
    graph.nodes.append(Node("next", kind, ["y"], "z", attrs))
    assert pack_swar.code_range(graph, "x") == (-128, 127)
    assert pack_swar.code_range(graph, "z") == ((-128, 127) if negative else (0, 127))


@given(st.integers(0, 999), st.integers(1, 64))
@settings(deadline=None)
def test_multipliers_are_split_so_that_no_product_leaves_32_bits(seed, depth):
    graph = conv_graph(seed, depth, 4, 1, 9, 1, 1, 0, 0, 1)
    n = graph.nodes[0]
    for split, row, bias, mul in zip(pack_swar.requantize_split(graph, n).tolist(), n.params["weight"].astype(int),
                                     n.params["bias"].tolist(), n.params["mul"].tolist(), strict=True):
        reach = int(np.where(row < 0, row * -128, row * 127).sum()) + abs(bias)
        for acc in (reach, -reach, reach // 3, -1) if split else ():
            coarse = ((mul >> (split - 1)) + 1) >> 1
            fine = mul - (coarse << split)
            products = acc * coarse, acc * fine, acc * coarse + (acc * fine >> split)
            assert max(map(abs, products)) < 1 << 31
            assert ((products[2] >> (31 - split)) + 1) >> 1 == (acc * mul + (1 << 31)) >> 32


def test_a_column_with_padding_beside_it_is_no_dense_layer():
    graph = conv_graph(1, 8, 8, 1, 1, 1, 1, 0, 1, 1)
    assert all(layer_of(graph, core).kernel != layer_of(conv_graph(1, 8, 8, 1, 1, 1, 1, 0, 0, 1), core).kernel
               for core in ("m0plus", "m4", "m55"))


def test_layers_that_the_fast_kernels_do_not_take_go_to_the_plain_ones():
    shifted = conv_graph(1, 8, 8, 1, 40, 1, 1, 0, 0, 1)
    shifted.nodes[0].params["shift"][3] = 1
    assert layer_of(shifted, "m55").kernel == "conv"
    assert layer_of(conv_graph(1, 8, 8, 1, 90, 1, pack_mve.MAX_STRIDE + 1, 0, 0, 1), "m55").kernel == "conv"
    assert layer_of(conv_graph(1, 8, 8, 1, 2, 1, 1, 0, 0, 1), "m3").kernel == "conv"
    assert layer_of(conv_graph(1, 8, 8, 1, 1, 1, 1, 0, 0, 1), "m0plus").kernel == "dense_four"
    assert layer_of(conv_graph(1, 8, 8, 1, 1, 1, 1, 0, 0, 1), "m55").kernel == "dense_mve"
    for core, kernels in {"m0plus": ("conv_swar", "fir_swar"), "m3": ("conv_swar", "fir_swar"),
                          "m55": ("conv_mve", "fir_mve")}.items():
        found = [layer_of(conv_graph(1, *SHAPES[shape]), core).kernel for shape in ("pointwise", "depthwise")]
        assert tuple(found) == kernels


def case(name: str, graph: Graph, core: str, x: np.ndarray, gap: int = 0) -> cimage.Case:
    want = reference.run(graph, {"x": x[None]})[0]
    return cimage.Case(name, layer_of(graph, core), [x.reshape(pack.volume(x.shape))],
                       want.reshape(pack.volume(want.shape)), gap)


def middle(name: str, graph: Graph, core: str, x: np.ndarray, cut: int) -> cimage.Case:
    """The columns from `cut` on without the last three, of an input that holds what these need."""
    want, n = reference.run(graph, {"x": x[None]})[0], graph.nodes[0]
    stride, pad, kernel = n.attrs["stride"], n.attrs["pad"][0], n.params["weight"].shape[2]
    start = max(cut * stride - pad, 0)
    part = x[:, :, start:min((want.shape[2] - 4) * stride - pad + kernel, x.shape[2])]
    return cimage.Case(f"{name} from {cut}", layer_of(graph, core), [np.ascontiguousarray(part)],
                       np.ascontiguousarray(want[:, :, cut:-3]), 1, start, cut)


@pytest.mark.parametrize("core,using", [("m0plus", "gcc"), ("m0plus", "zig"), ("m3", "gcc"), ("m3", "zig"),
                                        ("m55", "zig"), ("m55", "gcc")])
def test_every_shape_gives_the_codes_of_the_reference_on_the_emulated_core(core, using):
    cases = []
    for i, (name, shape) in enumerate((SHAPES | MORE).items()):
        extreme, gap = i % 3 == 0, 0 if name == "a dense layer" else i % 4
        graph = conv_graph(i, *shape, relu=i % 2 == 0, extreme=extreme)
        if core == "m55":               # its kernels know no shifts
            graph.nodes[0].params["shift"][:] = 0
        cases.append(case(name, graph, core, codes(graph, i, extreme), gap))
    for i, (features, out) in enumerate(DENSE):
        graph = dense_graph(i, features, out, relu=i % 2 == 0)
        cases.append(case(f"dense {features} to {out}", graph, core, codes(graph, i)))
    for name in ("stem", "depthwise of stride 2", "pointwise", "odd channels"):
        graph = conv_graph(5, *SHAPES[name], relu=True)
        cases += [middle(name, graph, core, codes(graph, 6), cut) for cut in (0, 3, 7)]
    cimage.check(core, list(SOURCES[core]), cases, using)


COSTS = {   # channel, out, time, kernel, stride, groups -> instructions per multiply-accumulate at most, by core
    "conv 1x15": ((1, 16, 2500, 15, 2, 1), {"m0plus": 4.8, "m3": 3.3, "m55": 0.31}),
    "depthwise 1x7": ((32, 32, 625, 7, 1, 32), {"m0plus": 8.5, "m3": 5.8, "m55": 0.8}),
    "pointwise": ((32, 64, 625, 1, 1, 1), {"m0plus": 4.0, "m3": 2.5, "m55": 0.2}),
    "deep pointwise": ((192, 64, 56, 1, 1, 1), {"m0plus": 3.2, "m3": 1.95, "m55": 0.2}),
    "short pointwise": ((96, 40, 54, 1, 1, 1), {"m0plus": 3.9, "m3": 2.2, "m55": 0.26})}


@pytest.mark.parametrize("core,using", [("m0plus", "gcc"), ("m3", "gcc"), ("m55", "zig")])
def test_executed_instructions_per_product_stay_within_bounds(core, using):
    """Weights of all sizes, inputs of both signs: the worst that a trained net can be."""
    made = {}
    for name, ((channel, out, time, kernel, stride, groups), _) in COSTS.items():
        left = (kernel - 1) // 2
        made[name] = conv_graph(1, channel, out, 1, time, kernel, stride, left, kernel - 1 - left, groups)
    made["dense"] = dense_graph(1, 64, 64)
    counts = cimage.check(core, list(SOURCES[core]), [case(n, g, core, codes(g, 2)) for n, g in made.items()], using)
    per_mac = {name: counts[name].total / macs(graph) for name, graph in made.items()}
    assert per_mac.pop("dense") <= {"m0plus": 6.3, "m3": 3.4, "m55": 0.35}[core]
    assert all(per_mac[name] <= COSTS[name][1][core] for name in per_mac), per_mac
