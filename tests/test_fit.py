# SPDX-License-Identifier: Apache-2.0
"""Training: who trains, what a batch holds, that it learns, stops, resumes to the same bits, runs twice."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from train import dataset, fit, frontend, loop, manifest, shards
from train.augment import PLAIN
from train.models import build
from train.say import UserError
from train.tasks import TASKS

torch.set_num_threads(1)    # the networks are tiny: threads would only wait for each other
FS = 250
SPEC = frontend.design(FS)
ROOT = Path(__file__).parents[1]


class Toy(shards.Shards):
    """Prepared records in memory: pulses whose height tells the class."""

    def __init__(self, task="synthetic", records=24, seconds=12.0, leads=("I",), beats=40):
        rng = np.random.default_rng(5)
        self.task, self.fs, self.leads, self.frontend, self.skipped = task, FS, leads, SPEC, []
        self.path, self.records, self._signals, self._beats = Path("toy"), [], [], []
        names = TOY_NAMES[task]
        for i in range(records):
            label, length = i % 3, round(seconds * FS)
            x = rng.normal(0, 20, (len(leads), length))
            at = np.arange(60, length - 60, max(1, (length - 120) // beats))[:beats]
            kinds = (at * 7 + i) % 3 if task == "mitbih" else np.full(len(at), label)
            for place, kind in zip(at, kinds, strict=True):
                x[:, place - 5:place + 6] += (300, 700, -500)[kind]
            table = np.zeros(len(at), shards.beat_dtype(12))
            table["sample"], table["label"], table["rr"] = at, kinds, rng.integers(-99, 99, (len(at), 12))
            table["label"][0] = -1
            self._signals.append(x.astype(np.int16))
            self._beats.append(table)
            name = names(i)
            self.records.append({"name": name, "patient": name, "fold": dataset.hashed(name, 5), "labels": [label],
                                 "length": length, "split": "train"})

    def signal(self, i):
        return self._signals[i]

    def beats(self, i):
        return self._beats[i]


DS1 = "101 106 108 109 112 114 115 116 118 119".split()
TOY_NAMES = {"synthetic": lambda i: f"{'test' if i % 6 == 5 else 'train'}-{i}", "cinc2017": lambda i: f"A{i:05d}",
             "mitbih": lambda i: DS1[i], "ptbxl": lambda i: f"p{i}"}


def source(task="synthetic", kinds=None, preset="tiny", **more):
    toy = Toy(task, **more)
    rr = 12 if task == "mitbih" else 0
    net = build("local-lead", preset, task, len(toy.leads), len(TASKS[task].classes), rr)
    return dataset.source(toy, TASKS[task], net.geometry, net.sides, kinds)


@pytest.fixture
def toy(monkeypatch):
    """fit.py on toy records instead of prepared ones; returns a Job that takes a second."""
    monkeypatch.setattr(fit.Fit, "_shards", lambda self: Toy(self.task.name, 10 if self.task.name == "mitbih" else 24))
    return lambda run, **more: fit.Job(**{"run": str(run), "preset": "tiny", "epochs": 2, "device": "cpu",
                                          "task": "mitbih", "folds": 0, **more})


# ---- parts


def test_parts_are_disjoint_by_patient_and_the_tested_fold_is_in_none_of_the_others():
    toy = Toy("cinc2017", 200)
    toy.records[7]["patient"] = toy.records[8]["patient"]
    for fold in range(5):
        parts = dataset.split(toy, fold)
        patients = [{toy.records[i]["patient"] for i in parts[p]} for p in ("train", "validation", "test")]
        assert not patients[0] & patients[1]
        assert {toy.records[i]["fold"] for i in parts["test"]} == {fold}
        assert fold not in {toy.records[i]["fold"] for p in ("train", "validation") for i in parts[p]}
        assert sum(map(len, parts.values())) == 200 and 10 <= len(parts["validation"]) <= 30
    assert dataset.split(toy, 0) == dataset.split(toy, 0)


def test_one_training_patient_is_too_few_to_stop_by():
    toy = Toy(records=3)
    for record in toy.records:
        record["patient"] = "one"
    with pytest.raises(UserError, match="1 training patients"):
        dataset.split(toy)


def test_inner_folds_keep_patients_whole_and_hold_every_record_once():
    toy = Toy(records=23)
    toy.records[0]["patient"] = toy.records[1]["patient"] = "twin"
    groups = dataset.inner_folds(toy, range(23), 5)
    assert sorted(i for group in groups for i in group) == list(range(23)) and {len(g) for g in groups} <= {4, 5, 6}
    assert any({0, 1} <= set(g) for g in groups)
    with pytest.raises(UserError, match="inner folds"):
        dataset.inner_folds(toy, [2, 3], 3)


# ---- batches


def test_an_epoch_is_decided_by_seed_and_epoch_and_shows_every_record_once():
    s = source()
    def told(seed, epoch):
        return [(b.ecg.numpy().tobytes(), b.target.tolist()) for b in s.epoch(range(24), 5, seed, epoch)]
    assert told(1, 0) == told(1, 0) != told(1, 1)
    assert told(1, 0) != told(2, 0)
    targets = [k for _, targets in told(1, 0) for k in targets]
    assert len(targets) == 24 and np.bincount(targets).tolist() == [8, 8, 8]


@pytest.mark.parametrize("task", ["synthetic", "mitbih"])
def test_a_batch_lies_on_the_int8_grid_in_millivolt(task):
    s = source(task, records=10)
    batch = next(s.epoch(range(10), 8, 0, 0))
    steps = batch.ecg.numpy() / (dataset.UV_PER_LSB / 1000)
    assert np.abs(steps - np.rint(steps)).max() < 1e-3 and -128 <= steps.min() and steps.max() <= 127
    assert batch.ecg.dtype == torch.float32 and batch.ecg.shape[:3] == (8, 1, 1)


@pytest.mark.parametrize("seconds,hops", [(40, 5), (12, 3), (8.3, 1), (4.0, 1)])
def test_crops_hold_whole_hops_and_start_after_the_filters_settled(seconds, hops):
    s = source(seconds=seconds, kinds=PLAIN, records=4)
    for i in range(4):
        s.shards._signals[i][:] = np.minimum(np.arange(s.shards.records[i]["length"]), 4000)
    batch = next(s.epoch(range(4), 4, 0, 0))
    g = s.geometry
    assert batch.ecg.shape[-1] == g.window + (hops - 1) * g.hop and batch.crop
    if seconds >= 12:
        assert float(batch.ecg.min()) >= 0.49          # the ramp reads 1 uV per sample; 500 samples settle


def test_a_short_record_is_repeated_from_its_start_not_padded():
    s = source(seconds=4.0, records=2)
    x = s.fill(0)
    assert x.shape[1] == s.geometry.window
    assert np.array_equal(x[:, :1000], s.shards.signal(0))
    assert np.array_equal(x[:, 1000:1900], s.shards.signal(0)[:, :900])
    assert len(s.inputs(0)[0]) == 1


def test_evaluation_windows_are_those_of_the_geometry():
    s = source(seconds=14.6, records=3)
    starts = s.geometry.starts(3650, 500)
    windows, = s.inputs(1)
    assert len(starts) == len(windows) >= 3
    q = frontend.quantize(s.shards.signal(1), dataset.UV_PER_LSB)
    for window, start in zip(windows, starts, strict=True):
        assert np.array_equal(window, q[:, start:start + s.geometry.window])


def test_predictions_come_in_the_order_of_the_truth_whatever_the_lengths():
    torch.manual_seed(0)
    s = source(records=6)
    for i, seconds in enumerate((12, 9, 30, 9, 4, 12)):
        s.shards._signals[i] = np.random.default_rng(i).integers(-500, 500, (1, seconds * FS)).astype(np.int16)
        s.shards.records[i]["length"] = seconds * FS
    net = build("local-lead", "tiny", "synthetic", 1, 3).eval()
    got = loop.predict(net, s, range(6), size=2)
    for i in range(6):
        with torch.no_grad():
            each = net(dataset.millivolt(s.inputs(i)[0], dataset.UV_PER_LSB)).mean(0)
        assert np.allclose(got[i], each, atol=1e-5)
    assert s.truth(range(6)).tolist() == [0, 1, 2, 0, 1, 2] and s.units([3, 1]).tolist() == [3, 1]


def test_a_beat_window_holds_r_at_the_offset_and_zeros_beyond_the_record():
    s = source("mitbih", PLAIN, records=4)
    s.shards._signals[0][:] = 0
    s.shards._signals[0][0, s.shards.beats(0)["sample"]] = 1600
    x, rr = s.inputs(0)
    assert (x[:, 0, s.geometry.offset] == 100).all() and x.shape == (40, 1, s.geometry.window)
    assert np.array_equal(rr, s.shards.beats(0)["rr"])
    assert (x[0, 0, :s.geometry.offset - 60] == 0).all()


def test_beats_jitter_by_at_most_fifty_milliseconds_and_rr_is_in_32nds():
    s = source("mitbih", replace(PLAIN, jitter_s=0.05), records=4)
    for i in range(4):
        s.shards._signals[i][:] = 0
        s.shards._signals[i][0, s.shards.beats(i)["sample"][::3]] = 1600
    batch = next(s.epoch(range(4), 300, 0, 0))
    hit = batch.ecg[:, 0, 0, s.geometry.offset - 12:s.geometry.offset + 13].amax(1) > 1
    assert 0.1 < float(hit.float().mean()) < 0.8
    where = (batch.ecg[:, 0, 0] > 1).nonzero()[:, 1].unique()
    assert len(where) > 15
    codes = batch.sides[0].numpy() * 32
    assert np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= 99
    assert not batch.crop and (batch.target >= 0).all()


def test_the_commonest_beat_is_dealt_evenly_and_capped():
    s = source("mitbih", records=4)
    for i, table in enumerate(s.shards._beats):
        table["label"] = 0
        table["label"][:2 * i] = 1
    pairs = s.draw(range(4), np.random.default_rng(0))
    labels = np.array([s.shards.beats(i)["label"][n] for i, n in pairs])
    assert np.bincount(labels).tolist() == [24, 12] and s.counts(range(4)).tolist()[:2] == [24, 12]
    normal = np.bincount(pairs[labels == 0, 0], minlength=4)
    assert normal.tolist() == [6, 6, 6, 6] and len({tuple(p) for p in pairs}) == len(pairs)


def test_beats_without_a_class_are_never_trained_on_but_stay_in_the_truth():
    s = source("mitbih", records=4)
    assert (s.truth(range(4)) == -1).sum() == 4 and len(s.units(range(4))) == 160
    assert all((b.target >= 0).all() for b in s.epoch(range(4), 16, 0, 0))


def test_a_multi_label_target_marks_every_class_present():
    s = source("ptbxl", records=4, leads=("I", "II"))
    s.shards.records[0]["labels"], s.shards.records[1]["labels"] = [0, 3], []
    batch = next(s.epoch(range(4), 4, 0, 0))
    assert sorted(batch.target.sum(1).tolist()) == [0, 1, 1, 2] and batch.target.dtype == torch.float32
    assert s.truth([0]).tolist() == [[True, False, False, True, False]]


@pytest.mark.parametrize("items,world,each", [(10, 2, 5), (11, 2, 5), (2, 4, 1), (7, 1, 7)])
def test_every_process_gets_as_many_batches(items, world, each):
    shares = [dataset.share(list(range(items)), rank, world) for rank in range(world)]
    assert {len(s) for s in shares} == {each}
    if items >= world:
        assert len({n for s in shares for n in s}) == each * world


def test_shards_of_another_rate_are_refused():
    toy = Toy()
    toy.fs = 500
    with pytest.raises(UserError, match="500 Hz"):
        dataset.source(toy, TASKS["synthetic"], build("local-lead", "tiny", "synthetic", 1, 3).geometry)


# ---- loss and loop


def test_rare_classes_weigh_more_and_absent_ones_stay_finite():
    weight = loop.class_weights(np.array([100, 25, 0]), 0.5)
    assert weight[1] == 2 * weight[0] and torch.isfinite(weight).all()
    logits = torch.zeros(2, 3)
    single = loop.loss_of(logits, torch.tensor([0, 1]), torch.ones(3), 0.0)
    assert float(single) == pytest.approx(np.log(3), rel=1e-5)
    many = loop.loss_of(logits, torch.tensor([[1.0, 0, 0], [0, 0, 0]]), torch.tensor([2.0, 1, 1]), 0.0)
    assert float(many) == pytest.approx(np.log(2) * 7 / 6, rel=1e-5)


def test_quality_is_one_for_a_perfect_order_and_leaves_unlabelled_rows_out():
    logits = np.eye(3)[[0, 1, 2, 0]] + 0.01
    assert loop.quality(logits, np.array([0, 1, 2, -1])) == 1
    assert loop.quality(np.array([[1.0], [2]]), np.array([[False], [True]])) == 1
    assert np.isnan(loop.quality(logits, np.array([1, 1, 1, 1])))


def training(tmp_path, recipe=None, seed=0, **more):
    torch.manual_seed(seed)
    s = source("mitbih", PLAIN, records=10)
    net = build("local-lead", "tiny", "mitbih", 1, 3, 12)
    recipe = recipe or loop.Recipe(epochs=3, batch=64, warmup=2, mean=0.9)
    return loop.Training(net, s, range(8), range(8, 10), recipe, tmp_path, seed, {"label": "test"}, loop.Workers(),
                         **more)


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns(tmp_path):
    t = training(tmp_path, loop.Recipe(epochs=5, batch=24, warmup=4, mean=0.9))
    t.fit()
    assert t.state.best > 0.95 and t.state.log[-1]["loss"] < t.state.log[0]["loss"]


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path):
    a, b, c = (training(tmp_path / str(i), seed=seed).fit() for i, seed in enumerate((3, 3, 4)))
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize("when", ["between epochs", "inside an epoch", "while the checkpoint is written"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, when):
    whole = training(tmp_path / "whole").fit()
    killed = training(tmp_path / "killed")

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    if when == "between epochs":
        report = killed._report
        killed._report = lambda *a: kill() if killed.state.epoch == 2 else report(*a)
    elif when == "inside an epoch":
        average = killed._average
        killed._average = lambda steps: kill() if killed.state.step == 7 else average(steps)
    else:
        save = killed.save
        killed.save = lambda: _torn(monkeypatch, save, kill) if killed.state.epoch == 2 else save()
    with pytest.raises(Killed):
        killed.fit()
    monkeypatch.undo()
    again = training(tmp_path / "killed")
    assert again.load() and again.state.epoch == (2 if when == "between epochs" else 1)
    assert same(again.fit(), whole) and len(again.state.log) == 3


def _torn(monkeypatch, save, kill):
    """Die after the new file is written beside the old and before it takes its place."""
    monkeypatch.setattr(os, "replace", kill)
    save()


def test_another_jobs_checkpoint_is_refused(tmp_path):
    training(tmp_path).save()
    other = training(tmp_path, loop.Recipe(epochs=9))
    with pytest.raises(UserError, match="another recipe"):
        other.load()


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / loop.CHECKPOINT).write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="no checkpoint"):
        training(tmp_path).load()


def test_no_better_score_stops_early_and_keeps_the_best(tmp_path, monkeypatch):
    values = iter([0.6, 0.9, 0.8, 0.7, 0.95])
    monkeypatch.setattr(loop, "quality", lambda *_: next(values))
    t = training(tmp_path, loop.Recipe(epochs=5, batch=64, patience=2))
    kept = t.fit()
    assert t.state.epoch == 4 and t.state.best_epoch == 2 and not same(kept, t.mean.state_dict())


def test_the_time_budget_bounds_the_epochs_and_the_schedule_ends_with_it(tmp_path):
    t = training(tmp_path, loop.Recipe(epochs=500, batch=64), minutes=1e-4)
    t.fit()
    assert t.state.epoch == 1
    t.state.epoch, t.state.elapsed_s, t.minutes = 4, 40.0, 1.5
    assert t._planned() == 9
    t.state.step = 9 * 10
    assert t._rate(9, 10) == pytest.approx(0)


def test_warm_up_is_linear_and_at_most_a_tenth(tmp_path):
    t = training(tmp_path, loop.Recipe(lr=1.0, warmup=100))
    rates = []
    for step in range(100):
        t.state.step = step
        rates.append(t._rate(10, 10))
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(rates[9]) and rates[-1] < 0.001


# ---- fit.py


def test_a_run_folder_holds_weights_record_and_a_draft_manifest(tmp_path, toy):
    result = fit.fit(toy(tmp_path / "run", task="synthetic"))
    files = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert files == ["model.json", "training.json", "weights.safetensors"]
    about, net = fit.load(tmp_path / "run")
    assert not about.frozen and about.streaming and about.trigger == manifest.Trigger("hop", hop=256)
    assert about.waveform.shape == (1, net.geometry.window) and about.name == "run"
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [e["epoch"] for e in record["log"]] == [1, 2] and result["epochs"] == 2
    assert about.provenance["split"] == TASKS["synthetic"].rule


def test_beats_get_inner_folds_that_never_saw_what_they_score(tmp_path, toy):
    fit.fit(toy(tmp_path / "run", epochs=1, folds=3))
    about, net = fit.load(tmp_path / "run")
    assert [i.kind for i in about.inputs] == ["waveform", "rr"]
    assert about.trigger.kind == "r-peak" and not about.streaming
    assert about.trigger.offset == net.geometry.offset
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    held = [set(f["records"]) for f in record["folds"]]
    assert set.union(*held) == set(DS1) and sum(map(len, held)) == len(DS1)
    folds = [fit.load(tmp_path / "run", f"folds/{k}.safetensors")[1].state_dict() for k in range(3)]
    assert not same(folds[0], folds[1]) and not (tmp_path / "run" / "folds" / "0").exists()


def test_a_finished_run_is_never_overwritten_and_resuming_it_changes_nothing(tmp_path, toy):
    fit.fit(toy(tmp_path / "run"))
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds"):
        fit.fit(toy(tmp_path / "run"))
    assert fit.fit(toy(tmp_path / "run", resume=True))["epochs"] == 2
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before


def test_weights_of_another_network_are_refused(tmp_path, toy):
    fit.fit(toy(tmp_path / "run"))
    text = (tmp_path / "run" / "model.json").read_text().replace('"tiny"', '"small"')
    (tmp_path / "run" / "model.json").write_text(text)
    with pytest.raises(UserError, match="does not hold the weights"):
        fit.load(tmp_path / "run")


def test_a_gpu_that_is_not_there_is_a_missing_tool(tmp_path, toy):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="no GPU") as caught:
        fit.fit(toy(tmp_path / "run", device="cuda"))
    assert caught.value.code == 2


@pytest.mark.parametrize("words,says", [(["--epochs", "0"], "not above 0"), (["--minutes", "-1"], "not above 0"),
                                        (["--preset", "tini"], "use tiny"), (["--task", "mitbi"], "use mitbih"),
                                        (["--arch", "local"], "use local-lead")])
def test_wrong_options_end_in_a_sentence(tmp_path, capsys, words, says):
    from train import say
    assert say.run(fit.main, fit.parser(), ["--run", str(tmp_path / "r"), *words]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "r").exists()


TWO = """
import hashlib, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from train import fit
import test_fit
from train.loop import Training
fit.Fit._shards = lambda self: test_fit.Toy(self.task.name, 10, beats=300, seconds=120.0)
ended = Training.fit
def told(self, label="training"):
    out = ended(self, label)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.net.parameters())).hexdigest()
    open(os.path.join({out!r}, "rank" + os.environ["RANK"]), "w").write(digest)
    return out
Training.fit = told
fit.fit(fit.Job(run={run!r}, preset="tiny", task="mitbih", epochs=2, folds=0, device="cpu"))
"""


def test_two_processes_train_one_network(tmp_path):
    script = tmp_path / "two.py"
    places = {"root": str(ROOT), "tests": str(ROOT / "tests"), "out": str(tmp_path), "run": str(tmp_path / "run")}
    script.write_text(TWO.format(**places))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
    assert "2 processes" in done.stdout and done.stdout.count("epoch 2 of 2") == 1
    assert fit.load(tmp_path / "run")[0].preset == "tiny"
