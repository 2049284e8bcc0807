# SPDX-License-Identifier: Apache-2.0
"""The running template: what is usual gives zeros, what is not stands out, and nothing looks ahead."""

import numpy as np
import pytest

from train import rpeak, template

FS = 250
NAMES = template.TEMPLATE_NAMES


def train_of_beats(kinds, fs=FS, gain=1.0):
    """(signal int16, R positions): one beat a second; "n" narrow, "w" wide and inverted, "a" without P wave."""
    peaks = (np.arange(len(kinds)) + 1) * fs
    time = np.arange((len(kinds) + 2) * fs) / fs
    x = np.zeros(len(time))

    def wave(centre, width, height):
        return height * np.exp(-0.5 * ((time - centre) / width) ** 2)
    for kind, r in zip(kinds, peaks / fs, strict=True):
        x += wave(r, 0.045, -900) if kind == "w" else wave(r, 0.012, 1200)
        x += wave(r - 0.16, 0.02, 150) if kind == "n" else 0
        x += wave(r + 0.28, 0.04, 250)
    return np.rint(gain * x).astype(np.int16), peaks


def features(kinds, **kwargs):
    return template.template_features(*train_of_beats(kinds, **kwargs), FS)


def test_beats_that_are_all_alike_differ_by_nothing():
    assert np.abs(features("n" * 20)[1:]).max() <= 1


def test_a_wide_beat_stands_out_and_does_not_move_the_template():
    found = features("n" * 10 + "w" + "n" * 5)
    wide = dict(zip(NAMES, found[10], strict=True))
    assert wide["QRS"] > 32 and wide["shape"] > 16 and wide["gain"] < -32
    assert np.abs(found[12:, NAMES.index("QRS")]).max() <= 1


def test_bundle_branch_block_all_along_is_usual_for_its_patient():
    assert features("w" * 20)[1:, NAMES.index("QRS")].max() <= 1


def test_a_missing_p_wave_shows_in_p_alone():
    found = features("n" * 10 + "a" + "n")[10]
    assert found[NAMES.index("P")] >= 3
    assert found[NAMES.index("QRS")] <= 1


def test_a_lasting_change_replaces_the_template():
    found = features("n" * 10 + "w" * 30)[:, NAMES.index("QRS")]
    assert found[10] > 32 and found[-1] <= 1


@pytest.mark.parametrize("gain", [0.5, 2.5, -1.0])
def test_gain_and_polarity_of_the_whole_recording_change_little(gain):
    kinds = "n" * 8 + "wnnaw" + "n" * 5
    difference = features(kinds, gain=gain).astype(int) - features(kinds)
    assert np.abs(difference).max() <= 6


def test_features_of_a_beat_do_not_depend_on_what_follows_its_window():
    x, peaks = train_of_beats("nnnwnnanwn")
    cut = peaks[6] + FS * 140 // 1000 + FS * 16 // 1000
    np.testing.assert_array_equal(template.template_features(x[:cut], peaks[:7], FS),
                                  template.template_features(x, peaks, FS)[:7])


@pytest.mark.parametrize("value", [0, 32767, -32768])
def test_a_flat_or_railed_signal_gives_features_all_the_same(value):
    x = np.full(5 * FS, value, np.int16)
    assert template.template_features(x, np.array([10, 300, 900]), FS).shape == (3, len(NAMES))


def test_no_beats_give_no_rows():
    assert template.beat_features(np.zeros(100, np.int16), np.array([], int), FS).shape == (0, len(template.BEAT_NAMES))


def test_beat_features_are_rr_features_and_template_features():
    x, peaks = train_of_beats("nnwnn")
    both = template.beat_features(x, peaks, FS)
    np.testing.assert_array_equal(both[:, :len(rpeak.RR_NAMES)], rpeak.rr_features(peaks, FS))
    assert both.dtype == np.int8
