# SPDX-License-Identifier: Apache-2.0
"""The whole way on a small data set: qat.py trains, quantizes and freezes; the run builds, agrees and is judged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import accuracy, latency, parity
from compress import graph, qat, reference
from targets import deploy
from tests.twins import write_dat
from train import loop, manifest, say, tasks
from train.say import GraphError, UserError

torch.set_num_threads(1)


def call(module, *words):
    """main() of a script with its command line parsed."""
    return module.main(module.parser().parse_args([str(w) for w in words]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run quantized from 36 synthetic recordings by one command."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEADEDGE_CACHE", str(folder / "cache"))
        patch.setattr(tasks, "SYNTHETIC_RECORDS", {"train": 36, "test": 12})
        patch.setattr("train.fit.recipe", lambda task: loop.Recipe(epochs=1))
        result = call(qat, "--arch", "local-lead", "--preset", "tiny", "--run", folder / "run", "--epochs", 1)
        yield folder / "run", result


def test_one_command_leaves_a_frozen_run(run):
    folder, result = run
    m = manifest.load(folder)
    assert m.frozen and m.streaming and m.task == "synthetic"
    g = graph.load(folder, m.graph_sha256)
    assert result["weight_bytes"] == g.weight_bytes <= 48_000
    assert g.tensors["ecg"].shape == m.waveform.shape
    assert not list(Path(folder).glob(".*"))


def test_the_reference_equals_the_converted_program_in_a_real_run(run):
    assert run[1]["agreement"]["worst"] <= 1
    assert run[1]["agreement"]["share"] < 1e-3


def test_the_table_holds_every_class_in_all_three_forms_with_intervals(run):
    for name in ("N", "A", "O"):
        assert set(run[1]["classes"][name]) == {"float", "post-training int8", "QAT int8"}
    forms = run[1]["forms"]
    assert all(low <= f["mean_f1"] <= high for f in forms.values() for low, high in [f["mean_f1_95"]])
    assert forms["float"]["difference"] == 0
    assert json.loads((run[0] / "qat.json").read_text())["flips"]["of"] == 12


def test_golden_vectors_are_the_references(run):
    folder = run[0]
    g = graph.load(folder, manifest.load(folder).graph_sha256)
    with np.load(folder / "golden.npz") as golden:
        np.testing.assert_array_equal(reference.run(g, {"ecg": golden["in.ecg"]}), golden["out"])
    assert all(n.attrs["export_scales"]["score"] > 0 for n in g.nodes if n.kind == "attention")


@pytest.mark.parametrize("name", ["graph.json", "graph.npz"])
def test_one_flipped_byte_in_a_graph_file_is_refused(run, tmp_path, name):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(GraphError, match="sha256"):
        graph.load(copy, manifest.load(copy).graph_sha256)


def test_quantizing_again_gives_the_same_identity_and_keeps_the_weights(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LEADEDGE_CACHE", str(run[0].parent / "cache"))
    monkeypatch.setattr(tasks, "SYNTHETIC_RECORDS", {"train": 36, "test": 12})
    copy = shutil.copytree(run[0], tmp_path / "copy")
    call(qat, "--run", copy, "--epochs", 1)
    assert manifest.load(copy).identity == manifest.load(run[0]).identity
    assert (copy / "weights.safetensors").read_bytes() == (run[0] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("option,value,word", [("--arch", "nat", "arch"), ("--preset", "small", "preset"),
                                               ("--task", "cinc2017", "task")])
def test_a_run_of_another_model_is_not_quantized_in_its_place(run, option, value, word):
    with pytest.raises(UserError, match=word):
        call(qat, "--run", run[0], option, value)


def test_the_run_builds_for_arm_and_agrees_with_the_reference(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    built = call(deploy, "--run", copy, "--target", "arm")
    assert built["identity"] == manifest.load(copy).identity.hex()
    result = call(parity, "--run", copy)
    assert result["agreement"]["labels"] >= 0.995 and result["agreement"]["worst"] <= 12
    measured = call(latency, "--target", "arm", "--run", copy)
    assert "estimate" not in json.dumps(measured)


def test_accuracy_of_the_reference_repeats_the_figures_of_quantization(run, monkeypatch):
    monkeypatch.setenv("LEADEDGE_CACHE", str(run[0].parent / "cache"))
    monkeypatch.setattr(tasks, "SYNTHETIC_RECORDS", {"train": 36, "test": 12})
    found = call(accuracy, "--run", run[0])
    assert found["forms"]["int8"]["mean_f1"] == pytest.approx(run[1]["forms"]["QAT int8"]["mean_f1"])
    assert 0 <= found["auroc_a_n"] <= 1


LEADS = ("I", "II")
CODES = {0: "NORM", 1: "IMI", 2: "NDT", 3: "LAFB", 4: "LVH"}


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory):
    """A run with several classes a record: 60 PTB-XL records whose beats tell their classes."""
    folder = tmp_path_factory.mktemp("diagnoses")
    ptbxl(folder / "data", 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEADEDGE_CACHE", str(folder / "cache"))
        patch.setattr("train.fit.recipe", lambda task: loop.Recipe(epochs=1))
        result = call(qat, "--arch", "local-lead", "--preset", "tiny", "--task", "ptbxl", "--data", folder / "data",
                      "--leads", ",".join(LEADS), "--run", folder / "run", "--epochs", 1)
        judged = call(accuracy, "--run", folder / "run", "--data", folder / "data")
    yield folder / "run", result, judged


def ptbxl(folder, count):
    """Records of 10 s at 500 Hz on I and II, one beat a second; MI turns it over, HYP makes it taller."""
    rng = np.random.default_rng(0)
    rows = ["ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr"]
    for n in range(count):
        present = {int(k) for k in rng.integers(0, 5, 2)}
        beat = 400 * np.hanning(40) * (-1 if 1 in present else 1) * (3 if 4 in present else 1)
        uv = rng.normal(0, 15, (2, 5000))
        for at in range(100, 4900, 500):
            uv[:, at:at + 40] += beat
        write_dat(folder / "records500", f"{n:05d}_hr", np.rint(uv / 5) * 5, LEADS, fs=500, gain=1000.0)
        codes = {CODES[k]: 100.0 for k in present}
        rows.append(f'{n},{n}.0,50,{n % 2},"{codes}",{1 + n % 8 if n % 3 else 9},x,records500/{n:05d}_hr')
    (folder / "ptbxl_database.csv").write_text("\n".join(rows) + "\n")


def test_several_classes_a_record_go_the_whole_way(diagnoses):
    folder, result, _ = diagnoses
    m = manifest.load(folder)
    assert m.frozen and m.multi_label and m.decision.rule == "threshold" and len(m.decision.offsets) == 5
    assert result["agreement"]["worst"] <= 1 and result["part"] == "test"
    with np.load(folder / "golden.npz") as golden:
        g = graph.load(folder, m.graph_sha256)
        np.testing.assert_array_equal(reference.run(g, {"ecg": golden["in.ecg"]}), golden["out"])


def test_each_class_of_several_has_areas_and_decisions_in_all_forms(diagnoses):
    result = diagnoses[1]
    assert list(result["classes"]) == ["NORM", "MI", "STTC", "CD", "HYP"]
    for forms in result["classes"].values():
        assert set(forms) == {"float", "post-training int8", "QAT int8"}
        assert all(0 <= row["auroc"] <= 1 and 0 < row["auprc"] <= 1 and row["auroc_95"] for row in forms.values())
    for form in result["forms"].values():
        for name in ("auroc", "auprc", "mean_f1", "f_beta", "g_beta", "accuracy"):
            figure = form["figures"][name]
            assert figure["95"][0] <= figure["value"] <= figure["95"][1]
            assert figure["difference_95"][0] <= figure["difference"] <= figure["difference_95"][1]
    assert result["flips"]["of"] == 20 and set(result["flips"]["classes"]) == set(result["classes"])
    assert set(result["out_of_fold"]["float"]) >= {"MI", "mean_f1"}


def test_accuracy_of_several_classes_repeats_the_figures_of_quantization(diagnoses):
    _, result, judged = diagnoses
    assert judged["forms"]["int8"]["figures"]["auroc"]["value"] == pytest.approx(
        result["forms"]["QAT int8"]["figures"]["auroc"]["value"])
    assert judged["forms"]["int8"]["mean_f1"] == pytest.approx(result["forms"]["QAT int8"]["mean_f1"])
    assert "challenge" not in judged["forms"]["int8"]["figures"]


def test_a_model_of_one_class_a_record_is_not_judged_on_several(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LEADEDGE_CACHE", str(tmp_path / "cache"))
    ptbxl(tmp_path / "data", 12)
    with pytest.raises(UserError, match="several a record"):
        call(accuracy, "--run", run[0], "--task", "ptbxl", "--data", tmp_path / "data")


def test_an_unknown_architecture_is_answered_with_the_nearest(tmp_path, capsys):
    code = say.run(qat.main, qat.parser(), ["--arch", "local-leed", "--run", str(tmp_path / "r")])
    assert code == 1
    assert "use local-lead" in capsys.readouterr().err
