# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the integer graph against exact rational numbers, and streaming against whole windows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import fixed, reference, reference_attention
from compress.graph import MAX_ROW, Graph, Node, Tensor
from tests import graphs as make
from train.say import GraphError

MULTIPLIERS = st.integers(1, 2**31 - 1)
SHIFTS = st.integers(0, 7)


def exact(acc: int, m: int, k: int) -> int:
    """acc * 2^k * m / 2^32 rounded to the nearest integer, ties up."""
    return math.floor(Fraction(acc * 2**k * m, 2**32) + Fraction(1, 2))


def clamp(x: int, floor: int = -128) -> int:
    return max(floor, min(127, x))


def evaluate(kind, inputs, shape, attrs, params=None):
    """One node on a batch of inputs."""
    tensors = {f"x{i}": Tensor(x.shape[1:], 1.0) for i, x in enumerate(inputs)} | {"y": Tensor(shape, 1.0)}
    names = [f"x{i}" for i in range(len(inputs))]
    node = Node("node", kind, names, "y", attrs, params or {})
    return reference.run(Graph(names, "y", tensors, [node]), dict(zip(names, inputs, strict=True)))


def codes(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def weights(rng, out, *rest):
    """Parameters of a weighted layer, multipliers from very small to 0.99."""
    return {"weight": rng.integers(-127, 128, (out, *rest)).astype(np.int8),
            "bias": rng.integers(-50000, 50000, out).astype(np.int32),
            "mul": rng.integers(1, 2**31, out).astype(np.int32), "shift": np.zeros(out, np.int8),
            "weight_scale": np.ones(out, np.float32)}


@given(acc=st.integers(-2**31 + 1, 2**31 - 1), m=MULTIPLIERS, k=SHIFTS)
@settings(max_examples=300)
def test_a_rescaling_is_the_nearest_integer_with_ties_up(acc, m, k):
    if abs(acc) << k < 2**31:
        assert int(fixed.rescale(np.array([acc]), m, k)[0]) == exact(acc, m, k)


@pytest.mark.parametrize("acc, m, k, expected", [
    (1, 2**31 - 1, 0, 0), (1, 2**30, 1, 1), (-1, 2**30, 1, 0), (3, 2**30, 1, 2), (-3, 2**30, 1, -1),
    (2**31 - 1, 2**31 - 1, 0, 1073741823), (-(2**31 - 1), 2**31 - 1, 0, -1073741823), (0, 2**31 - 1, 7, 0),
    (2**24 - 1, 2**31 - 1, 7, 1073741760), (1, 1, 0, 0)])
def test_ties_and_extremes_of_a_rescaling(acc, m, k, expected):
    assert int(fixed.rescale(np.array([acc]), m, k)[0]) == exact(acc, m, k) == expected


@pytest.mark.parametrize("relu, value, expected", [
    (False, 200, 127), (False, -200, -128), (False, -1, -1), (True, -1, 0), (True, 500, 127)])
def test_saturation_ends_at_the_int8_limits_and_relu_at_zero(relu, value, expected):
    assert fixed.clamp8(np.array([value]), relu)[0] == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 4]), kernel=st.integers(1, 5), stride=st.integers(1, 3),
       left=st.integers(0, 3), right=st.integers(0, 3), relu=st.booleans())
