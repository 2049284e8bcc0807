# SPDX-License-Identifier: Apache-2.0
"""ECG records of the public data sets as one structure: the file to change for a new data set (`DATASETS` at the end).

    catalog(dataset, folder) -> [Entry, ...]        what is there, cheaply: index files and header texts only
    read(dataset, entry)     -> Record              int32 microvolts (lead, time), annotations, labels
    record.pick(("II", "-V1", "aVF")) -> int32 (lead, time)

Everything that is wrong with a file is a RecordError that names the file and the field. Samples that are missing (NaN,
invalid) hold the last valid value and are marked in `Record.missing`.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train import headers, leads, samples
from train.headers import AGAIN
from train.manifest import LEADS
from train.say import RecordError, choose, warn


@dataclass(frozen=True)
class Annotation:
    """Marks on a record: `sample` int64 (n,) at the record's fs, MIT `symbol` and free text `aux` per mark."""

    sample: np.ndarray
    symbol: tuple[str, ...]
    aux: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a catalog. `path` is the WFDB header, or the HDF5 part; `fold` is None where no rule is published."""

    name: str
    path: Path
    patient: str = ""               # the record's name where patient ids are unknown
    labels: tuple[str, ...] = ()    # codes as in the data set
    age: float | None = None        # years
    sex: str | None = None          # F | M
    fold: int | None = None


@dataclass(frozen=True)
class Record:
    """A recording. `uv` is int32 microvolts (lead, time); `missing` is bool (lead, time), or None when all is there."""

    name: str
    fs: float
    leads: tuple[str, ...]          # standard names where the channel has one
    uv: np.ndarray
    missing: np.ndarray | None
    age: float | None
    sex: str | None
    labels: tuple[str, ...]
    annotations: dict[str, Annotation] = field(default_factory=dict)    # by annotator ("atr"), LUDB by lead ("aVR")
    patient: str = ""

    def pick(self, wanted: Sequence[str]) -> np.ndarray:
        """int32 microvolts (lead, time) of leads by name; "-II" inverts, III and aVx follow from I and II if absent.

        RecordError when a lead is absent and does not follow, or holds no valid sample.
        """
        return np.stack([-self._lead(w[1:]) if w.startswith("-") else self._lead(w) for w in wanted])

    def _lead(self, name: str) -> np.ndarray:
        lead = leads.standard(name)
        if lead in self.leads:
            row = self.leads.index(lead)
            if self.missing is not None and self.missing[row].all():
                raise RecordError(f"record {self.name}: lead {lead} holds no valid sample",
                                  "signal on every lead asked for",
                                  "pass other --leads, or leave the record out with --skip-broken")
            return self.uv[row]
        derived = leads.derive(lead, self._lead("I"), self._lead("II")) if {"I", "II"} <= set(self.leads) else None
        if derived is None:
            raise RecordError(f"record {self.name} has no lead {lead}", f"one of {', '.join(self.leads)}",
                              "pass --leads with leads it has, or leave the record out with --skip-broken")
        return derived


@dataclass(frozen=True)
class Dataset:
    """How one data set is listed and read, and what to tell a user whose folder does not hold it."""

    expected: str
    source: str
    items: Callable[[Path], Sequence]       # folder -> what names a record: header paths, or rows of an index file
    entry: Callable[[Any], Entry]           # item -> Entry
    read: Callable[[Entry], Record]


def catalog(dataset: str, folder: str | Path, skipped: list[dict] | None = None) -> list[Entry]:
    """The records of a data set's folder in a fixed order.

    RecordError when the folder holds none (it says what belongs there and where to get it), and for the first header or
    index line that cannot be used; a caller who passes a list gets those as {"name", "why"} in it instead.
    """
    name = choose(dataset, DATASETS, "data set")
    kind, folder = DATASETS[name], Path(folder)
    items = kind.items(folder) if folder.is_dir() else ()
    if not items:
        inside = next((p for p in sorted(folder.glob("*/")) if p.name.startswith(name[:4]) and kind.items(p)), None)
        what = f"{folder} {f'holds no record of {name}' if folder.is_dir() else 'is no folder'}"
        raise RecordError(what, kind.expected, f"pass {inside}" if inside else f"get the records: {kind.source}")
    entries = []
    for item in items:
        try:
            entries.append(kind.entry(item))
        except RecordError as error:
            if skipped is None:
                raise
            skipped.append({"name": getattr(item, "stem", str(item)), "why": error.what})
    return entries


def read(dataset: str, entry: Entry) -> Record:
    """Read one record whole. RecordError when a file is missing, truncated, or contradicts its header."""
    return DATASETS[choose(dataset, DATASETS, "data set")].read(entry)


def sha1_fold(name: str) -> int:
    """Fold 0..4 of a record or patient name: SHA-1 modulo 5, for sets that publish no folds."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 5


