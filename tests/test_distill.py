# SPDX-License-Identifier: Apache-2.0
"""Distillation: who may teach, that teacher and student decide on the same samples, what is learnt, what is written."""
# ruff: noqa: E402  (torch is optional: the imports follow importorskip)

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from bench import distill as study
from compress import distill, prune
from compress.teacher import Distillation, Teacher, Watched, Way, mirrored
from tests.test_fit import Toy, source, toy  # noqa: F401
from train import fit, loop
from train.augment import PLAIN
from train.models import build
from train.models.geometry import Hop
from train.say import UserError

torch.set_num_threads(1)


def nets(teacher=("local-lead", "small"), student=("local-lead", "tiny"), task="synthetic", rr=0):
    torch.manual_seed(1)
    return [build(arch, preset, task, 1, 3, rr).eval() for arch, preset in (teacher, student)]


def batch(task="synthetic", **more):
    return next(source(task, PLAIN, records=6, **more).epoch(range(6), 6, 0, 0))


def labels(smoothing=0.0):
    return loop.LabelLoss(torch.ones(3), smoothing)


@pytest.mark.parametrize("arch,preset", [("local-lead", "small"), ("lga", "small"), ("nat", "tiny")])
def test_a_teacher_with_other_margins_decides_on_the_samples_of_the_student(arch, preset):
    net, student = nets((arch, preset))
    teacher = Teacher(net, student, ())
    assert teacher.paired
    ecg = torch.randn(2, 1, 1, student.geometry.window + 4 * student.geometry.hop)
    long = torch.cat([torch.randn(2, 1, 1, 512), ecg, torch.randn(2, 1, 1, 512)], 3)
    told = teacher(loop_batch(ecg))[0]
    # the same windows, cut from a longer record so that the margins are real: only columns at the ends may differ
    first = 512 - teacher.left
    with torch.no_grad():
        wanted = net(long[..., first + 512:first + 512 + net.geometry.window])
    assert told.shape == (2, 3, 3)
    torch.testing.assert_close(told[:, 1], wanted, rtol=1e-4, atol=1e-4)


def loop_batch(ecg):
    from train.dataset import Batch
    return Batch(ecg, (), torch.zeros(len(ecg), dtype=torch.long), True)


