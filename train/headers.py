# SPDX-License-Identifier: Apache-2.0
"""WFDB headers: the text of a `.hea` file as facts, and whether the signal files hold what it promises.

Read here rather than by wfdb because listings of many thousand records want only the text, because the error must name
the field, and because wfdb 4.3 refuses record lines that name "E00001.mat" or put a date with slashes before the time
(CinC 2020/2021, Georgia).
Standard library only. Format: https://physionet.org/physiotools/wag/header-5.htm
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train.say import RecordError

# Signal formats: bytes and samples of one block, and the value that marks an invalid sample.
FORMATS = {"8": (1, 1, None), "16": (2, 1, -32768), "24": (3, 1, -8388608), "32": (4, 1, -2147483648),
           "61": (2, 1, -32768), "80": (1, 1, -128), "160": (2, 1, -32768), "212": (3, 2, -2048),
           "310": (4, 3, -512), "311": (4, 3, -512),
           "508": (0, 0, -128), "516": (0, 0, -32768), "524": (0, 0, -8388608)}     # FLAC: length unknown, 0
MICROVOLTS = {"mv": 1e3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "v": 1e6, "nv": 1e-3}
DEFAULT_GAIN = 200.0            # units per millivolt where the header says 0 or nothing (header(5))
DEFAULT_FS = 250.0
AGAIN = "fetch the file again, or leave the record out with --skip-broken"
CORRECT = "correct the header, or leave the record out with --skip-broken"

_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\((-?\d+)\))?(?:/(\S+))?$")
# What wfdb makes something of behind the number of samples: time and date, or "12-May-2020", of which it takes the 12.
_WHEN = re.compile(r"(\d{1,2}(:\d{1,2}){0,2}(\.\d{1,6})?( \d{1,2}/\d{1,2}/\d{4})?|\d{1,2}-[A-Z][a-z]{2}-.*)?$")
_FACT = re.compile(r"<?([A-Za-z][\w ]*?)>?\s*:\s*(.*)$")


@dataclass(frozen=True)
class Signal:
    """One signal line. physical = (sample - baseline) / gain, in `units`."""

    file: str
    format: str
    per_frame: int
    offset: int                 # bytes before the first sample (24 in a MATLAB v4 file)
    gain: float
    baseline: int
    units: str
    name: str


@dataclass(frozen=True)
class Header:
    """A header. `samples` is per signal at `fs` and None when the header does not say."""

    path: Path
    fs: float
    samples: int | None
    segments: tuple[str, ...]   # names of the records a multi-segment record is made of, "~" a gap; () for others
    signals: tuple[Signal, ...]
    comments: tuple[str, ...]   # without the leading "#"
    plain: bool                 # False: the record line needs rewriting before wfdb accepts it

    @property
    def facts(self) -> dict[str, str]:
        """Comments of the form "Age: 74", "<age>: 51" or "Dx: 426783006" as a dict with keys in lower case."""
        found = (_FACT.match(c) for c in self.comments)
        return {m[1].lower(): m[2].strip() for m in found if m}


def read_header(path: str | Path) -> Header:
    """Read the `.hea` file at `path`; RecordError names the file and the field that is missing or malformed."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}", "a WFDB header", AGAIN) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    comments = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    lines = [line for line in lines if not line.startswith("#")]
    if not lines:
        raise RecordError(f"{path}: no record line", "name, number of signals, frequency, number of samples",
                          AGAIN)
    words = lines[0].split()
    name, _, segments = words[0].partition("/")
    n_sig = _integer(path, "number of signals", words[1] if len(words) > 1 else "")
    fs = _frequency(path, words[2]) if len(words) > 2 else DEFAULT_FS
    samples = _integer(path, "number of samples", words[3]) if len(words) > 3 else 0
    parts: tuple[str, ...] = ()
    signals: tuple[Signal, ...] = ()
    if segments:
        parts = tuple(line.split()[0] for line in lines[1:])
        if _integer(path, "number of segments", segments) != len(parts):
            raise RecordError(f"{path}: number of segments is {segments}, but {len(parts)} segment lines follow",
                              "one line for each segment", CORRECT)
    else:
        if n_sig != len(lines) - 1:
            raise RecordError(f"{path}: number of signals is {n_sig}, but {len(lines) - 1} signal lines follow",
                              "one line for each signal", CORRECT)
        signals = tuple(_signal(path, n, line) for n, line in enumerate(lines[1:], 1))
    return Header(path, fs, samples or None, parts, signals, comments,
                  plain=bool(re.fullmatch(r"[-\w]+", name) and _WHEN.match(" ".join(words[4:]))))


