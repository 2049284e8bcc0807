# SPDX-License-Identifier: Apache-2.0
"""Signal quality and heart rate in the bridge, on synthetic patients whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge.quality import AFTER_S, BEFORE_S, Graded, Monitor, Peak, Polarity
from train import frontend, synth

FS = 250


@pytest.fixture(scope="module")
def clean():
    """Half a minute of a resting patient's lead II behind the front end, int16 (1, n), and its R positions."""
    made = synth.record("sinus", 3, 30, FS, ("II",), noise="none")
    return frontend.filter_record(frontend.design(FS), np.asarray(made.uv, np.int32), FS)


def watched(x, off=None, rail=None, size=None):
    """Everything that the monitor says of int16 (lead, n), pushed in portions."""
    monitor, still = Monitor(FS, len(x)), np.zeros(x.shape, bool)
    off, rail = still if off is None else off, still if rail is None else rail
    size = size or x.shape[1]
    return [item for at in range(0, x.shape[1], size)
            for item in monitor.push(*(v[:, at:at + size] for v in (x, off, rail)))]


def last(items):
    """The last second's grades and reasons."""
    found = [i for i in items if isinstance(i, Graded)][-1]
    return found.grades, found.reasons


def noisy(x, db):
    """White noise of the front end's band at a given SNR."""
    noise = np.random.default_rng(0).normal(0, 300, x.shape).astype(np.int32)
    noise = frontend.filter_record(frontend.design(FS), noise, FS).astype(float)
    y = x + noise * np.sqrt(x.astype(float).var() / noise.var() / 10 ** (db / 10))
    return np.clip(np.rint(y), -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("db, grade", [(40, "A"), (10, "B"), (-6, "C")])
def test_a_grade_follows_the_noise(clean, db, grade):
    assert last(watched(noisy(clean, db)))[0] == (grade,)


def test_portions_of_any_size_say_the_same(clean):
    whole = watched(clean)
    for size in (1, 7, 250, 333):
        assert watched(clean, size=size) == whole


def test_the_heart_rate_is_that_of_the_beats(clean):
    peaks = [i for i in watched(clean) if isinstance(i, Peak)]
    true = 60 * FS / np.median(np.diff([p.index for p in peaks]))
    assert peaks[0].bpm is None and peaks[-1].bpm == pytest.approx(true, rel=0.1) and len(peaks) > 20


@pytest.mark.parametrize("what", ["off", "rail"])
def test_a_lead_that_is_off_is_unusable_and_the_other_is_not(clean, what):
    x = np.concatenate([clean, clean])
    mask = np.zeros(x.shape, bool)
    mask[1, -100:] = True
    grades, reasons = last(watched(x, **{what: mask}))
    assert grades == ("A", "C") and reasons == ("", {"off": "lead-off", "rail": "rail"}[what])


def test_a_flat_line_is_no_signal(clean):
    x = clean.copy()
    x[:, 3000:] = 0
    assert last(watched(x)) == (("C",), ("flat",))


def test_after_a_gap_the_beats_are_learnt_anew(clean):
    monitor, still = Monitor(FS, 1), np.zeros(clean.shape, bool)
    first = monitor.push(clean, still, still)
    monitor.reset()
    assert monitor.push(clean, still, still) == first


@pytest.mark.parametrize("sign, lead, warned", [(1, "II", False), (-1, "II", True), (-1, "aVR", False)])
def test_a_lead_the_wrong_way_round_is_told_once(sign, lead, warned):
    made = synth.record("sinus", 3, 60, FS, ("II",), noise="none")
    x = sign * frontend.filter_record(frontend.design(FS), np.asarray(made.uv, np.int32), FS)
    polarity, told = Polarity(FS, lead), []
    before, after = round(BEFORE_S * FS), round(AFTER_S * FS)
    for peak in (i.index for i in watched(np.ascontiguousarray(x, np.int16)) if isinstance(i, Peak)):
        if before <= peak < x.shape[1] - after:
            told.append(polarity.beat(x[0, peak - before:peak + after]))
    assert sum(told) == int(warned) and len(told) > Polarity.BEATS
