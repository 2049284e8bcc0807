# SPDX-License-Identifier: Apache-2.0
"""nat: neighbourhoods at a row's ends, the bias by distance, three resolutions, plain presets, the paper's size."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import itertools

import pytest

torch = pytest.importorskip("torch")

from train.models import build
from train.models.geometry import Beat
from train.models.nat import SMALL, TINY, NeighbourhoodAttention, PlainMix
from train.models.nat_paper import PaperNat
from train.say import UserError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weights(model):
    return sum(p.numel() for p in model.parameters())


def lively(layer):
    """A layer in evaluation mode whose bias tells distances apart."""
    torch.nn.init.uniform_(layer.bias, -2, 2)
    return layer.eval()


@pytest.mark.parametrize("query,keys", [(0, range(5)), (1, range(5)), (2, range(5)), (3, range(1, 6)), (6, range(4, 9)),
                                        (9, range(6, 11)), (10, range(6, 11))])
def test_a_step_sees_five_keys_wherever_it_lies(query, keys):
    layer = lively(NeighbourhoodAttention(8, 2, 5))
    x = torch.randn(1, 8, 1, 11, requires_grad=True)
    gradient, = torch.autograd.grad(layer(x)[..., query].sum(), x)
    assert gradient.abs().amax((0, 1, 2)).nonzero().flatten().tolist() == sorted({*keys, query})


@pytest.mark.parametrize("time", [3, 4, 5, 11, 30])
def test_attention_equals_its_formula_with_the_bias_of_each_distance(time):
    layer = lively(NeighbourhoodAttention(8, 2, 5))
    x = torch.randn(2, 8, 1, time)
    with torch.no_grad():
        q, k, v = (f(x)[:, :, 0] for f in (layer.q, layer.k, layer.v))
        want = torch.zeros(2, 8, 1, time)
        for b, h, t in itertools.product(range(2), range(2), range(time)):
            c, size = slice(4 * h, 4 * h + 4), min(5, time)
            first = min(max(t - (size - 1) // 2, 0), time - size)
            seen = range(first, first + size)
            score = torch.stack([q[b, c, t] @ k[b, c, s] / 2 + layer.bias[h, s - t + 4] for s in seen])
            want[b, c, 0, t] = v[b, c, first:first + size] @ score.softmax(0)
        assert torch.allclose(layer(x), layer.out(want), atol=1e-5)


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_three_resolutions_attend_each_with_a_bias_of_its_own(preset):
    model = build("nat", preset, "cinc2017", 1, 4).eval()
    seen = {}
    for name, part in model.named_modules():
        if isinstance(part, NeighbourhoodAttention):
            part.register_forward_pre_hook(lambda m, x, name=name: seen.update({name: (m.size, x[0].shape[3])}))
    with torch.no_grad():
        model(torch.zeros(1, 1, 1, model.geometry.window))
    assert list(seen.values()) == [(9, 103), (13, 45), (13, 23)]
    assert [m.shape[3] for m in model.levels(torch.zeros(1, 1, 1, model.geometry.window))] == [103, 52, 26]


def test_a_beat_is_shorter_than_a_neighbourhood_and_takes_the_same_weights():
    beat, rhythm = build("nat", "tiny", "mitbih", 1, 3, 12), build("nat", "tiny", "cinc2017", 1, 4)
    shapes = [{name: p.shape for name, p in m.named_parameters() if not name.startswith("head")}
              for m in (beat, rhythm)]
    assert shapes[0] == shapes[1]
    assert beat.geometry.window // 64 < 13
    assert beat(torch.randn(2, 1, 1, beat.geometry.window), torch.zeros(2, 12)).shape == (2, 3)


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_a_plain_preset_has_convolutions_of_the_same_span_and_size(preset):
    plain, attending = build("nat", preset + "-plain", "cinc2017", 1, 4), build("nat", preset, "cinc2017", 1, 4)
    assert not any(isinstance(m, NeighbourhoodAttention) for m in plain.modules())
    assert [m.mix[0].kernel_size[1] for m in plain.modules() if isinstance(m, PlainMix)] == [9, 13, 13]
    assert plain.geometry == attending.geometry
    assert weights(plain) == pytest.approx(weights(attending), rel=0.04)


def test_leads_are_channels_of_the_first_convolution_only():
    sizes = {leads: weights(build("nat", "tiny", "ptbxl", leads, 5)) for leads in (1, 2, 12)}
    assert sizes[2] - sizes[1] == 8 * 7 and sizes[12] - sizes[1] == 11 * 8 * 7


def test_presets_end_their_tokeniser_where_the_first_stage_begins():
    for p in (SMALL, TINY):
        assert p.tokeniser[-1][0] == p.stages[0].channels
        assert all(s.size % 2 and s.channels % s.heads == 0 for s in p.stages)


def test_the_paper_size_has_the_parameters_of_its_inferred_shape():
    model = build("nat", "paper", "cinc2021", 12, 26)
    assert weights(model) == 10_163_542


def test_the_paper_size_has_four_resolutions():
    model = build("nat", "paper", "cinc2021", 1, 3).eval()
    x = torch.randn(1, 1, 1, 2500)
    with torch.no_grad():
        assert [tuple(m.shape) for m in model.levels(x)] == [(1, 64, 1, 625), (1, 128, 1, 313), (1, 256, 1, 157),
                                                             (1, 512, 1, 79)]
        votes = model.vote(torch.cat([x, x[..., :1250]], 3))
        assert votes.shape == (1, 2, 3) and torch.allclose(votes[0, 0], model(x)[0], atol=1e-4)


def test_the_paper_size_refuses_beats():
    with pytest.raises(UserError, match="not beats"):
        PaperNat("paper", Beat(100, 100), 1, 3, 4)


@pytest.mark.parametrize("preset,task,classes,rr,sizes", [("tiny", "cinc2017", 4, 0, [9, 13, 13]),
                                                          ("tiny", "mitbih", 3, 12, [9, 9, 5])])
def test_the_integer_graph_keeps_neighbourhoods_and_bias_and_equals_the_program(preset, task, classes, rr, sizes):
    pytest.importorskip("torchao")
    from test_compress import codes

    from compress import agree
    from compress.program import Program, tensors
    net = build("nat", preset, task, 1, classes, rr).eval()
    for part in net.modules():
        if isinstance(part, NeighbourhoodAttention):
            lively(part)
    inputs = codes(net, 1, rr, 4)
    scales = {"ecg": 0.016, "rr": 1 / 32} if rr else {"ecg": 0.016}
    program = Program(net, {k: v.shape[1:] for k, v in inputs.items()}, scales, net.geometry.streaming)
    program.calibrate([tensors(inputs, scales)])
    converted, graph = program.convert()
    nodes = [node for node in graph.nodes if node.kind == "attention"]
    assert [(n.attrs["window"], n.attrs["size"]) for n in nodes] == [("neighbourhood", size) for size in sizes]
    assert all(n.params["bias"].shape == (2, 2 * size - 1) for n, size in zip(nodes, sizes, strict=True))
    assert agree.summary(agree.compare(converted, graph, inputs))["worst"] <= 1