TWELVE = LEADS[:12]         # I, II, III, aVR, aVL, aVF, V1 to V6


# ---- facts out of headers and tables

def _age(text: str | None) -> float | None:
    """Years; None for "", "NaN", "-1" and words."""
    try:
        age = float(text or "nan")
    except ValueError:
        return None
    return age if math.isfinite(age) and age >= 0 else None


def _sex(text: str | None) -> str | None:
    letter = (text or "").strip()[:1].upper()
    return letter if letter in ("F", "M") else None


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line; RecordError names the column that is not there."""
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        reader = csv.DictReader(f)
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise RecordError(f"{path}: no column {column!r}", ", ".join(columns), AGAIN)
        return list(reader)


# ---- WFDB

def _record(entry: Entry, annotations: dict[str, tuple[Path, str]] | None = None, rename: dict | None = None) -> Record:
    """A WFDB record; `annotations` maps the served name to (stem, extension), `rename` a lead to its served name."""
    header = headers.read_header(entry.path)
    names, uv, missing = samples.read_wfdb(header)
    found = {}
    for name, (stem, extension) in (annotations or {}).items():
        found[name] = Annotation(*samples.read_annotation(stem, extension))
        if len(found[name].sample) and not 0 <= found[name].sample.min() <= found[name].sample.max() < uv.shape[1]:
            raise RecordError(f"{stem}.{extension}: a mark at sample {found[name].sample.max()}",
                              f"marks within the record's {uv.shape[1]} samples", AGAIN)
    names = tuple((rename or {}).get(n, n) for n in names)
    return Record(entry.name, header.fs, names, uv, missing, entry.age, entry.sex, entry.labels, found,
                  entry.patient or entry.name)


def _flat(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.hea"))


def _deep(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.hea"))


def _whole_records(folder: Path) -> list[Path]:
    """All headers but those of the segments of multi-segment records."""
    paths, segments = _deep(folder), set()
    for path in paths:
        with contextlib.suppress(RecordError):      # a broken header is reported when it is read as a record
            segments |= {path.with_name(f"{name}.hea") for name in headers.read_header(path).segments}
    return [path for path in paths if path not in segments]


def _wfdb_entry(path: Path) -> Entry:
    facts = headers.read_header(path).facts
    return Entry(path.stem, path, path.stem, (), _age(facts.get("age")), _sex(facts.get("sex")))


def _read_wfdb(entry: Entry) -> Record:
    stem = entry.path.with_suffix("")
    return _record(entry, {"atr": (stem, "atr")} if stem.with_suffix(".atr").is_file() else None)


def _mitdb_entry(path: Path) -> Entry:
    """Age and sex stand in the first comment, "69 M 1085 1629 x1"; 201 and 202 are one patient."""
    comments = headers.read_header(path).comments
    first = re.match(r"(-?\d+) ([MF])\b", comments[0]) if comments else None
    return Entry(path.stem, path, "201" if path.stem == "202" else path.stem,
                 age=_age(first[1]) if first else None, sex=first[2] if first else None)


def _read_mitdb(entry: Entry) -> Record:
    return _record(entry, {"atr": (entry.path.with_suffix(""), "atr")})


def _ludb_items(folder: Path) -> list[Path]:
    return sorted(_flat(folder) or _flat(folder / "data"), key=lambda p: (len(p.stem), p.stem))


def _ludb_entry(path: Path) -> Entry:
    """Labels are the diagnoses in the header, one line each ("Rhythm: Sinus bradycardia")."""
    header = headers.read_header(path)
    lines = [c.rstrip(". ") for c in header.comments if c.rstrip(". ") and not c.startswith("<")]
    return Entry(path.stem, path, path.stem, tuple(lines), _age(header.facts.get("age")),
                 _sex(header.facts.get("sex")), sha1_fold(path.stem))


def _read_ludb(entry: Entry) -> Record:
    """Delineation of each lead by cardiologists: ( p ), ( N ), ( t ) with onset, peak and offset."""
    stem = entry.path.with_suffix("")
    return _record(entry, {lead: (stem, lead.lower()) for lead in TWELVE})


# ---- CinC challenges

CINC2017_CLASSES = ("N", "A", "O", "~")
CINC2017_DUPLICATES = ("A01176", "A03123")      # the same signals as A00227 and A02656


def _cinc2017_items(folder: Path) -> list[tuple[Path, int, str]]:
    """Lines "A00001,N" of REFERENCE-v3.csv or REFERENCE.csv, which has no header line."""
    table = next((p for p in (folder / "REFERENCE-v3.csv", folder / "REFERENCE.csv") if p.is_file()), None)
    lines = table.read_text().splitlines() if table else ()
    return [(table, number, line) for number, line in enumerate(lines, 1)
            if line.strip() and line.split(",")[0].strip() not in CINC2017_DUPLICATES]


def _cinc2017_entry(item: tuple[Path, int, str]) -> Entry:
    table, number, line = item
    name, _, label = (word.strip() for word in line.partition(","))
    if label not in CINC2017_CLASSES:
        raise RecordError(f"{table}, line {number}: unknown class {label!r}", ", ".join(CINC2017_CLASSES),
                          "correct the line, or fetch the v3 labels of the challenge again")
    return Entry(name, table.parent / f"{name}.hea", name, (label,), fold=sha1_fold(name))


def _read_cinc2017(entry: Entry) -> Record:
    """The AliveCor device measures lead I between the two hands; the header calls it ECG."""
    return _record(entry, rename={"ECG": "I"})


def _cinc_entry(path: Path) -> Entry:
    """CinC 2020 and 2021: SNOMED codes, age and sex in each header."""
    facts = headers.read_header(path).facts
    codes = tuple(c.strip() for c in facts.get("dx", "").split(",") if c.strip())
    bad = [c for c in codes if not c.isdigit()]
    if bad or not codes:
        raise RecordError(f"{path}: {f'Dx holds {bad[0]!r}' if bad else 'no line #Dx: ...'}",
                          "SNOMED codes of the diagnoses, digits only", headers.CORRECT)
    return Entry(path.stem, path, path.stem, codes, _age(facts.get("age")), _sex(facts.get("sex")),
                 sha1_fold(path.stem))


# ---- PTB-XL

def _ptbxl_items(folder: Path, column: str) -> list[dict]:
    """Rows of ptbxl_database.csv with the header's path added."""
    table = folder / "ptbxl_database.csv"
    columns = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", column)
    rows = _rows(table, columns) if table.is_file() else []
    return [row | {"header": folder / f"{row[column]}.hea"} for row in rows]


