# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, one line a moment: AD8232 sketches, Arduino's plotter, the Edge Impulse forwarder, CSV, JSON lines.

    512                     a number, or several split by comma, semicolon, tab or blank
    ecg:512,resp:3          names, as for Arduino's serial plotter
    {"t": 17, "ecg": [1, 2]}    JSON: every number but t, lists flattened
    !                       a lead is off (AD8232 sketches of SparkFun)
    # fs=250 unit=uV        what the sender says of itself; unit is count, nV, uV or mV
    ecg,resp                a heading: names of the columns that follow

Every line has as many numbers as the first ones; a line that has not, or holds anything else, is damaged and its moment
is missing. The first line may be cut and is passed over. The first seconds tell columns, names and the kind of numbers;
the rate has to be said or measured: lines carry no time, and such sketches rarely keep the rate that they name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np

from firmware_bridge.profiles import Channel, Profile
from firmware_bridge.wire import Block, Line, Note, Stats
from train.say import MissingError

LONGEST = 4096              # bytes of a line
LEARN = 20                  # lines that tell the columns
WAIT_S = 4.0                # for them: a board may reset when its port is opened
MILLI = 1000                # fractions are kept as thousandths
LIMIT = 1 << 30
UNITS = {"count": None, "nV": 1.0, "uV": 1e3, "mV": 1e6}
_SPLIT = re.compile(r"[,;\s]+")
_NAMED = re.compile(r"([A-Za-z_][\w ]*):([^,;\s]+)")
_SAID = re.compile(r"(\w+)\s*=\s*([^\s,;]+)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")


def _profile(name: str, title: str, channel: Channel, bauds: tuple[int, ...]) -> Profile:
    return Profile(name, "lines", title, (channel,), 0.0, bauds, dtr="hold", boot_s=4.0, lead_off="frame", check="text")


PROFILES = {
    "lines": _profile("lines", "lines of numbers", Channel("ch1", None, -LIMIT, LIMIT), (115200, 9600, 57600, 230400)),
    "ad8232": _profile("ad8232", "AD8232 board, 10-bit converter", Channel("ecg", None, 0, 1023, 512),
                       (9600, 115200, 57600)),
}


def numbers(line: str) -> tuple[list[str], list[float]] | None:
    """(names, values) of a line; names are empty without any. None for a line that is no data."""
    text = line.strip()
    try:
        if text.startswith("{"):
            return _json(text)
        named = _NAMED.findall(text)
        words = [v for _, v in named] if named else [w for w in _SPLIT.split(text) if w]
        if not words or not all(_NUMBER.match(w) for w in words):
            return None
        values = [float(w) for w in words]
        return ([k.strip() for k, _ in named], values) if all(map(math.isfinite, values)) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _json(text: str) -> tuple[list[str], list[float]] | None:
    names, values = [], []
    for key, value in json.loads(text).items():
        if key in ("t", "time"):
            continue
        parts = value if isinstance(value, list) else [value]
        names += [key if len(parts) == 1 else f"{key}{i + 1}" for i in range(len(parts))]
        values += [float(v) for v in parts if not isinstance(v, bool)]
    return (names, values) if values and len(names) == len(values) and all(map(math.isfinite, values)) else None


class Decoder:
    """Lines -> Blocks. The profile says the columns, and by what their numbers are multiplied."""

    def __init__(self, profile: Profile = PROFILES["lines"]):
        self.profile, self.stats = profile, Stats()
        self.zero = np.array([c.zero for c in profile.channels], np.int32)
        self._held, self._long, self._first = b"", False, True
        self._number, self._usual = 0, 0.0              # of the last line, and how long lines are
        self._lost = 0                                  # bytes of damaged lines since a sound one

    def feed(self, data: bytes, now: float) -> list[Block | Note]:
        """What ends in `data`."""
        self.stats.bytes += len(data)
        *lines, rest = (self._held + data).split(b"\n")
        rows, places, off, notes = [], [], [], []
        for raw in lines:
            first, self._first = self._first, False
            if self._long or len(raw) > LONGEST:
                self._long = False
                self._refuse(raw, "length")
                continue
            text = raw.decode("ascii", "replace").strip()
            row = None if first else self._row(text)
            if row is not None:
                rows.append(row)
                off.append(text == "!")
                places.append(self._place(len(raw) + 1))
            elif not text or first:
                self.stats.noise += len(raw) + 1
            elif text.startswith("#"):
                self.stats.noise += len(raw) + 1
                self.stats.text += len(raw)
                notes.append(Note(text.lstrip("# "), "info", now))
            else:
                self._refuse(raw, "text")
        self._keep(rest)
        return [*notes, *([self._block(rows, places, off, now)] if rows else [])]

    def _row(self, text: str) -> list[float] | None:
        """Values of a line of data."""
        if text == "!":
            return self.zero.tolist()
        found = numbers(text)
        if found is None or len(found[1]) != len(self.profile.channels):
            return None
        values = [v * self.profile.scale for v in found[1]]
        return values if all(abs(v) <= LIMIT for v in values) else None

    def _place(self, length: int) -> int:
        """The number of a sound line: damaged ones in front of it count as the lines that fit into them."""
        self._usual = self._usual + (length - self._usual) / 16 if self.stats.frames else float(length)
        if self.stats.frames:
            self._number += 1 + round(self._lost / self._usual)
        self._lost = 0
        self.stats.frames += 1
        return self._number

    def _refuse(self, raw: bytes, reason: str) -> None:
        """A damaged line, or several in one."""
        self.stats.noise += len(raw) + 1
        self.stats.refuse(reason)
        self._lost += len(raw) + 1

    def _keep(self, rest: bytes) -> None:
        """A line that has not ended; of one without an end nothing is kept."""
        if len(rest) > LONGEST or self._long:
            self.stats.noise += len(rest)
            self._held, self._long = b"", True
        else:
            self._held = rest

    def _block(self, rows, places, off, now: float) -> Block:
        mask = np.where(off, (1 << len(self.profile.channels)) - 1, 0).astype(np.uint32)
        return Block(np.rint(rows).astype(np.int32), np.array(places, np.int64), mask, now)


