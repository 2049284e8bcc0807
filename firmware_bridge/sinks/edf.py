# SPDX-License-Identifier: Apache-2.0
"""A recording as an EDF+ or BDF+ file for the programs that read those, with beats, decisions, gaps and events.

EDF holds 16 bits: a channel whose range is wider keeps the range that its signal really has, in as many steps; BDF's 24
bits hold nearly all counts as they are. The file is continuous (EDF+C), which every reader takes: where moments are
missing the last value is held, and an annotation "BAD_gap ..." with its duration says so, which MNE leaves out.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_bridge.recordings import Recording
from train.headers import read_header
from train.say import UserError, need

BITS = {".edf": 16, ".bdf": 24}
LONGEST_S = 60          # of a data record, which the format counts in units of 10 microseconds
UNITS = 100_000
MOST = 64               # annotation signals that the library writes, each with one annotation a data record
TEXT = 40               # characters of an annotation
FIELD = 8               # characters of a number in the header
PASS = 1 << 16          # moments that are read at once


@dataclass(frozen=True)
class Column:
    """How a channel is written: digital = round((count - low) / step) + least. least, most: digital ends; minimum,
    maximum: what they are worth in `unit`."""

    label: str
    unit: str
    low: int
    step: float
    least: int
    most: int
    minimum: float
    maximum: float

    def digital(self, counts: np.ndarray) -> np.ndarray:
        """int32 counts -> int32 digital values."""
        return np.clip(np.rint((counts - self.low) / self.step) + self.least, self.least, self.most).astype(np.int32)


def export(recording: Recording, path: str | Path) -> dict:
    """Write PATH, .edf or .bdf, which must not be there yet; what was written."""
    path = Path(path)
    if path.suffix.lower() not in BITS:
        raise UserError(f"{path} has no known form", "a file .edf (16 bits) or .bdf (24 bits)")
    if path.exists():
        raise UserError(f"{path} is there already", "a new file")
    if not recording.moments:
        raise UserError(f"{recording.path} holds no samples", "a recording of a second at least")
    need("pyedflib", "edf")
    size, seconds = division(recording.fs)
    columns, marks = _columns(recording, BITS[path.suffix.lower()]), annotations(recording, size)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))      # the library keeps the mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # that the duration of a record is ours
        records, kept = _write(recording, path, columns, marks, size, seconds)
    return {"file": str(path), "channels": len(columns), "seconds": recording.moments / recording.fs,
            "records": records, "annotations": kept, "left_out": len(marks) - kept,
            "steps": {c.label: c.step for c in columns}}


def division(fs: float) -> tuple[int, float]:
    """(moments, seconds) of a data record: about a second, and as exact as the format can be."""
    def error(n):
        return abs(round(n / fs * UNITS) / UNITS - n / fs) / n
    most = int(fs * LONGEST_S)
    near = [n for n in (round(fs * s) for s in (1, 2, 4, 5, 8, 10, 20, 30)) if 0 < n <= most]
    best = next((n for n in near if error(n) < 1e-12), None) or min(range(1, most + 1), key=error)
    return best, round(best / fs * UNITS) / UNITS


def annotations(recording: Recording, size: int) -> list[tuple[float, float, str]]:
    """(second, duration or -1, text) of everything that happened, in order."""
    fs, out = recording.fs, []
    for gap in recording.gaps():
        out.append((gap.first / fs, gap.length / fs, f"BAD_gap {gap.reason}"))
    left = -recording.moments % size
    if left:
        out.append((recording.moments / fs, left / fs, "BAD_gap end of the recording"))
    out += [(i / fs, -1, "beat") for i in recording.beats()]
    out += [(d.index / fs, -1, f"decision {d.words}") for d in recording.decisions()]
    for kind, word in (("off", "lead off: "), ("qua", "quality "), ("evt", "")):
        out += [(i / fs, -1, word + text) for i, text in recording.marks(kind)]
    return sorted((at, long, text[:TEXT]) for at, long, text in out if at * fs <= recording.moments)


def _columns(recording: Recording, width: int) -> list[Column]:
    """One for each channel; a second pass over the samples where the range of some is too wide."""
    room, channels = (1 << width) - 1, recording.profile.channels
    ranges = [(c.low, c.high) for c in channels]
    if any(high - low > room for low, high in ranges):
        seen = _range(recording)
        ranges = [s if c.high - c.low > room else r for c, r, s in zip(channels, ranges, seen, strict=True)]
    signals = read_header(recording.path.with_name(recording.path.name + ".hea")).signals
    return [_column(s, low, max(high, low + 1), width) for s, (low, high) in zip(signals, ranges, strict=True)]


def _column(signal, low: int, high: int, width: int) -> Column:
    step = max((high - low) / ((1 << width) - 1), 1)
    least, most = -1 << width - 1, (1 << width - 1) - 1
    if step == 1:
        least = low if low >= least and high <= most else least
        most = least + high - low
    scale = 1.0 if signal.units == "NU" else 1000 / signal.gain               # header: counts a millivolt
    worth = [_short((count - signal.baseline) * scale) for count in (low, low + (most - least) * step)]
    return Column(signal.name[:16], "" if signal.units == "NU" else "uV", low, step, least, most, *worth)


def _short(value: float) -> float:
    """The nearest number that a field of the header can hold."""
    texts = (f"{value:.{digits}f}" for digits in range(FIELD, -1, -1))
    return float(next((t for t in texts if len(t) <= FIELD), math.copysign(9999999, value)))


def _range(recording: Recording) -> list[tuple[int, int]]:
    """Least and greatest count of each channel that really came."""
    low = np.full(len(recording.profile.channels), np.iinfo(np.int32).max)
    high = -low
    for first in range(0, recording.moments, PASS):
        counts = recording.counts(first, PASS)
        counts = counts[~recording.missing(counts)]
        if len(counts):
            low, high = np.minimum(low, counts.min(0)), np.maximum(high, counts.max(0))
    return [(int(a), int(b)) if a <= b else (0, 1) for a, b in zip(low, high, strict=True)]


def _write(recording: Recording, path: Path, columns: list[Column], marks, size: int, seconds: float):
    """(data records, annotations) that went into the file."""
    import pyedflib
    records = -(-recording.moments // size)
    signals = min(-(-len(marks) // records), MOST)
    kept = marks if len(marks) <= signals * records else marks[:signals * records]
    kind = pyedflib.FILETYPE_EDFPLUS if path.suffix.lower() == ".edf" else pyedflib.FILETYPE_BDFPLUS
    with contextlib.closing(pyedflib.EdfWriter(str(path), len(columns), kind)) as file:
        file.setSignalHeaders([_header(c, recording.fs) for c in columns])
        file.setDatarecordDuration(seconds)
        file.set_number_of_annotation_signals(max(signals, 1))
        file.setStartdatetime(datetime.datetime.fromtimestamp(int(recording.about["started"]), datetime.timezone.utc))
        file.setEquipment(recording.profile.name.replace(" ", "_"))
        file.setRecordingAdditional(f"session_{recording.about['session']}")
        last = np.array([c.zero for c in recording.profile.channels], np.int32)
        for k in range(records):
            counts = np.pad(recording.counts(k * size, size), ((0, max((k + 1) * size - recording.moments, 0)), (0, 0)),
                            "edge")
            counts, last = _held(counts, recording.missing(counts), last)
            digital = np.concatenate([c.digital(counts[:, i]) for i, c in enumerate(columns)])
            if file.blockWriteDigitalSamples(digital) < 0:
                raise UserError(f"{path} cannot be written to its end", "space on the disk")
        for at, long, text in kept:
            file.writeAnnotation(at, long, text)
    return records, len(kept)


def _header(c: Column, fs: float) -> dict:
    """As the library wants it."""
    return {"label": c.label, "dimension": c.unit, "sample_frequency": fs, "physical_min": c.minimum,
            "physical_max": c.maximum, "digital_min": c.least, "digital_max": c.most, "transducer": "",
            "prefilter": ""}


def _held(counts: np.ndarray, missing: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where moments are missing, the last one that came."""
    whole = np.concatenate([last[None], counts])
    at = np.maximum.accumulate(np.where(np.concatenate([[False], missing]), 0, np.arange(len(whole))))
    return whole[at][1:], whole[at[-1]]
