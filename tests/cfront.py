# SPDX-License-Identifier: Apache-2.0
"""Runs the C front end, detector and beat features (tests/front.c) on arrays; compiled on first use.

Without sanitizers by default, for long signals; `sanitized=True` for hostile ones.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ckernels
import numpy as np
import pytest

SOURCES = ("ecg_front.c", "ecg_rpeak.c", "ecg_beats.c", "ecg_rhythm.c")
EVENT = np.dtype([("kind", "<u4"), ("now", "<u4"), ("r", "<u4"), ("row", "i1", (144,))])
KINDS = ("beat", "row", "last row", "sequence", "sequence before", "window", "bytes")


@functools.cache
def program(sanitized: bool, compiler: str = "gcc") -> Path:
    """The compiled runner; warnings are errors. Skips when there is no such compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder = tempfile.mkdtemp(prefix="cfront")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "front"
    build = [compiler, *(ckernels.SANITIZE if sanitized else ["-O2"]), f"-I{ckernels.C}"]
    files = [str(ckernels.C / name) for name in SOURCES]
    for source in files:                # warnings count in C that ships
        _compile([*build, *ckernels.STRICT, "-c", source, "-o", str(Path(folder) / "one.o")])
    _compile([*build, "-std=c99", *files, str(Path(__file__).parent / "front.c"), "-o", str(path)])
    return path


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _run(mode: str, request: bytes, sanitized: bool) -> bytes:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}      # the runner ends without freeing
    done = subprocess.run([program(sanitized), mode], input=request, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


@dataclass(frozen=True)
class Filtered:
    """x int16 (lead, m) and codes int8 (lead, m) of all chunks; of each chunk how many samples it made and how many are
    still to settle; bytes of state."""

    x: np.ndarray
    codes: np.ndarray
    made: list[int]
    settle: list[int]
    memory: int


def front(spec, rate, uv: np.ndarray, chunks=None, room: int = 64, sanitized: bool = False) -> Filtered:
    """Push int32 (lead, n) in chunks [(frames, reset before them)]; spec and rate are Layers of targets/front_data."""
    s, r, leads = spec.fields, rate.fields, len(uv)
    chunks = [(uv.shape[1], 0)] if chunks is None else chunks
    assert sum(c for c, _ in chunks) == uv.shape[1] and s["leads"] == leads
    request = struct.pack("<12i", s["fs"], s["settle"], s["uv_per_lsb"], s["count"], leads, r["up"], r["down"],
                          r["taps"], uv.shape[1], len(chunks), room, 0)
    request += b"".join(np.ascontiguousarray(a).tobytes() for a in (
        s["sections"].values, r["table"].values, np.array(chunks, np.int32), uv.T.astype(np.int32)))
    out = _run("front", request, sanitized)
    per_chunk = np.frombuffer(out, np.int32, 2 * len(chunks), 4).reshape(-1, 2)
    total = int(per_chunk[:, 0].sum())
    at = 4 + per_chunk.nbytes
    x = np.frombuffer(out, np.int16, total * leads, at).reshape(total, leads).T
    codes = np.frombuffer(out, np.int8, total * leads, at + 2 * total * leads).reshape(total, leads).T
    assert len(out) == at + 3 * total * leads
    return Filtered(x, codes, per_chunk[:, 0].tolist(), per_chunk[:, 1].tolist(),
                    int(np.frombuffer(out, np.int32, 1)[0]))


def codes(uv: np.ndarray, uv_per_lsb: int, sanitized: bool = False) -> np.ndarray:
    """int8 codes of integer microvolts (n,)."""
    request = struct.pack("<2i", len(uv), uv_per_lsb) + np.asarray(uv, np.int32).tobytes()
    return np.frombuffer(_run("codes", request, sanitized), np.int8)


def beats(x: np.ndarray, fs: int, resets=(), hop: int = 250, start: int = 0, sanitized: bool = False) -> dict:
    """Push int16 (n,) sample by sample: {kind of KINDS: array of EVENT}; indices count from `start`, modulo 2^32."""
    request = struct.pack("<5I", fs, len(x), len(resets), hop, start) + np.array(resets, np.uint32).tobytes()
    events = np.frombuffer(_run("beats", request + np.asarray(x, np.int16).tobytes(), sanitized), EVENT)
    return {kind: events[events["kind"] == i] for i, kind in enumerate(KINDS)}
