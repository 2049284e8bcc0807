# SPDX-License-Identifier: Apache-2.0
"""Scores against hand-counted tables and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import score
from train.say import UserError

TABLE = np.array([[8, 1, 1], [2, 5, 0], [0, 1, 9], [0, 0, 4], [1, 2, 3]])   # truth N S V F Q, predicted N S V


def test_a_table_is_counted_by_hand():
    assert score.confusion([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert score.confusion([4, 0], [2, 0], 5, 3).shape == (5, 3)


def test_se_ppv_and_f1_are_counted_by_hand():
    s = score.per_class(TABLE[:3])
    assert s.se == pytest.approx([8 / 10, 5 / 7, 9 / 10])
    assert s.ppv == pytest.approx([8 / 10, 5 / 7, 9 / 10])
    assert s.n.tolist() == [10, 7, 10]


def test_fusion_called_ventricular_is_forgiven_and_other_errors_are_not():
    strict, ec57 = score.per_class(TABLE), score.per_class(TABLE, score.AAMI_FORGIVEN)
    assert strict.ppv[2] == pytest.approx(9 / 17) and ec57.ppv[2] == pytest.approx(9 / 10)
    assert strict.ppv[1] == pytest.approx(5 / 9) and ec57.ppv[1] == pytest.approx(5 / 7)
    assert strict.ppv[0] == ec57.ppv[0] == pytest.approx(8 / 11)
    assert strict.se.tolist() == ec57.se.tolist()


def test_false_s_is_a_share_of_everything_that_is_not_s():
    assert score.false_share(TABLE, 1) == pytest.approx((1 + 1 + 0 + 2) / (10 + 10 + 4 + 6))


def test_a_class_without_cases_is_no_number_and_leaves_the_mean():
    conf = np.array([[3, 0, 0], [1, 2, 0], [0, 0, 0]])
    s = score.per_class(conf)
    assert np.isnan(s.se[2]) and np.isnan(s.f1[2])
    assert score.f1_mean(conf) == pytest.approx((6 / 7 + 4 / 5) / 2)
    assert score.f1_mean(conf, (0,)) == pytest.approx(6 / 7)


@pytest.mark.parametrize("truth,predicted,words", [([0], [0, 1], "1 true labels but 2"), ([3], [0], "outside"),
                                                   ([0], [-1], "outside")])
def test_labels_that_do_not_fit_are_refused(truth, predicted, words):
    with pytest.raises(UserError, match=words):
        score.confusion(truth, predicted, 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_f1_agrees_with_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = np.array(pairs).T
    ours = np.nan_to_num(score.per_class(score.confusion(truth, predicted, 4)).f1)
    assert ours == pytest.approx(metrics.f1_score(truth, predicted, labels=range(4), average=None, zero_division=0))


def test_units_are_summed_in_order_of_appearance():
    tables = score.by_unit([0, 1, 1], [0, 1, 0], ["b", "a", "b"], 2)
    assert tables.tolist() == [[[1, 0], [1, 0]], [[0, 0], [0, 1]]]


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(150):
        sick = rng.binomial(20, 0.7, 40)
        tables = np.array([[[0, 0], [20 - s, s]] for s in sick])
        low, high = score.bootstrap(tables, lambda c: score.per_class(c).se[..., 1], 400, trial)
        hits += bool(low <= 0.7 <= high)
    assert 0.88 <= hits / 150 <= 0.99


def test_intervals_by_record_are_wider_when_records_differ():
    alike = np.array([[[0, 0], [5, 5]]] * 20)
    uneven = np.array([[[0, 0], [10, 0]], [[0, 0], [0, 10]]] * 10)
    width = [np.subtract(*score.bootstrap(t, lambda c: score.per_class(c).se[..., 1])) for t in (uneven, alike)]
    assert width[0] < -0.3 and width[1] == 0


def test_a_paired_difference_of_equal_models_is_nothing():
    tables = np.random.default_rng(0).integers(0, 9, (12, 3, 3))
    assert score.paired(tables, tables, score.f1_mean) == (0, 0, 0)
    worse = tables.copy()
    worse[:, 0, 1] += 5
    difference, low, high = score.paired(tables, worse, score.f1_mean)
    assert low <= difference <= high < 0
    with pytest.raises(UserError, match="other units"):
        score.paired(tables, tables[:5], score.f1_mean)


@pytest.mark.parametrize("windows,sums,n", [(0, [1, 3, 6, 10], [1, 2, 3, 4]), (2, [1, 3, 5, 7], [1, 2, 2, 2]),
                                            (1, [1, 2, 3, 4], [1, 1, 1, 1]), (9, [1, 3, 6, 10], [1, 2, 3, 4])])
def test_a_vote_sums_the_last_windows(windows, sums, n):
    total, many = score.vote(np.array([[1], [2], [3], [4]], np.int8), windows)
    assert total[:, 0].tolist() == sums and many.tolist() == n


def test_offsets_count_256ths_of_an_lsb_per_window():
    assert score.decide([10, 11], 1, "argmax", (256, 0)) == 0
    assert score.decide([10, 11], 1, "argmax", (255, 0)) == 1
    assert score.decide([10, 13], 2, "argmax", (300, 0)) == 1
    assert score.decide([[4, 4], [4, 3]], [1, 1], "threshold", (1024, 1024)).tolist() == [[True, True], [True, False]]
    with pytest.raises(UserError, match="unknown decision rule"):
        score.decide([1], 1, "median", (0,))


def test_fitted_offsets_undo_a_bias():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 600)
    logits = np.eye(3)[truth] * 2 + rng.normal(0, 0.4, (600, 3))
    shift = np.array([0, 1.7, -1.1])
    offsets = score.fit_offsets(logits - shift, truth, 3, score.f1_mean, 3.0)
    table = score.confusion(truth, (logits - shift + offsets).argmax(1), 3)
    assert score.f1_mean(table) > 0.98 > score.f1_mean(score.confusion(truth, (logits - shift).argmax(1), 3))
    assert offsets[0] == 0


def test_fitted_offsets_keep_a_limit_when_the_goal_states_one():
    rng = np.random.default_rng(3)
    truth = (rng.random(4000) < 0.1).astype(int)
    logits = np.stack([np.zeros(4000), truth * 1.5 + rng.normal(0, 1, 4000)], 1)

    def goal(tables):
        return np.where(score.false_share(tables, 1) <= 0.02, score.per_class(tables).se[..., 1], -1)

    offsets = score.fit_offsets(logits, truth, 2, goal, 4.0)
    table = score.confusion(truth, (logits + offsets).argmax(1), 2)
    assert 0.015 < score.false_share(table, 1) <= 0.02


def test_table_rows_hold_figures_intervals_and_counts():
    tables = np.stack([TABLE, TABLE * 2])
    row_n, row_s, row_v = score.rows(tables, "NSV", score.AAMI_FORGIVEN)
    assert len(row_n) == len(score.HEADER) and row_v[0] == "V" and row_v[-1] == 30
    assert row_s[1] == pytest.approx(5 / 7) and row_s[2] == "0.714-0.714"
    empty = score.rows(np.zeros((2, 1, 1)), ["N"])[0]
    assert empty == ["N", None, "", None, "", None, "", 0]
