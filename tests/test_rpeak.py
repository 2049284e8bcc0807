# SPDX-License-Identifier: Apache-2.0
"""The R-peak detector and the RR features: on pulse trains, synthetic patients, hostile input and real records."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import beats
from bench import rpeak as bench_rpeak
from train import frontend, records, rpeak, say, synth
from train.say import RecordError, UserError

pytest.importorskip("scipy.signal")

FS = 250
SPEC = frontend.design(FS)
TOLERANCE_S = 0.15


def pulses(at_s, seconds, fs=FS, peak=1000.0, t_wave=0.25, noise=8.0, sign=1, seed=0):
    """int16 (n,) behind the front end, and where its R peaks are: QRS (and T wave) at the given seconds."""
    t = np.arange(round(seconds * fs)) / fs
    uv = np.random.default_rng(seed).normal(0, noise, len(t))
    for at, height in zip(at_s, np.broadcast_to(peak, len(at_s)), strict=True):
        d = t - at
        uv += sign * height * (np.exp(-0.5 * (d / 0.012) ** 2) - 0.3 * np.exp(-0.5 * ((d - 0.03) / 0.012) ** 2)
                               + t_wave * np.exp(-0.5 * ((d - 0.28) / 0.045) ** 2))
    spec = frontend.design(fs)
    x = frontend.filter_record(spec, np.rint(uv).astype(np.int32)[None], fs)[0]
    return x, frontend.to_output(spec, np.asarray(at_s) * fs, fs)


def count(truth, found, fs=FS, first_s=0.0):
    """(missed, extra) with one detection per beat within 150 ms, from `first_s` on."""
    truth, found = truth[truth >= first_s * fs], np.asarray(found)
    found = found[found >= first_s * fs - TOLERANCE_S * fs]
    hits = len(beats.match(truth, found, TOLERANCE_S * fs)[0])
    return len(truth) - hits, len(found) - hits


def regular(seconds, rr=0.8):
    return np.arange(0.6, seconds - 0.5, rr)


# ---- beats that must be found

@pytest.mark.parametrize("fs", [125, 250, 360, 500])
@pytest.mark.parametrize("rr", [0.27, 0.5, 0.8, 1.8])
def test_every_beat_of_a_regular_rhythm_is_found_where_it_is(fs, rr):
    x, truth = pulses(regular(20, rr), 20, fs, t_wave=0 if rr < 0.4 else 0.25)
    found = rpeak.detect(x, fs)
    a, f = beats.match(truth, found, TOLERANCE_S * fs)
    assert len(a) == len(truth) == len(found)
    assert np.abs(found[f] - truth[a]).max() <= max(2, 0.008 * fs)


@pytest.mark.parametrize("peak, noise", [(150, 3), (1000, 8), (30_000, 8)])
def test_gain_does_not_matter(peak, noise):
    x, truth = pulses(regular(20), 20, peak=peak, noise=noise)
    assert count(truth, rpeak.detect(x, FS)) == (0, 0)


def test_a_negative_qrs_is_found_within_40_ms():
    x, truth = pulses(regular(20), 20, sign=-1)
    found = rpeak.detect(x, FS)
    assert count(truth, found) == (0, 0) and np.abs(found - truth).max() <= 10


@pytest.mark.parametrize("t_wave", [0.5, 0.8, 1.0])
def test_a_tall_t_wave_is_no_beat(t_wave):
    x, truth = pulses(regular(30, 0.9), 30, t_wave=t_wave)
    assert count(truth, rpeak.detect(x, FS)) == (0, 0)


def test_premature_beats_and_pauses_are_found():
    at = np.cumsum([0.8] * 8 + [0.45, 1.15] + [0.8] * 4 + [2.6] + [0.8] * 4 + [0.5, 0.5, 0.5, 0.8])
    x, truth = pulses(at, at[-1] + 1)
    assert count(truth, rpeak.detect(x, FS)) == (0, 0)


@pytest.mark.parametrize("share, seconds", [(1 / 3, 3), (1 / 8, 11), (8, 3)])
def test_a_change_of_gain_is_followed(share, seconds):
    at = regular(60)
    x, truth = pulses(at, 60, peak=np.where(at < 30, 1000.0, 1000.0 * share), noise=4)
    found = rpeak.detect(x, FS)
    assert count(truth[truth < 30 * FS], found[found < 30 * FS]) == (0, 0)
    assert count(truth, found, first_s=30 + seconds) == (0, 0)


@pytest.mark.parametrize("at_s", [0.9, 12.0])
def test_an_artefact_of_30_mv_blinds_the_detector_for_twelve_seconds_at_most(at_s):
    x, truth = pulses(regular(40), 40)
    x = x.copy()
    x[round(at_s * FS):round(at_s * FS) + 20] = 32767
    assert count(truth, rpeak.detect(x, FS), first_s=at_s + 12) == (0, 0)


@pytest.mark.parametrize("rhythm", ["sinus", "bradycardia", "tachycardia", "af", "pvc", "svt", "flutter", "rbbb"])
def test_beats_of_synthetic_patients_are_found(rhythm):
    missed = extra = total = 0
    for seed in range(4):
        record = synth.record(rhythm, seed, leads=("II",), noise="clinic")
        x = frontend.filter_record(SPEC, record.uv, 250)[0]
        truth = frontend.to_output(SPEC, record.beats.sample, 250)
        truth = truth[(truth > FS) & (truth < len(x) - 0.5 * FS)]
        found = rpeak.detect(x, FS)
        found = found[(found > truth[0] - 38) & (found < truth[-1] + 38)]
        miss, more = count(truth, found)
        missed, extra, total = missed + miss, extra + more, total + len(truth)
    assert missed <= 0.01 * total and extra <= 0.01 * total


# ---- silence and noise

@pytest.mark.parametrize("x", [0, 1, -1])
def test_a_flat_line_has_no_beat(x):
    assert len(rpeak.detect(np.full(5000, x, np.int16), FS)) == 0


def test_the_noise_of_an_idle_amplifier_is_no_beat():
    x = np.random.default_rng(3).normal(0, 4, 60 * FS).astype(np.int16)
    assert len(rpeak.detect(x, FS)) == 0


def test_noise_after_the_heart_stops_is_soon_no_beat():
    at = regular(20)
    x, truth = pulses(at, 60, noise=4)
    assert count(truth, rpeak.detect(x, FS)) == (0, 0)


# ---- time

@pytest.mark.parametrize("fs", [100, 125, 128, 250, 257, 360, 500])
def test_the_decision_is_never_later_than_300_ms(fs):
    detector = rpeak.Detector(fs)
    assert detector.latency <= 0.3 * fs
    x = np.random.default_rng(fs).normal(0, 300, 12 * fs)
    x[::round(0.7 * fs)] += 4000
    waits = [n - r for n, sample in enumerate(x.astype(np.int16)) for r in detector.push([int(sample)])]
    assert len(waits) > 10 and max(waits) <= detector.latency and min(waits) >= 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=12), st.sampled_from([125, 250, 500]),
       st.integers(0, 2**32 - 1), st.sampled_from([30, 3000, 32767]))
def test_any_chunking_gives_the_same_beats(sizes, fs, seed, limit):
    rng = np.random.default_rng(seed)
    x = np.clip(rng.normal(0, limit / 8, sum(sizes)), -32767, 32767)
    x[::round(0.6 * fs)] = limit
    x = x.astype(np.int16)
    detector, found, at = rpeak.Detector(fs), [], 0
    for size in sizes:
        found += detector.push(x[at:at + size])
        at += size
    assert found == rpeak.detect(x, fs).tolist()
    assert found == sorted(set(found)) and all(0 <= r < len(x) for r in found)


def test_reset_starts_again_from_sample_0():
    x, _ = pulses(regular(10), 10)
    detector = rpeak.Detector(FS)
    once = detector.push(x)
    detector.reset()
    assert detector.push(x) == once and len(once) > 8


def test_later_samples_do_not_change_a_decided_beat():
    x, _ = pulses(regular(20), 20)
    other = x.copy()
    other[10 * FS:] = np.random.default_rng(5).integers(-30_000, 30_000, len(x) - 10 * FS)
    early = 10 * FS - rpeak.Detector(FS).latency
    a, b = rpeak.detect(x, FS), rpeak.detect(other, FS)
    assert len(a[a < early]) > 8 and np.array_equal(a[a < early], b[b < early])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([-32767, -1, 0, 1, 32767]), min_size=1, max_size=60), st.integers(1, 80))
def test_full_scale_input_keeps_every_number_within_32_bits(levels, hold):
    detector = rpeak.Detector(500)
    detector.push(np.repeat(np.array(levels, np.int16), hold))
    feature = detector._feature()[3 * detector.box + detector.sum:]
    assert feature.max(initial=0) < 1 << 28                                 # times 6, and Q8 times the level in 64 bits
    assert detector._level < 1 << 28 and 0 <= detector._noise < 1 << 28


@pytest.mark.parametrize("fs", [50, 99, 501, 1000])
def test_a_rate_the_detector_was_not_made_for_is_refused(fs):
    with pytest.raises(UserError, match="detector at"):
        rpeak.Detector(fs)


@pytest.mark.parametrize("x", [np.zeros((1, 9), np.int16), np.zeros(9), np.zeros(9, bool)])
def test_samples_that_are_no_row_of_integers_are_refused(x):
    with pytest.raises(RecordError, match="samples of shape"):
        rpeak.Detector(FS).push(x)


def test_no_samples_are_no_beats():
    nothing = np.empty(0, np.int16)
    assert rpeak.Detector(FS).push(nothing) == [] and rpeak.detect(nothing, FS).shape == (0,)


# ---- RR features

def features_one_by_one(peaks, fs):
    """The documented formulas in plain Python, beat by beat."""
    rr = [min(max(b - a, 1), 10 * fs) for a, b in itertools.pairwise(peaks)] or [fs * 4 // 5]
    p = [rr[0], *rr][:len(peaks)]
    rows = []
    for i in range(len(peaks)):
        before = [p[0]] * 64 + p[:i]                                        # oldest first
        short, long = sorted(before[-16:])[8], sorted(before[-64:])[32]
        n = rr[i] if i < len(peaks) - 1 else short
        change = sum(abs(a - b) for a, b in zip(before[-17:], before[-16:], strict=False))
        pairs = ((p[i], short), (n, short), (p[i], long), (n, long), (p[i], before[-1]), (n, p[i]))
        row = [(64 * a + b) // (2 * b) - 32 for a, b in pairs] + [32 * change // (2 * short)]
        rows.append([max(-128, min(127, v)) for v in row])
    return rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=150), st.sampled_from([125, 250, 500]))
def test_rr_features_follow_their_formulas(steps, fs):
    peaks = np.cumsum(np.array(steps, np.int64))
    got = rpeak.rr_features(peaks, fs)
    assert got.dtype == np.int8 and got.shape == (len(peaks), len(rpeak.RR_NAMES))
    assert got.tolist() == features_one_by_one(peaks.tolist(), fs)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(50, 500), min_size=4, max_size=100), st.data())
def test_rr_features_use_at_most_the_next_beat(steps, data):
    peaks = np.cumsum(steps)
    i = data.draw(st.integers(0, len(peaks) - 2))
    assert np.array_equal(rpeak.rr_features(peaks[:i + 2], FS)[:i + 1], rpeak.rr_features(peaks, FS)[:i + 1])


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_the_first_beats_have_neutral_features(n):
    features = rpeak.rr_features(np.arange(n) * 200 + 77, FS)
    assert features.shape == (n, len(rpeak.RR_NAMES)) and not features.any()


def test_a_premature_beat_with_its_pause_stands_out():
    peaks = np.cumsum([200] * 20 + [120, 280] + [200] * 5)
    named = dict(zip(rpeak.RR_NAMES, rpeak.rr_features(peaks, FS)[20].tolist(), strict=True))
    assert named["previous / short"] == named["previous / long"] == -13 and named["next / short"] == 13
    assert named["next / previous"] == 43 and named["previous / one before"] == -13 and named["variability"] == 0


def test_an_irregular_rhythm_has_a_large_variability():
    rng = np.random.default_rng(2)
    column = rpeak.RR_NAMES.index("variability")
    af = rpeak.rr_features(np.cumsum(rng.normal(180, 45, 300)).astype(int), FS)[20:, column]
    sinus = rpeak.rr_features(np.cumsum(rng.normal(200, 6, 300)).astype(int), FS)[20:, column]
    assert np.median(af) > 4 * np.median(sinus) > 0


def test_descending_peaks_are_refused():
    with pytest.raises(RecordError, match="R peak 300 "):
        rpeak.rr_features([100, 500, 300], FS)


# ---- the bench, on a twin of the real set

def test_the_bench_counts_missed_and_extra_beats_outside_of_flutter(tmp_path, capsys):
    wfdb = pytest.importorskip("wfdb")
    fs, seconds = 360, 330
    at = np.round(np.arange(1.0, seconds - 1, 0.8) * fs).astype(int)
    t = np.arange(seconds * fs)
    uv = np.zeros(len(t))
    for sample in at:
        near = slice(sample - 60, sample + 60)
        uv[near] += 1000 * np.exp(-0.5 * ((t[near] - sample) / 4.3) ** 2)
    uv[at[-5] - 60:at[-5] + 60] = 0                                         # annotated, and not there: one missed
    late = [int(at[-20]), int(at[-15])]                                     # between these: flutter, not counted
    kept = [s for s in at if s != at[-9] and not late[0] <= s <= late[1]]   # there, and not annotated: one extra
    (tmp_path / "mitdb").mkdir()
    wfdb.wrsamp("100", fs=fs, units=["mV"], sig_name=["MLII"], p_signal=uv[:, None] / 1000, fmt=["16"],
                write_dir=str(tmp_path / "mitdb"))
    marks = sorted([(s, "N") for s in kept] + [(late[0] - 30, "["), (late[1] + 30, "]")])
    wfdb.wrann("100", "atr", np.array([m[0] for m in marks]), symbol=[m[1] for m in marks],
               write_dir=str(tmp_path / "mitdb"))
    assert say.run(bench_rpeak.main, bench_rpeak.parser(), ["--data", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["mitdb"]
    counted = [s for s in kept if s >= 300 * fs]
    assert (result["records"], result["beats"], result["missed"], result["extra"]) == (1, len(counted), 1, 1)
    assert result["se"] == round(1 - 1 / len(counted), 5)


def test_the_bench_says_what_folder_it_needs(tmp_path, capsys):
    assert say.run(bench_rpeak.main, bench_rpeak.parser(), ["--data", str(tmp_path)]) == 1
    assert "mitdb" in capsys.readouterr().err


# ---- real records

DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


def real(dataset, lead, wanted):
    """[(record, int16 (n,))] of the named records."""
    if not (DATA / dataset).is_dir():
        pytest.skip(f"LEADEDGE_DATA holds no folder {dataset}")
    entries = [e for e in records.catalog(dataset, DATA / dataset) if e.name in wanted]
    found = [records.read(dataset, e) for e in entries]
    return list(zip(found, [x[0] for x in frontend.filter_records(SPEC, [r.pick((lead,)) for r in found], found[0].fs)],
                    strict=True))


def test_real_holter_records_are_detected_as_the_gate_asks():
    missed = extra = total = 0
    for record, x in real("mitdb", "MLII", {"100", "114", "119", "207", "208", "233"}):
        marks = record.annotations["atr"]
        at = frontend.to_output(SPEC, marks.sample, record.fs)
        truth = at[np.isin(marks.symbol, list("NLRejAaJSVEFQ/f")) & bench_rpeak.counted(at, marks, at, FS)]
        found = rpeak.detect(x, FS)
        found = found[bench_rpeak.counted(found, marks, at, FS)]
        miss, more = count(truth, found)
        missed, extra, total = missed + miss, extra + more, total + len(truth)
    assert total > 10_000
    assert 1 - missed / total >= 0.993 and (total - missed) / (total - missed + extra) >= 0.993


def test_r_of_real_resting_records_is_within_40_ms():
    distance = []
    for record, x in real("ludb", "II", {str(n) for n in range(1, 31)}):
        marks = record.annotations["II"]
        truth = frontend.to_output(SPEC, marks.sample[np.array(marks.symbol) == "N"], record.fs)
        found = rpeak.detect(x, FS)
        a, f = beats.match(truth, found, TOLERANCE_S * FS)
        distance += (found[f] - truth[a]).tolist() + [999] * (len(truth) - len(a))
    assert len(distance) > 100
    assert np.mean(np.abs(distance) <= 10) >= 0.95 and abs(np.median(distance)) <= 2
