# SPDX-License-Identifier: Apache-2.0
"""The front end, the R-peak detector and the beat features in C give numpy's bits, on anything that electrodes send."""

import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cfront
import ckernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets import front_data
from train import frontend, records, rhythm, rpeak, synth, template
from train.manifest import Input, Label, Manifest, Trigger
from train.say import ManifestError, UserError

pytest.importorskip("scipy.signal")

LEADS = ("I", "II", "V1")
RATES = [(125, 250), (250, 250), (257, 250), (360, 250), (500, 250), (1000, 250), (125, 360), (250, 360), (1000, 360),
         (125, 500), (257, 500), (360, 500), (500, 500), (333.333, 250)]


def manifest(fs, leads=1, lsb=10.0):
    waveform = Input("ecg", "waveform", (leads, 10 * fs), "uV", lsb, LEADS[:leads])
    return Manifest("twin", "local-lead", "tiny", "synthetic", (Label("N", "SNOMED:426783006"),), False, fs, 10 * fs,
                    (waveform,), Trigger("hop", hop=fs), False, frontend.design(fs))


def layers(fs_in, fs, leads=1):
    return front_data.front_spec(manifest(fs, leads)), front_data.rate(fs_in, fs)


def chunked(stream, uv, chunks):
    """What numpy's front end makes of [(frames, reset before them)]: (int16 (lead, m), samples made by each chunk)."""
    parts, at = [np.empty((len(uv), 0), np.int16)], 0
    for frames, reset in chunks:
        if reset:
            stream.reset()
        parts.append(stream.push(uv[:, at:at + frames]))
        at += frames
    return np.concatenate(parts, 1), [p.shape[1] for p in parts[1:]]


def compare_front(uv, fs_in, fs, chunks, room=64, sanitized=True):
    got = cfront.front(*layers(fs_in, fs, len(uv)), uv, chunks, room, sanitized)
    x, made = chunked(frontend.FrontEnd(frontend.design(fs), fs_in, len(uv)), uv, chunks)
    assert got.made == made and np.array_equal(got.x, x)
    assert np.array_equal(got.codes, frontend.quantize(x, 10))
    return got


def random_chunks(rng, n, largest, resets=0.05):
    chunks = []
    while n:
        frames = min(n, int(rng.integers(0, largest)))
        chunks.append((frames, int(rng.random() < resets)))
        n -= frames
    return chunks


# ---- the front end

