# SPDX-License-Identifier: Apache-2.0
"""P waves and the features of beat sequences: on made beats, scaled, turned over and cut, and on real marks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench import pwave as bench_pwave
from train import frontend, pwave, records, rhythm, rpeak, say

FS = 250
NAMES = rhythm.NAMES.index


def beats(seconds=24, rr=0.8, p=0.12, pr=0.16, fs=FS, noise=4.0, sign=1.0, gain=1.0, jitter=0.0, seed=0, t_wave=0.25):
    """(int16 (n,), R samples, P peak samples): Gaussian P, QRS and T at fixed places; `jitter` s moves P about R."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * fs)) / fs
    at = np.arange(0.6, seconds - 0.5, rr)
    p_at = at - pr + rng.uniform(-jitter, jitter, len(at))
    uv = rng.normal(0, noise, len(t))
    for r, q in zip(at, p_at, strict=True):
        uv += 1000 * np.exp(-0.5 * ((t - r) / 0.012) ** 2)
        uv += 1000 * t_wave * np.exp(-0.5 * ((t - r - min(0.28, 0.35 * rr)) / min(0.045, 0.07 * rr)) ** 2)
        uv += 1000 * p * sign * np.exp(-0.5 * ((t - q) / 0.02) ** 2)
    x = np.rint(gain * uv).clip(-32767, 32767).astype(np.int16)
    return x, np.rint(at * fs).astype(np.int64), np.rint(p_at * fs).astype(np.int64)


@pytest.mark.parametrize("fs", [125, 250, 360, 500])
@pytest.mark.parametrize("rr", [0.55, 0.8, 1.4])
@pytest.mark.parametrize("pr", [0.12, 0.16, 0.2])
def test_a_p_wave_is_found_where_it_is(fs, rr, pr):
    x, r, p = beats(rr=rr, pr=pr, fs=fs)
    found = pwave.delineate(x, r, fs)
    assert (found["peak"] >= 0).mean() > 0.95
    error = (found["peak"] - p)[found["peak"] >= 0] / fs
    assert np.abs(error).max() <= 0.02
    there = found[found["peak"] >= 0]
    assert (there["onset"] < there["peak"]).all() and (there["peak"] < there["end"]).all()
    assert abs(float(np.median(there["peak"] - there["onset"])) / fs - 0.05) <= 0.02        # 2.5 sigma


@pytest.mark.parametrize("rr", [0.4, 0.8, 1.4])
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_no_p_wave_is_reported_where_there_is_none(rr, noise):
    x, r, _ = beats(rr=rr, p=0, noise=noise)
    assert (pwave.delineate(x, r, FS)["peak"] >= 0).mean() <= 0.1


def test_a_wave_that_keeps_no_place_before_r_is_not_taken_for_p():
    steady, r, _ = beats(seconds=60, p=0.1)
    loose, _, _ = beats(seconds=60, p=0.1, jitter=0.09)
    kept = [(pwave.delineate(x, r, FS)["peak"][8:] >= 0).mean() for x in (steady, loose)]
    assert kept[0] > 0.95 and kept[1] < 0.75


@pytest.mark.parametrize("gain", [0.5, 3.0, 12.0])
def test_gain_does_not_move_a_p_wave(gain):
    x, r, _ = beats(noise=0)
    y, _, _ = beats(noise=0, gain=gain)
    one, other = pwave.delineate(x, r, FS), pwave.delineate(y, r, FS)
    assert np.abs(one["peak"] - other["peak"]).max() <= 1 and (one["peak"] >= 0).all()
    assert np.abs(rhythm.features(x, r, FS).astype(int) - rhythm.features(y, r, FS)).max() <= 2


def test_a_p_wave_upside_down_is_found_and_says_so():
    x, r, p = beats(sign=-1)
    found = pwave.delineate(x, r, FS)
    assert np.abs(found["peak"] - p)[found["peak"] >= 0].max() <= 5 and (found["peak"] >= 0).mean() > 0.9
    assert (found["height"][found["peak"] >= 0] < 0).all()


