# SPDX-License-Identifier: Apache-2.0
"""Recordings: exact, private, readable after a kill at any moment and on a full disk."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from recorded import FS, counts, decision, forked, items, profile, record, session, stretch

from firmware_bridge.recordings import Recording
from firmware_bridge.session import Gap
from firmware_bridge.sinks.annotations import CODES, Marks
from firmware_bridge.sinks.recorder import Recorder, bits
from train.say import UserError

wfdb = pytest.importorskip("wfdb", reason='wfdb is not installed: pip install -e ".[train]"')


def read(recorder, **words):
    return wfdb.rdrecord(str(recorder.path), **words)


@pytest.mark.parametrize("width", (16, 24, 32))
def test_wfdb_reads_every_count_in_its_place(width, tmp_path):
    recorder = record(tmp_path, items(12, width), session(width))
    assert bits(profile(width)) == width
    found = read(recorder, physical=False)
    lost = slice(5 * FS, 5 * FS + 30)
    expected = counts(0, 12 * FS, width).astype(np.int64)
    expected[lost] = -1 << width - 1
    assert np.array_equal(found.d_signal, expected) and found.fs == FS
    assert found.sig_name == ["I", "-II", "belt"] and found.units == ["mV", "mV", "NU"]
    assert found.comments[0] == f"session: {recorder.session.id}" and "complete" in found.comments
    real = read(recorder).p_signal
    assert np.isnan(real[lost]).all() and not np.isnan(np.delete(real, np.arange(5 * FS, 5 * FS + 30), 0)).any()
    assert real[1, 0] == pytest.approx(counts(1, 1, width)[0, 0] * 500e-6) and real[3, 1] == pytest.approx(93 * 250e-6)
    assert found.checksum == [int((c.sum() + 32768) % 65536 - 32768) for c in expected.T]
    assert str(found.base_datetime) == "2023-11-14 22:13:20"


def test_wfdb_reads_what_was_said_of_them(tmp_path):
    recorder = record(tmp_path, items(12))

    def marks(kind):
        found = wfdb.rdann(str(recorder.path), kind)
        return list(zip(found.sample.tolist(), found.symbol, found.aux_note, strict=True))
    assert marks("atr")[:2] == [(150, "N", ""), (400, "N", "71.6")] and len(marks("atr")) == 12
    assert marks("gap") == [(5 * FS, '"', "lost 30")]
    assert marks("off") == [(500, "~", "II"), (540, "~", "none")]
    assert marks("qua") == [(250, "~", "A B:noise"), (750, "~", "A C:lead-off"), (1000, "~", "A B:noise")]
    assert marks("evt") == [(1, '"', "device: hello, Zo?")]
    assert [text.split(" #")[0] for _, _, text in marks("dec")] == [
        "AF+PVC @450", "none @950", "unreliable:gap @1450", "none @1950", "AF+PVC @2450", "none @2950"]


def test_our_own_reader_gives_everything_back(tmp_path):
    recorder = record(tmp_path, items(12, 24), session(24))
    found = Recording(recorder.path.parent)
    assert found.complete and found.moments == 12 * FS and found.profile == profile(24) and found.leads == ("I", "II")
    assert np.array_equal(found.counts(2 * FS, 100), counts(2 * FS, 100, 24))
    assert found.missing(found.counts(5 * FS - 1, 32)).tolist() == [False] + [True] * 30 + [False]
    assert found.gaps() == [Gap(5 * FS, 30, "lost")]
    turns, masks = found.lead_off()
    assert turns.tolist() == [500, 540] and masks.tolist() == [2, 0]
    first = found.decisions()[0]
    assert (first.index, first.words, first.beat) == (500, "AF+PVC", 450)
    assert first.logits == decision(500).logits.tobytes()


def test_only_the_owner_may_read_and_nothing_tells_a_name(tmp_path):
    recorder = record(tmp_path / "recordings", items(3))
    for path in (tmp_path / "recordings", recorder.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = list(recorder.path.parent.iterdir())
    assert {f.suffix for f in files} == {".hea", ".dat", ".json", ".atr", ".dec", ".off", ".qua", ".evt"}
    for f in files:
        assert stat.S_IMODE(f.stat().st_mode) == 0o600 and b"someone" not in f.read_bytes()
    assert recorder.path.name == f"{recorder.session.id}_20231114T221320Z"


@pytest.mark.parametrize("budget", (1 << 20, 1 << 30))
def test_a_gap_of_hours_is_missing_moments_to_the_last_one(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder._flush, "__defaults__", (budget,))
    hours = 3 * 3600 * FS
    recorder = record(tmp_path, [stretch(0, 25), Gap(25, hours, "unplugged"), stretch(25 + hours, 25)], end=False)
    held = Recording(recorder.path).moments             # what one flush writes, and no more
    assert held == 50 + hours if budget > 1 << 20 else abs(held * 6 - budget) < 1 << 18
    recorder.end()
    found = Recording(recorder.path)
    assert found.moments == hours + 50
    assert np.array_equal(found.counts(25 + hours, 50), counts(25 + hours, 25))
    assert found.missing(found.counts(0, hours + 50)).sum() == hours


@settings(max_examples=60, deadline=None)
@given(some.lists(some.tuples(some.integers(-3000, 1 << 24), some.sampled_from(sorted(CODES)),
                              some.text(some.characters(codec="ascii", exclude_characters="\0"), max_size=300)),
                  max_size=40), some.integers(1, 9))
def test_annotations_of_any_distance_and_text_are_read_by_wfdb(tmp_path_factory, steps, every):
    folder = tmp_path_factory.mktemp("marks")
    marks, at, expected = Marks(folder / "one.atr"), 1, []
    for n, (step, symbol, text) in enumerate(steps):
        at = max(at + step, 1)
        marks.add(at, symbol, text)
        expected.append((at, symbol, text[:255]))
        if n % every == 0:
            marks.flush()
            assert _marks(folder) == expected           # while the file is still written
    marks.close()
    if expected:
        assert _marks(folder) == expected
    assert (folder / "one.atr").exists() == bool(expected)


def _marks(folder):
    found = wfdb.rdann(str(folder / "one"), "atr")
    return list(zip(found.sample.tolist(), found.symbol, found.aux_note, strict=True))


def test_a_write_that_was_cut_off_at_a_page_leaves_what_was_there(tmp_path):
    marks, expected = Marks(tmp_path / "one.atr"), []
    for n in range(40):
        if n == 20:
            marks.flush()
            sure = marks._used
        at, text = n * n * n, f"text {n}" * (n % 4)
        marks.add(at, "N", text)
        expected.append((at, "N", text))
    marks.flush()
    whole = (tmp_path / "one.atr").read_bytes()
    for cut in range(sure, marks._used, 2):             # pages end at even places
        (tmp_path / "one.atr").write_bytes(whole[:cut] + bytes(len(whole) - cut))
        assert _marks(tmp_path)[:20] == expected[:20]


def _forever(folder, pipe):
    """In a process of its own: record without end and say how many moments are flushed."""
    recorder, first = Recorder(folder), 0
    recorder.begin(session(24))
    while True:
        recorder.take(stretch(first, 25, 24))
        first += 25
        if first % 50 == 0:
            recorder.take(decision(first, ("a class with a rather long name",) * 3))
        if first % FS == 0:
            recorder.tick(first / FS)
            os.write(pipe, first.to_bytes(8, "little"))


def test_a_recording_that_is_killed_can_be_read_to_the_last_flushed_second(tmp_path):
    rng, seen = random.Random(5), []
    for n in range(30):
        folder = tmp_path / str(n)
        ours, theirs = os.pipe()
        child = forked(_forever, folder, theirs)
        os.close(theirs)
        told = os.read(ours, 8)                     # the first second is there
        time.sleep(rng.random() * 0.08)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while part := os.read(ours, 1 << 16):
            told += part
        os.close(ours)
        seen.append(int.from_bytes(told[-8:], "little"))
        _whole(folder, seen[-1])
    assert len(set(seen)) > 5 and max(seen) > 5 * FS


def _whole(folder, flushed):
    path, = folder.glob("*/*.hea")
    found = wfdb.rdrecord(str(path.with_suffix("")), physical=False)
    assert flushed <= len(found.d_signal) <= flushed + FS
    assert np.array_equal(found.d_signal, counts(0, len(found.d_signal), 24))
    marks = wfdb.rdann(str(path.with_suffix("")), "dec")
    sure = marks.sample <= flushed
    assert sure.sum() == flushed // 50 and (np.diff(marks.sample[sure]) == 50).all()
    ours = Recording(path)
    assert not ours.complete and ours.moments == len(found.d_signal) and len(ours.decisions()) >= flushed // 50


@pytest.mark.parametrize("most", (3_000, 20_000, 20_001, 33_333))
def test_a_full_disk_is_an_error_and_what_was_flushed_stays_readable(most, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = Recorder(tmp_path)
    recorder.begin(session())
    done, full = 0, None
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))        # a file that cannot grow, as on a full disk
    try:
        for item in items(60):
            recorder.take(item)
            if hasattr(item, "arrived"):
                recorder.tick(item.arrived)
                done = recorder._written
    except OSError as error:
        full = error
        recorder.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full is not None and most // 6 - 2 * FS < done <= most // 6
    found = Recording(recorder.path)
    assert found.moments == done and not found.complete
    assert np.array_equal(read(recorder, physical=False).d_signal[:FS], counts(0, min(done, FS)))
    assert all(i <= done + FS for i in found.beats())


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Recorder(tmp_path / "file" / "below")


def test_a_recording_that_is_not_there_or_not_ours_is_told(tmp_path):
    with pytest.raises(UserError, match="no recording"):
        Recording(tmp_path / "nothing")
    for _ in range(2):
        record(tmp_path, items(1))
    with pytest.raises(UserError, match="2 recordings"):
        Recording(tmp_path)
    wfdb.wrsamp("plain", 250, ["mV"], ["I"], np.zeros((10, 1)), fmt=["16"], write_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"plain\.json cannot be read"):
        Recording(tmp_path / "plain")
