# SPDX-License-Identifier: Apache-2.0
"""hierarchical: the paper's counts and lengths, leads kept apart, the relay, the gate, the edge presets as integers."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools
import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode

from train.models import build
from train.models.geometry import BEAT, HOP
from train.models.hierarchical import SMALL, TINY, Gate, Hierarchical, Relay
from train.models.hierarchical_paper import (
    PaperDifferential,
    PaperHierarchical,
    PaperLayer,
    PaperStage,
    first_lambda,
    halves,
    sinusoid,
    wide_features,
)
from train.say import UserError

frozen = pytest.importorskip("tests.frozen")

PAPERS = {"paper": (18_517_693, "18.518"), "paper-gate": (18_626_254, "18.626"),
          "paper-plain-gate": (16_782_022, "16.782")}
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weights(model):
    return sum(p.numel() for p in model.parameters())


def macs(model, leads):
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.randn(1, 1, leads, model.geometry.window))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("preset,count,printed", [(k, *v) for k, v in PAPERS.items()])
def test_a_paper_preset_has_the_papers_parameters(preset, count, printed):
    model = build("hierarchical", preset, "cinc2020", 12, 27)
    assert weights(model) == count
    assert f"{count / 1e6:.3f}" == printed


def test_the_papers_parts_have_their_parameters():
    model = build("hierarchical", "paper-gate", "cinc2020", 12, 27)
    layers = [m for m in model.modules() if isinstance(m, PaperLayer)]
    assert weights(model.encoder) == 316_320 and weights(model.head) == 129_406
    assert len(layers) == 12 and {weights(layer) for layer in layers} == {1_515_020}


def test_the_paper_preset_has_the_papers_lengths():
    model = build("hierarchical", "paper", "cinc2020", 12, 27).eval()
    lengths = []
    for part in (*model.encoder.conv, *model.stages):
        part.register_forward_hook(lambda _m, _i, out: lengths.append(out.shape[-1]))
    with torch.no_grad():
        model(torch.randn(1, 1, 12, 7500))
    assert lengths == [2497, 828, 410, 201, 192, 183, 411, 202, 184]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", PAPERS)
def test_every_weight_of_a_paper_preset_learns_but_a_norm_that_reaches_nothing(preset, device):
    model = build("hierarchical", preset, "cinc2020", 12, 27).train().to(device)
    model(torch.randn(1, 1, 12, 7500, device=device)).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {"encoder.norm.5.weight", "encoder.norm.5.bias"}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("preset", ["paper", "paper-plain-gate"])
@pytest.mark.parametrize("separate", [True, False])
def test_grouped_projections_keep_leads_apart_up_to_the_head_and_dense_ones_do_not(preset, separate):
    model = PaperHierarchical(preset, HOP, 12, 27, separate=separate).eval()
    x = torch.randn(1, 1, 12, 7500, requires_grad=True)
    tokens = model.relay(model.columns(x))[0, :, 0]             # (channel, token)
    lead = 4
    own = tokens.unflatten(0, (12, -1))[lead]
    reached = torch.autograd.grad(own.square().sum(), x)[0][0, 0].abs().sum(1) > 0
    assert reached.tolist() == ([i == lead for i in range(12)] if separate else [True] * 12)


@pytest.mark.parametrize("leads", [5, 8])
def test_a_paper_preset_refuses_leads_that_do_not_divide_its_channels(leads):
    with pytest.raises(UserError, match=f"{leads} leads"):
        build("hierarchical", "paper", "cinc2020", leads, 27)


def test_a_paper_preset_refuses_beats():
    with pytest.raises(UserError, match="not beats"):
        PaperHierarchical("paper", BEAT, 1, 3, 12)


def test_each_stage_starts_from_the_cls_token_that_the_one_before_it_ended_with():
    model = build("hierarchical", "paper", "cinc2020", 12, 27).eval()
    given, left = [], []
    for stage in model.stages:
        stage.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
        stage.register_forward_hook(lambda _m, _args, out: left.append(out[..., :1]))
    with torch.no_grad():
        model(torch.randn(1, 1, 12, 7500))
    assert torch.equal(given[0], model.cls)
    assert torch.equal(given[1], left[0]) and torch.equal(given[2], left[1])


def test_lambda_starts_where_the_paper_starts_it():
    assert first_lambda(0) == pytest.approx(0.2) and first_lambda(11) == pytest.approx(0.8 - 0.6 * math.exp(-3.3))
    layer, shares = PaperDifferential(288, 8, 1, 3), []
    layer.attend_fn = lambda q, k, v, heads, pair: shares.append(float(pair[2])) or v
    with torch.no_grad():
        layer.vectors.zero_()
        layer(torch.randn(1, 288, 1, 5))
    assert shares == [pytest.approx(first_lambda(3))]


def test_a_differential_layer_equals_its_formula():
    layer = PaperDifferential(32, 2, 1, 0).eval()
    torch.nn.init.uniform_(layer.gain)
    x = torch.randn(1, 32, 1, 7)
    q, k, v = (f(x)[0, :, 0].unflatten(0, (2, 16)) for f in (layer.q, layer.k, layer.v))    # (head, channel, token)
    a, b, c, d = layer.vectors
    share = (a @ b).exp() - (c @ d).exp() + 0.2

    def weigh(part):
        return (q[:, part].transpose(1, 2) @ k[:, part] / math.sqrt(8)).softmax(-1)
    y = v @ (weigh(slice(0, 8)) - share * weigh(slice(8, 16))).transpose(1, 2)
    y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.gain[:, None]
    want = layer.out(0.8 * y.flatten(0, 1)[None, :, None])
    assert torch.allclose(layer(x), want, atol=1e-5)


def test_halves_belong_to_the_heads():
    first, second = halves(torch.arange(8.0).view(1, 8, 1, 1), 2)
    assert first.flatten().tolist() == [0, 1, 4, 5] and second.flatten().tolist() == [2, 3, 6, 7]


def test_the_position_code_is_sines_and_cosines():
    code = sinusoid(6, 50)[0, :, 0]
    assert code.shape == (6, 50) and code[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert code[2, 7] == pytest.approx(math.sin(7 / 10000 ** (2 / 6)))
    assert code[3, 7] == pytest.approx(math.cos(7 / 10000 ** (2 / 6)))


def test_wide_features_are_zero_where_nothing_is_known():
    like = torch.zeros(3, 1)
    assert wide_features(None, None, None, like).abs().sum() == 0
    age, sex = torch.tensor([[50.0], [-1.0], [90.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    wide = wide_features(age, sex, torch.ones(3, 20), like)
    assert wide.shape == (3, 22)
    assert torch.allclose(wide[:, :2], torch.tensor([[0.5, 1.0], [0.0, 0.0], [0.9, -1.0]]))
    assert (wide[:, 2:] == 1).all()


@pytest.mark.parametrize("preset", ["paper", "paper-gate"])
def test_age_and_sex_and_crafted_features_reach_the_logits(preset):
    model = build("hierarchical", preset, "cinc2020", 12, 27).eval()
    columns = torch.randn(1, 288, 1, 410)
    code = [torch.full((1, 1), v) for v in (70.0, 2.0)] + [torch.randn(1, 20)]
    assert model.sides == ("age", "sex")
    with torch.no_grad():
        seen = [model.decide(columns, *(x if i == j else None for j, x in enumerate(code))) for i in range(3)]
        plain = model.decide(columns)
    assert not any(torch.allclose(logits, plain, atol=1e-6) for logits in seen)


# ---- edge


@pytest.mark.parametrize("preset", ["small", "tiny", "small-plain", "tiny-plain", "small-gate"])
@pytest.mark.parametrize("leads", [2, 12])
def test_columns_keep_leads_apart(preset, leads):
    model = build("hierarchical", preset, "cinc2021", leads, 4).train()     # a batch's own statistics keep ReLUs alive
    x = torch.randn(4, 1, leads, model.geometry.window, requires_grad=True)
    own = model.columns(x).unflatten(1, (leads, -1))[:, 1]
    reached = torch.autograd.grad(own.square().sum(), x)[0].abs().sum((0, 1, 3)) > 0
    assert reached.tolist() == [i == 1 for i in range(leads)]


@pytest.mark.parametrize("task,rr", [("cinc2021", 0), ("mitbih", 12)])
@pytest.mark.parametrize("leads", [1, 2, 3, 6, 8, 12])
def test_the_gate_takes_every_number_of_leads(task, rr, leads):
    model = build("hierarchical", "small-gate", task, leads, 4, rr).eval()
    code = (torch.randn(2, rr),) if rr else ()
    assert model(torch.randn(2, 1, leads, model.geometry.window), *code).shape == (2, 4)
    assert weights(model) <= 145_000


@pytest.mark.parametrize("size", [SMALL, TINY], ids=["small", "tiny"])
@pytest.mark.parametrize("leads", [1, 12])
def test_asking_with_cls_only_gives_the_same_logits_for_less(size, leads):
    cheap, full = (Hierarchical(replace(size, cls_only=only), HOP, leads, 4).eval() for only in (True, False))
    full.load_state_dict(cheap.state_dict())
    x = torch.randn(2, 1, leads, cheap.geometry.window)
    with torch.no_grad():
        assert torch.allclose(cheap(x), full(x), atol=1e-5)
    stages = [macs(model, leads) - macs_before_stages(model, leads) for model in (cheap, full)]
    print(f"{leads} leads, {size.stem[-1].channels} channels: {macs(cheap, leads) / 1e6:.2f} MMAC with CLS asking "
          f"alone, {macs(full, leads) / 1e6:.2f} with all; the stages {stages[0] / 1e6:.2f} and {stages[1] / 1e6:.2f}")
    assert stages[0] < 0.3 * stages[1]


def macs_before_stages(model, leads):
    """Multiply-accumulates of all convolutions that are no part of a stage."""
    with FlopCounterMode(display=False) as counter:
        tokens = model.eval().columns(torch.randn(1, 1, leads, model.geometry.window))
        tokens = tokens[..., model.geometry.left:model.geometry.left + model.geometry.columns]
        for coarser in model.coarser:
            tokens = coarser(tokens)
    return counter.get_total_flops() // 2


def test_without_a_share_a_stage_attends_like_any_other():
    stage = Relay(24, 20, TINY, 0).eval()
    with torch.no_grad():
        stage.lam.zero_()
    cls, tokens = torch.randn(1, 24, 1, 1), torch.randn(1, 24, 1, 20)
    want = stage(cls, tokens)
    attend = stage.attend_fn
    stage.attend_fn = lambda q, k, v, heads, pair: attend(q, k, v, heads)
    assert torch.allclose(stage(cls, tokens), want, atol=1e-6)


def test_the_share_of_every_stage_is_trained():
    model = build("hierarchical", "small", "cinc2017", 1, 4)
    model(torch.randn(4, 1, 1, model.geometry.window)).square().sum().backward()
    assert [stage.lam.grad.abs() > 0 for stage in model.stages] == [True] * 3
    assert [stage.lam.item() for stage in model.stages] == pytest.approx([first_lambda(i) for i in range(3)])


def test_the_gate_equals_its_formula():
    gate = Gate(9, 3, 5).eval()
    x, rr = torch.randn(2, 8, 1, 9), torch.randn(2, 5)
    lifted = gate.lift(rr.view(2, 1, 1, 5)).squeeze(2).transpose(1, 2)
    rows = torch.cat([lifted, x.squeeze(2)], 1)                         # (batch, row, token)

    def dense(layer, y):                                                # a pointwise convolution over tokens
        return y @ layer.weight.flatten(1).T + layer.bias
    gated = dense(gate.a[0], rows).tanh() * dense(gate.b[0], rows).sigmoid()
    share = (gated @ gate.ask[0, :, 0]).softmax(1)                      # (batch, row, class)
    value = dense(gate.value[0], share.transpose(1, 2) @ rows).relu()   # (batch, class, token)
    want = (value * gate.logits.weight.view(3, 9)).sum(2) + gate.logits.bias
    assert torch.allclose(gate(x, rr), want, atol=1e-5)


@pytest.mark.parametrize("preset", ["small", "tiny"])
@pytest.mark.parametrize("leads", [1, 12])
def test_a_plain_preset_differs_in_the_mechanism_and_hardly_in_cost(preset, leads):
    ours, plain = (build("hierarchical", name, "cinc2021", leads, 4) for name in (preset, f"{preset}-plain"))
    assert not any(isinstance(part, Relay) for part in plain.modules())
    assert abs(macs(plain, leads) / macs(ours, leads) - 1) < 0.1


@pytest.mark.parametrize("preset,limit", [("small", 5e6), ("small-gate", 5e6), ("tiny", 1.5e6)])
def test_an_edge_preset_stays_cheap(preset, limit):
    assert macs(build("hierarchical", preset, "cinc2017", 1, 4), 1) < limit


CASES = [("tiny", "cinc2017", 1), ("small", "mitbih", 2), ("small-gate", "cinc2021", 12), ("small-gate", "mitbih", 1),
         ("tiny-plain", "cinc2021", 3)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def made(request):
    return frozen.freeze("hierarchical", *request.param)


def test_the_program_computes_what_the_network_computes(made):
    torch.testing.assert_close(made.program_logits, made.float_logits, atol=1e-3, rtol=1e-3)


def test_the_integer_graph_computes_what_the_program_computes(made):
    assert made.agreement["worst"] <= 1 and made.agreement["share"] < 1e-3


def test_the_integer_graph_keeps_its_budget(made):
    assert made.graph.weight_bytes <= made.budget


def test_the_integer_graph_streams(made):
    assert made.streams() if made.net.geometry.streaming else made.graph.boundary is None


def test_the_integer_graph_relays_cls_through_three_stages_of_differential_attention(made):
    pairs = [n for n in made.kind("attention") if len(n.inputs) == 5]
    if made.preset.endswith("plain"):
        assert not made.kind("attention") and not made.kind("norm")
        return
    keys = [made.time(n.inputs[1]) for n in pairs]
    columns = made.net.geometry.columns
    assert keys == [1 + math.ceil(columns / 2 ** i) for i in range(3)]
    alone = 2 if made.net.p.gate else 3
    assert [made.time(n.inputs[0]) for n in pairs] == [1] * alone + keys[alone:]
    for before, after in itertools.pairwise(pairs):
        assert set(after.inputs[:2]) <= made.behind(before.output)      # q and k of a stage know the last CLS token
    heads = [n for n in made.kind("norm") if n.attrs["rms"]]
    assert [n.inputs[0] for n in heads] == [n.output for n in pairs]


def test_the_gate_is_one_attention_over_channels(made):
    found = [n for n in made.kind("attention") if len(n.inputs) == 3]
    assert len(found) == made.net.p.gate
    for node in found:
        ask = next(n for n in made.graph.nodes if n.output == node.inputs[0])
        assert ask.kind == "constant" and made.time(node.inputs[0]) == 4
        assert made.kind("mul") and made.kind("transpose")


def test_a_paper_stage_has_four_layers_with_their_own_first_lambda():
    stage = PaperStage(1, 288, True, 1)
    assert [layer.attention.start for layer in stage.layers] == [first_lambda(i) for i in (4, 5, 6, 7)]
