# SPDX-License-Identifier: Apache-2.0
"""The C kernels of convolution and dense layers equal the reference, bit for bit, in every shape and on every core."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress import reference
from compress.graph import Graph, Node, Tensor, macs
from targets import pack
from tests import cimage, ckernels

SOURCES = ("conv.c", "dense.c", "conv_dsp.c", "fir_dsp.c", "dense_dsp.c")
# channels, out, leads, time, kernel, stride, pad left, pad right, groups
SHAPES = {
    "stem": (1, 16, 1, 250, 15, 2, 7, 7, 1),
    "depthwise": (6, 6, 2, 53, 7, 1, 3, 3, 6),
    "depthwise of stride 2": (5, 5, 1, 47, 3, 2, 1, 1, 5),
    "pointwise": (12, 10, 2, 29, 1, 1, 0, 0, 1),
    "odd channels": (7, 5, 1, 31, 3, 1, 1, 1, 1),
    "groups": (12, 9, 2, 40, 5, 1, 2, 2, 3),
    "one channel, more out": (1, 3, 3, 33, 4, 3, 1, 2, 1),
    "two out per channel": (4, 8, 1, 26, 5, 1, 2, 2, 4),
    "one column": (9, 6, 2, 1, 1, 1, 0, 0, 1),
    "a dense layer": (21, 6, 1, 1, 1, 1, 0, 0, 1),
    "kernel longer than the signal": (3, 4, 2, 5, 11, 1, 5, 5, 1),
    "one sample, wide kernel": (2, 2, 1, 1, 9, 1, 4, 4, 2),
    "all padding on the left": (4, 4, 1, 30, 6, 1, 5, 0, 1),
    "stride beyond the kernel": (4, 6, 1, 61, 2, 5, 0, 0, 1),
    "long": (3, 2, 1, 700, 3, 1, 1, 1, 1),
}


def conv_graph(seed: int, channel: int, out: int, leads: int, time: int, kernel: int, stride: int, left: int,
               right: int, groups: int, relu: bool = False, extreme: bool = False) -> Graph:
    """A graph of one convolution with random parameters; `extreme`: the largest codes and shifts."""
    rng = np.random.default_rng(seed)
    depth = channel // groups
    params = parameters(rng, (out, depth, kernel), extreme)
    column = (time + left + right - kernel) // stride + 1
    node = Node("layer", "conv1d", ["x"], "y", {"stride": stride, "pad": [left, right], "groups": groups, "relu": relu},
                params)
    return Graph(["x"], "y", {"x": Tensor((channel, leads, time), 0.1), "y": Tensor((out, leads, column), 0.1)}, [node])


def dense_graph(seed: int, features: int, out: int, relu: bool = False, extreme: bool = False) -> Graph:
    """A graph of one dense layer."""
    params = parameters(np.random.default_rng(seed), (out, features), extreme)
    node = Node("layer", "dense", ["x"], "y", {"relu": relu}, params)
    return Graph(["x"], "y", {"x": Tensor((features,), 0.1), "y": Tensor((out,), 0.1)}, [node])


def parameters(rng: np.random.Generator, shape: tuple[int, ...], extreme: bool) -> dict[str, np.ndarray]:
    """Weights, bias and multipliers that spread the output over all codes."""
    out, sums = shape[0], int(np.prod(shape[1:]))
    weight = rng.choice([-128, -127, 127], shape) if extreme else rng.integers(-127, 128, shape)
    reach = 127 / (73 * 73 * np.sqrt(sums))
    mul = np.clip(rng.uniform(0.2, 2, out) * reach * 2.0 ** 32, 1, 2 ** 31 - 1).astype(np.int32)
    shift = rng.integers(0, 4, out) if extreme else np.zeros(out)
    return {"weight": weight.astype(np.int8), "bias": rng.integers(-9000, 9000, out).astype(np.int32),
            "mul": mul, "shift": shift.astype(np.int8), "weight_scale": np.ones(out, np.float32)}


def codes(graph: Graph, seed: int, extreme: bool = False) -> np.ndarray:
    """A random input, without the batch axis."""
    rng, shape = np.random.default_rng(seed), graph.tensors["x"].shape
    return (rng.choice([-128, 127], shape) if extreme else rng.integers(-128, 128, shape)).astype(np.int8)


def check(graph: Graph, core: pack.Core, x: np.ndarray, **how) -> None:
    """The kernel's output equals the reference's."""
    want = reference.run(graph, {"x": x[None]})[0]
    layer = pack.layer(graph, graph.nodes[0], core)
    kernels = ckernels.build(*SOURCES)
    got = ckernels.call(kernels, layer, [x.reshape(pack.volume(x.shape))], pack.volume(want.shape), **how)
    np.testing.assert_array_equal(got, want.reshape(got.shape))


CORES = {"plain": pack.CORES["host"], "dsp, 8-bit weights": pack.CORES["m4"],
         "dsp, 16-bit weights": dataclasses.replace(pack.CORES["m4"], wide=True)}


@pytest.fixture(params=CORES)
def core(request) -> pack.Core:
    """What to pack for."""
    return CORES[request.param]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_a_convolution_equals_the_reference(core, shape, relu):
    graph = conv_graph(1, *SHAPES[shape], relu=relu)
    check(graph, core, codes(graph, 2), pad_pitch=0 if shape == "a dense layer" else 3, offset=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_codes_do_not_overflow(core, shape):
    graph = conv_graph(3, *SHAPES[shape], extreme=True)
    check(graph, core, codes(graph, 4, extreme=True))


@pytest.mark.parametrize("shape", ["stem", "depthwise", "depthwise of stride 2", "pointwise", "odd channels",
                                   "one channel, more out", "stride beyond the kernel"])
@pytest.mark.parametrize("cut", [0, 3, 7])
def test_columns_in_the_middle_of_a_signal_equal_those_of_the_whole(core, shape, cut):
    graph = conv_graph(5, *SHAPES[shape])
    n, x = graph.nodes[0], codes(graph, 6)
    want = reference.run(graph, {"x": x[None]})[0]
    kernel, stride, pad = SHAPES[shape][4], n.attrs["stride"], n.attrs["pad"][0]
    start = max(cut * stride - pad, 0)
    stop = min((want.shape[2] - 4) * stride - pad + kernel, x.shape[2])     # what the last column but three needs
    part = np.ascontiguousarray(x[:, :, start:stop])
    shape = (*want.shape[:2], want.shape[2] - 3 - cut)
    got = ckernels.call(ckernels.build(*SOURCES), pack.layer(graph, n, core), [part], shape, first=start,
                        out_first=cut, pad_pitch=1, offset=3)
    np.testing.assert_array_equal(got, want[:, :, cut:cut + shape[2]])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_convolution_equals_the_reference(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))
    groups, depth, share = draw(1, 4), data.draw(st.sampled_from([1, 1, 2, 3, 5])), draw(1, 5)
    kernel, stride = draw(1, 19), draw(1, 5)
    left, right, time = draw(0, kernel), draw(0, kernel), draw(1, 90)
    assume(time + left + right >= kernel)
    graph = conv_graph(draw(0, 99), groups * depth, groups * share, draw(1, 2), time, kernel, stride, left, right,
                       groups, relu=data.draw(st.booleans()), extreme=data.draw(st.booleans()))
    for core in CORES.values():
        if pack.layer(graph, graph.nodes[0], core).struct == "ecg_conv_layer":
            check(graph, core, codes(graph, 3), pad_pitch=draw(0, 3), offset=draw(0, 3))


@pytest.mark.parametrize("features,out", [(1, 1), (2, 3), (3, 4), (64, 64), (37, 5), (130, 7), (5, 1), (8, 2), (11, 9)])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_a_dense_layer_equals_the_reference(core, features, out, relu):
    graph = dense_graph(features, features, out, relu)
    check(graph, core, codes(graph, 7), offset=1)
    graph = dense_graph(features, features, out, relu, extreme=True)
    check(graph, core, codes(graph, 8, extreme=True))


def image_cases(wide: bool) -> list[cimage.Case]:
    """Every shape once, every other one with relu, and dense layers."""
    core = dataclasses.replace(pack.CORES["m4"], wide=wide)
    made = {name: conv_graph(i, *shape, relu=i % 2 == 0, extreme=i % 3 == 0)
            for i, (name, shape) in enumerate(SHAPES.items())}
    made |= {f"dense {features} to {out}": dense_graph(1, features, out, relu=out % 2 == 0)
             for features, out in [(1, 1), (3, 4), (37, 5), (64, 64), (130, 7), (8, 2)]}
    found = []
    for name, graph in made.items():
        x = codes(graph, 9)
        layer, want = pack.layer(graph, graph.nodes[0], core), reference.run(graph, {"x": x[None]})[0]
        gap = 0 if layer.struct == "ecg_dense_layer" else 5
        found.append(cimage.Case(name, layer, [x.reshape(pack.volume(x.shape))], want.reshape(pack.volume(want.shape)),
                                 gap))
    return found


@pytest.mark.parametrize("name,using,wide", [("m4", "gcc", False), ("m4", "zig", True), ("m7", "gcc", True),
                                             ("m33", "gcc", False)])
def test_the_loops_in_assembly_equal_the_reference_on_an_emulated_core(name, using, wide):
    cimage.check(name, list(SOURCES), image_cases(wide), using)


# instructions per multiply-accumulate on a Cortex-M4: channel, out, time, kernel, stride, groups -> wide, at most
COSTS = {
    "conv1x15": ((1, 16, 2500, 15, 2, 1), (1.5, 1.6)),
    "depthwise 1x7": ((32, 32, 625, 7, 1, 32), (1.9, 1.9)),
    "pointwise": ((32, 64, 625, 1, 1, 1), (1.0, 1.5)),
    "small pointwise": ((16, 24, 248, 1, 1, 1), (1.3, 1.5)),
    "short pointwise": ((40, 80, 45, 1, 1, 1), (1.0, 1.2)),
    "strided": ((24, 32, 90, 3, 2, 1), (1.1, 1.2)),
}


@pytest.mark.parametrize("wide", [True, False], ids=["16-bit weights", "8-bit weights"])
def test_executed_instructions_per_product_stay_within_bounds(wide):
    core = dataclasses.replace(pack.CORES["m4"], wide=wide)
    made = {"dense": (dense_graph(1, 64, 64), (1.0, 1.5))}
    for name, ((channel, out, time, kernel, stride, groups), most) in COSTS.items():
        left = (kernel - 1) // 2
        made[name] = conv_graph(1, channel, out, 1, time, kernel, stride, left, kernel - 1 - left, groups, True), most
    cases = []
    for name, (graph, _) in made.items():
        x = codes(graph, 1)
        want = reference.run(graph, {"x": x[None]})[0]
        cases.append(cimage.Case(name, pack.layer(graph, graph.nodes[0], core), [x.reshape(pack.volume(x.shape))],
                                 want.reshape(pack.volume(want.shape))))
    counts = cimage.check("m4", list(SOURCES), cases, "gcc")
    per_mac = {name: counts[name].total / macs(graph) for name, (graph, _) in made.items()}
    assert all(per_mac[name] <= most[not wide] for name, (_, most) in made.items()), per_mac
