# SPDX-License-Identifier: Apache-2.0
"""The networks: parameter counts, windows against the stream, folding and export."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools

import pytest

torch = pytest.importorskip("torch")

from train.models import ARCHS, build, find
from train.models.attention import GLOBAL, Band, LeadJointAttention, attend
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.local_lead import SMALL, TINY, Attention, LocalLead
from train.models.local_lead_paper import PaperLocalLead, shuffle_leads
from train.say import UserError
from train.sides import SIDES

EDGE = [(arch, preset) for arch in ARCHS for preset in ("small", "tiny")]
CASES = [("synthetic", 0, 1), ("cinc2017", 0, 1), ("ptbxl", 0, 2), ("cinc2021", 0, 12), ("mitbih", 7, 1),
         ("mitbih", 7, 2)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weights(model):
    return sum(p.numel() for p in model.parameters())


def lively(model):
    """BatchNorm as after training: running statistics and scales that differ by channel."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.uniform_(part.bias, -0.3, 0.3)
    return model.eval()


def beside(model, *batch, rr=0):
    """Side inputs (*batch, *shape) of all names that the model asks for, as varied as codes are; `rr` features."""
    shapes = {name: (rr,) if name == "rr" else SIDES[name].shape for name in model.sides}
    codes = {name: torch.randint(-128, 128, (*batch, *shape)) for name, shape in shapes.items()}
    return [code * SIDES[name].one for name, code in codes.items()]


def test_the_paper_preset_has_the_papers_parameters():
    model = build("local-lead", "paper", "cinc2021", 12, 26)
    assert weights(model) == 2_404_251
    assert [weights(model.stem), weights(model.embed)] == [216_128, 164_352]
    assert {weights(b) for b in (*model.local, *model.whole)} == {200_192}


def test_the_paper_preset_has_the_papers_lengths():
    model = build("local-lead", "paper", "cinc2021", 1, 26).eval()
    lengths = []
    for part in (*model.stem, *model.local, *model.whole):
        part.register_forward_hook(lambda _m, _i, out: lengths.append(out.shape[-1]))
    with torch.no_grad():
        assert model(torch.randn(1, 1, 1, 8192)).shape == (1, 26)
    assert lengths == [4088, 2036, 1010, 994, 994, 1152, 1152, 576, 288, 144, 72, 36, 18, 9, 5]


def test_the_lead_shuffle_leaves_128_of_1536_slots_in_their_lead():
    lead = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 128, 12, 1)
    assert int((shuffle_leads(lead, 4) == lead).sum()) == 128


def test_the_paper_preset_refuses_beats():
    with pytest.raises(UserError, match="not beats"):
        PaperLocalLead("paper", Beat(100, 100), 1, 3, 4)


@pytest.mark.parametrize("arch,preset", EDGE)
@pytest.mark.parametrize("task,rr,leads", CASES)
def test_an_edge_preset_gives_logits_of_one_window(arch, preset, task, rr, leads):
    model = build(arch, preset, task, leads, 4, rr).eval()
    assert model(torch.randn(3, 1, leads, model.geometry.window), *beside(model, 3, rr=rr)).shape == (3, 4)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("preset,limit", [("small", 130_000), ("tiny", 40_000)])
@pytest.mark.parametrize("task,rr", [("cinc2017", 0), ("mitbih", 8)])
def test_an_edge_preset_keeps_its_parameter_budget(arch, preset, limit, task, rr):
    assert weights(build(arch, preset, task, 1, 4, rr)) <= limit


@pytest.mark.parametrize("arch,preset", EDGE)
@pytest.mark.parametrize("leads", [1, 2, 3, 6, 8, 12])
def test_every_number_of_leads_is_possible(arch, preset, leads):
    model = build(arch, preset, "ptbxl", leads, 5).eval()
    assert model(torch.randn(1, 1, leads, model.geometry.window), *beside(model, 1)).shape == (1, 5)
    assert weights(model) <= {"small": 145_000, "tiny": 42_000}[preset]


