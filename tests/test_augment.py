# SPDX-License-Identifier: Apache-2.0
"""Augmentation changes what it says, by as much as it says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from train.augment import PLAIN, Augment, augment, jitter

FS = 250


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def beats(batch=64, leads=2, time=2500):
    return np.random.default_rng(9).integers(-1500, 1500, (batch, leads, time)).astype(np.int16)


def power_at(x, hertz):
    spectrum = np.abs(np.fft.rfft(x.astype(float), axis=-1)) ** 2
    at = np.fft.rfftfreq(x.shape[-1], 1 / FS)
    return spectrum[..., (at > hertz - 0.6) & (at < hertz + 0.6)].sum(-1)


def test_nothing_asked_is_nothing_changed(rng):
    x = beats()
    assert np.array_equal(augment(x, rng, PLAIN, FS), x)


def test_one_seed_gives_one_result_and_keeps_the_input():
    x = beats()
    before = x.copy()
    a, b = (augment(x, np.random.default_rng(4), Augment(), FS) for _ in range(2))
    assert np.array_equal(a, b) and np.array_equal(x, before) and a.dtype == np.int16 and not np.array_equal(a, x)


def test_gain_is_one_factor_per_recording_within_its_limits(rng):
    x = beats()
    y = augment(x, rng, replace(PLAIN, gain=(0.4, 2.5)), FS)
    ratio = np.abs(y).astype(float).sum((1, 2)) / np.abs(x).astype(float).sum((1, 2))
    assert ratio.min() > 0.39 and ratio.max() < 2.51 and ratio.std() > 0.3
    assert np.abs(y - ratio[:, None, None] * x).max() < 3


def test_polarity_turns_all_leads_of_some_recordings(rng):
    x = beats()
    y = augment(x, rng, replace(PLAIN, polarity=0.5), FS)
    turned = (y == -x).all((1, 2))
    assert 0.25 < turned.mean() < 0.75 and ((y == x).all((1, 2)) ^ turned).all()


def test_both_mains_frequencies_occur_and_stay_below_their_level(rng):
    x = np.zeros((200, 1, 2500), np.int16)
    y = augment(x, rng, replace(PLAIN, mains=1.0, mains_uv=30), FS)
    fifty, sixty = power_at(y, 50)[:, 0], power_at(y, 60)[:, 0]
    loud = np.abs(y).max((1, 2)) > 2
    assert 60 < (fifty > 10 * sixty).sum() < 140 and ((fifty > 10 * sixty) ^ (sixty > 10 * fifty))[loud].all()
    assert np.abs(y).max() <= 30


def test_wander_is_slow_and_muscle_is_broad_and_below_40_hz(rng):
    zero = np.zeros((100, 1, 5000), np.int16)
    slow = augment(zero, rng, replace(PLAIN, wander=1.0, wander_uv=150), FS).astype(float)
    fast = augment(zero, rng, replace(PLAIN, muscle=1.0, muscle_uv=400), FS).astype(float)
    at = np.fft.rfftfreq(5000, 1 / FS)
    share = [(np.abs(np.fft.rfft(x[:, 0])) ** 2 * band).sum() / (np.abs(np.fft.rfft(x[:, 0])) ** 2).sum()
             for x, band in ((slow, at < 1.2), (fast, at < 50), (fast, at > 5))]
    assert share[0] > 0.98 and share[1] > 0.8 and share[2] > 0.8
    assert 100 < fast.std(-1).max() < 420


def test_lost_leads_are_flat_and_one_always_stays(rng):
    x = beats(400, 3)
    y = augment(x, rng, replace(PLAIN, lead_loss=0.6), FS)
    lost = (y == 0).all(-1)
    assert lost.sum(1).max() == 2 and 0.2 < lost.mean() < 0.6
    assert np.array_equal(y[~lost], x[~lost])
    single = beats(50, 1)
    assert np.array_equal(augment(single, rng, replace(PLAIN, lead_loss=0.9), FS), single)


def test_what_leaves_int16_is_clipped_not_wrapped(rng):
    x = np.full((8, 1, 10), 30000, np.int16)
    y = augment(x, rng, replace(PLAIN, gain=(2.0, 2.5)), FS)
    assert (y == 32767).all()


def test_r_jitters_by_at_most_fifty_milliseconds(rng):
    shift = jitter(rng, 5000, Augment(), FS)
    assert shift.min() == -12 and shift.max() == 12 and abs(shift.mean()) < 0.5
    assert not jitter(rng, 100, PLAIN, FS).any()