def test_what_is_known_60_ms_behind_r_stays():
    x, r, _ = beats()
    for n in (3, 9, 20):
        cut = x[:r[n] + FS * 60 // 1000]
        np.testing.assert_array_equal(pwave.delineate(cut, r[:n + 1], FS), pwave.delineate(x, r, FS)[:n + 1])
        np.testing.assert_array_equal(rhythm.features(cut, r[:n + 1], FS), rhythm.features(x, r, FS)[:n + 1])


@pytest.mark.parametrize("level", [0, 32767, -32768])
def test_full_scale_and_flat_signals_have_no_p_wave_and_break_nothing(level):
    x = np.full(2000, level, np.int16)
    found = pwave.delineate(x, np.array([5, 700, 701, 701, 1999]), FS)
    assert (found["peak"][1:3] == -1).all() and len(found) == 5
    x[::2] = -1 - x[::2]
    assert len(pwave.delineate(x, np.array([5, 700, 1999]), FS)) == 3


def test_no_beats_are_no_rows():
    nothing = np.zeros(0, np.int64)
    assert len(pwave.delineate(np.zeros(50, np.int16), nothing, FS)) == 0
    assert rhythm.features(np.zeros(50, np.int16), nothing, FS).shape == (0, len(rhythm.NAMES))


# ---- features of beats

def test_the_first_beat_has_no_interval_and_the_others_have():
    rows = rhythm.features(*beats(rr=0.8)[:2], FS)
    assert rows[0, :3].tolist() == [-32, 0, 0] and (rows[1:, 0] == 32).all()
    assert (rows[1:, NAMES("interval")] == 0).all() and (rows[1:, NAMES("of usual")] == 0).all()
    slow = rhythm.features(*beats(rr=1.2)[:2], FS)
    assert (slow[1:, NAMES("interval")] == 50).all()


def test_a_premature_beat_stands_out_from_the_usual_interval():
    x, r, _ = beats()
    r = r.copy()
    r[12] -= 60
    row = rhythm.features(x, r, FS)
    assert row[12, NAMES("of usual")] == 64 * 140 // 200 - 64 and row[13, NAMES("of usual")] > 18


def test_pr_and_duration_are_in_4_ms_whatever_the_rate():
    for fs in (125, 250, 500):
        rows = rhythm.features(*beats(fs=fs, pr=0.16, noise=1)[:2], fs)[4:]
        assert np.abs(rows[:, NAMES("PR")] - 52).max() <= 5          # 160 ms and the rise of the wave
        assert (rows[:, NAMES("P")] == 32).all()


def test_without_p_wave_its_measures_are_zero():
    rows = rhythm.features(*beats(p=0, noise=0)[:2], FS)
    assert (rows[2:, NAMES("P")] == -32).all()
    assert not rows[2:, [NAMES("height"), NAMES("PR"), NAMES("duration")]].any()


def test_sequences_hold_the_last_sixteen_beats_and_zeros_before_the_first():
    rows = np.arange(1, 41, dtype=np.int8)[:, None] * np.ones((1, 9), np.int8)
    found = rhythm.sequences(rows, np.array([0, 3, 16, 40]))
    assert found.shape == (4, 16, 9) and not found[0].any()
    assert found[1, :, 0].tolist() == [0] * 13 + [1, 2, 3]
    assert found[2, :, 0].tolist() == list(range(1, 17)) and found[3, -1, 0] == 40


# ---- the bench and real marks

def test_the_bench_scores_a_twin_of_ludb(tmp_path, capsys):
    wfdb = pytest.importorskip("wfdb")
    pytest.importorskip("scipy.signal")
    x, r, p = beats(seconds=12, fs=500)
    (tmp_path / "ludb").mkdir()
    names = [lead.lower() for lead in records.TWELVE]
    wfdb.wrsamp("1", fs=500, units=["mV"] * 12, sig_name=names, p_signal=np.tile(x[:, None] / 1000, 12),
                fmt=["16"] * 12, comments=["Rhythm: Sinus rhythm."], write_dir=str(tmp_path / "ludb"))
    marks = sorted([(s, k) for q in p for s, k in ((q - 25, "("), (q, "p"), (q + 25, ")"))] + [(q, "N") for q in r])
    for name in names:      # wfdb refuses to write an extension with a digit, as v1 has
        wfdb.wrann("1", "atr", np.array([m[0] for m in marks]), symbol=[m[1] for m in marks],
                   write_dir=str(tmp_path / "ludb"))
        (tmp_path / "ludb" / "1.atr").rename(tmp_path / "ludb" / f"1.{name}")
    assert say.run(bench_pwave.main, bench_pwave.parser(), ["--data", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["leads"]["II"]["all"]
    assert found["records"] == 1 and found["annotated"] == len(r) - 1
    assert found["peak"]["se"] == found["onset"]["se"] == 1 and found["peak"]["ppv"] >= 0.9


def test_the_bench_says_what_folder_it_needs(tmp_path, capsys):
    assert say.run(bench_pwave.main, bench_pwave.parser(), ["--data", str(tmp_path)]) == 1
    assert "ludb" in capsys.readouterr().err


def test_p_waves_of_real_resting_records_are_found():
    folder = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent")) / "ludb"
    if not folder.is_dir():
        pytest.skip("LEADEDGE_DATA holds no folder ludb")
    spec = frontend.design(FS)
    found = [records.read("ludb", e) for e in records.catalog("ludb", folder) if e.fold][:24]
    signals = frontend.filter_records(spec, [r.pick(("II",)) for r in found], found[0].fs)
    rows = [bench_pwave.compare(record, "II", x[0], spec) for record, x in zip(found, signals, strict=True)]
    told = bench_pwave.score([row for row in rows if row])
    assert told["annotated"] > 100 and told["peak"]["se"] > 0.9 and told["onset"]["se"] > 0.9
    assert told["peak"]["ppv"] > 0.85 and rpeak.Detector(FS).latency > FS * 60 // 1000
