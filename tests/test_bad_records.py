# SPDX-License-Identifier: Apache-2.0
"""Records that are missing, truncated or lie about themselves: each gets an error that names file, field and remedy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import wave, write_code15, write_dat, write_mat

from train import headers, records, samples
from train.records import Entry
from train.say import RecordError

wfdb = pytest.importorskip("wfdb")


def only(dataset, folder):
    (entry,) = records.catalog(dataset, folder)
    return records.read(dataset, entry)


@pytest.mark.parametrize("dataset", records.DATASETS)
def test_an_empty_folder_says_what_belongs_there_and_how_to_get_it(tmp_path, dataset):
    with pytest.raises(RecordError, match=str(tmp_path)) as error:
        records.catalog(dataset, tmp_path)
    assert error.value.expected and "https://" in error.value.fix
    with pytest.raises(RecordError, match="is no folder"):
        records.catalog(dataset, tmp_path / "absent")


def test_the_folder_above_the_data_set_is_answered_with_the_folder_to_pass(tmp_path):
    write_dat(tmp_path / "mitdb", "100", wave(), ("MLII",))
    with pytest.raises(RecordError) as error:
        records.catalog("mitdb", tmp_path)
    assert error.value.fix == f"pass {tmp_path / 'mitdb'}"


@pytest.mark.parametrize("fmt", ["16", "212"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_a_truncated_dat_names_file_and_remedy(tmp_path, fmt, keep):
    write_dat(tmp_path, "r1", wave(2), ("I", "II"), fmt=fmt)
    path = tmp_path / "r1.dat"
    path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
    with pytest.raises(RecordError, match=r"r1\.dat: truncated") as error:
        only("wfdb", tmp_path)
    assert "1000" not in error.value.what and "bytes" in error.value.expected and "--skip-broken" in error.value.fix


def lie(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("old, new, complaint", [
    ("r1 2 ", "r1 3 ", "number of signals is 3, but 2 signal lines"),
    ("r1 2 ", "r1 1 ", "number of signals is 1, but 2 signal lines"),
    ("r1 2 360 1000\n", "r1 0\n#", "number of signals is 0, but 1 signal lines"),
    (" 1000\n", " 999\n", "more than r1.hea accounts for"),
    (" 1000\n", " 1001\n", "truncated"),
    (" 360 ", " -360 ", "sampling frequency is '-360'"),
    (" 360 ", " 0 ", "sampling frequency is '0'"),
    (" 1000\n", " many\n", "number of samples is 'many'"),
    ("r1.dat 16 ", "r1.dat 17 ", "signal line 1: format is '17'"),
    ("200.0(0)/mV", "mV", "signal line 1: gain is 'mV'"),
    ("200.0(0)/mV", "2e-9(0)/mV", "gain of I makes a sample of"),
    ("r1.dat", "r2.dat", "signal file r2.dat is missing")])
def test_a_header_that_lies_is_caught_and_the_field_named(tmp_path, old, new, complaint):
    path = write_dat(tmp_path, "r1", wave(2), ("I", "II"))
    lie(path, old, new)
    with pytest.raises(RecordError) as error:
        only("wfdb", tmp_path)
    assert complaint in error.value.what and str(tmp_path) in error.value.what and error.value.fix


def test_a_header_without_signals_is_no_record(tmp_path):
    (tmp_path / "r1.hea").write_text("r1 0 360 1000\n")
    with pytest.raises(RecordError, match="number of signals is 0"):
        only("wfdb", tmp_path)


def test_a_header_that_claims_fewer_leads_than_its_file_interleaves_is_caught(tmp_path):
    path = write_dat(tmp_path, "r1", wave(2), ("I", "II"))
    lines = path.read_text().replace("r1 2 ", "r1 1 ").splitlines()
    path.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(RecordError, match="accounts for"):
        only("wfdb", tmp_path)


def test_a_header_that_disagrees_with_the_shape_of_its_matrix_is_caught(tmp_path):
    path = write_mat(tmp_path, "A1", wave(2, 600), ("I", "II"), comments=("Dx: 426783006",))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["A1 1 500 1200", lines[1], "#Dx: 426783006"]) + "\n")
    with pytest.raises(RecordError, match="matrix of 2 x 600"):
        only("cinc2021", tmp_path)


def test_an_unknown_class_names_file_and_line(tmp_path):
    (tmp_path / "REFERENCE.csv").write_text("A00001,N\nA00002,AF\n")
    with pytest.raises(RecordError, match=r"REFERENCE\.csv, line 2: unknown class 'AF'") as error:
        records.catalog("cinc2017", tmp_path)
    assert error.value.expected == "N, A, O, ~"


@pytest.mark.parametrize("comments, complaint", [((), "no line #Dx"), (("Dx: AF",), "Dx holds 'AF'")])
def test_a_cinc_header_without_codes_is_an_error(tmp_path, comments, complaint):
    write_mat(tmp_path, "A1", wave(1, 500), ("I",), comments=comments)
    with pytest.raises(RecordError, match=complaint):
        records.catalog("cinc2021", tmp_path)


@pytest.mark.parametrize("dataset, table, text", [
    ("ptbxl", "ptbxl_database.csv", "ecg_id,age\n1,50\n"), ("code15", "exams.csv", "exam_id\n1\n")])
def test_an_index_file_without_a_column_names_it(tmp_path, dataset, table, text):
    (tmp_path / table).write_text(text)
    with pytest.raises(RecordError, match="no column"):
        records.catalog(dataset, tmp_path)


def test_broken_headers_are_skipped_and_counted_on_request_only(tmp_path):
    write_dat(tmp_path, "100", wave(), ("MLII",))
    (tmp_path / "101.hea").write_text("101 1\n")
    with pytest.raises(RecordError, match=r"101\.hea"):
        records.catalog("mitdb", tmp_path)
    skipped = []
    assert [e.name for e in records.catalog("mitdb", tmp_path, skipped)] == ["100"]
    assert [s["name"] for s in skipped] == ["101"] and "0 signal lines" in skipped[0]["why"]


def test_a_missing_or_broken_annotation_file_is_named(tmp_path):
    write_dat(tmp_path, "100", wave(), ("MLII",))
    with pytest.raises(RecordError, match=r"100\.atr is missing"):
        only("mitdb", tmp_path)
    wfdb.wrann("100", "atr", np.array([5000]), symbol=["N"], fs=360, write_dir=str(tmp_path))
    with pytest.raises(RecordError, match="a mark at sample 5000"):
        only("mitdb", tmp_path)
    (tmp_path / "100.atr").write_bytes(b"\x01")
    with pytest.raises(RecordError, match=r"100\.atr"):
        only("mitdb", tmp_path)


@pytest.mark.parametrize("spoil, complaint", [
    (lambda path: path.write_bytes(path.read_bytes()[:700]), "could not be read"),
    (lambda path: path.unlink(), "is missing|holds no record")])
def test_a_broken_part_of_code15_is_named(tmp_path, spoil, complaint):
    write_code15(tmp_path, np.ones((1, 4096, 12)), (21,))
    (entry,) = records.catalog("code15", tmp_path)
    spoil(entry.path)
    with pytest.raises(RecordError, match=complaint):
        records.read("code15", entry)


def test_an_exam_of_zeros_or_in_no_part_is_refused(tmp_path):
    write_code15(tmp_path, np.zeros((1, 4096, 12)), (31,))
    (entry,) = records.catalog("code15", tmp_path)
    with pytest.raises(RecordError, match="zeros only"):
        records.read("code15", entry)
    with pytest.raises(RecordError, match="exam 99 is not in this part"):
        records.read("code15", Entry("99", entry.path))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=200))
def test_any_text_is_a_header_or_a_record_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.hea"
    path.write_text(text, encoding="utf-8")
    try:
        header = headers.read_header(path)
    except RecordError as error:
        assert "fuzz.hea" in error.what
    else:
        assert header.fs > 0


FIELD = st.sampled_from(["r1", "r1/2", "1", "2", "360", "360/360(0)", "1000", "r1.dat", "16", "212", "16x2:3+24",
                         "200(5)/mV", "0", "-1", "", "x", "9" * 30, "1e400", "#", "\n",
                         "r1.dat 16 200/mV 11 0 0 0 0 II\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(FIELD, max_size=20))
def test_a_scrambled_header_never_breaks_the_reader(tmp_path_factory, words):
    folder = tmp_path_factory.getbasetemp()
    (folder / "r1.dat").write_bytes(bytes(2000))
    (folder / "r1.hea").write_text(" ".join(words))
    try:
        header = headers.read_header(folder / "r1.hea")
        samples.read_wfdb(header)
    except RecordError as error:
        assert str(folder) in error.what
