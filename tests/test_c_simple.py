# SPDX-License-Identifier: Apache-2.0
"""The C kernels without a matrix product compute what the reference computes, bit for bit, under the sanitizers."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess

import ckernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import reference, reference_lstm
from compress.fixed import multiplier
from compress.graph import Graph, Node, Tensor
from targets import pack, pack_simple

SOURCES = ("elementwise.c", "add_dsp.c", "pool.c", "move.c", "norm.c", "lstm.c", "lookup.c")
CORES = [pack.CORES["host"], pack.CORES["m4"]]
SEEDS = st.integers(0, 2 ** 32 - 1)
EDGES = (-128, -127, -1, 0, 1, 126, 127)
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def kernels():
    return ckernels.build(*SOURCES)


def codes(rng: np.random.Generator, shape) -> np.ndarray:
    """int8: anything, mostly the ends of the range, or one code everywhere."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.choice(np.array(EDGES, np.int8), shape)
    if kind == 1:
        return np.full(shape, rng.choice(EDGES), np.int8)
    return rng.integers(-128, 128, shape).astype(np.int8)


def graph_of(kind: str, xs: list[np.ndarray], attrs=None, params=None) -> Graph:
    """A graph of one node over inputs without a batch axis."""
    node = Node(kind, kind, [f"x{i}" for i in range(len(xs))], "y", attrs or {}, params or {})
    graph = Graph(node.inputs, "y", {t: Tensor(x.shape, 1.0) for t, x in zip(node.inputs, xs, strict=True)}, [node])
    graph.tensors["y"] = Tensor(graph_values(graph, xs).shape, 1.0)
    return graph


def agree(kernels, core, kind: str, xs, attrs=None, params=None, around=(0, 0), **how) -> None:
    """The kernel's codes are the reference's. around: further columns in front of those it needs and behind them."""
    graph = graph_of(kind, xs, attrs, params)
    want = graph_values(graph, xs)
    first = pack_simple.channels_first(kind)
    out_shape = pack.volume(want.shape, first)
    views, firsts = [], []
    for x in (x.reshape(pack.volume(x.shape, first)) for x in xs):
        whole = x.shape[2] == out_shape[2]      # else its one column is repeated
        views.append(np.pad(x, ((0, 0), (0, 0), around), constant_values=-77) if whole else x)
        firsts.append(how.get("first", 0) - around[0] if whole else 0)
    got = ckernels.call(kernels, pack.layer(graph, graph.nodes[0], core), views, out_shape, **how | {"first": firsts})
    np.testing.assert_array_equal(got.reshape(want.shape), want)


def graph_values(graph: Graph, xs: list[np.ndarray]) -> np.ndarray:
    """The reference's output, without a batch axis."""
    return reference.run(graph, dict(zip(graph.inputs, (x[None] for x in xs), strict=True)))[0]


def layout(rng: np.random.Generator, streams: bool = True) -> dict:
    """How tensors lie: rows apart, unaligned, and with `streams` far into a signal."""
    how = {"pad_pitch": int(rng.integers(0, 6)), "offset": int(rng.integers(0, 4))}
    if not streams or rng.integers(2):
        return how
    start, *around = (int(i) for i in rng.integers((5, 0, 0), (1000, 6, 6)))
    return how | {"first": start, "out_first": start, "around": tuple(around)}


def shape3(rng: np.random.Generator, most=(7, 4, 40)) -> tuple[int, ...]:
    return tuple(int(rng.integers(1, m + 1)) for m in most)


def shape_of(rng: np.random.Generator) -> tuple[int, ...]:
    """One to three axes, often of length 1."""
    return tuple(int(rng.choice([1, rng.integers(1, 40)])) for _ in range(rng.integers(1, 4)))


def operands(rng: np.random.Generator) -> list[np.ndarray]:
    """Two, one of which may have axes of length 1."""
    shape = shape_of(rng)
    xs = [codes(rng, shape), codes(rng, [s if rng.integers(3) else 1 for s in shape])]
    return xs[::-1] if rng.integers(2) else xs


