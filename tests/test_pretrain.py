# SPDX-License-Identifier: Apache-2.0
"""Pre-training and what uses it: what is hidden, what is never seen, where weights go; fewer labels; contrast."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from test_fit import DS1, Toy, same

from bench import labels as study
from train import contrast, dataset, fit, labels, loop, masking, pretrain, say, weights
from train.augment import PLAIN
from train.models import ARCHS, build
from train.records import sha1_fold
from train.say import UserError
from train.tasks import DS2, TASKS

torch.set_num_threads(1)    # the networks are tiny: threads would only wait for each other


def network(arch="nat", leads=1, task="cinc2017"):
    torch.manual_seed(0)
    return build(arch, "tiny", task, leads, 4)


# ---- masks and the autoencoder


def test_equally_many_patches_are_hidden_in_every_row_and_other_ones():
    hidden = masking.draw(np.random.default_rng(0), 50, 1648)
    assert hidden.shape == (50, 65) and (hidden.sum(1) == 42).all()
    assert len({row.tobytes() for row in hidden}) == 50
    assert (0.3 < hidden.mean(0)).all() and (hidden.mean(0) < 0.95).all()


def test_what_is_hidden_does_not_reach_the_network_and_what_is_shown_does():
    objective = masking.Reconstruction(network(), 1)
    masked = objective.voter(network())
    seen = []
    masked.net.levels = lambda ecg: seen.append(ecg) or [ecg]
    masked.decoder.forward = lambda maps, time: maps[0][:, 0]
    ecg = torch.randn(2, 1, 1, 130)
    hidden = torch.tensor([[True, False, True, False, True], [False, True, True, False, False]])
    torch.nn.init.constant_(objective.token, 7.0)
    masked(ecg, hidden)
    shown = seen[0][:, 0, 0]
    for row, which in zip(range(2), hidden.tolist(), strict=True):
        for patch, hide in enumerate(which):
            part = slice(25 * patch, 25 * patch + 25)
            assert (shown[row, part] == 7).all() if hide else torch.equal(shown[row, part], ecg[row, 0, 0, part])
    assert torch.equal(shown[:, 125:], ecg[:, 0, 0, 125:])


def test_the_error_counts_hidden_patches_only_each_in_units_of_its_spread():
    ecg = torch.randn(2, 1, 100) * 2
    hidden = torch.tensor([[True, False, False, True], [False, False, True, False]])
    patches = ecg.reshape(2, 1, 4, 25)
    spread = (patches.var(3, correction=0, keepdim=True) + 0.03 ** 2).sqrt()
    truth = ((patches - patches.mean(3, keepdim=True)) / spread).reshape(2, 1, 100)
    assert float(masking.error(truth, ecg, hidden)) == pytest.approx(0, abs=1e-10)
    other = truth.clone()
    other[0, :, 25:75] += 5
    assert float(masking.error(other, ecg, hidden)) == pytest.approx(0, abs=1e-10)
    other[0, :, :25] += 1
    assert float(masking.error(other, ecg, hidden)) == pytest.approx(1 / 3, rel=1e-5)


def test_a_flat_line_is_no_target():
    flat = torch.zeros(1, 1, 50)
    assert float(masking.error(flat, flat + 1, torch.ones(1, 2, dtype=torch.bool))) == 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("leads", [1, 3])
def test_every_architecture_with_columns_can_be_pre_trained(arch, leads):
    net = network(arch, leads, "pretraining")
    names = masking.backbone(net, leads)
    own = net.state_dict()
    assert set(names) < set(own) and len(names) == len(set(names)) > 20
    assert not any(name.startswith("head") for name in names)
    objective = masking.Reconstruction(net, leads)
    ecg = torch.randn(2, 1, leads, net.geometry.window)
    maps = masking.levels(net, ecg)
    assert objective.decoder(maps, ecg.shape[3]).shape == (2, leads, net.geometry.window)
    hidden = torch.from_numpy(masking.draw(np.random.default_rng(0), 2, ecg.shape[3]))
    objective.voter(net)(ecg, hidden).backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == set(names) & dict(
        net.named_parameters()).keys()


def test_all_stages_of_nat_are_pre_trained():
    net = network()
    assert {name.split(".")[0] for name in masking.backbone(net, 1)} == {"local", "whole"}
    assert set(net.state_dict()) - set(masking.backbone(net, 1)) == {f"head.{part}" for part in (
        "hidden.0.weight", "hidden.0.bias", "logits.weight", "logits.bias")}


# ---- what may be seen


def toys():
    """Four data sets that hold records of every part; PTB-XL and the Challenge share two."""
    rhythm, beats = Toy("cinc2017", 40), Toy("mitbih", 10)
    for record, name in zip(beats.records, [*DS1[:5], *DS2[:3], "202", "207"], strict=True):
        record["name"] = record["patient"] = name
    ptbxl = Toy("ptbxl", 20, leads=("I", "II", "V1"))
    ptbxl.task = "ptbxl"
    for i, record in enumerate(ptbxl.records):
        name = f"{i:05d}_hr"
        record |= {"name": name, "patient": name, "fold": i % 10 + 1}
    challenge = Toy("ptbxl", 20, leads=("I", "II", "V1"))
    challenge.task = "cinc2021"
    for i, record in enumerate(challenge.records):
        name = f"HR{i:05d}" if i < 6 else f"JS{i:05d}"
        record |= {"name": name, "patient": name, "fold": sha1_fold(name)}
    return [rhythm, beats, ptbxl, challenge]


class Watched(Toy):
    """Toy records that note who is looked at."""

    def signal(self, i):
        self.seen.add(self.records[i]["name"])
        return super().signal(i)


@pytest.mark.parametrize("fold", range(5))
def test_no_sample_is_ever_read_of_a_test_fold_ds2_202_or_ptbxl_9_and_10(fold):
    sets = toys()
    for shards in sets:
        shards.__class__, shards.seen = Watched, set()
    used = [(shards, pretrain.usable(shards, fold)) for shards in sets]
    crops = pretrain.Crops(used, network().geometry, True, size=1920)
    for _ in crops.epoch([], 64, 0, 0):
        pass
    rhythm, beats, ptbxl, challenge = (shards.seen for shards in sets)
    assert rhythm == {r["name"] for r in sets[0].records if r["fold"] != fold}
    assert beats == {*DS1[:5], "207"}
    forbidden = {r["name"] for r in sets[2].records if r["fold"] > 8}
    twins = {r["name"] for r in sets[2].records if sha1_fold("HR" + r["name"][:5]) == fold}
    assert ptbxl == {r["name"] for r in sets[2].records} - forbidden - twins and forbidden and twins
    assert challenge and all(name.startswith("JS") and sha1_fold(name) != fold for name in challenge)


def test_crops_hold_one_lead_each_and_every_lead_comes():
    toy = Toy("ptbxl", 8, leads=("I", "II", "V1"))
    for i, x in enumerate(toy._signals):
        x[:] = np.array([[100], [400], [900]]) + i
    crops = pretrain.Crops([(toy, range(8))], network().geometry, True, size=128)
    crops.kinds = PLAIN
    batch = next(crops.epoch([], 64, 0, 0))
    assert batch.ecg.shape == (64, 1, 1, crops.geometry.window) and not batch.crop
    values = {round(v) for v in (batch.ecg.mean(3).flatten() * 10).tolist()}
    assert values == {1, 4, 9}
    both = pretrain.Crops([(toy, range(8))], network().geometry, False, size=128)
    assert next(both.epoch([], 64, 0, 0)).ecg.shape[2] == 3


def test_data_sets_are_mixed_by_the_square_root_of_their_hours_of_signal():
    long, wide = Toy("cinc2017", 36, seconds=20), Toy("ptbxl", 20, seconds=10, leads=("I", "II"))
    crops = pretrain.Crops([(long, range(36)), (wide, range(20))], network().geometry, True)
    assert crops.hours == pytest.approx([0.2, 1 / 9])
    assert crops.shares[0] / crops.shares[1] == pytest.approx(math.sqrt(1.8))
    assert pretrain.Crops([(wide, range(20))], network().geometry, False).hours == pytest.approx([1 / 18])


def test_a_record_shorter_than_a_crop_is_repeated():
    toy = Toy("cinc2017", 2, seconds=4.0)
    crops = pretrain.Crops([(toy, [1])], network().geometry, True)
    x = crops.crop(0, np.random.default_rng(0))
    assert x.shape == (1, 1648)
    assert np.array_equal(x[:, :1000], toy.signal(1)) and np.array_equal(x[:, 1000:], toy.signal(1)[:, :648])


def test_an_epoch_is_decided_by_seed_and_epoch():
    crops = pretrain.Crops([(Toy("cinc2017", 6), range(6))], network().geometry, True, size=32)

    def told(seed, epoch):
        return [(b.ecg.numpy().tobytes(), b.sides[0].numpy().tobytes()) for b in crops.epoch([], 16, seed, epoch)]
    assert told(1, 0) == told(1, 0) != told(1, 1) and told(1, 0) != told(2, 0) and len(told(1, 0)) == 2


# ---- pretrain.py


@pytest.fixture
def toy(monkeypatch):
    """Both scripts on toy records instead of prepared ones."""
    monkeypatch.setattr(pretrain.Pretraining, "_shards", lambda self, name, folder: Toy(name, 24))
    monkeypatch.setattr(fit.Fit, "_shards", lambda self: Toy(self.task.name, 60))
    monkeypatch.setattr(pretrain, "folders", lambda data, names: dict.fromkeys(names))
    monkeypatch.setattr(pretrain, "CROPS", 256)
    pretrain.Crops.__init__.__defaults__ = (256,)
    yield lambda run, **more: pretrain.Job(**{"run": str(run), "data_sets": "cinc2017", "epochs": 2, "device": "cpu",
                                              **more})
    pretrain.Crops.__init__.__defaults__ = (6400,)


def test_the_loss_falls_on_toy_records_and_the_run_says_what_it_saw(tmp_path, toy):
    result = pretrain.pretrain(toy(tmp_path / "run", data_sets="cinc2017,synthetic", epochs=4))
    assert result["loss"][1] < result["loss"][0]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["pretraining.json", "weights.safetensors"]
    about = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert [part["task"] for part in about["data_sets"]] == ["cinc2017", "synthetic"]
    assert all(part["records"] + part["withheld"] == 24 and part["withheld"] for part in about["data_sets"])
    assert about["losses"][-1] == result["loss"][1] and len(about["losses"]) == 4 and about["leads"] == "one of any"
    assert not any(word in json.dumps(about) for word in (str(tmp_path), "toy"))


def test_equal_seeds_give_equal_weights_and_a_killed_one_goes_on_to_them(tmp_path, toy, monkeypatch):
    pretrain.pretrain(toy(tmp_path / "a"))
    pretrain.pretrain(toy(tmp_path / "c", seed=1))
    report = loop.Training._report

    def kill(self, *_):
        raise KeyboardInterrupt
    monkeypatch.setattr(loop.Training, "_report", kill)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(toy(tmp_path / "b"))
    monkeypatch.setattr(loop.Training, "_report", report)
    with pytest.raises(UserError, match="already holds checkpoint"):
        pretrain.pretrain(toy(tmp_path / "b"))
    pretrain.pretrain(toy(tmp_path / "b", resume=True))
    a, b, c = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert pretrain.pretrain(toy(tmp_path / "a", resume=True))["epochs"] == 2


def test_folders_are_found_by_data_set_or_task_and_by_pairs(tmp_path):
    for name in ("mitdb", "cinc2017"):
        (tmp_path / name).mkdir()
    want = {"mitbih": str(tmp_path / "mitdb"), "cinc2017": str(tmp_path / "cinc2017"), "synthetic": None}
    assert pretrain.folders(str(tmp_path), list(want)) == want
    pairs = f"mitbih={tmp_path}/mitdb,cinc2017={tmp_path}/cinc2017"
    assert pretrain.folders(pairs, ["mitbih", "cinc2017"]) == {k: v for k, v in want.items() if v}


@pytest.mark.parametrize("words,says", [(["--data", "nowhere"], "no folder for data set cinc2017"),
                                        ([], "no folder for data set cinc2017"),
                                        (["--data", "mitbih=x,mitbi=x"], "--data has a folder of mitbi"),
                                        (["--data-sets", "mitbi"], "use mitbih"), (["--epochs", "0"], "not above 0"),
                                        (["--data-sets", "synthetic", "--arch", "nad"], "use nat")])
def test_wrong_options_end_in_a_sentence(tmp_path, capsys, words, says):
    assert say.run(pretrain.main, pretrain.parser(), ["--run", str(tmp_path / "r"), *words]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "r").exists()


# ---- fit.py --init


@pytest.fixture
def pretrained(tmp_path, toy):
    run = tmp_path / "pre"
    pretrain.pretrain(toy(run, epochs=1))
    return run


def job(run, **more):
    return fit.Job(**{"run": str(run), "arch": "nat", "preset": "tiny", "task": "cinc2017", "epochs": 1,
                      "device": "cpu", **more})


def first_weights(monkeypatch, *jobs):
    """The weights with which each job begins to train."""
    began = []

    def stop(self, label="training"):
        began.append({name: value.clone() for name, value in self.net.state_dict().items()})
        raise KeyboardInterrupt
    monkeypatch.setattr(loop.Training, "fit", stop)
    for each in jobs:
        with pytest.raises(KeyboardInterrupt):
            fit.fit(each)
    monkeypatch.undo()
    return began


def test_init_loads_every_backbone_tensor_and_leaves_the_head_fresh(tmp_path, pretrained, monkeypatch, capsys):
    from safetensors.torch import load_file
    held = load_file(pretrained / "weights.safetensors")
    began, = first_weights(monkeypatch, job(tmp_path / "a", init=str(pretrained)))
    assert same(held, {name: began[name] for name in held})
    assert {name for name in began if name not in held} == {n for n in began if n.startswith("head.")}
    assert f"{len(held)} tensors of {len(began)} start from" in capsys.readouterr().out


def test_pre_trained_weights_learn_slower_than_fresh_ones(tmp_path, pretrained, monkeypatch):
    rates = []

    def look(self, label="training"):
        rates.append({g["share"]: sum(p.numel() for p in g["params"]) for g in self.adam.param_groups})
        raise KeyboardInterrupt
    monkeypatch.setattr(loop.Training, "fit", look)
    for init in (str(pretrained), None):
        with pytest.raises(KeyboardInterrupt):
            fit.fit(job(tmp_path / "a", init=init))
    assert set(rates[0]) == {loop.Recipe().slow, 1.0} and set(rates[1]) == {1.0}


@pytest.mark.parametrize("change,says", [({"arch": "local-lead"}, "pre-trained for arch nat"),
                                         ({"preset": "small"}, "pre-trained for preset tiny"),
                                         ({"fold": 1}, "pre-trained for fold 0"),
                                         ({"init": "nowhere"}, "no pre-trained weights")])
def test_init_refuses_another_network_fold_or_folder(tmp_path, pretrained, change, says):
    with pytest.raises(UserError, match=says):
        fit.fit(job(tmp_path / "a", **{"init": str(pretrained), **change}))
    assert not (tmp_path / "a").exists()


def test_weights_for_another_number_of_leads_leave_the_first_convolution_fresh(pretrained):
    net = network(leads=12)
    names, about = weights.start(net, str(pretrained), "nat", "tiny", 0)
    assert about["left"] == 1 and "local.0.conv.0.weight" not in names and len(names) > 100


def test_a_run_without_a_fitting_tensor_is_refused(pretrained):
    with pytest.raises(UserError, match="no tensor"):
        weights.start(torch.nn.Linear(2, 2), str(pretrained), "nat", "tiny", 0)


def test_the_manifest_tells_the_start_the_labels_and_the_objective(tmp_path, pretrained):
    fit.fit(job(tmp_path / "run", init=str(pretrained), labels=0.2, supcon=0.5))
    about, net = fit.load(tmp_path / "run")
    said = about.provenance
    assert said["labels"] == 0.2 and said["supcon"] == 0.5 and said["training_records"] < 20
    assert said["pretrained"]["epochs"] == 1 and said["pretrained"]["data"] == [TASKS["cinc2017"].source]
    assert not any("projection" in name for name in net.state_dict())
    assert json.loads((tmp_path / "run" / "training.json").read_text())["validation"] is None


# ---- labels


def labelled(task="cinc2017", records=200):
    toy = Toy(task, records)
    net = build("nat", "tiny", task, 1, len(TASKS[task].classes), 12 if task == "mitbih" else 0)
    return dataset.source(toy, TASKS[task], net.geometry, net.sides)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_a_fraction_keeps_the_share_of_every_class_and_at_least_one(fraction):
    source = labelled()
    for i in range(150):
        source.shards.records[i]["labels"] = [0] if i < 140 else [1]
    kept = labels.subset(source, range(200), fraction, 0)
    have, want = source.counts(kept)[:3], source.counts(range(200))[:3] * fraction
    assert (np.abs(have - want) <= 1).all() and (have >= 1).all() and len(kept) == len(set(kept))


def test_a_smaller_fraction_is_a_part_of_a_larger_and_seeds_draw_others():
    source = labelled()
    parts = [set(labels.subset(source, range(200), f, 3)) for f in (0.02, 0.1, 0.4, 1.0)]
    assert parts[0] < parts[1] < parts[2] < parts[3] == set(range(200))
    assert labels.subset(source, range(200), 0.1, 3) != labels.subset(source, range(200), 0.1, 4)
    assert labels.subset(source, range(199, -1, -1), 0.1, 3) == labels.subset(source, range(200), 0.1, 3)


def test_records_of_several_labels_count_for_the_rarest():
    source = labelled("ptbxl", 40)
    for i, record in enumerate(source.shards.records):
        record["labels"] = [0, 1] if i < 4 else [0] if i < 36 else []
    kept = labels.subset(source, range(40), 0.25, 0)
    assert [sum(i < 4 for i in kept), sum(4 <= i < 36 for i in kept), sum(i >= 36 for i in kept)] == [1, 8, 1]


def test_a_fraction_of_beats_is_refused():
    with pytest.raises(UserError, match="labels beats"):
        labels.subset(labelled("mitbih", 10), range(10), 0.1, 0)


@pytest.mark.parametrize("fraction,times", [(1.0, 1), (0.1, 4), (0.05, 6), (0.01, 16)])
def test_few_records_come_several_times_an_epoch(fraction, times):
    assert labels.repeated([3, 4], fraction) == [3, 4] * times


def test_both_arms_of_a_seed_train_on_the_same_labels_for_as_many_steps(tmp_path, pretrained):
    arms = [fit.Fit(job(tmp_path / "x", labels=0.3, init=init, seed=seed), loop.Workers())
            for init, seed in ((None, 0), (str(pretrained), 0), (None, 1))]
    assert arms[0].learners == arms[1].learners != arms[2].learners
    assert arms[0].recipe == arms[1].recipe and arms[0].learners[1] == []
    test = set(arms[0].parts["test"])
    assert test and not test & set(arms[0].learners[0])


# ---- contrast


def by_formula(z, label, tau):
    total = []
    for i in range(len(z)):
        same_label = [p for p in range(len(z)) if p != i and label[p] == label[i]]
        below = sum(math.exp(float(z[i] @ z[a]) / tau) for a in range(len(z)) if a != i)
        if same_label:
            total.append(-sum(math.log(math.exp(float(z[i] @ z[p]) / tau) / below) for p in same_label)
                         / len(same_label))
    return sum(total) / len(total) if total else 0.0


@pytest.mark.parametrize("label", [[0, 0, 1, 1, 2, 0], [0, 1, 2, 3, 4, 5], [1] * 6])
def test_the_contrastive_loss_equals_its_formula(label):
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 8), dim=1).requires_grad_()
    loss = contrast.contrast(z, torch.tensor(label))
    assert float(loss.detach()) == pytest.approx(by_formula(z.detach().double(), label, 0.1), rel=1e-4)
    loss.backward()
    assert torch.isfinite(z.grad).all()


def test_one_item_alone_has_no_contrast():
    z = torch.ones(1, 4, requires_grad=True)
    contrast.contrast(z, torch.tensor([0])).backward()
    assert torch.isfinite(z.grad).all()


def contrastive(tmp_path, epochs=2):
    torch.manual_seed(0)
    source = labelled(records=12)
    net = build("nat", "tiny", "cinc2017", 1, 4)
    recipe = loop.Recipe(epochs=epochs, batch=6, warmup=1)
    return loop.Training(net, source, range(12), [], recipe, tmp_path, 0, {}, loop.Workers(),
                         objective=contrast.objective(net, 0.5, 2 * epochs))


def test_the_contrastive_weight_falls_in_a_line_to_a_tenth_and_the_projection_learns(tmp_path):
    training = contrastive(tmp_path)
    before = {name: value.clone() for name, value in training.objective.state_dict().items()}
    assert training.objective.alpha == 0.5
    kept = training.fit()
    assert int(training.objective.step) == 4 and training.objective.alpha == pytest.approx(0.1)
    after = training.objective.state_dict()
    assert not torch.equal(before["projection.0.weight"], after["projection.0.weight"])
    assert not any("projection" in name for name in kept)


def test_a_resumed_contrastive_training_goes_on_with_its_projection(tmp_path):
    whole = contrastive(tmp_path / "whole").fit()
    killed = contrastive(tmp_path / "killed")
    report = killed._report
    killed._report = lambda *a: (_ for _ in ()).throw(KeyboardInterrupt) if killed.state.epoch == 1 else report(*a)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    again = contrastive(tmp_path / "killed")
    assert again.load() and int(again.objective.step) == 2
    assert same(again.fit(), whole)


def test_a_network_without_the_shared_head_has_no_contrast():
    with pytest.raises(UserError, match=r"head\.logits"):
        contrast.objective(torch.nn.Linear(3, 3), 0.5, 10)


def test_several_labels_leave_the_contrast_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit.Fit, "_shards", lambda self: Toy("ptbxl", 12, leads=("I", "II")))
    monkeypatch.setattr(dataset, "split", lambda shards, fold: {"train": list(range(10)), "validation": [10, 11]})
    fit.fit(job(tmp_path / "run", task="ptbxl", leads="I,II", supcon=0.5))
    assert "contrastive term is left out" in capsys.readouterr().out


# ---- the study


def test_the_study_trains_what_is_missing_and_compares_arms_seed_by_seed(tmp_path, pretrained, monkeypatch, capsys):
    words = ["--data", "x", "--init", str(pretrained), "--shares", "0.2,1", "--seeds", "0,1", "--epochs", "1", "--out",
             str(tmp_path / "out"), "--runs", str(tmp_path / "cells")]
    assert say.run(study.main, study.parser(), words) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 8 and not any(str(tmp_path) in file.read_text() for file in files)
    cells = {(r["share"], r["arm"], r["seed"]): r for r in (json.loads(f.read_text()) for f in files)}
    for share in (0.2, 1.0):
        for seed in (0, 1):
            a, b = cells[share, "scratch", seed], cells[share, "pretrained", seed]
            assert a["labels"] == b["labels"] and a["steps"] == b["steps"] and a["test_records"] == b["test_records"]
            assert a["pretrained"] is None and b["pretrained"]["epochs"] == 1
    assert cells[0.2, "scratch", 0]["steps"] > 0.2 * cells[1.0, "scratch", 0]["steps"]
    monkeypatch.setattr(study, "cell", None)            # a second call has nothing to train
    capsys.readouterr()
    assert say.run(study.main, study.parser(), words) == 0
    assert "20 % pretrained" in capsys.readouterr().out


def test_the_table_gives_means_ranges_and_paired_gains():
    def cell(arm, seed, f1):
        return {"share": 0.01, "arm": arm, "seed": seed, "labels": {"N": 30, "A": 6}, "mean_f1": f1, "auroc": f1 + 0.1,
                "seconds": 60}
    values = {"scratch": (0.3, 0.4), "pretrained": (0.45, 0.5)}
    first, second = study.table([cell(arm, seed, f1) for arm, each in values.items() for seed, f1 in enumerate(each)])
    assert (first["arm"], second["arm"]) == ("scratch", "pretrained") and first["mean_f1_gain"] is None
    assert second["mean_f1"] == pytest.approx(0.475) and second["mean_f1_range"] == [0.45, 0.5]
    assert second["mean_f1_gain"] == pytest.approx(0.125)
    assert second["mean_f1_gain_range"] == pytest.approx([0.1, 0.15])
    assert second["labels"] == 36 and second["minutes"] == 1 and second["seeds"] == 2


@pytest.mark.parametrize("words,says", [(["--data", "x"], "no pre-trained weights"), ([], "holds no results"),
                                        (["--data", "x", "--arms", "scratsh"], "use scratch")])
def test_the_study_says_what_it_lacks(tmp_path, capsys, words, says):
    assert say.run(study.main, study.parser(), ["--out", str(tmp_path), *words]) == 1
    assert says in capsys.readouterr().err
