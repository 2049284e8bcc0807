# SPDX-License-Identifier: Apache-2.0
"""lga: the paper's counts and lengths, averaged queries against their definition, the edge presets as integers."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from train.models import build
from train.models.geometry import BEAT, HOP
from train.models.lga import SMALL, AveragedQueries, LgaBlock, PlainMix
from train.models.lga_paper import PaperAttention, PaperLga, average
from train.say import UserError

frozen = pytest.importorskip("tests.frozen")

EDGE = ("small", "tiny", "small-plain", "tiny-plain")
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


def shapes(model, kind, window, leads):
    """Time lengths behind every module of a kind, in order."""
    seen = []
    for part in model.modules():
        if isinstance(part, kind):
            part.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        model.eval()(torch.randn(1, 1, leads, window))
    return seen


def test_the_paper_preset_has_the_papers_parameters():
    model = build("lga", "paper", "code15", 12, 6)
    assert weights(model) == 935_110
    assert weights(model.stem) == 211_328
    assert [weights(block) for block in model.blocks] == [57_984, 74_496, 107_520, 173_568, 305_664]


def test_the_paper_preset_has_the_papers_lengths():
    model = build("lga", "paper", "code15", 12, 6)
    from train.models.lga_paper import PaperBlock, PaperResidual
    assert shapes(model, PaperResidual, 2560, 12) == [1280, 640, 640, 320]
    assert shapes(model, PaperBlock, 2560, 12) == [160, 80, 40, 20, 10]


def test_the_paper_preset_costs_what_the_paper_costs():
    assert abs(macs(build("lga", "paper", "code15", 12, 6), 12) / 206.2e6 - 1) < 0.005


@pytest.mark.parametrize("device", DEVICES)
def test_every_weight_of_the_paper_preset_learns(device):
    model = build("lga", "paper", "code15", 12, 6).train().to(device)
    model(torch.randn(2, 1, 12, 2560, device=device)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_paper_votes_like_it_decides():
    model = build("lga", "paper", "code15", 1, 3).eval()
    x = torch.randn(1, 1, 1, 2560 + 1280)
    with torch.no_grad():
        assert torch.allclose(model.vote(x)[0, 1], model(x[..., 1280:])[0], atol=1e-4)


@pytest.mark.parametrize("averaging", [(2, 2), (4, 2), (10, 2), (8, 4), (64, 32)])
def test_any_averaging_asks_one_query_per_stride(averaging):
    layer = PaperAttention(averaging)
    asked = []
    layer.attend_fn = lambda q, k, v, heads: asked.append((q.shape[-1], k.shape[-1])) or v
    layer(torch.randn(1, 64, 1, 320))
    assert asked == [(320 // averaging[1], 320)]


def test_averages_leave_out_what_lies_past_the_ends():
    x = torch.arange(8.0).view(1, 1, 1, 8)
    assert average(x, 2, 2).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    assert average(x, 4, 2).flatten().tolist() == [1, 2.5, 4.5, 6]


@pytest.mark.parametrize("averaging,blocks", [((10, 2), 5), ((64, 32), 1)])
def test_other_averaging_ends_at_ten_tokens_too(averaging, blocks):
    model = PaperLga("paper", HOP, 12, 6, averaging=averaging)
    from train.models.lga_paper import PaperBlock
    lengths = shapes(model, PaperBlock, 2560, 12)
    assert len(lengths) == blocks and lengths[-1] == 10


@pytest.mark.parametrize("averaging", [(2, 1), (2, 4), (5, 2)])
def test_an_averaging_that_does_not_fit_is_refused(averaging):
    with pytest.raises(UserError, match="even difference"):
        PaperLga("paper", HOP, 12, 6, averaging=averaging)


def test_the_paper_preset_refuses_beats():
    with pytest.raises(UserError, match="not beats"):
        PaperLga("paper", BEAT, 1, 3, 12)


def test_averaging_before_the_projection_gives_the_queries_of_averaging_behind_it():
    layer = AveragedQueries(8, 12, 2).eval()
    x, asked = torch.randn(2, 8, 1, 20), []
    layer.attend_fn = lambda q, k, v, heads: asked.append(q) or v
    layer(x)
    assert torch.allclose(asked[0], F.avg_pool2d(layer.q(layer.mix(x)), (1, 2)), atol=1e-6)


@pytest.mark.parametrize("time", [18, 45, 90])
@pytest.mark.parametrize("plain", [0, 2])
def test_a_block_halves_time(time, plain):
    block = LgaBlock(48, SMALL.__class__(SMALL.stem, 64, 1, 4, 2, 8, plain)).eval()
    assert block(torch.randn(1, 48, 1, time)).shape == (1, 64, 1, time // 2)


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_half_the_steps_ask_and_all_are_asked(preset):
    model, asked = build("lga", preset, "cinc2021", 3, 4).eval(), []

    def counted(attend):
        return lambda q, k, v, heads: asked.append((q.shape[-1], k.shape[-1])) or attend(q, k, v, heads)
    for part in model.modules():
        if isinstance(part, AveragedQueries):
            part.attend_fn = counted(part.attend_fn)
    model(torch.randn(1, 1, 3, model.geometry.window))
    assert asked == [(45, 90), (22, 45), (11, 22)][:len(model.whole)]


@pytest.mark.parametrize("preset", ["small", "tiny"])
@pytest.mark.parametrize("leads", [1, 12])
def test_a_plain_preset_differs_in_the_mechanism_and_hardly_in_cost(preset, leads):
    ours, plain = (build("lga", name, "cinc2021", leads, 4) for name in (preset, f"{preset}-plain"))
    assert not any(isinstance(part, AveragedQueries) for part in plain.modules())
    assert sum(isinstance(part, PlainMix) for part in plain.modules()) == len(ours.whole)
    assert abs(macs(plain, leads) / macs(ours, leads) - 1) < 0.1
    assert weights(plain) < {"small": 135_000, "tiny": 42_000}[preset]


@pytest.mark.parametrize("preset,limit", [("small", 5e6), ("tiny", 1.7e6)])
def test_an_edge_preset_stays_cheap(preset, limit):
    assert macs(build("lga", preset, "cinc2017", 1, 4), 1) < limit


CASES = [("tiny", "cinc2017", 1), ("small", "mitbih", 2), ("tiny-plain", "cinc2021", 12)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def made(request):
    return frozen.freeze("lga", *request.param)


def test_the_program_computes_what_the_network_computes(made):
    torch.testing.assert_close(made.program_logits, made.float_logits, atol=1e-3, rtol=1e-3)


def test_the_integer_graph_computes_what_the_program_computes(made):
    assert made.agreement["worst"] <= 1 and made.agreement["share"] < 1e-3


def test_the_integer_graph_keeps_its_budget(made):
    assert made.graph.weight_bytes <= made.budget


def test_the_integer_graph_streams(made):
    assert made.streams() if made.net.geometry.streaming else made.graph.boundary is None


def test_the_integer_graph_asks_with_averaged_queries_for_all_keys(made):
    found, pooled = made.kind("attention"), {n.output for n in made.kind("meanpool")}
    assert len(found) == sum(isinstance(part, AveragedQueries) for part in made.net.modules())
    for node in found:
        q, k, _ = node.inputs
        assert node.attrs["window"] == "global" and made.source(q) in pooled
        assert made.time(q) == made.time(k) // 2
