# SPDX-License-Identifier: Apache-2.0
"""Attention of every form: the float function against its formula, the op, the integers, the stream."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools

import pytest

torch = pytest.importorskip("torch")

from train.models.attention import GLOBAL, Band, Block, Neighbourhood, Window, attend

LENGTHS = [(GLOBAL, 13), (Band(3), 7), (Band(3), 12), (Band(3), 13), (Band(3), 40), (Band(2), 31), (Band(5), 5),
           (Band(1), 9), (Band(0), 6), (Block(4), 4), (Block(4), 8), (Block(5), 13), (Block(3), 40), (Block(1), 5),
           (Neighbourhood(7), 7), (Neighbourhood(7), 8), (Neighbourhood(7), 15), (Neighbourhood(5), 11),
           (Neighbourhood(5), 40), (Neighbourhood(4), 9), (Neighbourhood(3), 31), (Neighbourhood(1), 4)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def keys(window, t, time):
    """The keys that a query sees, from the window's definition."""
    if window.kind == "neighbourhood":
        first = min(max(t - (window.size - 1) // 2, 0), time - window.size)
        return range(first, first + window.size)
    seen = {"global": lambda s: True, "band": lambda s: abs(s - t) <= window.size,
            "block": lambda s: s // window.size == t // window.size}[window.kind]
    return [s for s in range(time) if seen(s)]


def by_formula(q, k, v, heads, window, bias=None, scale=None):
    """Attention one score at a time, straight from the module's formula."""
    batch, channels, leads, time = q.shape
    d, wide = channels // heads, v.shape[1] // heads
    out = torch.zeros(batch, v.shape[1], leads, time)
    for b, h, t in itertools.product(range(batch), range(heads), range(time)):
        c, seen = slice(h * d, (h + 1) * d), keys(window, t, k.shape[3])
        score = torch.tensor([float((q[b, c, :, t] * k[b, c, :, s]).sum()) * (scale or d ** -0.5)
                              + (0 if bias is None else float(bias[h, s - t + window.size - 1])) for s in seen])
        c = slice(h * wide, (h + 1) * wide)
        out[b, c, :, t] = sum(p * v[b, c, :, s] for p, s in zip(score.softmax(0), seen, strict=True))
    return out


@pytest.mark.parametrize("window, time", LENGTHS)
@pytest.mark.parametrize("leads", [1, 3])
def test_attention_equals_its_formula_at_every_length_and_window(window, time, leads):
    q, k, v = torch.randn(3, 2, 6, leads, time)
    torch.testing.assert_close(attend(q, k, v, 2, window), by_formula(q, k, v, 2, window))


@pytest.mark.parametrize("time", [7, 9, 14, 15, 40])
@pytest.mark.parametrize("leads", [1, 3])
def test_a_neighbourhood_adds_its_relative_bias(time, leads):
    q, k, v = torch.randn(3, 1, 6, leads, time)
    bias = torch.randn(2, 13)
    torch.testing.assert_close(attend(q, k, v, 2, Neighbourhood(7), bias=bias),
                               by_formula(q, k, v, 2, Neighbourhood(7), bias))


@pytest.mark.parametrize("window", [GLOBAL, Band(2), Block(4), Neighbourhood(5)])
def test_a_pair_subtracts_lambda_times_its_own_map(window):
    q, k, q2, k2 = torch.randn(4, 2, 6, 2, 17)
    v = torch.randn(2, 10, 2, 17)               # values have a width of their own
    got = attend(q, k, v, 2, window, pair=(q2, k2, torch.tensor(0.3)), scale=0.7)
    expected = by_formula(q, k, v, 2, window, scale=0.7) - 0.3 * by_formula(q2, k2, v, 2, window, scale=0.7)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("queries, keys_", [(1, 9), (8, 16), (20, 5)])
def test_global_attention_takes_queries_of_their_own_length(queries, keys_):
    q, k, v = torch.randn(2, 6, 3, queries), torch.randn(2, 6, 3, keys_), torch.randn(2, 4, 3, keys_)
    torch.testing.assert_close(attend(q, k, v, 2), by_formula(q, k, v, 2, GLOBAL))


@pytest.mark.parametrize("window", [GLOBAL, Band(4), Block(4), Neighbourhood(5)])
def test_training_reaches_every_argument_without_nan(window):
    x = [torch.randn(1, 4, 1, 41, requires_grad=True) for _ in range(5)]
    lam, bias = torch.tensor(0.4, requires_grad=True), torch.randn(2, 9, requires_grad=True)
    attend(*x[:3], 2, window, pair=(*x[3:], lam)).square().sum().backward()
    if window.kind == "neighbourhood":
        attend(*x[:3], 2, window, bias=bias).square().sum().backward()
        assert torch.isfinite(bias.grad).all() and bias.grad.abs().min() > 0
    assert all(torch.isfinite(a.grad).all() and a.grad.abs().sum() > 0 for a in (*x, lam))


def test_all_leads_share_one_map():
    q, k, v = torch.randn(3, 1, 4, 3, 20)
    v[:, :, 1] = v[:, :, 0]
    out = attend(q, k, v, 2, Band(5))
    assert torch.equal(out[:, :, 0], out[:, :, 1])
    moved = q.clone()
    moved[:, :, 2] += 1
    assert not torch.allclose(attend(moved, k, v, 2, Band(5))[:, :, 0], out[:, :, 0])


@pytest.mark.parametrize("window, time, block", [(Band(3), 40, (6, 12)), (Band(9), 200, (18, 36)),
                                                 (Neighbourhood(7), 90, (7, 16)), (Block(8), 90, (8, 8))])
def test_local_attention_never_builds_a_square(window, time, block):
    shapes = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            shapes.add(tuple(out.shape[-2:]))
            return out

    q = torch.randn(1, 2, 1, time)
    with Watch():
        attend(q, q, q, 1, window)
    assert block in shapes and (time, time) not in shapes


@pytest.mark.parametrize("window, arguments, words", [
    (GLOBAL, {"heads": 4}, "6 channels"), (Band(2), {"k": 9, "v": 9}, "unequal lengths"),
    (Neighbourhood(11), {}, "11 keys does not fit 8"), (Band(2), {"bias": torch.zeros(2, 3)}, "only a neighbourhood"),
    (Neighbourhood(3), {"bias": torch.zeros(2, 4)}, r"\(2, 5\)"), (GLOBAL, {"k": 9}, "lengths of k and v"),
    (GLOBAL, {"pair": 9}, "q2 like q")])
def test_arguments_that_do_not_fit_are_refused_with_their_shapes(window, arguments, words):
    q, k, v = (torch.randn(1, 6, 1, arguments.get(name, 8)) for name in "qkv")
    pair = None
    if "pair" in arguments:
        pair = (torch.randn(1, 6, 1, arguments["pair"]), k, torch.tensor(0.2))
    with pytest.raises(ValueError, match=words):
        attend(q, k, v, arguments.get("heads", 2), window, bias=arguments.get("bias"), pair=pair)


@pytest.mark.parametrize("kind, size", [("dilated", 3), ("neighbourhood", 0), ("block", 0), ("band", -1)])
def test_an_unknown_window_is_refused(kind, size):
    with pytest.raises(ValueError, match=kind):
        Window(kind, size)
