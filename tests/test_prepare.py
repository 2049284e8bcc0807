# SPDX-License-Identifier: Apache-2.0
"""Preparing records: what the shards hold, that work is done once, and what a kill or a full disk leaves behind."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from twins import write_dat, write_mat

from train import frontend, prepare, records, tasks, template
from train.say import RecordError, UserError
from train.shards import open_shards

wfdb = pytest.importorskip("wfdb")

ROOT = Path(__file__).resolve().parents[1]
FS = 250
BEATS = "NLAVFQ/+~N"


def ecg(seconds, fs, seed=0):
    """Microvolts (2, time) with a sharp deflection every 0.8 s, and the samples of its peaks."""
    rng = np.random.default_rng(seed)
    n = int(seconds * fs)
    at = np.arange(int(0.5 * fs), n - int(0.2 * fs), int(0.8 * fs))
    t = np.arange(n)
    uv = sum(1000 * np.exp(-(((t - p) / (0.012 * fs)) ** 2)) for p in at) + rng.normal(0, 5, n)
    return np.stack([uv, -uv]), at


@pytest.fixture
def mitdb(tmp_path):
    """Five records of 10 s: two of DS1, one of DS2, 202 apart, and 104, which is paced and has no MLII."""
    folder = tmp_path / "mitdb"
    for n, name in enumerate(("101", "114", "100", "202", "104")):
        uv, at = ecg(10, 360, n)
        leads = {"114": ("V5", "MLII"), "104": ("V5", "V2")}.get(name, ("MLII", "V5"))
        write_dat(folder, name, uv, leads, fmt="212", baseline=1024, comments=["69 M 1085 1629 x1"])
        wfdb.wrann(name, "atr", at[:len(BEATS)], symbol=list(BEATS)[:len(at)], fs=360, write_dir=str(folder))
    return folder


@pytest.fixture
def cinc2017(tmp_path):
    """Twelve records of 9 to 12 s in the four classes."""
    folder = tmp_path / "cinc2017"
    for n in range(12):
        write_mat(folder, f"A{n:05d}", ecg(9 + n / 4, 300, n)[0][:1], ("ECG",), fs=300)
    (folder / "REFERENCE.csv").write_text("".join(f"A{n:05d},{'NAO~'[n % 4]}\n" for n in range(12)))
    return folder


def test_shards_hold_the_front_ends_output_of_every_record(tmp_path, cinc2017, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_RECORDS", 5)
    path = prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1)
    shards = open_shards(path)
    assert len(list(path.glob("*.i16"))) == 3 and len(shards) == 12 and shards.skipped == []
    assert (shards.task, shards.classes, shards.fs, shards.leads) == ("cinc2017", ("N", "A", "O", "~"), FS, ("I",))
    entries = records.catalog("cinc2017", cinc2017)
    for i, (entry, facts) in enumerate(zip(entries, shards.records, strict=True)):
        expected = frontend.filter_record(shards.frontend, records.read("cinc2017", entry).uv, 300)
        assert shards.signal(i).dtype == np.int16 and np.array_equal(shards.signal(i), expected)
        assert (facts["name"], facts["fold"], facts["labels"]) == (entry.name, entry.fold, [i % 4])
        assert facts["length"] == expected.shape[1] and facts["duration_s"] == 9 + i / 4
    for fold in range(5):
        assert shards.splits(fold) == [tasks.TASKS["cinc2017"].split(e, fold) for e in entries]
    assert shards.splits(0) == [r["split"] for r in shards.records]
    with pytest.raises(UserError, match="labels whole records"):
        shards.beats(0)


def test_beats_lie_on_their_r_peaks_with_label_symbol_and_rr(tmp_path, mitdb):
    shards = open_shards(prepare.prepare("mitbih", mitdb, tmp_path / "cache", jobs=1))
    assert [(r["name"], r["patient"], r["split"]) for r in shards.records] == [
        ("100", "100", "test"), ("101", "101", "train"), ("114", "114", "train"), ("202", "201", "apart")]
    assert shards.excluded == ["104"]
    for i, facts in enumerate(shards.records):
        beats, x = shards.beats(i), shards.signal(i)[0].astype(int)
        assert "".join(beats["symbol"]) == "NLAVFQ/N" and beats["label"].tolist() == [0, 0, 1, 2, -1, -1, -1, 0]
        sign = -1 if facts["name"] == "114" else 1          # its MLII is the second channel, upside down here
        peaks = [p - 20 + np.argmax(sign * x[p - 20:p + 21]) for p in beats["sample"]]
        assert np.abs(np.array(peaks) - beats["sample"]).max() <= 2
        assert np.array_equal(beats["rr"], template.beat_features(x, beats["sample"].astype(np.int64), FS))
        assert beats["rr"].shape == (8, len(template.BEAT_NAMES)) and beats["rr"].dtype == np.int8


def test_ventricular_flutter_is_marked_from_bracket_to_bracket(tmp_path):
    uv, _ = ecg(10, 360)
    write_dat(tmp_path / "d", "207", uv, ("MLII", "V1"), fmt="212", baseline=1024)
    wfdb.wrann("207", "atr", np.array([100, 720, 1440, 1800, 3000]), symbol=list("N[!]["), fs=360,
               write_dir=str(tmp_path / "d"))
    shards = open_shards(prepare.prepare("mitbih", tmp_path / "d", tmp_path / "cache", jobs=1))
    at = frontend.to_output(shards.frontend, [720, 1800, 3000], 360).tolist()
    assert shards.records[0]["flutter"] == [at[:2], [at[2], shards.records[0]["length"]]]
    assert shards.beats(0)["symbol"].tolist() == ["N"]


def test_two_processes_make_what_one_makes(tmp_path, mitdb, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_RECORDS", 2)
    one = prepare.prepare("mitbih", mitdb, tmp_path / "one", jobs=1)
    two = prepare.prepare("mitbih", mitdb, tmp_path / "two", jobs=2)
    assert one.name == two.name
    contents = [{p.name: p.read_bytes() for p in path.iterdir()} for path in (one, two)]
    assert contents[0] == contents[1]


def test_a_second_run_reads_no_record(tmp_path, cinc2017, monkeypatch):
    path = prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1)
    monkeypatch.setattr(records, "catalog", None)
    monkeypatch.setattr(frontend, "design", None)
    assert prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1) == path


def test_what_the_samples_depend_on_is_in_the_name_of_the_cache(tmp_path, mitdb, monkeypatch):
    def made(**options):
        return prepare.prepare("mitbih", mitdb, tmp_path / "cache", jobs=1, skip_broken=True, **options).name
    first = made()
    assert made(leads="V5") != first and made(leads=("-MLII",)) != first
    (mitdb / "101.hea").touch()
    touched = made()
    assert touched != first and made() == touched
    monkeypatch.setitem(prepare.SOURCES, "made", ())
    assert made() == touched                            # the synthetic patient has no part in these records
    monkeypatch.setitem(prepare.SOURCES, "beats", ())
    assert made() != touched


def test_leads_by_map_sign_and_derivation_reach_the_shards(tmp_path):
    rng = np.random.default_rng(3)
    i, ii = rng.integers(-900, 900, (2, 1500)) // 5 * 5
    write_mat(tmp_path / "d", "A00001", np.stack([i, ii]), ("ECG", "II"), fs=300)
    (tmp_path / "d" / "REFERENCE.csv").write_text("A00001,N\n")
    path = prepare.prepare("cinc2017", tmp_path / "d", tmp_path / "cache", jobs=1, leads="I,aVF,II=-MLII")
    shards = open_shards(path)
    assert shards.leads == ("I", "aVF", "MLII")
    expected = frontend.filter_record(shards.frontend, np.stack([i, (2 * ii - i + 1) >> 1, -ii]).astype(np.int32), 300)
    assert np.array_equal(shards.signal(0), expected)


def test_the_synthetic_task_makes_its_own_records_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "SYNTHETIC_RECORDS", {"train": 6, "test": 3})
    a, b = (open_shards(prepare.prepare("synthetic", cache=tmp_path / name, jobs=1)) for name in "ab")
    assert [r["split"] for r in a.records] == ["train"] * 6 + ["test"] * 3
    assert not {r["patient"] for r in a.records[:6]} & {r["patient"] for r in a.records[6:]}
    assert all(len(r["labels"]) == 1 and r["duration_s"] == 30 for r in a.records) and a.records == b.records
    assert all(np.array_equal(a.signal(i), b.signal(i)) and a.signal(i).any() for i in range(9))
    with pytest.raises(UserError, match="takes no data folder"):
        prepare.prepare("synthetic", tmp_path, tmp_path / "a")


def test_shards_travel_to_other_processes_without_their_maps(tmp_path, cinc2017):
    shards = open_shards(prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1))
    x = shards.signal(3)
    sent = pickle.dumps(shards)
    assert len(sent) < 20_000 and np.array_equal(pickle.loads(sent).signal(3), x)
    with pytest.raises(ValueError):
        x[0, 0] = 1


# ---- broken records

@pytest.mark.parametrize("jobs", [1, 2])
def test_a_broken_record_stops_the_run_or_is_skipped_and_counted(tmp_path, cinc2017, monkeypatch, jobs):
    monkeypatch.setattr(prepare, "SHARD_RECORDS", 4)
    broken = cinc2017 / "A00005.mat"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(RecordError, match=r"A00005\.mat: truncated") as error:
        prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=jobs)
    assert "--skip-broken" in error.value.fix
    shards = open_shards(prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=jobs, skip_broken=True))
    assert len(shards) == 11 and [s["name"] for s in shards.skipped] == ["A00005"]
    assert "truncated" in shards.skipped[0]["why"]
    with pytest.raises(RecordError, match="1 records were left out"):
        prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=jobs)


def test_a_broken_header_a_missing_lead_and_an_odd_rate_can_be_skipped_too(tmp_path, mitdb):
    (mitdb / "101.hea").write_text("101 2 360\n")
    text = (mitdb / "114.hea").read_text()
    (mitdb / "114.hea").write_text(text.replace("MLII", "III"))
    (mitdb / "202.hea").write_text((mitdb / "202.hea").read_text().replace(" 360 ", " 359.123457 "))
    shards = open_shards(prepare.prepare("mitbih", mitdb, tmp_path / "cache", jobs=1, skip_broken=True))
    assert [r["name"] for r in shards.records] == ["100"]
    assert sorted(s["name"] for s in shards.skipped) == ["101", "114", "202"]


def test_a_folder_of_broken_records_only_is_refused_even_when_broken_ones_may_be_skipped(tmp_path, cinc2017):
    with pytest.raises(RecordError, match=r"no record of .* can be used; the first: .* no lead V1"):
        prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1, skip_broken=True, leads="V1")


@pytest.mark.parametrize("folder, complaint", [(None, "needs a data folder"), ("absent", "is no folder"),
                                               ("empty", "holds no record of mitdb")])
def test_without_records_the_error_says_what_to_pass_and_where_to_get_it(tmp_path, folder, complaint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=complaint) as error:
        prepare.prepare("mitbih", folder and tmp_path / folder, tmp_path / "cache", jobs=1)
    assert "physionet.org/files/mitdb" in error.value.fix and "100.atr" in error.value.expected


# ---- kills and full disks

def script(data, cache, body=""):
    """Run prepare in a process of its own, two records a shard."""
    code = f"""from train import prepare