def test_a_convolution_is_the_sum_of_its_products(seed, groups, kernel, stride, left, right, relu):
    rng = np.random.default_rng(seed)
    x, p = codes(rng, 2, 4, 2, 9), weights(rng, 4, 4 // groups, kernel)
    column = (9 + left + right - kernel) // stride + 1
    attrs = {"stride": stride, "pad": [left, right], "groups": groups, "relu": relu}
    y = evaluate("conv1d", [x], (4, 2, column), attrs, p)
    depth = 4 // groups
    for b, out, lead, t in [(0, 0, 0, 0), (1, 3, 1, column - 1), (1, 2, 0, column // 2)]:
        acc = int(p["bias"][out])
        for c in range(depth):
            for tap in range(kernel):
                at = t * stride + tap - left
                if 0 <= at < 9:
                    acc += int(p["weight"][out, c, tap]) * int(x[b, out // (4 // groups) * depth + c, lead, at])
        assert y[b, out, lead, t] == clamp(exact(acc, int(p["mul"][out]), 0), 0 if relu else -128)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), relu=st.booleans())
def test_a_dense_layer_is_the_sum_of_its_products(seed, relu):
    rng = np.random.default_rng(seed)
    x, p = codes(rng, 1, 7), weights(rng, 3, 7)
    y = evaluate("dense", [x], (3,), {"relu": relu}, p)
    for out in range(3):
        acc = int(p["bias"][out]) + sum(int(a) * int(b) for a, b in zip(p["weight"][out], x[0], strict=True))
        assert y[0, out] == clamp(exact(acc, int(p["mul"][out]), 0), 0 if relu else -128)


@given(a=st.integers(-128, 127), b=st.integers(-128, 127), ma=st.integers(1, 32767), mb=st.integers(1, 32767),
       shift=st.integers(1, 22), relu=st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_addition_rounds_once_with_ties_up(a, b, ma, mb, shift, relu):
    x = [np.full((1, 1, 1, 1), v, np.int8) for v in (a, b)]
    y = evaluate("add", x, (1, 1, 1), {"mul": [ma, mb], "shift": shift, "relu": relu})
    real = Fraction(a * ma + b * mb, 2**shift)
    assert y.item() == clamp(math.floor(real + Fraction(1, 2)), 0 if relu else -128)


def test_a_table_maps_every_code():
    entries = np.roll(np.arange(-128, 128), 37).astype(np.int8)
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 1, 256)
    np.testing.assert_array_equal(evaluate("table", [x], (1, 1, 256), {}, {"table": entries}).ravel(), entries)


def test_padding_never_wins_a_maximum():
    x = np.full((1, 1, 1, 4), -128, np.int8)
    attrs = {"kernel": 3, "stride": 2, "pad": [1, 1]}
    np.testing.assert_array_equal(evaluate("maxpool", [x], (1, 1, 2), attrs), np.full((1, 1, 1, 2), -128))
    x[..., 3] = -100
    np.testing.assert_array_equal(evaluate("maxpool", [x], (1, 1, 2), attrs).ravel(), [-128, -100])


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_mean_and_max_run_over_the_named_axes(axes):
    x = codes(np.random.default_rng(0), 3, 4, 2, 5)
    shape = tuple(s for i, s in enumerate((4, 2, 5)) if i not in axes)
    keep = tuple(a + 1 for a in axes)
    np.testing.assert_array_equal(evaluate("max", [x], shape, {"axes": list(axes)}), x.max(keep))
    count = math.prod((4, 2, 5)[a] for a in axes)
    m, k = make.multiplier(1 / count)
    sums = x.astype(int).sum(keep)
    expected = np.vectorize(lambda acc: clamp(exact(int(acc), m, k)))(sums)
    np.testing.assert_array_equal(evaluate("mean", [x], shape, {"axes": list(axes), "mul": m, "shift": k}), expected)


def test_a_concatenation_brings_every_part_to_the_common_grid():
    rng = np.random.default_rng(0)
    a, b = codes(rng, 2, 3), codes(rng, 2, 4)
    pairs = [make.multiplier(s) for s in (1.0, 0.3)]
    y = evaluate("concat", [a, b], (7,), {"axis": 0, "mul": [m for m, _ in pairs], "shift": [k for _, k in pairs]})
    np.testing.assert_array_equal(y[:, :3], a)
    np.testing.assert_array_equal(y[:, 3:], np.vectorize(lambda c: clamp(exact(int(c), *pairs[1])))(b))


def sees(window, size, queries, keys):
    """Boolean (query, key), from the window's definition."""
    t, s = np.arange(queries)[:, None], np.arange(keys)
    if window == "neighbourhood":
        first = [min(max(i - (size - 1) // 2, 0), keys - size) for i in range(queries)]
        return np.array([[f <= j < f + size for j in s] for f in first])
    if window == "block":
        return t // size == s // size
    return np.abs(t - s) <= (size if window == "band" else queries + keys)


def softmax(q, k, v, nats, seen, bias=0.0):
    """Float attention of (batch, head, depth, time)."""
    score = np.where(seen, np.einsum("bhdt,bhds->bhts", q, k) * nats + bias, -np.inf)
    p = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("bhts,bhds->bhdt", p / p.sum(-1, keepdims=True), v)


def attention(q, k, v, window="global", size=0, *, spread=1.0, gain=1.0, heads=2, bias=None, pair=None, lam=0.0):
    """(codes by the reference, real values by a float softmax in output LSB); bias in nats."""
    def grid(depth):        # codes of deviation 35 give scores of about `spread`
        return make.multiplier(spread / (35.0**2 * math.sqrt(depth)) / reference_attention.EXP_STEP)
    (m, shift), (m2, shift2) = (grid(q.shape[1] // heads * q.shape[2] * n) for n in (1, 1.7))
    nats, nats2 = (m * 2.0 ** (k - 32) * reference_attention.EXP_STEP for m, k in ((m, shift), (m2, shift2)))
    attrs = {"heads": heads, "window": window, "size": size, "score_mul": m, "score_shift": shift,
             "out_mul": round(gain * 2**24), "export_scales": {}}
    params = {"table": reference_attention.exp_table()}
    split = [x.astype(float).reshape(len(x), heads, -1, x.shape[-1]) for x in (q, k, v, *(pair or ()))]
    seen, extra = sees(window, size, q.shape[-1], k.shape[-1]), 0.0
    if bias is not None:
        params["bias"] = np.rint(bias / nats).astype(np.int32)
        t, s = np.arange(q.shape[-1])[:, None], np.arange(k.shape[-1])
        extra = bias[:, np.where(seen, s - t + size - 1, 0)]
    real = softmax(*split[:3], nats, seen, extra)
    if pair:
        attrs |= {"score_mul2": m2, "score_shift2": shift2, "out_mul2": round(lam * gain * 2**24)}
        real = real - lam * softmax(*split[3:], split[2], nats2, seen)
    got = evaluate("attention", [q, k, v, *(pair or ())], (v.shape[1], *q.shape[2:]), attrs, params)
    return got, gain * real.reshape(got.shape)


WINDOWS = [("global", 0), ("band", 0), ("band", 2), ("band", 9), ("block", 1), ("block", 7), ("block", 66),
           ("neighbourhood", 1), ("neighbourhood", 6), ("neighbourhood", 7), ("neighbourhood", 66)]


@pytest.mark.parametrize("window, size", WINDOWS)
@pytest.mark.parametrize("leads", [1, 3])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_attention_is_a_softmax_within_one_lsb(window, size, leads, spread):
    rng = np.random.default_rng(5)
    q, k, v = (np.clip(rng.normal(0, 35, (2, c, leads, 70)), -128, 127).astype(np.int8) for c in (8, 8, 12))
    got, real = attention(q, k, v, window, size, spread=spread)
    assert np.abs(got - np.clip(real, -128, 127)).max() <= 1


@pytest.mark.parametrize("size, time", [(7, 7), (7, 8), (7, 130), (4, 70)])
@pytest.mark.parametrize("leads", [1, 2])
def test_a_neighbourhood_with_bias_is_a_softmax_within_one_lsb(size, time, leads):
    rng = np.random.default_rng(time)
    q, k, v = (codes(rng, 2, 8, leads, time) for _ in range(3))
    got, real = attention(q, k, v, "neighbourhood", size, bias=rng.normal(0, 1.5, (2, 2 * size - 1)))
    assert np.abs(got - np.clip(real, -128, 127)).max() <= 1


@pytest.mark.parametrize("window, size", [("global", 0), ("band", 3), ("block", 8), ("neighbourhood", 7)])
@pytest.mark.parametrize("lam", [0.5, 1.3, 0.0, -0.4])
def test_a_pair_is_the_difference_of_two_softmaxes_within_one_lsb(window, size, lam):
    rng = np.random.default_rng(size)
    q, k, v, q2, k2 = (codes(rng, 2, 8, 2, 70) for _ in range(5))
    got, real = attention(q, k, v, window, size, pair=(q2, k2), lam=lam)
    assert np.abs(got - np.clip(real, -128, 127)).max() <= 1


@pytest.mark.parametrize("queries", [1, 20, 90])
def test_queries_of_their_own_length_see_every_key(queries):
    rng = np.random.default_rng(queries)
    q, k, v = codes(rng, 2, 8, 1, queries), codes(rng, 2, 8, 1, 41), codes(rng, 2, 8, 1, 41)
    got, real = attention(q, k, v)
    assert got.shape[-1] == queries and np.abs(got - np.clip(real, -128, 127)).max() <= 1


def test_probabilities_are_never_rounded_however_long_the_row():
    flat = np.zeros((1, 2, 1, MAX_ROW), np.int8)
    v = np.full((1, 2, 1, MAX_ROW), 100, np.int8)
    got, _ = attention(flat, flat, v)
    assert (got == 100).all()       # probabilities of 1/1023 on any 8-bit grid would be 0


def test_a_band_of_one_key_copies_its_value():
    rng = np.random.default_rng(6)
    q, k, v = (codes(rng, 1, 4, 2, 66) for _ in range(3))
    np.testing.assert_array_equal(attention(q, k, v, "band", 0)[0], v)


def test_a_pair_of_equal_maps_leaves_nothing():
    rng = np.random.default_rng(7)
    q, v = codes(rng, 1, 4, 1, 30), codes(rng, 1, 4, 1, 30)
    flat = np.zeros_like(q)
    np.testing.assert_array_equal(attention(flat, q, v, pair=(flat, q), lam=1.0)[0], np.zeros_like(v))


def test_attention_saturates_like_every_other_node():
    rng = np.random.default_rng(7)
    q, k, v = (codes(rng, 1, 4, 1, 20) for _ in range(3))
    got, real = attention(q, k, v, gain=8.0)
    assert got.max() == 127 and got.min() == -128 and np.abs(real).max() > 200


def test_the_exp_table_falls_from_one_to_nothing():
    table = reference_attention.exp_table().astype(int)
    assert table[0] == reference_attention.EXP_ONE and table[-1] == 0 and (np.diff(table) <= 0).all()
    real = np.exp(-np.arange(len(table) - 1) * reference_attention.EXP_STEP)
    np.testing.assert_allclose(table[:-1] / reference_attention.EXP_ONE, real, atol=2**-15)


@pytest.mark.parametrize("leads", [1, 2])
@pytest.mark.parametrize("window, size, hop", [("band", 3, 4), ("band", 3, 8), ("band", 3, 52), ("block", 4, 16),
                                               ("block", 6, 48), ("neighbourhood", 7, 4), ("neighbourhood", 6, 12)])
def test_streaming_equals_whole_windows_at_every_hop(leads, window, size, hop):
    graph = make.streaming(leads=leads, window=window, size=size)
    record = make.waveform(np.random.default_rng(8), 1, leads, 500)[0]
    got = reference.stream(graph, {"ecg": record}, hop)
    crops = np.stack([record[:, s:s + 160] for s in range(0, 500 - 160 + 1, hop)])
    np.testing.assert_array_equal(got, reference.run(graph, {"ecg": crops}))


def test_a_record_shorter_than_a_window_gives_no_decision():
    graph = make.streaming()
    assert reference.stream(graph, {"ecg": np.zeros((1, 159), np.int8)}, 4).shape == (0, 3)


@pytest.mark.parametrize("window, size, lost", [("band", 3, 3), ("block", 8, 5), ("neighbourhood", 7, 3),
                                                ("neighbourhood", 6, 3)])
def test_a_query_of_an_endless_record_waits_for_its_keys(window, size, lost):
    graph = make.streaming(window=window, size=size)
    local = graph.local_nodes()[0]
    record = make.waveform(np.random.default_rng(9), 1, 1, 4 * 120)[:, :, :475]
    at = next(i for i, n in enumerate(local) if n.kind == "attention")
    short, long = {"ecg": record[..., :280]}, {"ecg": record}
    for values in (short, long):
        reference.execute(local[:at + 1], values, endless=True)
    columns, name = short[local[at].inputs[0]].shape[-1], local[at].output
    assert short[name].shape[-1] == columns - (columns % size if window == "block" else lost)
    np.testing.assert_array_equal(short[name], long[name][..., :short[name].shape[-1]])


def test_a_hop_that_shifts_the_blocks_is_refused():
    graph = make.streaming(window="block", size=8)
    assert reference.period(graph) == 32
    with pytest.raises(GraphError, match="blocks of attention, 32"):
        reference.stream(graph, {"ecg": np.zeros((1, 400), np.int8)}, 16)


def test_the_stride_of_a_column_counts_convolutions_and_pools():
    assert reference.column_stride(make.streaming()) == 4


def test_a_graph_without_a_boundary_does_not_stream():
    graph = make.every_kind()
    with pytest.raises(GraphError, match="stream"):
        reference.stream(graph, make.inputs_of(graph, 1), 4)


def test_a_batch_is_evaluated_window_by_window():
    graph = make.every_kind()
    inputs = make.inputs_of(graph, 5)
    whole = reference.run(graph, inputs)
    for i in range(5):
        np.testing.assert_array_equal(whole[i:i + 1], reference.run(graph, {k: x[i:i + 1] for k, x in inputs.items()}))


def test_a_trace_holds_every_tensor():
    graph = make.every_kind()
    values = reference.run(graph, make.inputs_of(graph, 2), trace=True)
    assert set(values) == set(graph.tensors)
    assert all(x.dtype == np.int8 and x.shape[1:] == graph.tensors[t].shape for t, x in values.items())
