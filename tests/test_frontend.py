# SPDX-License-Identifier: Apache-2.0
"""The front end: its integers against a second implementation, float64 filters, hostile input and real records."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import frontend, records, resample, synth
from train.say import ManifestError, RecordError, UserError

signal = pytest.importorskip("scipy.signal")

RATES = (100, 125, 128, 130, 250, 256, 257, 300, 360, 400, 500, 1000)
SPEC = frontend.design(250)
RNG = np.random.default_rng(11)


def qrs(fs, seconds=8.0, at=4.0, peak=1200.0):
    """float microvolts of one QRS complex whose R is at `at` seconds: Q, R and S as Gaussians."""
    t = np.arange(round(seconds * fs)) / fs - at
    return peak * (np.exp(-0.5 * (t / 0.012) ** 2) - 0.25 * np.exp(-0.5 * ((t + 0.026) / 0.010) ** 2)
                   - 0.30 * np.exp(-0.5 * ((t - 0.030) / 0.012) ** 2))


def ecg(fs, seconds=20.0):
    """int32 microvolts (1, n): synthetic sinus rhythm on 2 mV of slow wander."""
    record = synth.record("sinus", 3, duration_s=seconds, fs=fs, leads=("II",))
    wander = 2000 * np.sin(2 * np.pi * 0.1 * np.arange(record.uv.shape[1]) / fs)
    return record.uv + np.rint(wander).astype(np.int32)


def by_the_formula(spec, uv, fs_in):
    """One lead through the documented chain, sample by sample in Python's unbounded integers; asserts int32 signals."""
    kernel, limit = resample.kernel(fs_in, spec["fs"]), spec["clamp_uv"]
    x = [max(-limit, min(limit, int(v))) for v in uv]
    table, up, down = kernel.table.tolist(), kernel.up, kernel.down
    if up != down:
        y = []
        for m in range(-(-len(x) * up // down)):
            i, phase = divmod(m * down, up)
            total = sum(c * x[max(i - j, 0)] for j, c in enumerate(table[phase]))
            y.append(max(-limit, min(limit, (total + (1 << 14)) >> 15)))
        x = y
    past = [[x[0] << 8] * 2] + [[0, 0] for _ in spec["sections"]]
    error, out = [0] * len(spec["sections"]), []
    for v in x:
        v <<= 8
        for k, (b0, b1, b2, a1, a2) in enumerate(spec["sections"]):
            (x1, x2), (y1, y2) = past[k], past[k + 1]
            total = b0 * v + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2 + error[k]
            assert -(1 << 63) <= total < 1 << 63
            past[k], v, error[k] = [v, x1], total >> 28, total & ((1 << 28) - 1)
            assert -(1 << 31) <= v < 1 << 31
        past[-1] = [v, past[-1][0]]
        out.append(max(-32767, min(32767, (v + 128) >> 8)))
    return out


# ---- the constants

@pytest.mark.parametrize("fs", [100, 125, 250, 360, 500, 1000])
def test_the_design_is_integers_and_names_and_survives_json(fs):
    spec = frontend.design(fs)
    frontend.check(spec)
    assert json.loads(json.dumps(spec)) == spec and spec["fs"] == fs
    assert all(type(c) is int for section in spec["sections"] for c in section)
    for mains in (50, 60):
        assert (f"notch {mains} Hz" in spec["filters"]) == (mains < 0.45 * fs)


@pytest.mark.parametrize("fs", [100, 125, 250, 500, 1000])
def test_gain_at_0_hz_is_exact_in_integers(fs):
    highpass, *others = frontend.design(fs)["sections"]
    assert sum(highpass[:3]) == 0
    for b0, b1, b2, a1, a2 in others:
        assert b0 + b1 + b2 == (1 << 28) + a1 + a2


@pytest.mark.parametrize("fs", [250.0, 99, 1001, True, "250"])
def test_a_rate_the_filters_cannot_have_is_refused(fs):
    with pytest.raises(UserError, match="front end at"):
        frontend.design(fs)


@pytest.mark.parametrize("change, named", [
    ({"guard_bits": 4}, "guard_bits"), ({"version": 2}, "version"), ({"clamp_uv": 1 << 24}, "clamp_uv"),
    ({"sections": []}, "sections"), ({"sections": [[1, 2, 3]] * 5}, "sections"), ({"extra": 1}, "extra"),
    ({"sections": [[1 << 30, 0, 0, 0, 0], *SPEC["sections"][1:]]}, "sections"),
    ({"sections": [[1 << 20, 0, 0, 0, 0], *SPEC["sections"][1:]]}, "0 Hz")])
def test_a_changed_specification_is_refused_by_key(change, named):
    with pytest.raises(ManifestError, match=named):
        frontend.FrontEnd(SPEC | change, 250, 1)


def test_a_missing_key_is_refused_by_name():
    with pytest.raises(ManifestError, match="clip_uv"):
        frontend.check({k: v for k, v in SPEC.items() if k != "clip_uv"})


# ---- the resampler

@pytest.mark.parametrize("fs_in", RATES)
def test_every_phase_of_the_resampler_sums_to_one_in_int16(fs_in):
    kernel = resample.kernel(fs_in, 250)
    if kernel.up != kernel.down:
        assert kernel.table.dtype == np.int16 and (kernel.table.astype(int).sum(1) == 1 << 15).all()
        assert kernel.up * fs_in == kernel.down * 250


@pytest.mark.parametrize("fs_in", [r for r in RATES if r != 250])
def test_the_resampler_passes_the_ecg_band_and_stops_what_would_fold_into_it(fs_in):
    kernel = resample.kernel(fs_in, 250)
    taps = kernel.table.T.astype(float).ravel() / (1 << 15) / kernel.up         # at up * fs_in
    lower = min(fs_in, 250)
    hz, response = signal.freqz(taps, worN=1 << 16, fs=kernel.up * fs_in)
    gain = np.abs(response)
    assert np.abs(gain[hz < 0.75 * min(40, 0.4 * lower)] - 1).max() < 0.004
    assert np.abs(gain[hz < min(40, 0.4 * lower)] - 1).max() < 0.02
    assert gain[hz > 0.6 * lower].max() < 10 ** (-52 / 20) and gain[hz > 0.61 * lower].max() < 10 ** (-58 / 20)


@pytest.mark.parametrize("fs_in", [r for r in RATES if r != 250])
def test_the_resampler_equals_a_float_polyphase_filter_within_a_microvolt(fs_in):
    uv = np.repeat(ecg(fs_in, 6.0), 1, axis=0)
    kernel = resample.kernel(fs_in, 250)
    taps = kernel.table.T.astype(float).ravel() / (1 << 15)
    y = resample.Resampler(fs_in, 250, 1 << 20).push(uv)[0]
    lead_in = kernel.taps * kernel.down                                         # whole output periods of history
    expected = signal.upfirdn(taps, np.concatenate([np.full(lead_in, uv[0, 0]), uv[0]]), kernel.up, kernel.down)
    expected = expected[lead_in * kernel.up // kernel.down:][:len(y)]
    assert np.abs(y - expected).max() <= 0.51


@pytest.mark.parametrize("fs_in", [10, 1e6, float("nan"), 249.87])
def test_an_input_rate_that_cannot_be_resampled_is_refused(fs_in):
    with pytest.raises(UserError, match="Hz"):
        resample.kernel(fs_in, 250)


@pytest.mark.parametrize("fs_in, up, down", [(333.333, 3, 4), (194.3, 2500, 1943), (256, 125, 128), (250.0, 1, 1)])
def test_an_odd_rate_is_taken_as_the_simplest_fraction(fs_in, up, down):
    kernel = resample.kernel(fs_in, 250)
    assert (kernel.up, kernel.down) == (up, down)


@pytest.mark.parametrize("fs_in", RATES)
def test_output_count_follows_the_input_count(fs_in):
    n = 7 * fs_in + 3
    y = frontend.filter_record(SPEC, np.zeros((1, n), np.int32), fs_in)
    assert y.shape == (1, -(-n * 250 // fs_in)) and y.dtype == np.int16


# ---- the whole chain against two other computations

@pytest.mark.parametrize("fs_in", [128, 250, 300, 360, 1000])
def test_the_chain_equals_its_formula_bit_for_bit(fs_in):
    uv = ecg(fs_in, 4.0)
    assert frontend.filter_record(SPEC, uv, fs_in)[0].tolist() == by_the_formula(SPEC, uv[0], fs_in)


@pytest.mark.parametrize("fs", [100, 125, 500])
def test_the_chain_equals_its_formula_at_other_output_rates(fs):
    spec, uv = frontend.design(fs), ecg(250, 4.0)
    assert frontend.filter_record(spec, uv, 250)[0].tolist() == by_the_formula(spec, uv[0], 250)


@pytest.mark.parametrize("fs", [125, 250, 500])
def test_the_sections_follow_float64_filters_within_a_microvolt_and_a_half(fs):
    sos = [signal.butter(2, 0.5, "highpass", fs=fs, output="sos"), signal.butter(4, 40, fs=fs, output="sos")]
    sos += [np.concatenate(signal.iirnotch(hz, 30, fs=fs))[None] for hz in (50, 60) if hz < 0.45 * fs]
    sos = np.concatenate(sos)
    uv = ecg(fs, 20.0)
    state = signal.sosfilt_zi(sos) * uv[0, 0]
    expected, _ = signal.sosfilt(sos, uv[0].astype(float), zi=state)
    assert np.abs(frontend.filter_record(frontend.design(fs), uv, fs)[0] - expected).max() <= 1.5


@pytest.mark.parametrize("hz, least, most", [(0.05, 0, 0.02), (0.5, 0.69, 0.73), (5, 0.97, 1.01), (20, 0.97, 1.01),
                                             (40, 0.66, 0.74), (50, 0, 0.01), (60, 0, 0.01), (100, 0, 0.01)])
def test_a_tone_keeps_the_share_of_its_amplitude_that_the_filters_promise(hz, least, most):
    t = np.arange(250 * 60) / 250
    uv = np.rint(3000 * np.sin(2 * np.pi * hz * t)).astype(np.int32)[None]
    settled = frontend.filter_record(SPEC, uv, 250)[0, 250 * 20:]
    assert least <= np.sqrt(2) * settled.astype(float).std() / 3000 <= most


@pytest.mark.parametrize("fs_in", [360, 500, 1000])
@pytest.mark.parametrize("share", [0.42, 0.46, 0.49])
def test_a_tone_above_the_output_band_does_not_fold_into_the_ecg(fs_in, share):
    t = np.arange(fs_in * 20) / fs_in
    uv = np.rint(3000 * np.sin(2 * np.pi * share * fs_in * t)).astype(np.int32)[None]
    assert np.abs(frontend.filter_record(SPEC, uv, fs_in)[0, 2500:]).max() <= 20        # 1/150


# ---- state

@pytest.mark.parametrize("level", [0, 1, -1, 300_000, -300_000, 1 << 20, 2**31 - 1, -2**31])
@pytest.mark.parametrize("fs_in", [128, 250, 360])
def test_a_constant_gives_exactly_zero_from_the_first_sample(level, fs_in):
    assert not frontend.filter_record(SPEC, np.full((1, 3000), level, np.int32), fs_in).any()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RATES), st.lists(st.integers(0, 200), min_size=1, max_size=12), st.integers(0, 2**32 - 1),
       st.sampled_from([50, 5000, 2**31 - 1]))
def test_any_chunking_gives_the_same_bits(fs_in, sizes, seed, limit):
    rng = np.random.default_rng(seed)
    uv = rng.integers(-limit - 1, limit, (2, sum(sizes)), dtype=np.int64, endpoint=True).astype(np.int32)
    stream = frontend.FrontEnd(SPEC, fs_in, 2)
    cuts = np.cumsum([0, *sizes])
    parts = [stream.push(uv[:, a:b]) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts, axis=1), frontend.filter_record(SPEC, uv, fs_in))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([128, 250, 360]), st.lists(st.sampled_from([-2**31, -2**20, -1, 0, 2**20, 2**31 - 1]),
                                                  min_size=1, max_size=40), st.integers(1, 60))
def test_extreme_input_stays_within_32_bits_and_follows_the_formula(fs_in, levels, hold):
    uv = np.repeat(np.array(levels, np.int64), hold).astype(np.int32)
    assert frontend.filter_record(SPEC, uv[None], fs_in)[0].tolist() == by_the_formula(SPEC, uv, fs_in)


@pytest.mark.parametrize("fs", [100, 125, 250, 360, 500, 1000])
def test_the_worst_input_of_all_fits_int32(fs):
    spec = frontend.design(fs)
    impulse = np.zeros(20 * fs)
    impulse[0] = 1.0
    for section in spec["sections"]:
        one = 1 << 28
        impulse = signal.lfilter(np.array(section[:3]) / one, np.array([one, *section[3:]]) / one, impulse)
        assert np.abs(impulse).sum() * (spec["clamp_uv"] << spec["guard_bits"]) < 1 << 31


def test_reset_starts_a_new_stream():
    uv = ecg(360, 5.0)
    stream = frontend.FrontEnd(SPEC, 360, 1)
    once = stream.push(uv)
    stream.reset()
    assert np.array_equal(stream.push(uv), once)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_very_short_input_is_filtered_or_waits(n):
    uv = RNG.integers(-500, 500, (3, n)).astype(np.int32)
    for fs_in in (250, 1000):
        y = frontend.filter_record(SPEC, uv, fs_in)
        assert y.shape == (3, -(-n * 250 // fs_in)) and (n == 0 or not y[:, 0].any())


def test_a_batch_of_different_records_equals_them_one_by_one():
    lengths = [0, 1, 2700, 9000, 777, 9000, 18300]
    uvs = [RNG.integers(-4000, 4000, (1 + k % 3, n)).astype(np.int32) for k, n in enumerate(lengths)]
    for batch, uv in zip(frontend.filter_records(SPEC, uvs, 300), uvs, strict=True):
        assert batch.dtype == np.int16 and np.array_equal(batch, frontend.filter_record(SPEC, uv, 300))
    assert frontend.filter_records(SPEC, [], 300) == []


@pytest.mark.parametrize("uv", [np.zeros(5, np.int32), np.zeros((3, 5), np.int32), np.zeros((2, 5)),
                                np.zeros((2, 2, 2), np.int32)])
def test_samples_of_the_wrong_shape_or_type_are_refused(uv):
    with pytest.raises(RecordError, match="samples of shape"):
        frontend.FrontEnd(SPEC, 250, 2).push(uv)


# ---- where things are, and the last step

@pytest.mark.parametrize("fs", [125, 250, 500])
@pytest.mark.parametrize("fs_in", RATES)
def test_a_qrs_peak_lands_within_4_ms_of_where_it_is_promised(fs_in, fs):
    spec = frontend.design(fs)
    for part in np.linspace(0, 1, 5, endpoint=False):                   # R between two input samples, too
        sample = 4 * fs_in + part
        uv = np.rint(qrs(fs_in, at=sample / fs_in)).astype(np.int32)[None]
        peak = int(frontend.filter_record(spec, uv, fs_in)[0].argmax())
        assert abs(peak - (sample * fs / fs_in + frontend.delay(spec, fs_in))) <= max(1.0, 0.004 * fs)
        assert abs(peak - int(frontend.to_output(spec, sample, fs_in))) <= max(1.0, 0.004 * fs)


def test_to_output_keeps_shape_and_type():
    at = frontend.to_output(SPEC, np.array([[0, 360], [720, 1_000_000]]), 360)
    assert at.shape == (2, 2) and at.dtype == np.int64
    assert at[0, 1] - at[0, 0] == 250 and abs(at[1, 1] - at[0, 0] - 694444) <= 1


@pytest.mark.parametrize("uv_per_lsb", [1, 5, 16, 33])
def test_quantize_rounds_ties_up_and_clamps(uv_per_lsb):
    x = np.arange(-32768, 32768).astype(np.int16)
    expected = np.clip(np.floor(x / uv_per_lsb + 0.5), -128, 127)
    q = frontend.quantize(x, uv_per_lsb)
    assert q.dtype == np.int8 and np.array_equal(q, expected)
    assert frontend.quantize(np.array([[8, -8, 24, -24]], np.int16), 16).tolist() == [[1, 0, 2, -1]]


def test_filtering_imports_neither_scipy_nor_torch():
    code = ("import sys, json, numpy as np\n"
            "from train import frontend, rpeak\n"
            "spec = json.loads(sys.argv[1])\n"
            "rpeak.detect(frontend.filter_record(spec, np.zeros((1, 500), np.int32), 360)[0], 250)\n"
            "frontend.to_output(spec, [1], 360)\n"
            "assert not {'scipy', 'torch', 'wfdb'} & set(sys.modules)\n")
    subprocess.run([sys.executable, "-c", code, json.dumps(SPEC)], check=True, cwd=Path(__file__).parents[1])


# ---- real records

DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


def real(dataset, name):
    if not (DATA / dataset).is_dir():
        pytest.skip(f"LEADEDGE_DATA holds no folder {dataset}")
    return records.read(dataset, next(e for e in records.catalog(dataset, DATA / dataset) if e.name == name))


def test_a_real_record_pushed_in_bursts_equals_it_filtered_whole():
    uv = real("mitdb", "208").pick(("MLII",))[:, :40_000]
    stream, parts, at = frontend.FrontEnd(SPEC, 360, 1), [], 0
    while at < uv.shape[1]:
        n = int(RNG.integers(1, 600))
        parts.append(stream.push(uv[:, at:at + n]))
        at += n
    assert np.array_equal(np.concatenate(parts, axis=1), frontend.filter_record(SPEC, uv, 360))


def test_annotated_r_peaks_of_a_real_record_are_where_to_output_says():
    record = real("mitdb", "100")
    marks = record.annotations["atr"]
    sample = marks.sample[[s == "N" for s in marks.symbol]]
    sample = sample[(sample > 1000) & (sample < 99_000)]
    x = frontend.filter_record(SPEC, record.pick(("MLII",))[:, :100_000], 360)[0]
    off = [int(x[at - 10:at + 11].argmax()) - 10 for at in frontend.to_output(SPEC, sample, 360)]
    assert abs(np.median(off)) <= 1 and np.mean(np.abs(off) <= 2) > 0.98