def test_mirroring_adds_and_cutting_takes():
    x = torch.arange(6.0).reshape(1, 1, 1, 6)
    assert mirrored(x, 2, 1)[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 5, 4]
    assert mirrored(x, -1, -2)[0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("match", [(), ("attention",), ("features",), ("attention", "features")])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(match):
    net, _ = nets(("local-lead", "tiny"))
    way = Way(weight=1.0, match=match)
    goal = Distillation(labels(), [Teacher(net, net, ())], net, way)
    for hint in goal.hints:
        torch.nn.init.eye_(hint.weight)
        torch.nn.init.zeros_(hint.bias)
    assert float(goal(goal.voter(net), batch()).detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("task,rr", [("synthetic", 0), ("mitbih", 12)])
def test_a_student_comes_nearer_to_its_teachers(task, rr):
    first, student = nets(task=task, rr=rr)
    second, _ = nets(("local-lead", "tiny"), task=task, rr=rr)
    way = Way(weight=0.9, match=("attention", "features"))
    goal = Distillation(labels(), [Teacher(t, student, range(bool(rr))) for t in (first, second)], student, way)
    data, voter = batch(task), goal.voter(student)
    adam = torch.optim.Adam([*student.parameters(), *goal.parameters()], 3e-3)
    assert not any(p.requires_grad for t in goal.teachers for p in t.voter.parameters()) and len(goal.hints) == 2
    losses = []
    for _ in range(12):
        torch.manual_seed(0)
        loss = goal(voter, data)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert "columns" not in vars(student) and not any(m._forward_pre_hooks for m in student.modules())


def test_several_labels_a_record_are_taught_by_sigmoids():
    net, student = nets()
    data = batch()
    data = replace(data, target=torch.nn.functional.one_hot(data.target, 3).float())
    goal = Distillation(labels(), [Teacher(net, student, ())], student, Way(weight=1.0, temperature=3.0))
    with torch.no_grad():
        told = goal.teachers[0](data)[0] / 3
        own = loop.Voter(student)(data.ecg, (), True) / 3
        wanted = 9 * torch.nn.functional.binary_cross_entropy(own.sigmoid(), told.sigmoid())
        assert float(goal(loop.Voter(student), data)) == pytest.approx(float(wanted), rel=1e-4)


def test_windows_of_other_lengths_are_compared_by_their_means():
    from train.models.local_lead import LocalLead
    net = LocalLead("tiny", Hop(core=960, hop=512), 1, 3).eval()
    _, student = nets()
    teacher = Teacher(net, student, ())
    assert not teacher.paired
    goal = Distillation(labels(), [teacher], student, Way(weight=1.0))
    data = batch()
    with torch.no_grad():
        told = (net.vote(data.ecg, every=loop.EVERY).mean(1) / 2).softmax(-1)
        own = (student.vote(data.ecg, every=loop.EVERY).mean(1) / 2).softmax(-1)
        wanted = 4 * (told * (told.log() - own.log())).sum(1).mean()
        assert float(goal(goal.voter(student), data)) == pytest.approx(float(wanted), rel=1e-3)
    with pytest.raises(UserError, match="do not pair"):
        Distillation(labels(), [teacher], student, Way(match=("attention",)))


def test_a_crop_too_short_for_the_teacher_is_repeated():
    from train.models.local_lead import LocalLead
    net = LocalLead("tiny", Hop(core=2880, hop=256), 1, 3).eval()
    _, student = nets()
    assert Teacher(net, student, ())(batch(seconds=8.0))[0].shape == (6, 1, 3)


def test_watching_a_network_changes_nothing_it_says():
    net, _ = nets()
    data = batch()
    with torch.no_grad():
        logits, columns, pooled = Watched(net)(data.ecg, data.sides, True)
        assert torch.equal(logits, loop.Voter(net)(data.ecg, data.sides, True))
        assert torch.equal(columns, net.columns(data.ecg))
    assert len(pooled) == logits.shape[0] * logits.shape[1]


# ---- distill.py


def taught(tmp_path, *teachers, **more):
    way = more.pop("way", Way())
    return distill.distill([str(tmp_path / t) for t in teachers], str(tmp_path / "s"), "local-lead", "tiny", way,
                           **{"epochs": 1, "device": "cpu", **more})


def test_a_student_is_an_ordinary_run_and_can_be_pruned(tmp_path, toy):  # noqa: F811
    for seed in (0, 1):
        fit.fit(toy(tmp_path / f"t{seed}", task="synthetic", seed=seed, arch=("lga", "local-lead")[seed]))
    result = taught(tmp_path, "t0", "t1", way=Way(match=("attention", "features")))
    about, _ = fit.load(tmp_path / "s")
    assert about.preset == "tiny" and about.task == "synthetic" and not about.frozen and result["epochs"] == 1
    assert about.provenance["distilled"]["teachers"] == ["t0", "t1"]
    text = (tmp_path / "s" / "distill.json").read_text()
    judged = json.loads(text)
    assert list(judged["forms"]) == ["teacher 1", "teacher 2", "student"] and str(tmp_path) not in text
    assert all(size["macs"] > 1e5 for size in judged["size"].values()) and judged["part"] == "validation"
    prune.prune(str(tmp_path / "s"), str(tmp_path / "p"), 0.7, 8, epochs=1, device="cpu")
    assert fit.load(tmp_path / "p")[0].provenance["pruned"]["from"] == "s"


def test_the_student_of_an_inner_fold_hears_only_the_teacher_of_that_fold(tmp_path, toy, monkeypatch):  # noqa: F811
    fit.fit(toy(tmp_path / "t", epochs=1, folds=2))
    heard = []
    init = Teacher.__init__
    monkeypatch.setattr(Teacher, "__init__", lambda self, net, *rest: (heard.append(net), init(self, net, *rest))[1])
    taught(tmp_path, "t")
    parts = [fit.load(tmp_path / "t", part)[1] for part in (fit.WEIGHTS, "folds/0.safetensors", "folds/1.safetensors")]
    assert len(heard) == 3
    for net, part in zip(heard, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), part.parameters(), strict=True))
    judged = json.loads((tmp_path / "s" / "distill.json").read_text())
    assert judged["part"] == "out of fold" and judged["units"] == 10