prepare.SHARD_RECORDS = 2
{body}
print(prepare.prepare("cinc2017", {str(data)!r}, {str(cache)!r}, jobs=1))"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


SLOW = "import time\nread = prepare.records.read\nprepare.records.read = lambda *a: time.sleep(0.2) or read(*a)"


def test_a_killed_run_keeps_its_finished_shards(tmp_path, cinc2017):
    cache = tmp_path / "cache"
    run = script(cinc2017, cache, SLOW)
    deadline = time.monotonic() + 60
    while len(list(cache.glob("*/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    kept = {p: p.stat().st_mtime_ns for p in cache.glob("*/*.json")}
    assert 2 <= len(kept) < 6 and not list(cache.glob("*/index.json"))
    (folder,) = cache.iterdir()
    dead = folder / f".00005.i16.{run.pid}.part"
    dead.write_bytes(b"cut off")
    out, err = script(cinc2017, cache).communicate(timeout=60)
    assert out.strip() == str(folder), err
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()) and not dead.exists()
    whole = open_shards(prepare.prepare("cinc2017", cinc2017, tmp_path / "other", jobs=1))
    again = open_shards(folder)
    assert all(np.array_equal(again.signal(i), whole.signal(i)) for i in range(12))


@pytest.mark.parametrize("spoil", [lambda stem: stem.with_suffix(".json").unlink(),
                                   lambda stem: stem.with_suffix(".i16").write_bytes(b"12"),
                                   lambda stem: stem.with_suffix(".json").write_text("{")])
def test_half_a_shard_is_not_taken_for_a_whole_one(tmp_path, cinc2017, spoil):
    path = prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1)
    expected = open_shards(path).signal(7).copy()
    (path / "index.json").unlink()
    spoil(path / "00000")
    prepare.prepare("cinc2017", cinc2017, tmp_path / "cache", jobs=1)
    assert np.array_equal(open_shards(path).signal(7), expected)


@pytest.mark.skipif(os.name != "posix", reason="a limit on file sizes stands in for a full disk, POSIX only")
def test_a_full_disk_is_a_clear_error_and_leaves_no_half_shard(tmp_path, cinc2017):
    cache = tmp_path / "cache"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"
    run = script(cinc2017, cache, limit)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1 and "could not write" in err and "free some space" in err
    assert not [p for p in cache.rglob("*") if p.is_file()]
    out, err = script(cinc2017, cache).communicate(timeout=60)
    assert len(open_shards(out.strip())) == 12, err


# ---- command line

def test_json_is_one_object_and_errors_exit_with_one(tmp_path, cinc2017):
    environment = {**os.environ, "LEADEDGE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "train" / "prepare.py"), "--task", "cinc2017", "--jobs", "1", "--json"]
    done = subprocess.run([*command, "--data", str(cinc2017)], cwd=tmp_path, capture_output=True, text=True,
                          env=environment)
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["records"] == 12 and Path(result["cache"]).parent == tmp_path / "cache"
    assert sum(result["splits"].values()) == 12 and result["skipped"] == []
    done = subprocess.run([*command, "--data", str(tmp_path / "no")], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "is no folder" in json.loads(done.stdout)["error"]["what"]
    assert "Traceback" not in done.stderr


# ---- the real sets

DATA = Path(os.environ.get("LEADEDGE_DATA", "/nonexistent"))


def real(dataset):
    if not (DATA / dataset).is_dir():
        pytest.skip(f"LEADEDGE_DATA holds no folder {dataset}")
    return DATA / dataset


@pytest.mark.parametrize("name", ["cinc2017", "cinc2021", "ptbxl", "ludb"])
def test_real_records_become_shards(tmp_path, name):
    entries = records.catalog(name, real(name))
    task = tasks.find(name)
    job = prepare.Job(0, task, tuple(entries[::len(entries) // 6]), task.leads, frontend.design(FS), tmp_path, False)
    assert prepare.make_shard(job) == len(job.entries)
    facts = json.loads((tmp_path / "00000.json").read_text())
    assert facts["skipped"] == [] and facts["bytes"] == (tmp_path / "00000.i16").stat().st_size == sum(
        2 * len(task.leads) * r["length"] for r in facts["records"])


@pytest.mark.parametrize("name", ["101", "114", "208"])
def test_annotated_beats_of_real_records_lie_on_their_deflections(name):
    record = records.read("mitdb", records.Entry(name, real("mitdb") / f"{name}.hea"))
    atr, n = record.annotations["atr"], 20 * 360
    early = int(np.searchsorted(atr.sample, n))
    cut = dataclasses.replace(record, uv=record.uv[:, :n], annotations={
        "atr": records.Annotation(atr.sample[:early], atr.symbol[:early], atr.aux[:early])})
    spec = frontend.design(FS)
    x = frontend.filter_record(spec, cut.pick(("MLII",)), 360)
    beats, _ = prepare._beats(tasks.TASKS["mitbih"], spec, cut, x)
    slope = np.abs(np.diff(x[0].astype(int)))
    near = [slope[r - 10:r + 11].max() for r in beats["sample"] if 20 < r < len(slope) - 20]
    assert len(beats) > 15 and np.median(near) > 5 * np.median(slope)