def _ptbxl_entry(row: dict) -> Entry:
    """Labels are all SCP codes of the row; fold is strat_fold, 1 to 10; age 300 stands for 90 and above."""
    path, age = row["header"], _age(row["age"])
    try:
        codes, fold = tuple(ast.literal_eval(row["scp_codes"])), int(float(row["strat_fold"]))
    except (ValueError, SyntaxError):
        raise RecordError(f"ptbxl_database.csv: ecg_id {row['ecg_id']}: scp_codes {row['scp_codes']!r}, strat_fold "
                          f"{row['strat_fold']!r}", "a Python dict and a number from 1 to 10", AGAIN) from None
    return Entry(path.stem, path, row["patient_id"].split(".")[0] or path.stem, codes,
                 90.0 if age is not None and age > 120 else age,
                 {"0": "M", "1": "F"}.get(row["sex"].split(".")[0]), fold)


# ---- CODE-15

CODE15_LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
CODE15_FS = 400.0


def _code15_items(folder: Path) -> list[dict]:
    """Rows of exams.csv beside exams_part*.hdf5; parts that were not fetched are left out with a warning."""
    table = folder / "exams.csv"
    if not table.is_file():
        return []
    rows = _rows(table, ("exam_id", "age", "is_male", "patient_id", "trace_file", *CODE15_LABELS))
    parts = {row["trace_file"] for row in rows}
    present = {part for part in parts if (folder / part).is_file()}
    used = [row | {"part": folder / row["trace_file"]} for row in rows if row["trace_file"] in present]
    if used and len(present) < len(parts):
        warn(f"{folder} holds {len(present)} of the {len(parts)} parts that exams.csv names: "
             f"{len(used)} of {len(rows)} exams are used")
    return used


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1")