def _integer(path: Path, field: str, word: str) -> int:
    if not re.fullmatch(r"\d+", word):
        raise RecordError(f"{path}: {field} is {word!r}", "a whole number", AGAIN)
    return int(word)


def _frequency(path: Path, word: str) -> float:
    match = re.match(r"\d+(\.\d+)?(?=/|$)", word)
    fs = float(match[0]) if match else 0.0
    if not 1 <= fs <= 100_000:
        raise RecordError(f"{path}: sampling frequency is {word!r}", "hertz, 1 to 100000", AGAIN)
    return fs


def _signal(path: Path, number: int, line: str) -> Signal:
    words = line.split(None, 8)
    where = f"{path}: signal line {number}"
    form = _FORMAT.match(words[1]) if len(words) > 1 else None
    if not form or form[1] not in FORMATS:
        raise RecordError(f"{where}: format is {words[1] if len(words) > 1 else ''!r}",
                          f"one of {', '.join(FORMATS)}", AGAIN)
    gain = _GAIN.match(words[2]) if len(words) > 2 else None
    if len(words) > 2 and not gain:
        raise RecordError(f"{where}: gain is {words[2]!r}", "gain(baseline)/units, for example 200(1024)/mV", AGAIN)
    zero = _number(where, "ADC zero", words[4]) if len(words) > 4 else 0
    return Signal(words[0], form[1], int(form[2] or 1), int(form[4] or 0),
                  gain=(_gain(where, gain[1]) if gain else 0.0) or DEFAULT_GAIN,
                  baseline=int(gain[2]) if gain and gain[2] else zero,
                  units=gain[3] if gain and gain[3] else "mV",
                  name=words[8].strip() if len(words) > 8 else f"signal {number}")


def _number(where: str, field: str, word: str) -> int:
    if not re.fullmatch(r"-?\d+", word):
        raise RecordError(f"{where}: {field} is {word!r}", "a whole number", AGAIN)
    return int(word)


def _gain(where: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise RecordError(f"{where}: gain is {word!r}", "a number of units", AGAIN) from None


def signal_files(header: Header) -> Iterator[tuple[Path, list[Signal]]]:
    """The signal files of a header in order, each with the signals it interleaves."""
    names = dict.fromkeys(s.file for s in header.signals)
    for name in names:
        yield header.path.parent / name, [s for s in header.signals if s.file == name]


def check_files(header: Header) -> None:
    """Raise RecordError unless every signal file has exactly the samples the header promises.

    Initial values and checksums are not looked at: published headers carry zeros in both.
    """
    for path, signals in signal_files(header):
        if not path.is_file():
            raise RecordError(f"{header.path}: signal file {path.name} is missing", f"{path}", AGAIN)
        per_frame = sum(s.per_frame for s in signals)
        size, step = path.stat().st_size, FORMATS[signals[0].format]
        if step[0] and header.samples is not None:
            _check_size(header, path, size - signals[0].offset, per_frame * header.samples, step)
        if path.suffix == ".mat" and signals[0].offset == 24:
            _check_matlab(header, path, len(signals))


def _check_size(header: Header, path: Path, size: int, samples: int, step: tuple) -> None:
    """Compare bytes with samples; a last block of format 212, 310 or 311 may be cut short or whole."""
    nbytes, per_block, _ = step
    least, most = math.ceil(samples * nbytes / per_block), math.ceil(samples / per_block) * nbytes
    if size < least:
        raise RecordError(f"{path}: truncated, it holds {size} bytes of samples",
                          f"{least} bytes: {header.path.name} promises {samples} samples in this file", AGAIN)
    if size > most:
        raise RecordError(f"{path}: it holds {size} bytes of samples, more than {header.path.name} accounts for",
                          f"{least} bytes for {samples} samples: number of signals or samples, or format, is wrong",
                          CORRECT)


def _check_matlab(header: Header, path: Path, n_sig: int) -> None:
    """A MATLAB v4 matrix states its own shape (signals, samples): hold the WFDB header to it."""
    with open(path, "rb") as f:
        rows, columns = struct.unpack("<5i", f.read(20).ljust(20, b"\0"))[1:3]
    if (rows, columns) != (n_sig, header.samples or columns):
        raise RecordError(f"{path}: a matrix of {rows} x {columns}",
                          f"{n_sig} signals x {header.samples} samples, as {header.path.name} says",
                          CORRECT)
