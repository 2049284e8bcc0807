# SPDX-License-Identifier: Apache-2.0
"""Inputs beside the waveform: which beats a window knows, what is unknown, records shorter than a window."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_pwave import FS, beats
from train import manifest, rhythm, rpeak, sides, template
from train.say import ManifestError


class Shelf:
    """Two records in memory: one of 24 s of a known patient, one of 4 s of an unknown one."""

    fs = FS

    def __init__(self):
        self.signals = [beats(seconds=24)[0][None], beats(seconds=4)[0][None]]
        self.records = [{"age": 63.0, "sex": "F"}, {"age": None, "sex": None}]
        self.read = 0

    def signal(self, i):
        self.read += 1
        return self.signals[i]


HOPS = ("beats", "age", "sex")


def test_every_input_has_its_shape_and_stays_in_int8():
    shelf, ends = Shelf(), np.array([2000, 2256, 6000])
    for name, codes in zip(HOPS, sides.of_windows(shelf, 0, HOPS, ends), strict=True):
        assert codes.dtype == np.int8 and codes.shape == (3, *sides.SIDES[name].shape)
    peaks = rpeak.detect(shelf.signals[0][0], FS)
    names = ("rr", *HOPS)
    for name, codes in zip(names, sides.of_beats(shelf, 0, names, peaks), strict=True):
        assert codes.dtype == np.int8 and codes.shape == (len(peaks), *sides.SIDES[name].shape)


def test_names_are_answered_in_the_order_asked_and_nothing_else_is_computed():
    shelf = Shelf()
    sex, age = sides.of_windows(shelf, 0, ("sex", "age"), np.array([2000]))
    assert (sex.tolist(), age.tolist()) == ([[2]], [[63]]) and shelf.read == 0
    assert sides.of_windows(shelf, 0, (), np.array([2000])) == ()


def test_a_window_knows_the_beats_whose_decision_has_fallen_and_no_others():
    shelf = Shelf()
    peaks, latency = rpeak.detect(shelf.signals[0][0], FS), rpeak.Detector(FS).latency
    rows = rhythm.features(shelf.signals[0][0], peaks, FS)
    end = int(peaks[9]) + latency
    before, behind = sides.of_windows(shelf, 0, ("beats",), np.array([end, end + 1]))[0]
    np.testing.assert_array_equal(before[-9:], rows[:9])
    np.testing.assert_array_equal(behind[-10:], rows[:10])
    assert not before[:-9].any() and not behind[:-10].any()


def test_what_comes_behind_a_window_changes_nothing_in_it():
    shelf, other = Shelf(), Shelf()
    other.signals[0] = other.signals[0].copy()
    other.signals[0][:, 4000:] = np.random.default_rng(0).integers(-3000, 3000, (1, 2000))
    ends = np.arange(500, 4001, 256)
    np.testing.assert_array_equal(*(sides.of_windows(s, 0, ("beats",), ends)[0] for s in (shelf, other)))


def test_a_window_of_a_repeated_short_record_has_the_beats_of_one_pass():
    codes, = sides.of_windows(Shelf(), 1, ("beats",), np.array([1792]))
    peaks = rpeak.detect(Shelf().signals[1][0], FS)
    assert (codes[0, :, 0] != 0).sum() == len(peaks) >= 3


def test_a_beat_sees_itself_last_and_no_later_beat():
    shelf = Shelf()
    peaks = rpeak.detect(shelf.signals[0][0], FS)
    rows = rhythm.features(shelf.signals[0][0], peaks, FS)
    rr, codes = sides.of_beats(shelf, 0, ("rr", "beats"), peaks)
    np.testing.assert_array_equal(codes[:, -1], rows)
    np.testing.assert_array_equal(codes[20], rows[5:21])
    np.testing.assert_array_equal(rr, template.beat_features(shelf.signals[0][0], peaks, FS))
    given = np.ones_like(rr)
    assert sides.of_beats(shelf, 0, ("rr",), peaks, given)[0] is given


def test_beats_of_a_record_are_looked_for_once():
    shelf = Shelf()
    for _ in range(3):
        sides.of_windows(shelf, 0, HOPS, np.array([2000]))
    assert shelf.read == 1


def test_a_record_without_beats_is_all_unknown():
    shelf = Shelf()
    shelf.signals[0] = np.zeros((1, 3000), np.int16)
    assert not sides.of_windows(shelf, 0, ("beats",), np.array([2000, 3000]))[0].any()


@pytest.mark.parametrize("age,code", [(None, -1), (float("nan"), -1), (-3.0, -1), (0.0, 0), (63.9, 63), (300.0, 127)])
def test_age_is_whole_years_or_unknown(age, code):
    assert sides.age_code(age) == code


@pytest.mark.parametrize("sex,code", [("M", 1), ("F", 2), (None, 0), ("", 0), ("X", 0)])
def test_sex_is_male_female_or_unknown(sex, code):
    assert sides.sex_code(sex) == code


@pytest.mark.parametrize("name", sides.SIDES)
def test_the_manifest_knows_every_input(name):
    side = sides.SIDES[name]
    assert manifest.UNITS[side.kind] == side.unit
    wrong = manifest.Input(name, side.kind, side.shape, "parsec", side.lsb)
    with pytest.raises(ManifestError, match="unit"):
        manifest._check_input(SimpleNamespace(window=1), wrong, _need)


def _need(ok, key, got, expected):
    if not ok:
        raise ManifestError(f"{key} is {got}", expected)