def _code15_entry(row: dict) -> Entry:
    """Six binary labels; fold by patient."""
    return Entry(row["exam_id"], row["part"], row["patient_id"], tuple(c for c in CODE15_LABELS if _true(row[c])),
                 _age(row["age"]), "M" if _true(row["is_male"]) else "F", sha1_fold(row["patient_id"]))


def _read_code15(entry: Entry) -> Record:
    uv, missing = samples.read_exam(entry.path, int(entry.name))
    return Record(entry.name, CODE15_FS, TWELVE, uv, missing, entry.age, entry.sex, entry.labels, {}, entry.patient)


PHYSIONET = "wget -r -N -c -np https://physionet.org/files/"
_CINC = Dataset(".hea and .mat files with '#Dx:' lines, in any sub-folders", PHYSIONET + "challenge-2021/1.0.3/",
                _deep, _cinc_entry, _record)
DATASETS = {
    "mitdb": Dataset("100.hea, 100.dat, 100.atr and so on", PHYSIONET + "mitdb/1.0.0/", _flat, _mitdb_entry,
                     _read_mitdb),
    "cinc2017": Dataset("REFERENCE-v3.csv or REFERENCE.csv beside A00001.hea, A00001.mat and so on",
                        PHYSIONET + "challenge-2017/1.0.0/", _cinc2017_items, _cinc2017_entry, _read_cinc2017),
    "cinc2020": _CINC,
    "cinc2021": _CINC,
    "ptbxl": Dataset("ptbxl_database.csv beside the folder records500", PHYSIONET + "ptb-xl/1.0.3/",
                     functools.partial(_ptbxl_items, column="filename_hr"), _ptbxl_entry, _record),
    "ptbxl100": Dataset("ptbxl_database.csv beside the folder records100", PHYSIONET + "ptb-xl/1.0.3/",
                        functools.partial(_ptbxl_items, column="filename_lr"), _ptbxl_entry, _record),
    "code15": Dataset("exams.csv beside exams_part0.hdf5 and so on", "https://zenodo.org/records/4916206",
                      _code15_items, _code15_entry, _read_code15),
    "ludb": Dataset("1.hea, 1.dat and the annotations 1.i to 1.v6 and so on", PHYSIONET + "ludb/1.0.1/",
                    _ludb_items, _ludb_entry, _read_ludb),
    "nstdb": Dataset("bw.hea, em.hea, ma.hea and their .dat files", PHYSIONET + "nstdb/1.0.0/", _flat, _wfdb_entry,
                     _record),
    "wfdb": Dataset("WFDB headers (.hea) with their signal files", "https://physionet.org/about/database/",
                    _whole_records, _wfdb_entry, _read_wfdb),
}