class Talk:
    """Listens until the columns are clear. fs: moments a second where the user says it."""

    def __init__(self, profile: Profile = PROFILES["lines"], fs: float = 0.0):
        self.profile, self.fs = profile, fs

    def begin(self, line: Line) -> tuple[Profile, bytes]:
        """The profile as the lines show it, and the lines themselves."""
        until, data = line.clock() + WAIT_S, b""
        while data.count(b"\n") < LEARN and line.clock() < until and len(data) < 2 * LONGEST * LEARN:
            data += line.read(0.1)
        whole = data.split(b"\n")[1:-1]
        lines = [raw.decode("ascii", "replace") for raw in whole if len(raw) <= LONGEST]
        found = [f for f in map(numbers, lines) if f is not None]
        if not found:
            raise MissingError("no lines of numbers come in", "a number, or several, on each line",
                               "another --baud (9600 and 115200 are usual), or another --protocol")
        if self.profile.name == "ad8232" and len(found[-1][1]) == 1:
            return self._rated(self.profile, lines), data
        return self._rated(self._learnt(found, lines), lines), data

    def _learnt(self, found, lines: list[str]) -> Profile:
        """Columns, names and unit."""
        width = max(len(v) for _, v in found)
        names = next((n for n, v in found if n and len(v) == width), None) or _heading(lines, width) or \
            [f"ch{k + 1}" for k in range(width)]
        unit = UNITS.get(_told(lines).get("unit", "count"))
        scale = MILLI if any(v != int(v) for _, values in found for v in values) else 1
        channels = tuple(Channel(n, None if unit is None else unit / scale, -LIMIT, LIMIT) for n in names)
        return replace(self.profile, channels=channels, scale=scale)

    def _rated(self, profile: Profile, lines: list[str]) -> Profile:
        """With the rate, where it is told."""
        try:
            told = float(_told(lines).get("fs", 0))
        except ValueError:
            told = 0.0
        fs = self.fs or (told if 1 <= told <= 20_000 else 0.0)
        return replace(profile, fs=fs)

    def keep(self, line: Line) -> None:
        """Nothing to keep."""

    def end(self, line: Line) -> None:
        """Nothing to stop."""


def _told(lines: list[str]) -> dict[str, str]:
    """What `# key=value` lines say."""
    return {k: v for text in lines if text.lstrip().startswith("#") for k, v in _SAID.findall(text)}


def _heading(lines: list[str], width: int) -> list[str] | None:
    """Names of the columns, from a line of words in front of the numbers."""
    for text in lines:
        words = [w for w in re.split(r"[,;\t]+", text.strip()) if w]
        if len(words) == width and all(re.match(r"[A-Za-z_]\w*$", w) for w in words):
            return words
    return None


class Server:
    """A sketch that prints its converter; says its rate first when there is more than one way to read it."""

    def __init__(self, profile: Profile, fs: float = 250.0):
        self.profile, self.streaming, self.fs = profile, True, fs

    def hear(self, data: bytes) -> bytes:
        """Sketches do not listen."""
        return b""

    def encode(self, counts: np.ndarray, lead_off: np.ndarray, index: int) -> list[bytes]:
        """A line a moment; now and then the rate."""
        out = []
        for k, row in enumerate(counts):
            line = b"!\r\n" if lead_off[k] else b",".join(b"%d" % v for v in row) + b"\r\n"
            said = b"# fs=%g\r\n" % self.fs if (index + k) % 1000 == 0 and self.profile.name == "lines" else b""
            out.append(said + line)
        return out