@pytest.mark.parametrize("leads", [1, 2, 3])
@pytest.mark.parametrize("fs_in, fs", RATES)
def test_a_patient_comes_out_of_the_c_front_end_as_out_of_numpys(fs_in, fs, leads):
    uv = synth.record("pvc", 5, 6, fs_in, LEADS[:leads], noise="clinic").uv
    compare_front(uv, fs_in, fs, random_chunks(np.random.default_rng(leads), uv.shape[1], 300))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-2**31, -2**20 - 1, -2**20, -32768, -1, 0, 1, 300, 2**20, 2**31 - 1]),
                          st.integers(1, 90)), min_size=1, max_size=12),
       st.sampled_from(RATES), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_rails_steps_resets_and_any_chunking_give_the_same_bits(steps, rates, leads, room, seed):
    rng = np.random.default_rng(seed)
    uv = np.repeat([level for level, _ in steps], [hold for _, hold in steps])
    uv = np.stack([uv, rng.integers(-2**31, 2**31, len(uv)), -(uv // 2)])[:leads]
    compare_front(uv, *rates, random_chunks(rng, uv.shape[1], 40, 0.2), room)


@pytest.mark.parametrize("fs", [100, 250, 500, 1000])
def test_the_worst_input_that_there_is_does_not_overflow(fs):
    spec = frontend.design(fs)
    n = 8 * fs
    impulse = np.zeros((1, n), np.int32)
    impulse[0, 1] = 30_000                      # the largest that is not clipped on its way
    worst = []
    for count in range(1, len(spec["sections"]) + 1):
        response = frontend.filter_record({**spec, "sections": spec["sections"][:count],
                                           "filters": spec["filters"][:count]}, impulse, fs)[0]
        worst.append(np.where(response[::-1] < 0, -2**20, 2**20))
    compare_front(np.concatenate(worst)[None], fs, fs, [(n, 0)] * len(worst))


@pytest.mark.parametrize("fs_in, fs", [pair for pair in RATES if pair[0] != pair[1]])
def test_the_worst_input_of_a_resampler_does_not_overflow(fs_in, fs):
    table = front_data.rate(fs_in, fs).fields["table"].values
    worst = np.concatenate([np.tile(np.where(taps[::-1] < 0, -2**20, 2**20), 4) for taps in table[::7]])[None]
    compare_front(np.concatenate([worst, -worst - 1], 1), fs_in, fs, [(2 * worst.shape[1], 0)])


@pytest.mark.parametrize("uv_per_lsb", [1, 2, 3, 10, 25, 1000, 32767])
def test_every_sample_has_the_code_that_numpy_gives_it(uv_per_lsb):
    uv = np.arange(-32768, 32768)
    assert np.array_equal(cfront.codes(uv, uv_per_lsb), frontend.quantize(uv.astype(np.int16), uv_per_lsb))


def test_two_seconds_after_a_start_and_after_a_gap_count_as_not_settled():
    uv = np.zeros((1, 1500), np.int32)
    got = cfront.front(*layers(500, 250), uv, [(100, 0), (800, 0), (200, 0), (400, 1)])
    assert got.made == [50, 400, 100, 200] and got.settle == [450, 50, 0, 300]


# ---- detector and features

def completed(x, peaks, fs, end):
    """Rows of the beats whose next interval is known at sample `end`: by the next beat, or as 10 s have passed."""
    if not len(peaks):
        return np.empty((0, len(template.BEAT_NAMES)), np.int8)
    overdue = end - peaks[-1] >= 10 * fs + rpeak.Detector(fs).latency
    rr = rpeak.rr_features(np.append(peaks, peaks[-1] + 10 * fs), fs)[:-1]
    rows = np.concatenate([rr, template.template_features(x, peaks, fs)], 1)
    return rows if overdue else rows[:-1]


def expected(x, fs, resets=(), hop=250, start=0):
    """The events of cfront.beats by numpy, segment by segment: kind -> list of (r, row)."""
    events = {kind: [] for kind in cfront.KINDS[:-1]}
    none = np.zeros(0, np.int8)
    for low, high in itertools.pairwise([0, *resets, len(x)]):
        part = x[low:high]
        peaks = rpeak.detect(part, fs)
        r = [(low + start + int(p)) % 2**32 for p in peaks]
        last = template.beat_features(part, peaks, fs)[-1:] if r else np.zeros((1, 12), np.int8)
        steps = rhythm.features(part, peaks, fs)
        ends = np.arange(hop - low % hop, len(part) + 1, hop)
        known = np.searchsorted(peaks + rpeak.Detector(fs).latency, ends)
        events["beat"] += [(at, none) for at in r]
        events["row"] += zip(r, completed(part, peaks, fs, len(part) - 1), strict=False)
        events["last row"] += [(r[-1] if r else 0, last[0])]
        events["sequence"] += zip(r, rhythm.sequences(steps, np.arange(1, len(r) + 1)), strict=True)
        events["sequence before"] += zip(r, rhythm.sequences(steps, np.arange(len(r))), strict=True)
        events["window"] += [(0, row) for row in rhythm.sequences(steps, known)]
    return events


def compare_beats(x, fs, resets=(), hop=250, start=0, sanitized=True):
    """All events in C are those of numpy; returns them."""
    got = cfront.beats(x, fs, resets, hop, start, sanitized)
    for kind, events in expected(x, fs, resets, hop, start).items():
        assert got[kind]["r"].tolist() == [r for r, _ in events], kind
        for have, (r, row) in zip(got[kind]["row"], events, strict=True):
            assert have[:row.size].tobytes() == row.tobytes(), f"{kind} of the beat at {r}"
    return got


@pytest.mark.parametrize("fs", [100, 125, 250, 360, 500])
@pytest.mark.parametrize("course", ["sinus", "af", "pvc", "bigeminy", "svt", "vf", "pause", "av-block-3", "lbbb"])
def test_beats_features_and_sequences_of_a_patient_are_those_of_numpy(course, fs):
    uv = synth.record(course, fs, 40, 250, ("II",), noise="clinic").uv
    x = frontend.filter_record(frontend.design(fs), uv, 250)[0]
    assert len(compare_beats(x, fs, hop=37)["beat"]) > 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-32768, -32767, -900, -20, 0, 1, 20, 700, 32767]), st.integers(1, 120)),
                min_size=1, max_size=60),
       st.sampled_from([0, 1, 30, 3000, 12_000]), st.sampled_from([100, 250, 257, 500]), st.integers(0, 2**32 - 1),
       st.lists(st.integers(1, 3000), max_size=3, unique=True), st.integers(1, 400))
