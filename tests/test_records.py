# SPDX-License-Identifier: Apache-2.0
"""Reading records: a synthetic twin of every data set, and the real sets where LEADEDGE_DATA has them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from twins import wave, write_code15, write_dat, write_mat

from train import headers, leads, records
from train.records import Entry
from train.say import RecordError, UserError

wfdb = pytest.importorskip("wfdb")

TWELVE = records.TWELVE


def only(dataset, folder):
    (entry,) = records.catalog(dataset, folder)
    return records.read(dataset, entry)


# ---- one twin per data set

@pytest.mark.parametrize("fmt, limit", [("16", 900), ("212", 900), ("80", 600), ("24", 900), ("32", 900)])
def test_samples_of_every_wfdb_format_come_back_in_microvolts(tmp_path, fmt, limit):
    uv = wave(2, 501, limit)
    write_dat(tmp_path, "r1", uv, ("MLII", "V1"), fmt=fmt)
    record = only("wfdb", tmp_path)
    assert record.leads == ("MLII", "V1") and record.fs == 360 and record.missing is None
    assert record.uv.dtype == np.int32 and np.array_equal(record.uv, uv)


@pytest.mark.parametrize("units, per_uv", [("mV", 1e-3), ("uV", 1), ("V", 1e-6)])
def test_units_of_voltage_are_all_understood(tmp_path, units, per_uv):
    uv = wave(1, 300)
    write_dat(tmp_path, "r1", np.rint(uv), ("II",), gain=200.0, units="mV")
    text = (tmp_path / "r1.hea").read_text().replace("200.0(0)/mV", f"{0.2 / per_uv:g}(0)/{units}")
    (tmp_path / "r1.hea").write_text(text)
    assert np.array_equal(only("wfdb", tmp_path).uv, uv)


def test_mitdb_has_beats_patients_and_its_lead_by_name(tmp_path):
    uv = wave(2, 720)
    for name in ("114", "201", "202"):
        write_dat(tmp_path, name, uv, ("V5", "MLII"), fmt="212", baseline=1024, comments=["72 F 750 1629 x1", "none"])
        wfdb.wrann(name, "atr", np.array([18, 77, 370]), symbol=["+", "N", "V"], aux_note=["(N", "", ""], fs=360,
                   write_dir=str(tmp_path))
    entries = records.catalog("mitdb", tmp_path)
    assert [(e.name, e.patient, e.age, e.sex) for e in entries] == [
        ("114", "114", 72, "F"), ("201", "201", 72, "F"), ("202", "201", 72, "F")]
    record = records.read("mitdb", entries[0])
    atr = record.annotations["atr"]
    assert atr.sample.tolist() == [18, 77, 370] and atr.symbol == ("+", "N", "V") and atr.aux == ("(N", "", "")
    assert np.array_equal(record.pick(("MLII",)), uv[1:]) and np.array_equal(record.pick(("-V5",)), -uv[:1])


def test_cinc2017_drops_duplicates_and_serves_lead_i_whatever_the_header_sums_say(tmp_path):
    uv = wave(1, 900)
    for name in ("A00227", "A01176", "A00004"):
        write_mat(tmp_path, name, uv, ("ECG",), fs=300)
    (tmp_path / "REFERENCE.csv").write_text("A00227,N\nA01176,N\nA00004,~\n")
    entries = records.catalog("cinc2017", tmp_path)
    assert [(e.name, e.labels, e.fold) for e in entries] == [
        (n, (c,), records.sha1_fold(n)) for n, c in (("A00227", "N"), ("A00004", "~"))]
    record = records.read("cinc2017", entries[0])
    assert record.leads == ("I",) and record.fs == 300 and np.array_equal(record.uv, uv)


@pytest.mark.parametrize("line", [
    "E00001 12 500 600 05:05:15 12/05/2020", "E00001.mat 12 500 600 05-May-2020 14:50:55",
    "E00001 12 500 600 12/05/2020 14:50:55", "E00001.mat 12 500 600"])
def test_cinc_headers_are_read_in_every_order_of_date_and_time_and_left_alone(tmp_path, line):
    uv = wave(12, 600)
    write_mat(tmp_path / "georgia" / "g1", "E00001", uv, TWELVE, record_line=line,
              comments=("Age: 74", "Sex: Male", "Dx: 426783006,59118001", "Rx: Unknown"))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    record = only("cinc2021", tmp_path)
    assert (record.labels, record.age, record.sex) == (("426783006", "59118001"), 74, "M")
    assert record.leads == TWELVE and np.array_equal(record.uv, uv)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("age, sex, expected", [("NaN", "Female", (None, "F")), ("-1", "Unknown", (None, None)),
                                                ("61", "male", (61, "M"))])
def test_age_and_sex_that_nobody_knows_are_none(tmp_path, age, sex, expected):
    write_mat(tmp_path, "JS1", wave(12, 500), TWELVE, comments=(f"Age: {age}", f"Sex: {sex}", "Dx: 426783006"))
    (entry,) = records.catalog("cinc2020", tmp_path)
    assert (entry.age, entry.sex) == expected


PTBXL_ROW = "{id},{patient},{age},{sex},\"{{'NORM': 100.0, 'SR': 0.0}}\",{fold},{lr},{hr}\n"


@pytest.mark.parametrize("dataset, fs, suffix", [("ptbxl", 500, "hr"), ("ptbxl100", 100, "lr")])
def test_ptbxl_comes_at_both_rates_with_codes_fold_and_capped_age(tmp_path, dataset, fs, suffix):
    uv, stem = wave(12, 10 * fs), f"records{fs}/00000/00001_{suffix}"
    write_dat((tmp_path / stem).parent, f"00001_{suffix}", uv, [n.upper() for n in TWELVE], fs=fs, gain=1000.0)
    names = {"lr": "x", "hr": "x", suffix: stem}
    (tmp_path / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
        + PTBXL_ROW.format(id=1, patient="15709.0", age="300.0", sex=1, fold=3, **names))
    record = only(dataset, tmp_path)
    (entry,) = records.catalog(dataset, tmp_path)
    assert (entry.patient, entry.age, entry.sex, entry.fold, entry.labels) == ("15709", 90, "F", 3, ("NORM", "SR"))
    assert record.fs == fs and record.leads == TWELVE and np.array_equal(record.uv, uv)


def test_ludb_has_a_delineation_per_lead_and_its_diagnoses(tmp_path):
    write_dat(tmp_path / "data", "1", wave(12, 500), [n.lower() for n in TWELVE], fs=500, gain=1000.0, comments=[
        "<age>: 51", "<sex>: F", "<diagnoses>:", "Rhythm: Sinus bradycardia.", "Left ventricular hypertrophy. "])
    for n, lead in enumerate(TWELVE):
        wfdb.wrann("1", "new", np.array([10, 20 + n, 40]), symbol=["(", "N", ")"], fs=500,
                   write_dir=str(tmp_path / "data"))
        (tmp_path / "data" / "1.new").rename(tmp_path / "data" / f"1.{lead.lower()}")
    record = only("ludb", tmp_path)
    assert record.labels == ("Rhythm: Sinus bradycardia", "Left ventricular hypertrophy")
    assert (record.age, record.sex) == (51, "F")
    assert {lead: int(a.sample[1]) for lead, a in record.annotations.items()} == {
        lead: 20 + n for n, lead in enumerate(TWELVE)}


def test_nstdb_without_a_gain_uses_the_default_of_the_format(tmp_path):
    uv = wave(2, 300)
    path = write_dat(tmp_path, "bw", uv, ("noise1", "noise2"), fmt="212")
    path.write_text(path.read_text().replace("200.0(0)/mV", "0"))
    record = only("nstdb", tmp_path)
    assert record.leads == ("noise1", "noise2") and np.array_equal(record.uv, uv)


def test_code15_is_cut_out_of_its_padding_and_its_holes_are_marked(tmp_path, capsys):
    tracings = np.zeros((3, 4096, 12))
    tracings[0, 648:3448] = 1.25
    tracings[1, 48:4048] = -0.5
    tracings[1, 100:110, 3] = np.nan
    write_code15(tmp_path, tracings, (11, 12), ("exams_part0.hdf5", "exams_part1.hdf5"))
    entries = records.catalog("code15", tmp_path)
    assert [(e.name, e.patient, e.labels, e.age, e.sex) for e in entries] == [
        ("11", "711", ("RBBB", "AF"), 38, "F"), ("12", "712", ("RBBB", "AF"), 38, "M")]
    assert "1 of the 2 parts" in capsys.readouterr().err
    short, long = (records.read("code15", e) for e in entries)
    assert short.fs == 400 and short.uv.shape == (12, 2800) and (short.uv == 1250).all() and short.missing is None
    assert long.uv.shape == (12, 4000) and (long.uv == -500).all()
    assert long.missing.sum() == 10 and long.missing[3, 52:62].all()


def test_ptb_at_1000_hz_gives_twelve_leads_out_of_fifteen_channels(tmp_path):
    names = [n.lower() for n in TWELVE] + ["vx", "vy", "vz"]
    write_dat(tmp_path / "patient001", "s0010_re", wave(15, 2000), names, fs=1000, gain=2000.0, comments=["age: 81"])
    record = only("wfdb", tmp_path)
    assert record.fs == 1000 and record.age == 81 and record.pick(TWELVE).shape == (12, 2000)


def test_a_record_of_several_segments_is_one_record_with_its_gap_marked(tmp_path):
    uv = wave(1, 400)
    write_dat(tmp_path, "s1", uv[:, :200], ("II",))
    write_dat(tmp_path, "s2", uv[:, 200:], ("II",))
    (tmp_path / "whole.hea").write_text("whole/4 1 360 500\nlayout 0\ns1 200\n~ 100\ns2 200\n")
    (tmp_path / "layout.hea").write_text("layout 1 360 0\n~ 0 200/mV 16 0 0 0 0 II\n")
    record = only("wfdb", tmp_path)
    assert record.name == "whole" and record.leads == ("II",)
    assert record.uv.shape == (1, 500) and record.missing.sum() == 100
    assert np.array_equal(record.uv[0, ~record.missing[0]], uv[0])
    assert (record.uv[0, 200:300] == uv[0, 199]).all()


@pytest.mark.parametrize("fmt, invalid", [("16", -32768), ("212", -2048), ("80", -128)])
def test_invalid_samples_are_marked_and_hold_the_last_valid_value(tmp_path, fmt, invalid):
    digital = np.tile(np.arange(50), 2)
    digital[[0, 30, 31]] = invalid
    wfdb.wrsamp("r", fs=250, units=["mV"], sig_name=["I"], d_signal=digital[:, None], fmt=[fmt], adc_gain=[200.0],
                baseline=[0], write_dir=str(tmp_path))
    record = only("wfdb", tmp_path)
    assert np.flatnonzero(record.missing[0]).tolist() == [0, 30, 31]
    assert record.uv[0, [0, 30, 31]].tolist() == [5, 29 * 5, 29 * 5]


def test_a_channel_that_is_no_voltage_is_left_out(tmp_path):
    path = write_dat(tmp_path, "r", wave(2, 300), ("II", "RESP"))
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("/mV", "/pm")
    path.write_text("\n".join(lines) + "\n")
    assert only("wfdb", tmp_path).leads == ("II",)


# ---- leads

def twelve(n=400):
    i, ii = wave(2, n).astype(np.int32)
    return i, ii


def test_limb_leads_follow_from_i_and_ii_within_half_a_microvolt():
    i, ii = twelve()
    iii, avr, avl, avf = (leads.derive(lead, i, ii).astype(float) for lead in ("III", "aVR", "aVL", "aVF"))
    assert np.array_equal(i + iii, ii)
    assert np.abs(avr + (i + ii) / 2).max() <= 0.5 and np.abs(avl - (i - ii / 2)).max() <= 0.5
    assert np.abs(avr + avl + avf).max() <= 1.5 and leads.derive("V1", i, ii) is None


def record_of(names, uv, missing=None):
    return records.Record("r", 250.0, names, uv, missing, None, None, ())


def test_a_lead_the_record_has_is_taken_and_one_it_lacks_is_derived():
    i, ii = twelve()
    uv = np.stack([i, ii, np.full_like(i, 7)])
    record = record_of(("I", "II", "aVR"), uv)
    picked = record.pick(("avr", "-III", "I"))
    assert (picked[0] == 7).all() and np.array_equal(picked[1], i - ii) and np.array_equal(picked[2], i)


@pytest.mark.parametrize("names, wanted", [(("MLII", "V1"), "II"), (("I", "V1"), "aVL"), (("I", "II"), "V1")])
def test_a_lead_that_does_not_follow_is_refused_with_what_there_is(names, wanted):
    with pytest.raises(RecordError, match=f"no lead {wanted}") as error:
        record_of(names, np.zeros((2, 10), np.int32)).pick((wanted,))
    assert names[1] in error.value.expected and "--leads" in error.value.fix


def test_a_lead_without_one_valid_sample_is_refused():
    missing = np.array([[False] * 5, [True] * 5])
    record = record_of(("I", "V1"), np.zeros((2, 5), np.int32), missing)
    assert record.pick(("I",)).shape == (1, 5)
    with pytest.raises(RecordError, match="V1 holds no valid sample"):
        record.pick(("V1",))


@pytest.mark.parametrize("text, names, sources", [
    ("I,II", ("I", "II"), ("I", "II")), ("ch1=I, ch2=-II", ("I", "II"), ("ch1", "-ch2")),
    ("-mlii", ("MLII",), ("-MLII",)), (("ECG=I",), ("I",), ("ECG",))])
def test_a_lead_map_names_channel_and_sign(text, names, sources):
    assert leads.parse_map(text) == (names, sources)


@pytest.mark.parametrize("text", ["", "I,I", "X1", "=I", "ch1=", "I=ch1", "--I"])
def test_a_lead_map_that_no_model_can_list_is_refused(text):
    with pytest.raises(UserError):
        leads.parse_map(text)


# ---- the real sets

DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


def real(dataset):
    if not (DATA / dataset).is_dir():
        pytest.skip(f"LEADEDGE_DATA holds no folder {dataset}")
    return DATA / dataset


@pytest.mark.parametrize("dataset, folder", [("mitdb", "mitdb"), ("cinc2017", "cinc2017"), ("cinc2021", "cinc2021"),
                                             ("ptbxl", "ptbxl"), ("ptbxl100", "ptbxl"), ("ludb", "ludb"),
                                             ("nstdb", "nstdb")])
def test_real_records_equal_what_wfdb_reads(dataset, folder):
    entries = records.catalog(dataset, real(folder))
    assert len({e.name for e in entries}) == len(entries)
    for entry in entries[::max(1, len(entries) // 6)]:
        record = records.read(dataset, entry)
        assert record.uv.shape[0] == len(record.leads) and record.annotations.keys() == (
            {"atr"} if dataset == "mitdb" else set(TWELVE) if dataset == "ludb" else set())
        if headers.read_header(entry.path).plain:
            expected = wfdb.rdrecord(str(entry.path.with_suffix(""))).p_signal.T * 1000
            assert np.abs(record.uv - expected).max() <= 0.5 + 1e-6


def test_real_georgia_headers_are_read():
    entries = [e for e in records.catalog("cinc2021", real("cinc2021")) if e.name.startswith("E")]
    assert any(not headers.read_header(e.path).plain for e in entries)
    assert all(records.read("cinc2021", e).leads == TWELVE for e in entries)


def test_real_cinc2017_labels_and_folds():
    entries = records.catalog("cinc2017", real("cinc2017"))
    assert not {e.name for e in entries} & set(records.CINC2017_DUPLICATES)
    assert set(Counter(e.labels[0] for e in entries)) == set(records.CINC2017_CLASSES)
    assert set(Counter(e.fold for e in entries)) == set(range(5))


def test_real_114_has_mlii_in_its_second_channel():
    folder = real("mitdb")
    record = records.read("mitdb", Entry("114", folder / "114.hea"))
    assert record.leads == ("V5", "MLII") and np.array_equal(record.pick(("MLII",))[0], record.uv[1])