def add_attrs(rng: np.random.Generator) -> dict:
    """From scales whose sum saturates to such that nothing moves."""
    shift = int(rng.integers(1, 23))
    most = min(32767, 1 << (shift + 3))
    mul = [int(m) for m in rng.integers(0, most + 1, 2)]
    return {"mul": [mul[0], int(rng.choice([-1, 1])) * mul[1]], "shift": shift, "relu": bool(rng.integers(2))}


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@given(seed=SEEDS)
@quick
def test_sums_with_repeated_axes_in_any_layout(kernels, core, seed):
    rng = np.random.default_rng(seed)
    agree(kernels, core, "add", operands(rng), add_attrs(rng), **layout(rng))


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@given(seed=SEEDS)
@quick
def test_products_with_repeated_axes_in_any_layout(kernels, core, seed):
    rng = np.random.default_rng(seed)
    m, k = multiplier(float(2.0 ** rng.uniform(-16, 1)), "mul")
    agree(kernels, core, "mul", operands(rng), {"mul": m, "shift": k}, **layout(rng))


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("shift", [1, 2, 8, 15, 22])
def test_a_sum_of_any_two_codes_rounds_ties_up_and_saturates(kernels, core, shift):
    a, b = (x.astype(np.int8) for x in np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)))
    for mul in ([1, 1], [1, -1], [32767, 32767], [32767, -32767], [3 << 13, -(1 << 13)], [0, 21845], [1 << 14, 0]):
        for relu in (False, True):
            agree(kernels, core, "add", [a, b], {"mul": mul, "shift": shift, "relu": relu})


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 45, 125])
def test_sums_of_every_length_and_alignment(kernels, core, columns):
    rng = np.random.default_rng(columns)
    xs = [codes(rng, (3, 2, columns)) for _ in range(2)]
    for offset, gap in itertools.product(range(4), (0, 1, 4)):
        attrs = {"mul": [17000, int(rng.choice([-9001, 9001]))], "shift": 14, "relu": bool(rng.integers(2))}
        agree(kernels, core, "add", xs, attrs, offset=offset, pad_pitch=gap)


@pytest.mark.parametrize("mul, shift, kernel", [([16384, -9000], 14, "add_dsp"), ([32767, 32767], 9, "add_dsp"),
                                                ([32767, 32767], 8, "add"), ([32767, 0], 7, "add")])
def test_sums_beyond_16_bits_take_the_plain_kernel(mul, shift, kernel):
    graph = graph_of("add", [np.zeros(4, np.int8)] * 2, {"mul": mul, "shift": shift, "relu": False})
    assert pack.layer(graph, graph.nodes[0], pack.CORES["m4"]).kernel == kernel


@pytest.mark.parametrize("core", CORES, ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["add", "mul"])
@pytest.mark.parametrize("place", [0, 1])
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_sum_or_product_may_write_over_an_operand(kernels, core, kind, place, seed):
    rng = np.random.default_rng(seed)
    shape = shape_of(rng)
    xs = [codes(rng, shape), codes(rng, [s if rng.integers(3) else 1 for s in shape])]
    m, k = multiplier(float(2.0 ** rng.uniform(-12, 0)), "mul")
    attrs = add_attrs(rng) if kind == "add" else {"mul": m, "shift": k}
    agree(kernels, core, kind, xs[::-1] if place else xs, attrs, in_place=place, offset=int(rng.integers(4)))


@given(seed=SEEDS)
@quick
def test_tables_in_any_layout_and_in_place(kernels, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape_of(rng))
    table = {"table": rng.integers(-128, 128, 256).astype(np.int8)}
    agree(kernels, CORES[0], "table", [x], {}, table, **layout(rng))
    agree(kernels, CORES[0], "table", [x], {}, table, in_place=0, offset=int(rng.integers(4)))


