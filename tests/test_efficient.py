# SPDX-License-Identifier: Apache-2.0
"""efficient: its sizes, what its tokens do, that unknown is learnt, the autoencoder, the whole way to integers."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tests import test_fit
from train import autoencoder, dataset, fit, rhythm, sides
from train.models import build, fusion
from train.models.efficient import MbConv
from train.models.efficient_paper import PaperEfficient, PaperMbConv
from train.tasks import TASKS

torch.set_num_threads(1)
NAMES = rhythm.NAMES.index
B0 = 4_007_548      # parameters of EfficientNet-B0 without its classifier


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def weights(model):
    return sum(p.numel() for p in model.parameters())


def given(net, batch):
    """Plausible side inputs (batch, *shape) of a network, in float."""
    codes = {"rr": torch.randint(-40, 41, (batch, 12)), "beats": torch.randint(-40, 41, (batch, 16, 9)),
             "age": torch.randint(-1, 100, (batch, 1)), "sex": torch.randint(0, 3, (batch, 1))}
    return [codes[name] * sides.SIDES[name].one for name in net.sides]


# ---- sizes and parts

def test_the_paper_preset_is_efficientnet_b0_over_time_and_the_fusion():
    model = build("efficient", "paper", "cinc2017", 1, 4)
    assert weights(model) == 3_926_596
    assert [weights(model.tokens), weights(model.fuse), weights(model.logits)] == [14_916, 41_088, 6_148]
    blocks = [m for m in model.local if isinstance(m, PaperMbConv)]
    assert len(blocks) == 16
    # kernels over time instead of squares, and 7 x 1 channel instead of 3 x 3 x 3 in the stem
    depthwise = [m for m in model.local[1:].parameters() if m.dim() == 4 and m.shape[1] == 1]
    thinner = sum(m.numel() * (m.shape[3] - 1) for m in depthwise)
    assert weights(model.local) + weights(model.last) == B0 - thinner - 32 * (27 - 7)


def test_the_paper_preset_classifies_beats_and_windows():
    for task, rr in (("cinc2017", 0), ("mitbih", 12)):
        model = build("efficient", "paper", task, 1, 3, rr).eval()
        assert isinstance(model, PaperEfficient) and not model.geometry.streaming
        with torch.no_grad():
            assert model(torch.randn(2, 1, 1, model.geometry.window), *given(model, 2)).shape == (2, 3)


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("task,rr", [("cinc2017", 0), ("mitbih", 12)])
def test_the_plain_preset_costs_about_as_much_and_takes_nothing_beside_the_waveform(size, task, rr):
    fused, plain = (build("efficient", preset, task, 1, 4, rr) for preset in (size, f"{size}-plain"))
    assert plain.sides == (("rr",) if rr else ())
    assert fused.sides == (*plain.sides, "beats", "age", "sex")
    assert 0.9 < weights(plain) / weights(fused) < 1.1
    assert not any(isinstance(m, (fusion.SideTokens, fusion.CrossAttention)) for m in plain.modules())


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_an_edge_preset_is_made_of_inverted_residuals_that_widen_and_narrow(preset):
    blocks = [m for m in build("efficient", preset, "cinc2017", 1, 4).modules() if isinstance(m, MbConv)]
    assert len(blocks) >= 6 and sum(b.residual for b in blocks) >= 2
    assert all(b.depth[0].groups == b.depth[0].in_channels >= b.project[0].out_channels for b in blocks[1:])


# ---- tokens

@pytest.mark.parametrize("name", ["beats", "age", "sex"])
@pytest.mark.parametrize("task,rr", [("cinc2017", 0), ("mitbih", 12)])
def test_every_side_input_reaches_the_logits(name, task, rr):
    net = build("efficient", "tiny", task, 1, 3, rr).eval()
    if rr:      # the waveform's share of a beat passes two units: open both
        torch.nn.init.uniform_(net.head.squeeze[0].bias, 3, 4)
    ecg, codes = torch.randn(4, 1, 1, net.geometry.window), given(net, 4)
    other = list(codes)
    place = net.sides.index(name)
    other[place] = {"beats": -codes[place], "age": (codes[place] + 50) % 90, "sex": (codes[place] + 1) % 3}[name]
    with torch.no_grad():
        assert not torch.allclose(net(ecg, *codes), net(ecg, *other), atol=1e-6)


def test_what_a_token_adds_depends_on_the_waveform_it_attends_to():
    net = build("efficient", "tiny", "cinc2017", 1, 3).eval()
    tokens, _, _ = net.tokens(*given(net, 2))
    quiet, loud = torch.zeros(2, 40, 1, 45), torch.rand(2, 40, 1, 45)
    a, b = (net.fuse(tokens, columns) - tokens for columns in (quiet, loud))
    assert a.shape == (2, 16, 1, 4) and not torch.allclose(a, b)
    assert torch.allclose(net.fuse(tokens, loud.flip(3)), net.fuse(tokens, loud), atol=1e-5)     # a set, not a series


def test_neighbouring_years_start_alike_and_unknown_starts_apart():
    table = fusion.SideTokens(16, 12).age.table
    steps = (table[2:] - table[1:-1]).norm(dim=1)
    assert float(steps.max()) < 0.15 and float(table[0].norm()) == 0
    assert float((table[21] - table[81]).norm()) > 0.5


@pytest.mark.parametrize("hidden_patient", [fusion.HIDDEN_PATIENT, fusion.HIDDEN_PATIENT_BEATS])
def test_training_hides_what_may_be_unknown_and_evaluation_hides_nothing(hidden_patient):
    tokens = fusion.SideTokens(16, 12, hidden_patient)
    beats, age, sex = torch.ones(4000, 16, 9), torch.full((4000, 1), 50.0), torch.ones(4000, 1)
    hidden = tokens._hide(beats, age, sex)
    stranger = (hidden[1] == -1)[:, 0]
    assert torch.equal(stranger, (hidden[2] == 0)[:, 0])
    assert abs(float(stranger.float().mean()) - hidden_patient) < 0.03
    gone = (hidden[0] == 0).all(2).all(1)
    assert abs(float(gone.float().mean()) - fusion.HIDDEN_RHYTHM) < 0.03 and bool((hidden[0][~gone] == 1).all())
    tokens.eval()
    assert torch.equal(tokens(beats[:2], age[:2], sex[:2])[0], tokens(beats[:2], age[:2], sex[:2])[0])


# ---- the autoencoder

def rhythms(n=600):
    """Sequences (n, 16, 9) of hearts that differ in rate, regularity and P waves, in float as the network sees them."""
    rng = np.random.default_rng(0)
    codes = np.zeros((n, 16, 9))
    codes[:, :, 0] = 32
    codes[:, :, NAMES("interval")] = rng.integers(-50, 60, (n, 1)) + rng.integers(-3, 4, (n, 16))
    codes[:, :, NAMES("P")] = np.where(rng.random((n, 1)) < 0.5, 32, -32)
    codes[:, :, NAMES("PR")] = np.where(codes[:, :, NAMES("P")] > 0, rng.integers(35, 60, (n, 1)), 0)
    codes[: n // 4, :6] = 0
    return torch.from_numpy(codes / 32).float()


def test_codes_learn_what_tells_rhythms_apart(monkeypatch):
    beats = rhythms()
    monkeypatch.setattr(autoencoder, "sequences", lambda *_: beats)
    monkeypatch.setattr(autoencoder, "STEPS", 120)
    tokens = fusion.SideTokens(16, 12)
    before = {k: v.clone() for k, v in tokens.state_dict().items()}
    told = autoencoder.pretrain(tokens, None, [0], 0)
    kept = told["variance_kept"]
    assert kept["interval"] > 0.6 and kept["P"] > 0.8 and told["sequences"] == len(beats)
    changed = {k.split(".")[0] for k, v in tokens.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"r_code", "p_code"}


def test_equal_seeds_train_equal_codes(monkeypatch):
    monkeypatch.setattr(autoencoder, "sequences", lambda *_: rhythms(100))
    monkeypatch.setattr(autoencoder, "STEPS", 5)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        tokens = fusion.SideTokens(16, 12)
        autoencoder.pretrain(tokens, None, [0], 7)
        found.append(tokens.r_code.w_hh.detach().clone())
    assert torch.equal(*found)


def test_the_error_counts_beats_that_are_there_and_measures_of_p_waves_that_are_there():
    beats = rhythms(40)
    weight = autoencoder.valid(beats)
    assert not weight[:10, :6].any() and weight[10:, :, 0].all()
    assert torch.equal(weight[..., NAMES("PR")] > 0, beats[..., NAMES("P")] > 0)
    first = beats.clone()
    first[:, 0, 0] = -1
    assert not autoencoder.valid(first)[:, 0, NAMES("interval"):NAMES("of usual") + 1].any()
    wrong = beats + (1 - weight)
    assert float(autoencoder.error(wrong, beats)) == 0 and float(autoencoder.error(beats + 1, beats)) == 1


# ---- training and the run folder

@pytest.fixture
def toy(monkeypatch):
    """fit.py on toy records; a Job of `efficient` that takes seconds."""
    monkeypatch.setattr(fit.Fit, "_shards", lambda self: test_fit.Toy(self.task.name, 10))
    monkeypatch.setattr(autoencoder, "STEPS", 4)
    return lambda run, **more: fit.Job(**{"run": str(run), "arch": "efficient", "preset": "tiny", "epochs": 1,
                                          "device": "cpu", "task": "mitbih", "folds": 0, **more})


@pytest.mark.parametrize("task", ["mitbih", "synthetic"])
def test_a_run_names_its_inputs_and_is_built_again_from_its_manifest(tmp_path, toy, task):
    fit.fit(toy(tmp_path / "run", task=task))
    about, net = fit.load(tmp_path / "run")
    assert tuple(i.name for i in about.inputs) == ("ecg", *net.sides)
    assert next(i.shape for i in about.inputs if i.name == "beats") == (16, 9)
    told = json.loads((tmp_path / "run" / "training.json").read_text())["prepared"]["training"]["autoencoder"]
    assert told["steps"] == 4 and told["sequences"] > 0


def test_the_codes_of_an_inner_fold_are_trained_without_it(tmp_path, toy, monkeypatch):
    seen = []
    ours = autoencoder.sequences
    monkeypatch.setattr(autoencoder, "sequences", lambda source, indices, seed: (
        seen.append(set(indices)), ours(source, indices, seed))[1])
    fit.fit(toy(tmp_path / "run", folds=3))
    assert len(seen) == 4 and seen[0] == set(range(10))
    held = [seen[0] - part for part in seen[1:]]
    assert set.union(*held) == seen[0] and sum(map(len, held)) == 10


def test_a_record_without_beats_trains_too():
    toy = test_fit.Toy("synthetic", 6)
    for x in toy._signals:
        x[:] = 0
    net = build("efficient", "tiny", "synthetic", 1, 3)
    source = dataset.source(toy, TASKS["synthetic"], net.geometry, net.sides)
    assert net.prepare(source, range(6), 0) == {"autoencoder": {"sequences": 0}}
    batch = next(source.epoch(range(6), 4, 0, 0))
    net.train()
    loss = net.vote(batch.ecg, *batch.sides).square().mean()
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# ---- to integers

@pytest.mark.parametrize("preset,task,leads,rr", [("tiny", "cinc2017", 1, 0), ("small", "mitbih", 2, 12)])
def test_the_integer_graph_agrees_streams_and_keeps_its_budget(preset, task, leads, rr):
    pytest.importorskip("torchao")
    from compress import agree, reference
    from compress.program import Program, tensors
    from tests.test_models import lively
    net = lively(build("efficient", preset, task, leads, 3, rr))
    rng = np.random.default_rng(0)
    window = net.geometry.window
    inputs = {"ecg": rng.normal(0, 40, (6, leads, window)).clip(-128, 127).astype(np.int8)}
    scales = {"ecg": 0.016} | {name: sides.SIDES[name].one for name in net.sides}
    inputs |= {name: (code / scales[name]).round().to(torch.int8).numpy()
               for name, code in zip(net.sides, given(net, 6), strict=True)}
    program = Program(net, {k: v.shape[1:] for k, v in inputs.items()}, scales, net.geometry.streaming)
    program.calibrate([tensors(inputs, scales)])
    converted, graph = program.convert()
    seen = agree.summary(agree.compare(converted, graph, inputs))
    assert seen["worst"] <= 1 and seen["share"] < 1e-3
    assert graph.weight_bytes <= {"small": 160_000, "tiny": 48_000}[preset]
    kinds = [node.kind for node in graph.nodes]
    assert (kinds.count("lstm"), kinds.count("lookup"), kinds.count("attention")) == (2, 2, 1)
    if net.geometry.streaming:
        hop = net.geometry.hop
        record = rng.integers(-128, 128, (leads, window + 5 * hop)).astype(np.int8)
        crops = np.stack([record[:, i * hop:i * hop + window] for i in range(6)])
        beside = {name: inputs[name] for name in net.sides}
        np.testing.assert_array_equal(reference.stream(graph, {"ecg": record, **beside}, hop),
                                      reference.run(graph, {"ecg": crops, **beside}))
