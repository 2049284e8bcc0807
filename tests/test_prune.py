# SPDX-License-Identifier: Apache-2.0
"""Pruning: what is coupled is found, whole heads go, the work shrinks as asked, and the run is one like any other."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

from compress import cut, prune
from compress.channels import families
from tests.test_fit import toy  # noqa: F401
from train import fit, manifest
from train.models import ARCHS, build, cost, resized
from train.models.norm import Norm
from train.say import UserError

torch.set_num_threads(1)


def network(arch="local-lead", leads=1, rr=0, preset="tiny"):
    """A network whose norms have statistics and gains of their own, in evaluation mode."""
    torch.manual_seed(3)
    net = build(arch, preset, "mitbih" if rr else "cinc2017", leads, 4, rr)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.running_mean, module.bias.data):
                value.normal_(0, 0.3)
            for value in (module.running_var, module.weight.data):
                value.uniform_(0.5, 1.5)
    return net.eval()


def inputs(net, leads, batch=3):
    torch.manual_seed(4)
    return tuple(torch.randn_like(x) if n == 0 else torch.randint_like(x, -2, 3)
                 for n, x in enumerate(cost.example(net, leads, batch)))


def worth(found, seed=0):
    """Importance drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(len(family.units), generator=generator) for family in found]


def silenced(net, found, values, gone):
    """The whole network with zeros where its layers read what `cut` would remove."""
    with torch.no_grad():
        for family, value, count in zip(found, values, gone, strict=True):
            for n in value.argsort(stable=True)[:count].tolist():
                for side, channels in family.units[n].items():
                    if side.kind == "in":
                        weight = net.get_submodule(side.name).weight
                        groups = getattr(net.get_submodule(side.name), "groups", 1)
                        weight[:, sorted({c % (weight.shape[1] * groups) % weight.shape[1] for c in channels})] = 0
    return net