@pytest.mark.parametrize("key,value,says", [
    ("task", "cinc2017", "task"), ("fs", 500, "rate"), ("fold", 3, "fold"), ("folds", None, "inner folds"),
    ("classes", None, "classes")])
def test_teachers_that_disagree_are_refused(tmp_path, toy, key, value, says):  # noqa: F811
    for name in ("a", "b"):
        fit.fit(toy(tmp_path / name, epochs=1))
    path = tmp_path / "b" / "model.json"
    data = json.loads(path.read_text())
    if key == "fold":
        data["provenance"]["fold"] = value
    elif key == "folds":
        (tmp_path / "b" / "folds").mkdir()
        (tmp_path / "b" / "folds" / "0.safetensors").write_bytes(b"")
    elif key == "classes":
        data["classes"].reverse()
    else:
        data[key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"another .*{says}"):
        taught(tmp_path, "a", "b")


def test_a_fold_that_held_out_other_records_is_refused(tmp_path, toy):  # noqa: F811
    fit.fit(toy(tmp_path / "t", epochs=1, folds=2))
    path = tmp_path / "t" / "folds" / "1.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"records": data["records"][1:]}))
    with pytest.raises(UserError, match="held out other records"):
        taught(tmp_path, "t")


def test_a_teacher_may_know_more_than_its_student(tmp_path, toy):  # noqa: F811
    fit.fit(toy(tmp_path / "t", task="synthetic", arch="efficient", epochs=1))
    assert set(fit.load(tmp_path / "t")[1].sides) == {"beats", "age", "sex"}
    taught(tmp_path, "t")
    assert fit.load(tmp_path / "s")[1].sides == ()


def test_wrong_words_end_in_a_sentence(tmp_path, capsys):
    from train import say
    words = ["--teacher", "t", "--out", str(tmp_path / "s"), "--match", "attension"]
    assert say.run(distill.main, distill.parser(), words) == 1
    assert "use attention" in capsys.readouterr().err


# ---- the study


def test_the_study_makes_what_is_open_and_compares_by_record(tmp_path, toy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(study, "RESULT", tmp_path / "results" / "distill.json")
    monkeypatch.setattr("train.prepare.prepare", lambda *_, **__: None)
    monkeypatch.setattr("train.prepare.open_shards", lambda _: Toy("cinc2017", 24))
    fit.fit(toy(tmp_path / "t", task="cinc2017", epochs=1))
    words = ["--data", "there", "--teacher", str(tmp_path / "t"), "--runs", str(tmp_path / "runs"), "--epochs", "1",
             "--tune", "1", "--seeds", "1"]
    found = study.main(study.parser().parse_args(words))
    names = sorted(path.name for path in (tmp_path / "runs").glob("*.json"))
    assert names == [f"{arm}-0.json" for arm in ("alone", "distilled", "pruned", "teacher")]
    assert set(found["differences"]) == {"distilled - alone", "pruned - teacher"}
    assert found["arms"]["pruned"]["cost"]["macs"] <= 0.5 * found["arms"]["teacher"]["cost"]["macs"]
    cell = (tmp_path / "runs" / "alone-0.json").read_text()
    assert len(json.loads(cell)["truth"]) == len(json.loads(cell)["called"])
    kept = study.RESULT.read_text()
    assert str(tmp_path) not in kept and "truth" not in kept and json.loads(kept)["differences"] == found["differences"]
    monkeypatch.setattr(study, "judged", lambda *_: pytest.fail("made again"))
    assert study.main(study.parser().parse_args(words)) == found
    longer = cell.replace('"epochs": 1', '"epochs": 2')
    (tmp_path / "runs" / "alone-1.json").write_text(longer)
    with pytest.raises(UserError, match="differ in epochs"):
        study.main(study.parser().parse_args(["--runs", str(tmp_path / "runs")]))
    with pytest.raises(UserError, match="holds no cells"):
        study.main(study.parser().parse_args(["--runs", str(tmp_path / "none")]))