def pool_attrs(rng: np.random.Generator, kind: str, time: int) -> dict:
    """Often the usual 2/2 and 3/2, sometimes a kernel longer than the signal."""
    kernel, stride = [(2, 2), (3, 2), (3, 1), *[tuple(int(i) for i in rng.integers(1, 9, 2))] * 3][rng.integers(6)]
    pad = [int(p) for p in rng.integers(0, kernel, 2)]
    pad[1] += max(kernel - time - sum(pad), 0)
    scale = multiplier(float(rng.uniform(0.3, 3)) / kernel, "mean") if kind == "meanpool" else ()
    return {"kernel": kernel, "stride": stride, "pad": pad} | dict(zip(("mul", "shift"), scale, strict=False))


@pytest.mark.parametrize("kind", ["maxpool", "meanpool"])
@given(seed=SEEDS)
@quick
def test_pools_of_any_kernel_stride_and_padding(kernels, kind, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape3(rng))
    agree(kernels, CORES[0], kind, [x], pool_attrs(rng, kind, x.shape[2]), **layout(rng, streams=False))


@pytest.mark.parametrize("kind", ["maxpool", "meanpool"])
@given(seed=SEEDS)
@quick
def test_a_pool_goes_on_in_the_middle_of_a_signal(kernels, kind, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape3(rng, (3, 2, 200)))
    attrs = pool_attrs(rng, kind, x.shape[2])
    graph = graph_of(kind, [x], attrs)
    want = reference.run(graph, {"x0": x[None]})[0]
    start = int(rng.integers(0, want.shape[2]))
    stop = int(rng.integers(start + 1, want.shape[2] + 1))
    first = int(rng.integers(0, max(start * attrs["stride"] - attrs["pad"][0], 0) + 1))
    last = (stop - 1) * attrs["stride"] - attrs["pad"][0] + attrs["kernel"]
    view = x[..., min(first, x.shape[2] - 1):max(last, 1)]
    got = ckernels.call(kernels, pack.layer(graph, graph.nodes[0], CORES[0]), [view], (*want.shape[:2], stop - start),
                        first=min(first, x.shape[2] - 1), out_first=start, pad_pitch=3)
    np.testing.assert_array_equal(got, want[..., start:stop])


@pytest.mark.parametrize("kind", ["max", "mean"])
@given(seed=SEEDS)
@quick
def test_reductions_over_any_axes(kernels, kind, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape_of(rng))
    axes = [a for a in range(x.ndim) if rng.integers(2)] or [x.ndim - 1]
    attrs = {"axes": axes}
    if kind == "mean":
        count = int(np.prod([x.shape[a] for a in axes]))
        attrs["mul"], attrs["shift"] = multiplier(float(rng.uniform(0.3, 3)) / count, "mean")
    how = layout(rng, streams=x.ndim - 1 not in axes)
    if x.ndim - 1 in axes:
        how["pad_pitch"] = 0        # what is left lies without gaps
    agree(kernels, CORES[0], kind, [x], attrs, **how)


@given(seed=SEEDS)
@quick
def test_concatenations_along_any_axis_bring_parts_to_one_scale(kernels, seed):
    rng = np.random.default_rng(seed)
    shape = list(shape_of(rng))
    axis, parts = int(rng.integers(len(shape))), int(rng.integers(1, 6))
    xs = [codes(rng, [*shape[:axis], int(rng.integers(1, 9)), *shape[axis + 1:]]) for _ in range(parts)]
    real = [1.0 if rng.integers(2) else float(2.0 ** rng.uniform(-6, 3)) for _ in xs]
    mul, shift = zip(*(multiplier(r, "concat") for r in real), strict=True)
    how = layout(rng, streams=axis != len(shape) - 1)
    agree(kernels, CORES[0], "concat", xs, {"axis": axis, "mul": list(mul), "shift": list(shift)}, **how)