@pytest.mark.parametrize("rr,leads", [(0, 1), (12, 3)])
@pytest.mark.parametrize("arch", ARCHS)
def test_removing_channels_is_the_same_as_never_reading_them(arch, leads, rr):
    net = network(arch, leads, rr)
    # a Norm looks at all channels of a sum: those families change what is left, and are tried by shape only below
    found = [f for f in families(net, leads)
             if not any(isinstance(net.get_submodule(s.name), Norm) for s in f.sides if s.kind == "through")]
    values, gone = worth(found), [len(f.units) // 2 for f in found]
    x = inputs(net, leads)
    with torch.no_grad():
        small = cut.cut(net, found, values, gone)
        assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())
        torch.testing.assert_close(small(*x), silenced(net, found, values, gone)(*x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_head_that_is_zero_can_be_pruned_without_changing_logits(arch):
    net = network(arch, preset="small")
    found = families(net, 1)
    heads = [f for f in found if f.whole]
    assert heads
    x = inputs(net, 1)
    for family in heads:
        gone = [1 if f is family else 0 for f in found]
        values = worth(found)
        if not any(side.kind == "in" for side in family.sides):
            continue
        whole = silenced(network(arch, preset="small"), found, values, gone)
        small = cut.cut(whole, found, values, gone)
        before, after = resized.heads(whole), resized.heads(small)
        assert sum(before.values()) - sum(after.values()) >= 1
        if not any(isinstance(whole.get_submodule(s.name), Norm) for s in family.sides if s.kind == "through"):
            with torch.no_grad():
                torch.testing.assert_close(small(*x), whole(*x), rtol=1e-4, atol=1e-4)


def test_a_head_takes_its_row_of_the_relative_bias_along():
    net = network("nat", preset="small")
    found = families(net, 1)
    small = cut.cut(net, found, worth(found), [1 if f.whole else 0 for f in found])
    for name, module in cost.attentions(small).items():
        biases = [p for p in module.parameters(recurse=False) if p.dim() == 2]
        assert biases and all(len(p) == module.heads for p in biases)
        assert module.heads == net.get_submodule(name).heads - 1


@pytest.mark.parametrize("preset", ["small", "tiny"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_work_of_every_architecture_can_be_halved(arch, preset):
    net = network(arch, preset=preset)
    found = families(net, 1)
    budget = cut.Budget(net, found, 1)
    gone = cut.plan(found, worth(found), budget, 0.5, 8)
    small = cut.cut(net, found, worth(found), gone)
    resized.evaluates(small, 1)
    share = cost.cost(small, 1).macs / cost.cost(net, 1).macs
    assert 0.35 < share <= 0.5 and budget.macs(gone) / budget.whole == pytest.approx(share, abs=0.01)
    for family, lost in zip(found, gone, strict=True):
        left = len(family.units) - lost
        assert left >= 0.25 * len(family.units)
        assert not lost or family.whole or left * family.width % 8 == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_a_pruned_network_is_rebuilt_from_its_weights_and_pruned_again(arch):
    net = network(arch, leads=2)
    for _ in range(2):
        found = families(net, 2)
        net = cut.cut(net, found, worth(found), [min(1, len(f.units) - 2) if f.whole else len(f.units) // 4
                                                 for f in found])
        again = resized.resize(build(arch, "tiny", "cinc2017", 2, 4), net.state_dict(), resized.heads(net), 2)
        again.load_state_dict(net.state_dict())
        x = inputs(net, 2)
        with torch.no_grad():
            assert torch.equal(again.eval()(*x), net.eval()(*x))


def test_weights_that_no_pruning_leaves_are_refused():
    net = network()
    weights = net.state_dict()
    with pytest.raises(UserError, match="or less"):
        resized.resize(build("local-lead", "tiny", "cinc2017", 1, 4),
                       weights | {"head.hidden.0.bias": torch.zeros(99)}, {}, 1)
    with pytest.raises(UserError, match="do not fit each other"):
        resized.resize(build("local-lead", "tiny", "cinc2017", 1, 4),
                       weights | {"head.hidden.0.weight": weights["head.hidden.0.weight"][:, 3:]}, {}, 1)
    with pytest.raises(UserError, match="at most 2"):
        resized.resize(build("local-lead", "tiny", "cinc2017", 1, 4),
                       weights | {"local.0.conv.0.weight": weights["local.0.conv.0.weight"][1:]},
                       {"local.7.attention": 3}, 1)


def test_a_share_that_cannot_be_reached_is_refused_with_one_that_can():
    net = network()
    found = families(net, 1)
    with pytest.raises(UserError, match=r"0\.\d+ or more at --round 16"):
        cut.plan(found, worth(found), cut.Budget(net, found, 1), 0.01, 16)


def test_macs_are_those_of_the_integer_graph():
    import numpy as np

    from compress import graph
    from compress.program import Program
    net = network()
    program = Program(net, {"ecg": (1, net.geometry.window)}, {"ecg": 0.016}, True)
    generator = np.random.default_rng(0)
    program.calibrate([[torch.from_numpy(generator.normal(0, 0.3, (4, 1, net.geometry.window)).astype("f"))]])
    _, frozen = program.convert()
    assert graph.macs(frozen) == cost.cost(net, 1).macs
    assert cost.cost(net, 1).int8_bytes == pytest.approx(frozen.weight_bytes, rel=0.05)


def test_a_pruned_run_is_a_run(tmp_path, toy):  # noqa: F811
    fit.fit(toy(tmp_path / "a", task="synthetic"))
    result = prune.prune(str(tmp_path / "a"), str(tmp_path / "b"), 0.5, 8, epochs=1, device="cpu")
    before, whole = fit.load(tmp_path / "a")
    after, small = fit.load(tmp_path / "b")
    assert after.preset == before.preset and after.waveform == before.waveform and not after.frozen
    assert result["macs"] == cost.cost(small, 1).macs <= 0.5 * cost.cost(whole, 1).macs
    text = (tmp_path / "b" / "prune.json").read_text()
    assert after.provenance["pruned"]["from"] == "a" and str(tmp_path) not in text
    judged = json.loads(text)
    assert set(judged["forms"]) == set(prune.FORMS) == set(judged["auroc"]) and judged["part"] == "validation"
    prune.prune(str(tmp_path / "b"), str(tmp_path / "c"), 0.8, 8, epochs=1, device="cpu")
    assert cost.cost(fit.load(tmp_path / "c")[1], 1).macs <= 0.8 * cost.cost(small, 1).macs


def test_inner_folds_are_pruned_to_the_same_widths_on_their_own_records(tmp_path, toy):  # noqa: F811
    fit.fit(toy(tmp_path / "a", epochs=1, folds=2))
    prune.prune(str(tmp_path / "a"), str(tmp_path / "b"), 0.6, 8, epochs=1, device="cpu")
    nets = [fit.load(tmp_path / "b", part)[1] for part in (fit.WEIGHTS, "folds/0.safetensors", "folds/1.safetensors")]
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1] == shapes[2] and resized.heads(nets[0]) == resized.heads(nets[1])
    judged = json.loads((tmp_path / "b" / "prune.json").read_text())
    assert judged["part"] == "out of fold" and judged["units"] == 10
    assert manifest.load(tmp_path / "b").provenance["pruned"]["keep"] == 0.6


def test_a_run_is_not_pruned_into_a_folder_that_holds_one(tmp_path, toy):  # noqa: F811
    fit.fit(toy(tmp_path / "a", epochs=1))
    with pytest.raises(UserError, match="already holds"):
        prune.prune(str(tmp_path / "a"), str(tmp_path / "a"), 0.5, 8, epochs=1, device="cpu")
    with pytest.raises(UserError, match="removes nothing"):
        prune.main(prune.parser().parse_args(["--run", "a", "--out", "b", "--keep", "1"]))


def test_a_pruned_run_becomes_an_integer_graph_with_as_little_work(tmp_path, monkeypatch):
    from compress import graph, qat
    from train import loop, tasks
    monkeypatch.setenv("LEADEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks, "SYNTHETIC_RECORDS", {"train": 24, "test": 6})
    monkeypatch.setattr("train.fit.recipe", lambda task: loop.Recipe(epochs=1))
    fit.fit(fit.Job(run=str(tmp_path / "a"), preset="tiny", device="cpu"))
    result = prune.prune(str(tmp_path / "a"), str(tmp_path / "b"), 0.5, 8, device="cpu")
    qat.main(qat.parser().parse_args(["--run", str(tmp_path / "b"), "--epochs", "1"]))
    about = manifest.load(tmp_path / "b")
    assert about.frozen and about.provenance["pruned"]["macs"] == result["macs"]
    assert graph.macs(graph.load(tmp_path / "b", about.graph_sha256)) == result["macs"]