def test_hostile_signals_resets_and_wrapping_indices_change_nothing(steps, noise, fs, start, resets, hop):
    x = np.repeat([level for level, _ in steps], [hold for _, hold in steps])
    x = np.clip(x + np.random.default_rng(start).normal(0, noise, len(x)), -32768, 32767).astype(np.int16)
    compare_beats(x, fs, sorted(r for r in resets if r < len(x)), hop, start)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(40, 700), st.sampled_from([-20_000, -1500, 300, 1000, 1200, 32767]),
                          st.integers(0, 300)), min_size=2, max_size=60), st.sampled_from([125, 250, 500]))
def test_any_train_of_beats_and_p_waves_has_the_features_of_numpy(beats, fs):
    at = np.cumsum([step for step, *_ in beats])
    t = np.arange(at[-1] + 300)
    x = np.random.default_rng(len(beats)).normal(0, 5, len(t))
    for (_, height, p), r in zip(beats, at, strict=True):
        for centre, width, h in ((r, 0.012, height), (r - 0.16 * fs, 0.022, p), (r + 0.28 * fs, 0.04, p / 2)):
            x += h * np.exp(-0.5 * ((t - centre) / (width * fs)) ** 2)
    compare_beats(np.clip(x, -32768, 32767).astype(np.int16), fs)


def test_an_hour_of_a_patient_has_the_beats_and_features_of_numpy():
    parts = [synth.record(course, 9, 300, 250, ("II",)).uv for course in ("pvc", "af", "sinus", "pac")] * 3
    x = frontend.filter_records(frontend.design(250), parts, 250)
    assert len(compare_beats(np.concatenate([p[0] for p in x]), 250, sanitized=False)["row"]) > 3000


@pytest.mark.parametrize("fs", [125, 250, 500])
def test_a_beat_is_decided_at_the_sample_at_which_numpy_decides_it(fs):
    uv = synth.record("pvc", 2, 12, 250, ("II",), noise="clinic").uv
    x = frontend.filter_record(frontend.design(fs), uv, 250)[0]
    detector = rpeak.Detector(fs)
    want = [(n, r) for n in range(len(x)) for r in detector.push(x[n:n + 1])]
    got = cfront.beats(x, fs)["beat"]
    assert list(zip(got["now"].tolist(), got["r"].tolist(), strict=True)) == want and len(want) > 8


def test_a_beat_that_nothing_follows_is_complete_ten_seconds_later():
    beat = np.rint(1200 * np.exp(-0.5 * (np.arange(-125, 125) / 3.0) ** 2)).astype(np.int16)
    x = np.concatenate([np.tile(beat, 12), np.zeros(3200, np.int16), np.tile(beat, 4)])
    got = compare_beats(x, 250)
    silent = got["row"][11]
    assert silent["now"] == silent["r"] + 10 * 250 + rpeak.Detector(250).latency
    assert dict(zip(template.BEAT_NAMES, silent["row"].tolist(), strict=False))["next / short"] == 127
    assert len(got["row"]) == len(got["beat"]) - 1              # the late beat does not complete it again


# ---- what C and Python say of each other

