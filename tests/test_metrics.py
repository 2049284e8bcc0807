# SPDX-License-Identifier: Apache-2.0
"""Figures of several classes at once against scikit-learn, slow definitions and the official table of weights."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from compress import evaluate, report, report_labels, rule
from train import challenge, metrics, score, tasks
from train.manifest import Label
from train.say import UserError

CLASSES = tasks.TASKS["cinc2021"].classes


def cases(seed, records=60, classes=5, ties=True):
    """(values, truth, called) of a classifier that is right more often than not."""
    rng = np.random.default_rng(seed)
    truth = rng.random((records, classes)) < np.linspace(0.1, 0.6, classes)
    values = truth + rng.normal(0, 1, truth.shape)
    return np.round(values, 1) if ties else values, truth, values > 0.6


# ---- areas

@pytest.mark.parametrize("seed", range(3))
def test_areas_of_resampled_records_are_those_of_scikit_learn(seed):
    values, truth, _ = cases(seed)
    weight = score.resamples(len(truth), 40, seed)
    drawn = metrics.area_draws(values, truth, weight)
    for n in range(0, 40, 13):
        rows = np.repeat(np.arange(len(truth)), weight[n])
        assert drawn[0, n] == pytest.approx(metrics.auroc(values[rows], truth[rows]))
        assert drawn[1, n] == pytest.approx(metrics.auprc(values[rows], truth[rows]))
    everyone = np.ones((1, len(truth)), int)
    assert metrics.area_draws(values, truth, everyone)[0, 0] == pytest.approx(
        sklearn_metrics.roc_auc_score(truth, values, average=None))


def test_long_resamples_in_pieces_are_the_same(monkeypatch):
    values, truth, _ = cases(0)
    weight = score.resamples(len(truth), 30)
    whole = metrics.area_draws(values, truth, weight)
    monkeypatch.setattr(metrics, "CHUNK", 7 * len(truth))
    np.testing.assert_array_equal(metrics.area_draws(values, truth, weight), whole)


def test_areas_need_what_they_compare():
    values = np.array([[1.0, 2, 3], [2, 1, 3], [3, 3, 1]])
    truth = np.array([[False, True, True], [False, True, False], [False, True, False]])
    roc, precision = metrics.auroc(values, truth), metrics.auprc(values, truth)
    assert np.isnan(roc).tolist() == [True, True, False] and np.isnan(precision).tolist() == [True, False, False]
    assert (roc[2], precision[1], precision[2]) == (0.75, 1, 0.5)
    drawn = metrics.area_draws(values, truth, np.ones((1, 3), int))[:, 0]
    assert drawn[0] == pytest.approx(roc, nan_ok=True) and drawn[1] == pytest.approx(precision, nan_ok=True)


def test_rows_hold_areas_with_intervals_and_cases():
    values, truth, _ = cases(4)
    for name, area, interval, _, _, n in metrics.rows(values, truth, "abcde"):
        low, high = map(float, interval.split("-"))
        assert low <= area <= high and n == truth[:, "abcde".index(name)].sum()
    empty = metrics.rows(values[:, :1], np.zeros((60, 1), bool), "a")
    assert empty == [["a", None, "", None, "", 0]] and len(empty[0]) == len(metrics.HEADER)


# ---- what was called

@pytest.mark.parametrize("seed", range(3))
def test_figures_agree_with_scikit_learn(seed):
    _, truth, called = cases(seed)
    found = {name: f.value for name, f in metrics.figures(truth, called).items()}
    share = 1 / np.maximum(truth.sum(1), 1)
    for name, wanted in (
            ("se", sklearn_metrics.recall_score(truth, called, average="macro")),
            ("ppv", sklearn_metrics.precision_score(truth, called, average="macro")),
            ("mean_f1", sklearn_metrics.f1_score(truth, called, average="macro")),
            ("f_beta", sklearn_metrics.fbeta_score(truth, called, beta=2, average="macro", sample_weight=share)),
            ("accuracy", sklearn_metrics.accuracy_score(truth, called)),
            ("label_accuracy", 1 - sklearn_metrics.hamming_loss(truth, called))):
        assert found[name] == pytest.approx(wanted), name


def test_the_beta_measures_share_a_record_among_its_classes():
    truth = np.array([[1, 1], [1, 0], [0, 0]], bool)
    called = np.array([[1, 0], [1, 1], [0, 1]], bool)
    # class 0: tp 1/2 + 1; class 1: fn 1/2, fp 1 + 1 (no class at all counts as one)
    found = metrics.figures(truth, called)
    assert found["g_beta"].value == pytest.approx((1 + 0) / 2)
    called[1, 0] = False
    # class 0: tp 1/2, fn 1
    assert metrics.figures(truth, called)["g_beta"].value == pytest.approx(0.5 / (0.5 + 2 * 1) / 2)
    assert metrics.figures(truth, called)["f_beta"].value == pytest.approx(2.5 / (2.5 + 4 * 1) / 2)


def test_a_class_neither_there_nor_called_leaves_the_means():
    truth, called = np.array([[1, 0], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    found = metrics.figures(truth, called)
    assert found["mean_f1"].value == pytest.approx(2 / 3) and found["ppv"].value == 0.5
    assert score.paired(found["se"].each, found["se"].each, found["se"].of) == (0, 0, 0)


# ---- the challenge

def official(classes):
    """The official weights.csv in the order of `classes`."""
    path = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"), "cinc2021", "weights.csv")
    if not path.is_file():
        pytest.skip("LEADEDGE_DATA holds no cinc2021/weights.csv")
    with open(path, newline="") as f:
        rows = list(csv.reader(f))
    place = [next(n for n, name in enumerate(rows[0]) if set(name.split("|")) == set(
        c.code.removeprefix("SNOMED:").split("|"))) for c in classes]
    return np.array([[float(rows[i][j]) for j in place] for i in place])


def test_the_weights_of_2021_are_the_official_ones():
    np.testing.assert_allclose(challenge.weights(CLASSES), official(CLASSES), atol=1e-9)


@pytest.mark.parametrize("name,row", [
    ("IAVB", "1.0 .3 .3 .5 .4 .5 .45 .45 .325 .375 .45 .425 .4625 .425 .5 .35 .2 .45 .5 .5 .45 .425 .3 .3"),
    ("LBBB", ".325 .475 .475 .325 .425 .325 .375 .375 1.0 .45 .375 .4 .3625 .4 .325 .475 .375 .375 .325 .325 .275 .4 "
             ".475 .475"),
    ("QAb", ".2 .4 .4 .2 .3 .2 .25 .25 .375 .325 .25 .275 .2375 .275 .2 .35 1.0 .25 .2 .2 .15 .275 .4 .4"),
    ("NSR", ".45 .25 .25 .45 .35 .45 .4 .4 .275 .325 .4 .375 .4125 .375 .45 .3 .15 .4 .45 .45 1.0 .375 .25 .25")])
def test_rows_of_the_weights_of_2020_are_the_official_ones(name, row):
    order = ("IAVB AF AFL Brady RBBB IRBBB LAnFB LAD LBBB LQRSV NSIVCB PR PAC PVC LPR LQT QAb RAD SA SB NSR STach TAb "
             "TInv").split()
    classes = {c.name: c for c in tasks.TASKS["cinc2020"].classes}
    assert set(order) == set(classes)
    table = challenge.weights([classes[n] for n in order])
    np.testing.assert_allclose(table[order.index(name)], [float(v) for v in row.split()], atol=1e-9)


def by_definition(weights, truth, called, normal):
    """The challenge score, record by record and pair by pair, from sets of class numbers."""
    def total(labels, outputs):
        credit = 0.0
        for true, out in zip(labels, outputs, strict=True):
            for a in true:
                for b in out:
                    credit += weights[a][b] / max(1, len(true | out))
        return credit
    inactive = total(truth, [{normal}] * len(truth))
    return (total(truth, called) - inactive) / (total(truth, truth) - inactive)


@pytest.mark.parametrize("seed", range(4))
def test_the_challenge_score_is_that_of_its_definition(seed):
    rng = np.random.default_rng(seed)
    truth, called = rng.random((2, 40, len(CLASSES))) < 0.08
    normal = [c.name for c in CLASSES].index("NSR")
    sets = [[set(np.flatnonzero(row).tolist()) for row in rows] for rows in (truth, called)]
    assert challenge.figure(CLASSES, truth, called).value == pytest.approx(
        by_definition(challenge.weights(CLASSES).tolist(), *sets, normal))


def test_the_challenge_score_is_worked_by_hand():
    labels = [Label("AF", "SNOMED:164889003"), Label("PAC", "SNOMED:284470004|63593006"),
              Label("NSR", "SNOMED:426783006")]
    truth = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    called = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0]], bool)
    # called: (1 + 0.3375) / 2, (0.4125 + 1) / 2, 0; truth: (2 + 2 * 0.3375) / 2, 1, 0; normal: (0.25 + 0.4125) / 3, 1
    wanted = (0.66875 + 0.70625 - 0.6625 / 3 - 1) / (1.3375 + 1 - 0.6625 / 3 - 1)
    assert challenge.figure(labels, truth, called).value == pytest.approx(wanted)
    assert challenge.figure(labels, truth, truth).value == 1
    assert challenge.figure(labels, truth, np.eye(3, dtype=bool)[[2, 2, 2]]).value == 0
    assert challenge.figure(labels, truth[1:2], called[1:2]).value == 0    # nothing to win: 0, as the official score


def test_a_class_that_the_challenge_does_not_score_is_named():
    with pytest.raises(UserError, match="NORM"):
        challenge.weights(tasks.TASKS["ptbxl"].classes)


# ---- thresholds

def scores_of(seed, records, share, classes=3):
    """(int logit sums of 4 windows, counts, truth, names) with a bias of each class to be undone."""
    rng = np.random.default_rng(seed)
    truth = rng.random((records, classes)) < share
    logits = 12 * (2 * truth - 1) + np.array([30, -20, 5, 0][:classes]) + rng.normal(0, 8, truth.shape)
    return np.rint(logits * 4).astype(np.int64), np.full(records, 4), truth, np.arange(records)


def test_thresholds_undo_a_bias_class_by_class():
    sums, counts, truth, units = scores_of(0, 500, 0.3)
    fitted = rule.fit(sums, counts, truth, units, "ptbxl", 0.1, 0)
    assert fitted.rule == "threshold" and all(isinstance(o, int) for o in fitted.offsets)
    called = score.decide(sums, counts, fitted.rule, fitted.offsets)
    f1 = metrics.per_class(metrics.counts(truth, called).sum(0)).f1
    best = [max(sklearn_metrics.f1_score(truth[:, k], sums[:, k] >= t) for t in np.unique(sums[:, k]))
            for k in range(3)]
    assert (f1 > np.array(best) - 0.02).all()


@pytest.mark.parametrize("cases", [0, 1, 4])
def test_a_rare_class_is_called_about_as_often_as_it_is_there(cases):
    sums, counts, truth, units = scores_of(1, 80, 0.3)
    truth[:, 1] = np.arange(80) < cases
    fitted = rule.fit(sums, counts, truth, units, "ptbxl", 0.1, 0)
    called = score.decide(sums, counts, fitted.rule, fitted.offsets)[:, 1].sum()
    assert max(0, cases - 1) <= called <= max(1, cases)


def test_one_lucky_record_does_not_place_a_threshold():
    sums, counts, truth, units = scores_of(2, 60, 0.2, 1)
    before = rule.fit(sums, counts, truth, units, "ptbxl", 0.1, 0).offsets[0]
    sums[np.flatnonzero(truth[:, 0])[0]] = -900
    after = rule.fit(sums, counts, truth, units, "ptbxl", 0.1, 0).offsets[0]
    assert abs(after - before) < 10 * score.OFFSET_ONE


def test_thresholds_of_the_challenge_serve_its_score():
    rng = np.random.default_rng(3)
    truth = rng.random((300, len(CLASSES))) < 0.08
    sums = np.rint(20 * truth + rng.normal(0, 12, truth.shape)).astype(np.int64)
    ones, units = np.ones(300, int), np.arange(300)
    called = {task: score.decide(sums, ones, "threshold", rule.fit(sums, ones, truth, units, task, 0.1, 0).offsets)
              for task in ("cinc2021", "code15")}
    value = {task: challenge.figure(CLASSES, truth, c).value for task, c in called.items()}
    assert value["cinc2021"] > value["code15"] + 0.005


def test_the_temperature_makes_probabilities_of_several_classes_match_how_often_they_are_right():
    rng = np.random.default_rng(0)
    truth = rng.random((3000, 2)) < 0.5
    told = np.where(rng.random(truth.shape) < 0.8, truth, ~truth)      # right four times in five, always sure
    sums = np.where(told, 60, -60).astype(np.int64)
    fitted = rule.fit(sums, np.ones(3000, int), truth, np.arange(3000), "ptbxl", 0.1, 0)
    assert abs(rule.probabilities(fitted, sums, np.ones(3000))[told].mean() - 0.8) < 0.02


# ---- tables

def test_the_table_of_a_challenge_holds_its_score_paired_between_forms_and_in_any_order_of_classes(capsys):
    rng = np.random.default_rng(5)
    truth = rng.random((70, len(CLASSES))) < 0.1
    truth[:, 3] = False                     # a class that no record has
    exact = np.rint(30 * truth + rng.normal(0, 12, truth.shape)).astype(np.int64) * 2
    rough = np.rint(exact / 16).astype(np.int64) * 16
    logits = {name: evaluate.Logits(s, np.full(70, 2), truth, np.arange(70).astype(str), 0.1)
              for name, s in (("float", exact), ("int8", rough))}
    decided = {name: one.sums >= 20 for name, one in logits.items()}
    names = [c.name for c in CLASSES]
    result = report.compare(decided, logits, names, "cinc2021")
    found = {name: form["figures"]["challenge"] for name, form in result["forms"].items()}
    for name, called in decided.items():
        assert found[name]["value"] == pytest.approx(challenge.figure(CLASSES, truth, called).value)
    assert found["int8"]["difference"] == pytest.approx(found["int8"]["value"] - found["float"]["value"])
    assert found["float"]["difference_95"] == [0, 0] and result["forms"]["int8"]["figures"]["auroc"]["value"] > 0.8
    assert result["classes"][names[3]]["int8"]["auroc"] is None and result["classes"][names[3]]["int8"]["n"] == 0
    assert result["flips"]["changed"] == (decided["float"] != decided["int8"]).any(1).sum()
    assert json.loads(json.dumps(result, allow_nan=False)) and "challenge  int8" in capsys.readouterr().out
    back = {name: evaluate.Logits(one.sums[:, ::-1], one.counts, truth[:, ::-1], one.unit, one.scale)
            for name, one in logits.items()}
    turned = report_labels.table({name: d[:, ::-1] for name, d in decided.items()}, back, names[::-1], "cinc2021")
    assert turned["forms"]["int8"]["figures"]["challenge"]["value"] == pytest.approx(found["int8"]["value"])
    fitted = report.fitted("int8", logits["int8"], decided["int8"], names, "cinc2021")
    assert fitted["figures"]["challenge"] == pytest.approx(found["int8"]["value"])
