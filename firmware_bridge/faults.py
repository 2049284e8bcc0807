# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between a device and its host, on purpose, seeded and counted.

    drop=1e-3 flip=1e-3 insert=1e-3     each byte, with that probability
    skip=0.01                           each frame: never sent, its number is used up
    noise=0.01                          a line of text in front of a frame
    burst=16                            bytes are held back and handed over together every so many milliseconds
    unplug=10/3                         at 10 s of signal the port vanishes for 3 s; may be given again
    drift=200                           the device's clock is so many ppm fast
    lead-off=2                          so many times a minute an electrode is off, for 1 to 4 s
    wrap                                the device's counter starts 2 s before it wraps

Separated by commas: `--fault drop=1e-3,unplug=10/3,wrap`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from firmware_bridge.profiles import Profile
from train.say import UserError, choose

PER_BYTE = ("drop", "flip", "insert")
SHARES = (*PER_BYTE, "skip", "noise")
NAMES = (*SHARES, "burst", "unplug", "drift", "lead-off", "wrap")
OFF_S = (1.0, 4.0)
WRAP_S = 2.0
EXAMPLE = "--fault drop=1e-3,burst=16,unplug=10/3,drift=200,lead-off=2,wrap"
TEXTS = (b"battery 3.71 V", b"I (4711) adc: temperature 41", b"[W] fifo half full", b"ok", b"# lead check done")


@dataclass(frozen=True)
class Faults:
    """What is asked for. burst in seconds, drift as a fraction, lead_off a minute, unplug: (at, for) in seconds."""

    drop: float = 0.0
    flip: float = 0.0
    insert: float = 0.0
    skip: float = 0.0
    noise: float = 0.0
    burst: float = 0.0
    drift: float = 0.0
    lead_off: float = 0.0
    wrap: bool = False
    unplug: tuple[tuple[float, float], ...] = ()
    seed: int = 0


def parse(words: str, seed: int = 0) -> Faults:
    """Faults of the words of a command line; UserError for what they cannot be."""
    found, unplug = {}, []
    for word in filter(None, (w.strip() for w in words.split(","))):
        name, _, value = word.partition("=")
        choose(name, NAMES, "fault")
        if name == "wrap":
            found["wrap"] = True
            continue
        try:
            if name == "unplug":
                at, _, seconds = value.partition("/")
                unplug.append((_above(at), _above(seconds)))
            elif name == "drift":
                found["drift"] = float(value) * 1e-6
            else:
                found[name.replace("-", "_")] = _share(value) if name in SHARES else _above(value)
        except ValueError:
            raise UserError(f"the fault {word!r} cannot be", "as in firmware_bridge/faults.py", EXAMPLE) from None
    if "burst" in found:
        found["burst"] /= 1000
    if abs(found.get("drift", 0)) > 0.2:
        raise UserError(f"a clock that is {found['drift']:.0%} off", "drift in millionths", EXAMPLE)
    return Faults(**found, unplug=tuple(sorted(unplug)), seed=seed)


def _above(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


@dataclass
class Count:
    """What was done. frames: that the device made; skipped: not sent at all; touched: sent, but not as they were made;
    the rest reached the port whole. dropped, flipped, inserted: bytes. lines: of text."""

    frames: int = 0
    skipped: int = 0
    touched: int = 0
    dropped: int = 0
    flipped: int = 0
    inserted: int = 0
    lines: int = 0
    unplugs: int = 0
    lead_offs: int = 0


@dataclass
class Damage:
    """Frames in, bytes out. touched: numbers, among all frames, of those that were touched or skipped."""

    faults: Faults
    count: Count = field(default_factory=Count)
    touched: list[int] = field(default_factory=list)

    def __post_init__(self):
        # streams of their own, so that one fault does not change where another one strikes
        self._rng = {name: np.random.default_rng([self.faults.seed, k]) for k, name in enumerate(SHARES)}

    def send(self, frames: list[bytes]) -> bytes:
        """The bytes that arrive of these frames."""
        f, out = self.faults, []
        for frame in frames:
            number = self.count.frames
            self.count.frames += 1
            if f.noise and self._rng["noise"].random() < f.noise:
                out.append(TEXTS[self._rng["noise"].integers(len(TEXTS))] + b"\r\n")
                self.count.lines += 1
            if f.skip and self._rng["skip"].random() < f.skip:
                self.count.skipped += 1
                self.touched.append(number)
                continue
            sent, touched = self._bytes(frame) if f.drop or f.flip or f.insert else (frame, False)
            out.append(sent)
            if touched:
                self.count.touched += 1
                self.touched.append(number)
        return b"".join(out)

    def _bytes(self, frame: bytes) -> tuple[bytes, bool]:
        """A frame over a bad line. A byte put in front of the first one lies between frames and touches none."""
        raw, f, touched = np.frombuffer(frame, np.uint8), self.faults, False
        hit = {name: np.flatnonzero(self._rng[name].random(len(raw)) < getattr(f, name)) if getattr(f, name) else ()
               for name in PER_BYTE}
        if len(hit["flip"]):
            raw = raw.copy()
            raw[hit["flip"]] ^= (1 << self._rng["flip"].integers(0, 8, len(hit["flip"]))).astype(np.uint8)
            self.count.flipped += len(hit["flip"])
            touched = True
        place = np.arange(len(raw))
        if len(hit["drop"]):
            raw, place = np.delete(raw, hit["drop"]), np.delete(place, hit["drop"])
            self.count.dropped += len(hit["drop"])
            touched = True
        if len(hit["insert"]):
            extra = self._rng["insert"].integers(0, 256, len(hit["insert"])).astype(np.uint8)
            raw = np.insert(raw, np.searchsorted(place, hit["insert"]), extra)
            self.count.inserted += len(hit["insert"])
            touched |= bool((np.asarray(hit["insert"]) > 0).any())
        return raw.tobytes(), touched


class LeadOff:
    """Electrodes that come off at random, `per_minute` on average over all leads."""

    def __init__(self, per_minute: float, leads: int, count: Count, seed: int = 0):
        self._rng, self._rate = np.random.default_rng([seed, 99]), per_minute / 60
        self._leads, self._count = leads, count
        self._at = 0.0                                      # seconds of signal
        self._until = np.zeros(leads)
        self._next = self._wait()

    def over(self, off: np.ndarray, fs: float) -> np.ndarray:
        """bool (lead, moment), with what is off besides."""
        if not self._rate:
            return off
        off = off.copy()
        end = self._at + off.shape[1] / fs
        spans = [(lead, self._at, until) for lead, until in enumerate(self._until) if until > self._at]
        while self._next < end:
            lead, until = int(self._rng.integers(self._leads)), self._next + self._rng.uniform(*OFF_S)
            spans.append((lead, self._next, until))
            self._until[lead] = max(self._until[lead], until)
            self._count.lead_offs += 1
            self._next += self._wait()
        for lead, since, until in spans:
            off[lead, max(round((since - self._at) * fs), 0):max(round((until - self._at) * fs), 0)] = True
        self._at = end
        return off

    def _wait(self) -> float:
        return self._rng.exponential(1 / self._rate) if self._rate else float("inf")


def first_index(faults: Faults, profile: Profile, fs: float) -> int:
    """The number of the first moment: 0, or one that wraps WRAP_S later (half a turn when a turn is shorter)."""
    if not faults.wrap or not profile.counter:
        return 0
    turn = round(profile.counter / (profile.ticks / fs if profile.ticks else 1))
    first = turn - min(round(WRAP_S * fs), turn // 2)
    return first - first % profile.per_frame