@pytest.mark.parametrize("fs", [100, 125, 250, 257, 360, 500])
def test_memory_is_what_python_says(fs):
    spec, rate = layers(360, fs, 3)
    parts = front_data.memory(spec, rate, ("rr", "beats"))
    assert cfront.front(spec, rate, np.zeros((3, 9), np.int32)).memory == parts["front"]
    told = cfront.beats(np.zeros(9, np.int16), fs)["bytes"][0]
    *looks, detector, beats, sequence = told["row"][:24].view(np.uint32).tolist()
    assert (detector, beats, sequence) == (parts["rpeak"], parts["beats"], parts["rhythm"])
    assert 2 * told["now"] == 2 * max(looks) == parts["history"] and told["r"] == rpeak.Detector(fs).latency
    for kinds, longest in ((("rr",), looks[:2]), ((), looks[:1])):
        assert front_data.memory(spec, rate, kinds, "r-peak")["history"] == 2 * max(longest)
    assert set(front_data.memory(spec, rate, ("age",))) == {"front"}


def test_a_model_without_beats_needs_less_than_300_bytes_and_one_with_them_less_than_2000():
    assert sum(front_data.memory(*layers(250, 250)).values()) < 300
    assert sum(front_data.memory(*layers(250, 250), ("rr", "beats")).values()) < 2000


def test_the_header_states_the_arithmetic_of_the_manifest():
    text = (ckernels.C / "ecg_front.h").read_text()
    assert {name: int(value) for name, value in re.findall(r"#define (ECG_\w+)\s+(\d+)", text)} == front_data.FIXED
    spec = frontend.design(250)
    assert [front_data.FIXED[f"ECG_FRONT_{name}"] for name in ("CLAMP_UV", "CLIP_UV", "GUARD", "Q")] == [
        spec[key] for key in ("clamp_uv", "clip_uv", "guard_bits", "coefficient_bits")]


def test_the_detector_has_the_shares_of_the_level_of_numpy():
    table = re.search(r"alpha\[33\] = \{(.*?)\}", (ckernels.C / "ecg_rpeak.c").read_text(), re.S).group(1)
    assert tuple(int(v) for v in re.findall(r"\d+", table)) == rpeak.ALPHA


@pytest.mark.parametrize("change, said", [
    ({"fs": 360}, "frontend.fs is 250"),
    ({"frontend": {**frontend.design(250), "sections": [[1 << 28, -(1 << 29), 1 << 28, -(1 << 29), 1 << 28]],
                   "filters": ["unstable"]}}, "could overflow"),
    ({"frontend": {**frontend.design(250), "guard_bits": 6}}, "guard_bits"),
    ({"inputs": manifest(250, lsb=2.5).inputs}, "lsb is 2.5")])
def test_a_manifest_whose_front_end_c_cannot_compute_is_refused(change, said):
    with pytest.raises(ManifestError, match=said):
        front_data.front_spec(replace(manifest(250), **change))


def test_a_rate_whose_taps_no_microcontroller_holds_is_refused():
    with pytest.raises(UserError, match="at most 65535"):
        front_data.rate(19_001, 250)


@pytest.mark.parametrize("names", [("gcc",), ("clang", "clang-19")])
def test_compilers_have_nothing_to_say(names):
    cfront.program(False, next(filter(shutil.which, names), names[0]))


# ---- real records

DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


@pytest.mark.parametrize("name", ["100", "114", "207", "208", "233"])
def test_a_real_holter_record_has_the_samples_beats_and_features_of_numpy(name):
    if not (DATA / "mitdb").is_dir():
        pytest.skip("LEADEDGE_DATA holds no folder mitdb")
    entry = next(e for e in records.catalog("mitdb", DATA / "mitdb") if e.name == name)
    record = records.read("mitdb", entry)
    lead = next(lead for lead in record.leads if lead in ("MLII", "II"))
    uv = record.pick((lead,))[:, :150_000]
    x = frontend.filter_record(frontend.design(250), uv, 360)
    chunks = random_chunks(np.random.default_rng(int(name)), uv.shape[1], 900, 0)
    assert np.array_equal(cfront.front(*layers(360, 250), uv, chunks).x, x)
    assert len(compare_beats(x[0], 250, sanitized=False)["beat"]) > 300
