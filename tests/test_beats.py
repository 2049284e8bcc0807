# SPDX-License-Identifier: Apache-2.0
"""Beats from annotation to table: matching, the two MIT-BIH tables, and the whole way on made records."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import accuracy, beats
from compress import qat
from targets import deploy, toolchain
from train import loop, manifest, synth
from train.say import UserError

torch.set_num_threads(1)
SAMPLES = st.lists(st.integers(0, 4000), max_size=40).map(lambda x: np.array(sorted(set(x)), np.int64))


@given(SAMPLES, SAMPLES)
def test_matched_beats_are_one_to_one_in_order_and_near(annotated, found):
    a, f = beats.match(annotated, found, 37)
    assert len(a) == len(f) == len(set(a.tolist())) == len(set(f.tolist()))
    assert (np.diff(a) > 0).all() and (np.diff(f) > 0).all()
    assert (np.abs(annotated[a] - found[f]) <= 37).all()


@given(SAMPLES)
def test_equal_beats_match_each_their_own(annotated):
    a, f = beats.match(annotated, annotated, 37)
    np.testing.assert_array_equal(a, f)
    assert len(a) == len(annotated)


@given(SAMPLES)
def test_beats_far_apart_match_nothing(annotated):
    assert len(beats.match(annotated, annotated + 10_000, 37)[0]) == 0


@pytest.mark.parametrize("annotated,found,pairs", [
    ([100], [90, 104], [(0, 1)]),               # the nearer of two detections
    ([100, 130], [125], [(1, 0)]),              # the nearer of two beats
    ([100, 200], [137, 163], [(0, 0), (1, 1)]),
    ([100], [138], [])])
def test_the_nearest_pair_wins(annotated, found, pairs):
    a, f = beats.match(np.array(annotated), np.array(found), 37)
    assert list(zip(a.tolist(), f.tolist(), strict=True)) == pairs


TRAIN = {"101": "pac", "106": "pvc", "108": "pvc", "109": "lbbb", "112": "sinus", "114": "pac"}
TEST = {"100": "pac", "103": "sinus", "200": "pvc"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(run folder, result of qat.py, result of accuracy.py) on made records with MIT-BIH names."""
    folder = tmp_path_factory.mktemp("beats")
    for seed, (name, rhythm) in enumerate({**TRAIN, **TEST}.items()):
        made = synth.record(rhythm, seed, duration_s=330 if name in TEST else 90, fs=360, leads=("MLII", "V1"),
                            noise="clinic")
        synth.write_wfdb(made, folder / "mitdb", name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEADEDGE_CACHE", str(folder / "cache"))
        patch.setattr("train.fit.recipe", lambda task: loop.Recipe(epochs=2, batch=128))
        patch.setattr("train.fit.INNER_FOLDS", 2)
        data = ["--data", str(folder / "mitdb")]
        words = ["--preset", "tiny", "--task", "mitbih", "--run", str(folder / "run"), "--epochs", "1", *data]
        quantized = qat.main(qat.parser().parse_args(words))
        found = accuracy.main(accuracy.parser().parse_args(["--run", str(folder / "run"), *data]))
        yield folder / "run", quantized, found, data


def test_beats_get_a_window_around_r_and_their_features_as_a_second_input(judged):
    m = manifest.load(judged[0])
    assert [i.name for i in m.inputs] == ["ecg", "rr"] and m.inputs[1].unit == "1/32"
    assert m.trigger.kind == "r-peak" and m.trigger.beats_after == 1 and not m.streaming
    assert m.decision.vote == 1


def test_the_rule_of_beats_is_fitted_on_inner_folds_that_hold_every_training_record(judged):
    folds = sorted((judged[0] / "folds").glob("*.safetensors"))
    assert len(folds) == 2
    assert judged[1]["agreement"]["worst"] <= 1


def test_the_two_tables_count_every_beat_and_are_never_mixed(judged):
    given, detected = judged[2]["beat_given"], judged[2]["end_to_end"]
    assert [r["record"] for r in given["records"]] == list(TEST)
    assert sum(r["beats"] for r in given["records"]) > detected["beats"] > 0     # from 5:00 on, there
    assert set(given["classes"]) == set(detected["classes"]) == {"N", "S", "V"}
    assert len(detected["confusion"]) == 6 and len(detected["confusion"][0]) == 4


def test_the_detector_finds_the_beats_of_a_made_record(judged):
    detected = judged[2]["end_to_end"]
    assert detected["missed"] + detected["extra"] <= 0.1 * detected["beats"]


@pytest.mark.skipif(toolchain.missing("host") is not None, reason=str(toolchain.missing("host")))
def test_records_through_bytes_and_bridge_give_the_offline_table(judged):
    run, _, offline, data = judged
    deploy.main(deploy.parser().parse_args(["--run", str(run), "--target", "host"]))
    words = ["--run", str(run), *data, "--stream", "--records"]
    found = accuracy.main(accuracy.parser().parse_args([*words, "200"]))
    assert found["end_to_end"]["records"] == [r for r in offline["end_to_end"]["records"] if r["record"] == "200"]
    assert found["sent"]["missing"] == 0 and found["sent"]["moments"] == 330 * 360
    # the last beat waits for the one behind it
    assert abs(found["stream"]["beats"] - found["end_to_end"]["beats"]) <= 1 and found["cells_apart"] <= 4
    assert found["oracle"]["matched"] == found["oracle"]["wfdb_matched"] > 300
    with pytest.raises(UserError, match="1030"):
        accuracy.main(accuracy.parser().parse_args([*words, "1030"]))
