# SPDX-License-Identifier: Apache-2.0
"""WFDB annotation files that grow while they are written, and can be read after a kill at any moment.

The MIT format (annot(5) of the WFDB manual) is a chain of 16-bit words, little-endian: the upper six bits say what
happened, the lower ten how many moments after the last one. SKIP is followed by a longer distance (32 bits, high word
first), AUX by a text that belongs to the word before. A word of zeros is the end; the file is always kept longer than
what it holds, and zeros lie behind, so that a write that was cut off leaves nothing that cannot be read.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

CODES = {"N": 1, "~": 14, '"': 22, "+": 28}     # beat, signal quality, note, rhythm
SKIP, AUX = 59, 63
NEAR, LONGEST = 1 << 10, 255                    # moments that fit into a word; bytes of a text
SPARE = 4096


def encode(distance: int, symbol: str, text: str = "") -> bytes:
    """One annotation so many moments after (or before) the last one. Characters beyond ASCII become "?"."""
    near = 0 <= distance < NEAR
    out = b"" if near else struct.pack("<HHH", SKIP << 10, distance >> 16 & 0xFFFF, distance & 0xFFFF)
    out += struct.pack("<H", CODES[symbol] << 10 | (distance if near else 0))
    if text:
        data = text.encode("ascii", "replace")[:LONGEST]
        out += struct.pack("<H", AUX << 10 | len(data)) + data + b"\0" * (len(data) % 2)
    return out


def private(path: Path, new: bool = True) -> int:
    """A file that only its owner reads, open for writing; `new`: it must not be there yet."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
    return os.open(path, flags | (os.O_EXCL if new else os.O_TRUNC), 0o600)


def write(file: int, data: bytes) -> None:
    """All of it, or OSError."""
    view = memoryview(bytes(data))
    while view:
        view = view[os.write(file, view):]


class Marks:
    """An annotation file that is made with its first annotation. For its owner only."""

    def __init__(self, path: Path):
        self.path = path
        self._held, self._last = bytearray(), 0
        self._file: int | None = None
        self._used = self._size = 0

    def add(self, index: int, symbol: str, text: str = "") -> None:
        """Something at moment `index`; written by the next flush."""
        self._held += encode(index - self._last, symbol, text)
        self._last = index

    def flush(self) -> None:
        """Everything so far goes into the file; OSError on a full disk, and then the file is as it was before."""
        if not self._held:
            return
        if self._file is None:
            self._file = private(self.path)
        needed = self._used + len(self._held) + 2
        if needed > self._size:
            self._size = needed + SPARE - needed % SPARE
            os.ftruncate(self._file, self._size)
        try:
            os.lseek(self._file, self._used, os.SEEK_SET)
            write(self._file, self._held)
        except OSError:
            self._cut()
            raise
        self._used += len(self._held)
        self._held.clear()

    def close(self) -> None:
        """Flush what can be, and leave the file as long as what it holds."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._cut()
                os.close(self._file)
                self._file = None

    def drop(self) -> None:
        """Close without what was not flushed: the disk is full."""
        self._held.clear()
        self.close()

    def _cut(self) -> None:
        """Nothing but what is known to be whole, and the end."""
        os.ftruncate(self._file, self._used)
        self._size = self._used + 2
        os.ftruncate(self._file, self._size)
