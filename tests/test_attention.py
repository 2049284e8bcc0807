# SPDX-License-Identifier: Apache-2.0
"""Attention of every form: the float function against its formula, the op, the integers, the stream."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

import numpy as np
from torch import library, nn

from compress import agree, attention, graph, reference
from compress.freeze import export_scales
from compress.program import Program, tensors
from tests import graphs as make
from train.models.attention import GLOBAL, Band, Block, Neighbourhood, Window, attend
from train.say import GraphError

LENGTHS = [(GLOBAL, 13), (Band(3), 7), (Band(3), 12), (Band(3), 25), (Band(3), 40), (Band(2), 31), (Band(5), 5),
           (Band(1), 9), (Band(0), 6), (Block(4), 4), (Block(4), 8), (Block(5), 13), (Block(3), 40), (Block(1), 5),
           (Neighbourhood(7), 7), (Neighbourhood(7), 8), (Neighbourhood(7), 36), (Neighbourhood(4), 21),
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


@pytest.mark.parametrize("time", [7, 9, 15, 36, 40])
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


# ---- the op

FORMS = {
    "global": (GLOBAL, {}), "band": (Band(3), {}), "block": (Block(4), {}), "neighbourhood": (Neighbourhood(5), {}),
    "bias": (Neighbourhood(5), {"bias": True}), "pair": (GLOBAL, {"pair": True}),
    "pair in a band": (Band(3), {"pair": True, "scale": 0.7}), "wide values": (Block(4), {"wide": 12}),
    "other length": (GLOBAL, {"queries": 7})}


def arguments(form, leads=1, time=20, seed=0):
    """(positional, keyword) arguments of attend, requiring gradients."""
    generator = torch.Generator().manual_seed(seed)
    window, more = FORMS[form]

    def random(*shape):
        return torch.randn(*shape, generator=generator, requires_grad=True)
    q, q2 = (random(2, 8, leads, more.get("queries", time)) for _ in range(2))
    k, k2 = (random(2, 8, leads, time) for _ in range(2))
    named = {"scale": more["scale"]} if "scale" in more else {}
    if "bias" in more:
        named["bias"] = random(2, 2 * window.size - 1)
    if "pair" in more:
        named["pair"] = (q2, k2, torch.tensor(0.4, requires_grad=True))
    return (q, k, random(2, more.get("wide", 8), leads, time), 2, window), named


def leaves(positional, named):
    """The tensors among them."""
    return [*positional[:3], *named.get("pair", ()), *([named["bias"]] if "bias" in named else [])]


@pytest.mark.parametrize("form", FORMS)
def test_the_attention_op_passes_opcheck(form):
    (q, k, v, heads, window), named = arguments(form, leads=2)
    pair = named.get("pair", (None, None, None))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if form in ("bias", "pair in a band"):      # tracing takes seconds; these two cover every branch
        checks.append("test_aot_dispatch_dynamic")
    library.opcheck(torch.ops.leadedge.attention.default,
                    (q, k, v, *pair, named.get("bias"), heads, window.kind, window.size, named.get("scale", 0.5)),
                    test_utils=checks)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leads", [1, 3])
def test_the_table_stays_close_to_the_float_softmax(form, leads):
    positional, named = arguments(form, leads, time=40)
    assert (attention.attend(*positional, **named) - attend(*positional, **named)).abs().max() < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_the_attention_op_has_the_gradient_of_the_softmax(form):
    found = []
    for function in (attention.attend, attend):
        positional, named = arguments(form, time=24)
        out = function(*positional, **named)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found.append([x.grad for x in leaves(positional, named)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.06, rtol=0.06)


# ---- from the float network to the integers


class Attending(nn.Module):
    """ecg (batch, 1, lead, time) -> one attention layer of two heads between convolutions -> logits (batch, 3)."""

    def __init__(self, form: str, cut: tuple[int, int] | None):
        super().__init__()
        self.window, self.more = FORMS[form]
        self.cut, self.attend_fn = cut, attend
        self.stem = nn.Conv2d(1, 8, (1, 5), (1, 2), (0, 2))
        self.q, self.k, self.q2, self.k2 = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.v = nn.Conv2d(8, self.more.get("wide", 8), 1)
        self.bias = nn.Parameter(torch.randn(2, 2 * self.window.size - 1)) if "bias" in self.more else None
        self.lam = nn.Parameter(torch.tensor(0.4))
        self.head = nn.Linear(self.more.get("wide", 8), 3)

    def forward(self, ecg):
        x = self.stem(ecg)
        q = self.q(x)[..., :self.more.get("queries")] if "queries" in self.more else self.q(x)
        pair = (self.q2(x), self.k2(x), self.lam) if "pair" in self.more else None
        y = self.attend_fn(q, self.k(x), self.v(x), 2, self.window, bias=self.bias, pair=pair,
                           scale=self.more.get("scale"))
        y = y if self.cut is None else y[..., self.cut[0]:self.cut[1]]
        return self.head(y.mean((2, 3)))


def frozen(form, leads=2, time=80, cut=None, windows=12, change=lambda net: None):
    """(program, converted program, integer graph, inputs) of a calibrated network; `change` edits its weights."""
    torch.manual_seed(3)
    net = Attending(form, cut)
    change(net)
    codes = {"ecg": make.waveform(np.random.default_rng(2), windows, leads, time)}
    program = Program(net, {"ecg": (leads, time)}, {"ecg": 0.016}, cut is not None)
    program.calibrate([tensors(codes, {"ecg": 0.016})])
    return program, *program.convert(), codes


@pytest.mark.parametrize("form", FORMS)
def test_the_reference_equals_the_converted_program_but_for_single_lsb_ties(form):
    _, converted, g, codes = frozen(form)
    node, = (n for n in g.nodes if n.kind == "attention")
    window, more = FORMS[form]
    assert (node.attrs["window"], node.attrs["size"]) == (window.kind, window.size)
    assert len(node.inputs) == (5 if "pair" in more else 3) and ("bias" in node.params) == ("bias" in more)
    row, = (r for r in agree.compare(converted, g, codes) if r.kind == "attention")
    assert row.worst <= 1 and row.differing <= 0.02 * row.codes
    export_scales(g, codes)
    assert all(0 < s < 1 for s in node.attrs["export_scales"].values())
    assert set(node.attrs["export_scales"]) == ({"score", "score2"} if "pair" in more else {"score"})
    assert graph.dumps(graph.loads(*graph.dumps(g))) == graph.dumps(g)


@pytest.mark.parametrize("size", [1e-5, 1.0, 8.0])
def test_a_bias_fits_beside_scores_of_any_size(size):
    """From scores that are all but dead, where the bias alone decides, to ones that drown it."""
    def shrink(net):
        for part in (net.q, net.k):
            part.weight.data *= size
            part.bias.data *= size
    _, converted, g, codes = frozen("bias", change=shrink)
    row, = (r for r in agree.compare(converted, g, codes) if r.kind == "attention")
    assert row.worst <= 1 and row.differing <= 0.02 * row.codes


@pytest.mark.parametrize("form", ["bias", "pair"])
def test_quantization_aware_training_reaches_bias_and_lambda(form):
    program, _, _, codes = frozen(form)
    program(*tensors(codes, {"ecg": 0.016})).square().mean().backward()
    learned, = (p for p in program.parameters() if p.shape == {"bias": (2, 9), "pair": ()}[form])
    assert learned.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["band", "block", "neighbourhood", "bias", "pair in a band"])
def test_a_frozen_local_window_streams(form):
    _, _, g, _ = frozen(form, leads=1, time=80, cut=(8, 32))
    record = make.waveform(np.random.default_rng(4), 1, 1, 200)[0]
    crops = np.stack([record[:, s:s + 80] for s in range(0, 121, 8)])
    np.testing.assert_array_equal(reference.stream(g, {"ecg": record}, 8), reference.run(g, {"ecg": crops}))


def test_a_row_that_does_not_fit_int32_is_refused_by_its_layer():
    with pytest.raises(GraphError, match=r"net: 1050 keys of 4 x 1 do not fit int32"):
        frozen("global", leads=1, time=2100, windows=2)


def test_values_that_grow_sixteenfold_are_refused_by_their_layer():
    def cancel(net):
        net.q2, net.k2 = net.q, net.k
        net.lam.data.fill_(1.0)
    with pytest.raises(GraphError, match=r"net: values grow"):
        frozen("pair", change=cancel)


def test_global_attention_in_front_of_the_boundary_is_refused():
    with pytest.raises(GraphError, match="sees the whole window"):
        frozen("global", cut=(8, 32))


@pytest.mark.parametrize("name", make.FORMS)
def test_every_form_of_the_builder_survives_its_files(name):
    g = make.attending(**make.FORMS[name])
    again = graph.loads(*graph.dumps(g))
    inputs = make.inputs_of(g, 3)
    np.testing.assert_array_equal(reference.run(again, inputs), reference.run(g, inputs))