def test_a_scale_of_one_is_written_so_that_it_copies():
    m, k = multiplier(1.0, "concat")
    assert m << k == 1 << 32
    xs = [np.arange(-128, 128).astype(np.int8)] * 2
    graph = graph_of("concat", xs, {"axis": 0, "mul": [m, m - 1], "shift": [k, k]})
    assert graph_values(graph, xs)[:256].tolist() == xs[0].tolist()
    assert pack.layer(graph, graph.nodes[0], CORES[0]).fields["mul"].values.tolist() == [0, m - 1]


@given(seed=SEEDS)
@quick
def test_slices_of_any_axis(kernels, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape_of(rng))
    axis = int(rng.integers(x.ndim))
    start = int(rng.integers(x.shape[axis]))
    attrs = {"axis": axis, "start": start, "stop": int(rng.integers(start + 1, x.shape[axis] + 1))}
    agree(kernels, CORES[0], "slice", [x], attrs, **layout(rng, streams=axis != x.ndim - 1))


def test_a_copy_closes_the_gaps_between_rows(kernels):
    x = codes(np.random.default_rng(0), (3, 2, 9))
    got = ckernels.call(kernels, pack_simple.copy(x.shape), [x], x.shape, pad_pitch=5, first=40, out_first=40)
    np.testing.assert_array_equal(got, x)


@given(seed=SEEDS)
@quick
def test_transpositions_of_any_axes(kernels, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape_of(rng))
    perm = [int(i) for i in rng.permutation(x.ndim)]
    agree(kernels, CORES[0], "transpose", [x], {"perm": perm}, **layout(rng, streams=perm[-1] == x.ndim - 1))