@pytest.mark.parametrize("arch,preset", EDGE)
def test_columns_in_the_middle_do_not_depend_on_the_crop(arch, preset):
    model = lively(build(arch, preset, "cinc2017", 2, 4)).double()
    g = model.geometry
    record = torch.randn(2, 1, 2, g.window + 20 * g.stride, dtype=torch.double)
    with torch.no_grad():
        whole = model.columns(record)
        for step in (0, 7, 20):
            crop = model.columns(record[..., step * g.stride:step * g.stride + g.window])
            inside = slice(step + g.left, step + g.left + g.columns)
            assert torch.allclose(crop[..., g.left:g.left + g.columns], whole[..., inside], rtol=0, atol=1e-9)
        edge = model.columns(record[..., 7 * g.stride:])
        assert not torch.allclose(edge[..., g.left // 2], whole[..., 7 + g.left // 2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("arch,preset", EDGE)
def test_the_receptive_field_is_what_the_gradient_says(arch, preset):
    model = lively(build(arch, preset, "cinc2017", 1, 4)).double()
    g = model.geometry
    x = torch.randn(16, 1, 1, g.window, dtype=torch.double, requires_grad=True)  # a dead ReLU hides no path in all
    for column in (g.left, g.left + g.columns - 1):
        gradient, = torch.autograd.grad(model.columns(x)[..., column].square().sum(), x)
        seen = gradient.abs().amax((0, 1, 2)).nonzero().flatten()
        assert 0 <= int(seen[0]) and int(seen[-1]) < g.window
        assert int(seen[-1] - seen[0]) + 1 == g.field
    first = g.left * g.stride - (g.field - 1) // 2
    assert first >= 0


@pytest.mark.parametrize("arch,preset", EDGE)
@pytest.mark.parametrize("leads", [1, 3])
def test_voting_equals_deciding_on_each_window(arch, preset, leads):
    model = lively(build(arch, preset, "cinc2017", leads, 4))
    g = model.geometry
    x = torch.randn(2, 1, leads, g.window + 3 * g.hop + 2 * g.stride)
    with torch.no_grad():
        codes = beside(model, 2, 4)
        votes = model.vote(x, *codes)
        each = torch.stack([model(x[..., i * g.hop:i * g.hop + g.window], *(c[:, i] for c in codes))
                            for i in range(4)], 1)
        sparse = model.vote(x, *(c[:, ::2] for c in codes), every=2)
    assert votes.shape == (2, 4, 4) and torch.allclose(votes, each, atol=1e-4)
    assert torch.allclose(sparse, each[:, ::2], atol=1e-4)


def test_the_paper_votes_like_it_decides():
    model = build("local-lead", "paper", "cinc2021", 1, 3).eval()
    x = torch.randn(1, 1, 1, 8192 + 4096)
    with torch.no_grad():
        assert torch.allclose(model.vote(x)[0, 1], model(x[..., 4096:])[0], atol=1e-4)


@pytest.mark.parametrize("more,settle,windows",
                         [(7012, 500, 26), (516, 500, 1), (300, 500, 1), (0, 500, 1), (-1, 500, 0)])
def test_windows_start_after_the_filters_settled_when_the_record_is_long_enough(more, settle, windows):
    g = build("local-lead", "tiny", "cinc2017", 1, 4).geometry
    length = g.window + more
    got = list(g.starts(length, settle))
    assert len(got) == windows
    assert all(s % g.stride == 0 and s + g.window <= length for s in got)
    if length >= settle + g.window + g.stride:
        assert settle - g.stride < got[0] <= settle


def test_spans_add_up():
    s = Span().conv(11, 2).conv(7, 2).band(8)
    assert (s.left, s.right, s.stride) == (5 + 6 + 32, 5 + 6 + 32, 4)
    assert Span().conv(8).left + Span().conv(8).right == 7
    assert Span(9, 1, 4).join(Span(2, 8, 4)) == Span(9, 8, 4)


@pytest.mark.parametrize("window", [Hop(1440, 250), Hop(1500, 256), Beat(100, 150)])
def test_a_window_that_does_not_fit_the_stride_is_refused(window):
    with pytest.raises(UserError, match="stride 16"):
        geometry(Span(4, 4, 16), window)


def test_projections_of_each_leads_own_differ_by_lead():
    layer = LeadJointAttention(8, 8, 2, 3, leads=3, per_lead=True).eval()
    u = torch.randn(1, 8, 1, 12).expand(1, 8, 3, 12)
    assert not torch.allclose(layer.v(u)[:, :, 0], layer.v(u)[:, :, 1])
    assert weights(layer.v) == 3 * weights(LeadJointAttention(8, 8, 2, 3).v)


def test_the_attention_function_can_be_switched():
    model = build("local-lead", "tiny", "mitbih", 1, 3, 4).eval()
    calls = []

    def counted(q, k, v, heads, window):
        calls.append(window)
        return attend(q, k, v, heads, window)

    for part in model.modules():
        if isinstance(part, LeadJointAttention):
            part.attend_fn = counted
    model(torch.randn(1, 1, 1, model.geometry.window), torch.zeros(1, 4))
    halves = [block.window for block in (*TINY.local, *TINY.whole) if isinstance(block, Attention)]
    assert calls == [GLOBAL if half is None else Band(half) for half in halves]


@pytest.mark.parametrize("arch,preset", EDGE)
def test_every_batch_norm_follows_a_convolution_so_that_it_folds(arch, preset):
    model = build(arch, preset, "mitbih", 1, 3, 4)
    norms = 0
    for part in model.modules():
        for before, after in itertools.pairwise(part.children() if isinstance(part, torch.nn.Sequential) else ()):
            if isinstance(after, torch.nn.BatchNorm2d):
                assert isinstance(before, torch.nn.Conv2d)
                norms += 1
    assert norms == sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) > 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("task,rr", [("cinc2017", 0), ("mitbih", 4)])
def test_an_edge_preset_exports(arch, task, rr):
    model = build(arch, "tiny", task, 1, 3, rr).eval()
    inputs = (torch.randn(2, 1, 1, model.geometry.window), *beside(model, 2, rr=rr))
    program = torch.export.export(model, inputs).module()
    assert torch.allclose(program(*inputs), model(*inputs), atol=1e-5)


def test_a_users_own_module_is_found_by_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from train.models.local_lead import LocalLead, SMALL\n"
                    "class Mine(LocalLead):\n    PRESETS = {'odd': SMALL}\n"
                    "    def __init__(self, preset, *rest):\n        super().__init__(self.PRESETS[preset], *rest)\n")
    mine, ours = build(f"{file}:Mine", "odd", "cinc2017", 1, 4), build("local-lead", "small", "cinc2017", 1, 4)
    assert weights(mine) == weights(ours)
    with pytest.raises(UserError, match="no class Other"):
        find(f"{file}:Other")
    with pytest.raises(UserError, match="no file"):
        find("nowhere.py:Mine")


@pytest.mark.parametrize("arch,preset,word", [("local-leed", "small", "local-lead"), ("local-lead", "smal", "small")])
def test_an_unknown_name_gets_the_nearest_one(arch, preset, word):
    with pytest.raises(UserError, match=word):
        build(arch, preset, "cinc2017", 1, 4)


def test_a_preset_is_data():
    other = LocalLead(SMALL.__class__(SMALL.stem, (Attention(32, 2, 2, 4),), (), 1, 8), Hop(1536, 256), 1, 2)
    assert other.geometry.stride == 32 and other(torch.randn(1, 1, 1, other.geometry.window)).shape == (1, 2)
