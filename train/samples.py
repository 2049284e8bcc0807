# SPDX-License-Identifier: Apache-2.0
"""Samples and annotations out of files: WFDB through wfdb, CODE-15's HDF5 through h5py.

Signals come back as int32 microvolts (lead, time) with a bool mask (lead, time) of samples that are not there, or None
when all are; masked samples hold the last valid value before them (the first valid one at the start).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from train import headers
from train.headers import AGAIN, Header
from train.leads import standard
from train.say import RecordError, need

LIMIT_UV = 1 << 30          # about 1000 V: a gain that takes a sample beyond this is wrong


def read_wfdb(header: Header) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """(leads, uv, missing) of a WFDB record; channels that are no voltage are left out. RecordError names the file."""
    need("wfdb", "train")
    import wfdb
    if not header.signals and not header.segments:
        raise RecordError(f"{header.path}: number of signals is 0", "at least one lead", AGAIN)
    headers.check_files(header)
    with _readable(header) as stem, _blamed(header.path):
        if header.segments:
            record = wfdb.rdrecord(stem, physical=True)
            return _physical(header, record.sig_name, record.units, record.p_signal.T)
        record = wfdb.rdrecord(stem, physical=False)
    return _digital(header, record.d_signal.T)


def read_annotation(stem: Path, extension: str) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """(sample int64 (n,), symbol, aux) of an annotation file; RecordError when it is missing or broken."""
    need("wfdb", "train")
    import wfdb
    path = stem.with_name(f"{stem.name}.{extension}")
    if not path.is_file():
        raise RecordError(f"annotation file {path.name} is missing", f"{path}", AGAIN)
    with _blamed(path):
        found = wfdb.rdann(str(stem), extension)
    aux = tuple(a.strip("\0").strip() for a in found.aux_note)
    return np.asarray(found.sample, np.int64), tuple(found.symbol), aux


@contextlib.contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Turn whatever a reader throws at a broken file into a RecordError that names the file."""
    try:
        yield
    except RecordError:
        raise
    except MemoryError:
        raise
    except Exception as error:      # readers of foreign formats fail in many ways, each time because of the file
        what = f"{path}: could not be read ({type(error).__name__}: {error})"
        raise RecordError(what, "a whole file", AGAIN) from error


@contextlib.contextmanager
def _readable(header: Header) -> Iterator[str]:
    """The record's path for wfdb; a record line that wfdb refuses is rewritten in a temporary folder for the while."""
    stem = header.path.with_suffix("")
    if header.plain:
        yield str(stem)
        return
    lines = [line for line in header.path.read_text(encoding="utf-8", errors="replace").splitlines()
             if line.strip() and not line.startswith("#")]
    lines[0] = " ".join(["record", *lines[0].split()[1:4]])
    with tempfile.TemporaryDirectory(prefix="leadedge-") as folder:
        Path(folder, "record.hea").write_text("\n".join(lines) + "\n")
        for path, _ in headers.signal_files(header):
            _link(path.resolve(), Path(folder, path.name))
        yield os.path.join(folder, "record")


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:                 # a system without symbolic links
        shutil.copyfile(source, target)


def _digital(header: Header, samples: np.ndarray):
    """Integer samples (signal, time) to microvolts, each signal by its own gain and baseline."""
    kept = [n for n, s in enumerate(header.signals) if s.units.lower() in headers.MICROVOLTS]
    if not kept:
        raise RecordError(f"{header.path}: no signal is a voltage", "units mV, uV or V",
                          headers.CORRECT)
    uv = np.empty((len(kept), samples.shape[1]), np.int32)
    missing = np.zeros(uv.shape, bool)
    for row, n in enumerate(kept):
        signal = header.signals[n]
        scale = headers.MICROVOLTS[signal.units.lower()] / signal.gain
        value = (samples[n].astype(np.float64) - signal.baseline) * scale
        missing[row] = samples[n] == headers.FORMATS[signal.format][2]
        value[missing[row]] = 0
        _check_gain(header.path, signal.name, value)
        uv[row] = np.rint(value)
    return tuple(standard(header.signals[n].name) for n in kept), *_held(uv, missing)


def _physical(header: Header, names: list[str], units: list[str], value: np.ndarray):
    """Physical values (signal, time), NaN where a segment has no sample, to microvolts."""
    kept = [n for n, unit in enumerate(units) if str(unit).lower() in headers.MICROVOLTS]
    scale = np.array([headers.MICROVOLTS[units[n].lower()] for n in kept])
    return tuple(standard(names[n]) for n in kept), *from_float(header.path, value[kept] * scale[:, None])


def from_float(path: Path, value: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Microvolts as float (lead, time), not finite where missing, to (int32 uv, missing)."""
    missing = ~np.isfinite(value)
    value = np.where(missing, 0, value)
    _check_gain(path, "a lead", value)
    return _held(np.rint(value).astype(np.int32), missing)


def _check_gain(path: Path, name: str, value: np.ndarray) -> None:
    if value.size and np.abs(value).max() > LIMIT_UV:
        raise RecordError(f"{path}: gain of {name} makes a sample of {np.abs(value).max() / 1e6:.0f} V",
                          "an electrocardiogram of millivolts", headers.CORRECT)


def _held(uv: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Fill missing samples with the last valid one; (uv, None) when nothing is missing."""
    if not missing.any():
        return uv, None
    for row, gone in zip(uv, missing, strict=True):
        if gone.all():
            row[:] = 0
            continue
        last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(row))))
        row[:] = row[np.where(last < 0, np.argmin(gone), last)]
    return uv, missing


@functools.lru_cache(maxsize=64)
def _exam_rows(path: str) -> dict[int, int]:
    """Row of each exam in one CODE-15 part."""
    import h5py
    with h5py.File(path, "r") as part:
        ids = part["exam_id"][:]
        shape = part["tracings"].shape
        if shape[0] != len(ids) or shape[2:] != (12,):
            raise RecordError(f"{path}: tracings {shape} for {len(ids)} exams", "(exam, time, 12)", AGAIN)
    return {int(exam): row for row, exam in enumerate(ids)}


def read_exam(path: Path, exam: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(uv, missing) of one exam of a CODE-15 part, 12 leads at 400 Hz.

    The tracings are float millivolts; shorter exams are padded with zeros on both sides to 4096 samples, and those
    zeros are cut off again here. RecordError when the file, the exam or its signal is missing.
    """
    need("h5py", "train")
    import h5py
    if not path.is_file():
        raise RecordError(f"{path} is missing", "a part of CODE-15", AGAIN)
    with _blamed(path):
        row = _exam_rows(str(path)).get(exam)
        if row is None:
            raise RecordError(f"{path}: exam {exam} is not in this part", "the part that exams.csv names", AGAIN)
        with h5py.File(path, "r") as part:
            tracing = part["tracings"][row].T.astype(np.float64)
    used = np.flatnonzero((tracing != 0).any(axis=0))
    if not len(used):
        raise RecordError(f"{path}: exam {exam} holds zeros only", "12 leads of signal", AGAIN)
    return from_float(path, tracing[:, used[0]:used[-1] + 1] * 1000)