def norm_parts(rng: np.random.Generator, channels: int) -> tuple[dict, dict]:
    """Groups, floor, gain and bias, up to what freezing lets through."""
    groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0 and channels // g <= 1023]))
    room = (1 << 62) - ((channels // groups) ** 2 << 42)
    gain = 2.0 ** rng.uniform(8, 24)
    return ({"groups": groups, "rms": bool(rng.integers(2)), "eps": int(min(2.0 ** rng.uniform(-1, 62), room - 1))},
            {"mul": (rng.uniform(-1, 1, channels) * gain).astype(np.int32),
             "bias": (rng.uniform(-1, 1, channels) * 2.0 ** rng.uniform(8, 31)).astype(np.int32)})


@given(seed=SEEDS)
@quick
def test_norms_in_any_layout_and_in_place(kernels, seed):
    rng = np.random.default_rng(seed)
    x = codes(rng, shape_of(rng))
    attrs, params = norm_parts(rng, x.shape[0])
    agree(kernels, CORES[0], "norm", [x], attrs, params, **layout(rng))
    agree(kernels, CORES[0], "norm", [x], attrs, params, in_place=0, offset=int(rng.integers(4)))


@pytest.mark.parametrize("channels", [1, 2, 1023])
@pytest.mark.parametrize("rms", [False, True])
def test_norms_of_extreme_codes(kernels, channels, rms):
    rng = np.random.default_rng(channels)
    _, params = norm_parts(rng, channels)
    far = np.where(np.arange(channels) % 2, 127, -128)
    x = np.stack([far, np.full(channels, -128), np.zeros(channels), np.eye(1, channels)[0]], 1).astype(np.int8)
    for eps in (0, 1, (1 << 62) - (1023 ** 2 << 42) - 1):
        agree(kernels, CORES[0], "norm", [x], {"groups": 1, "rms": rms, "eps": eps}, params)


PARTS = """#include <stdio.h>
#include "norm.c"
int main(void)
{
    struct { uint64_t square; int32_t acc, mul; } x;
    while (fread(&x, sizeof x, 1, stdin) == 1) {
        uint32_t root = root_of(x.square);
        int32_t y[3] = { (int32_t)root, reciprocal(root < 1u << 14 ? 1u << 14 : root), ecg_mulhi_short(x.acc, x.mul) };
        fwrite(y, sizeof y, 1, stdout);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(squares below 2^62, int32, int32) -> (roots, reciprocals of the roots, rounded high halves of products)."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("parts")
    (folder / "parts.c").write_text(PARTS)
    subprocess.run(["gcc", *ckernels.STRICT, *ckernels.SANITIZE, f"-I{ckernels.C}", folder / "parts.c", "-o",
                    folder / "parts"], check=True)

    def run(square, acc, mul):
        records = np.zeros(len(square), np.dtype("u8,i4,i4"))
        records["f0"], records["f1"], records["f2"] = square, acc, mul
        done = subprocess.run([folder / "parts"], input=records.tobytes(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return np.frombuffer(done.stdout, np.int32).reshape(-1, 3).T.astype(np.int64)
    return run


def test_roots_of_62_bits_and_their_reciprocals_are_exact(parts):
    rng = np.random.default_rng(0)
    near = np.unique(np.r_[np.arange(70), 2 ** np.arange(31), 2 ** np.arange(31) - 1,
                           (2.0 ** rng.uniform(0, 31, 20000)).astype(np.int64)].clip(0, 2 ** 31 - 1))
    x = np.concatenate([near ** 2, near ** 2 - (near > 0), near ** 2 + near, near ** 2 + 2 * near,
                        (2.0 ** rng.uniform(0, 62, 20000)).astype(np.int64)]).astype(np.uint64)
    root, reciprocal, _ = parts(x, 0, 0)
    want = np.array([math.isqrt(int(v)) for v in x])
    np.testing.assert_array_equal(root, want)
    want = np.maximum(want, 1 << 14)
    np.testing.assert_array_equal(reciprocal, ((1 << 44) + want // 2) // want)


def test_high_halves_of_products_from_four_short_ones_are_exact(parts):
    rng = np.random.default_rng(0)
    edges = np.array([0, 1, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fff7fff, 0x7fff8000, 0x7fffffff])
    acc, mul = (x.flatten() for x in np.meshgrid(np.r_[edges, -edges, ~edges], np.r_[edges, -edges, ~edges]))
    acc, mul = (np.r_[x, (rng.uniform(-1, 1, 50000) * 2.0 ** rng.uniform(0, 31, 50000)).astype(np.int64)]
                for x in (acc, mul))
    np.testing.assert_array_equal(parts(np.zeros(len(acc)), acc, mul)[2], (acc * mul + (1 << 31)) >> 32)


@given(seed=SEEDS)
@quick
def test_lstms_of_any_size(kernels, seed):
    rng = np.random.default_rng(seed)
    steps, features, hidden = (int(i) for i in rng.integers(1, 12, 3))
    rows = 4 * hidden
    mul_x, mul_h = ((2.0 ** rng.uniform(16, 31, rows)).astype(np.int32) for _ in range(2))
    params = {"weight_x": codes(rng, (rows, features)), "weight_h": codes(rng, (rows, hidden)),
              "mul_x": mul_x, "mul_h": mul_h,
              "bias": (rng.uniform(-1, 1, rows) * 2.0 ** rng.uniform(16, 31)).astype(np.int32),
              "table": reference_lstm.sigmoid_table()}
    how = {"offset": int(rng.integers(4)), "pad_pitch": int(rng.integers(3))}
    attrs = {"sequence": bool(rng.integers(2))}
    agree(kernels, CORES[0], "lstm", [codes(rng, (steps, features))], attrs, params, **how)


@pytest.mark.parametrize("low", [-128, -3, 0, 100, 127])
@pytest.mark.parametrize("entries", [1, 2, 30])
def test_lookups_of_every_code(kernels, low, entries):
    table = np.random.default_rng(0).integers(-128, 128, (entries, 5)).astype(np.int8)
    for code in EDGES:
        agree(kernels, CORES[0], "lookup", [np.array([code], np.int8)], {"low": low}, {"table": table})
