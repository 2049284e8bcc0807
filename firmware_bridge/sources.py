# SPDX-License-Identifier: Apache-2.0
"""What a simulated front-end measures: a WFDB record, or the synthetic patient for as long as anyone looks.

A signal is int32 microvolts by lead at any rate; an `Adc` turns it into counts of a profile's channels, as electrodes
and converter would: 0 V at the channel's zero, its own nanovolts a count, clipped at its rails.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from firmware_bridge.profiles import Profile
from train.leads import parse_map
from train.manifest import LEADS
from train.say import UserError, choose, need

CHEST = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")     # eight channels give twelve leads
SEGMENT_S = 60.0            # of the synthetic patient, made at once
SLOWEST = 100               # Hz, below which the synthetic patient is not made but resampled
BLEND_S = 1.0               # over which a step between two segments is let go
UNSCALED_NV = 1000.0        # a count, where a front-end does not say; more when its range would not hold 3 mV
SPAN_NV = 3e6


class Signal(Protocol):
    """Microvolts."""

    leads: tuple[str, ...]

    def take(self, n: int, fs: float) -> tuple[np.ndarray, np.ndarray]:
        """The next moments: int32 uv (lead, moment), bool off (lead, moment); fewer than n when it is over. With n = 0
        it gets ready, so that the first moments come at once."""


class RecordSignal:
    """A WFDB record, once or again and again. What is invalid in it counts as lead-off."""

    def __init__(self, path: str | Path, loop: bool = False):
        from train import records
        header = Path(path) if str(path).endswith(".hea") else Path(f"{path}.hea")
        if not header.is_file():
            near = sorted(p.stem for p in header.parent.glob("*.hea"))[:8] if header.parent.is_dir() else []
            raise UserError(f"there is no record {path}", "the path of a WFDB header, with or without .hea",
                            f"{header.parent} holds {', '.join(near)}" if near else "check the folder")
        self.record = records.read("wfdb", records.DATASETS["wfdb"].entry(header))
        self.leads, self.loop = self.record.leads, loop
        self._seconds = Fraction(0)             # that were taken
        self._fs, self._uv, self._off = 0.0, None, None

    def take(self, n: int, fs: float) -> tuple[np.ndarray, np.ndarray]:
        """As Signal's; moment k is at second k / fs of the record, of its next round when it loops."""
        if fs != self._fs:
            r = self.record
            self._fs, self._uv = fs, resampled(r.uv, r.fs, fs)
            at = np.minimum((np.arange(self._uv.shape[1]) * (r.fs / fs)).astype(np.int64), r.uv.shape[1] - 1)
            self._off = np.zeros(self._uv.shape, bool) if r.missing is None else r.missing[:, at]
        first, size = round(self._seconds * Fraction(fs)), self._uv.shape[1]
        self._seconds += n / Fraction(fs)
        at = np.arange(first, first + n)
        at = at % size if self.loop else at[at < size]
        return self._uv[:, at], self._off[:, at]


def resampled(uv: np.ndarray, fs_in: float, fs: float) -> np.ndarray:
    """int32 (lead, n) at fs_in -> (lead, m) at fs, without delay to half a moment.

    By the front end's own resampler, which is exact in integers; scipy where that has no such ratio.
    """
    if fs_in == fs:
        return uv
    m = int(uv.shape[1] * fs / fs_in)
    if fs == round(fs) and fs >= SLOWEST:
        from train import resample
        try:
            kernel = resample.kernel(fs_in, round(fs))
            stream = resample.Resampler(fs_in, round(fs), 1 << 30)
        except UserError:
            pass
        else:
            padded = np.concatenate([uv, np.repeat(uv[:, -1:], kernel.taps, axis=1)], axis=1)
            return stream.push(padded)[:, round(kernel.delay):][:, :m]
    need("scipy", "train")
    from scipy.signal import resample_poly
    rate = Fraction(fs / fs_in).limit_denominator(1000)
    real = resample_poly(uv.astype(np.float64), rate.numerator, rate.denominator, axis=1, padtype="line")
    return np.rint(real).astype(np.int32)[:, :m]


def schedule(words: str) -> list[tuple[float, str]]:
    """`sinus,af@30,sinus@90` -> [(0, "sinus"), (30, "af"), (90, "sinus")]; UserError for what it cannot be."""
    from train import synth
    out: list[tuple[float, str]] = []
    for word in filter(None, (w.strip() for w in words.split(","))):
        rhythm, _, at = word.partition("@")
        choose(rhythm, synth.RHYTHMS, "rhythm")
        try:
            seconds = float(at) if at else 0.0
        except ValueError:
            raise UserError(f"{word!r} has no time", "RHYTHM@SECONDS", "--rhythm sinus,af@30") from None
        if seconds <= out[-1][0] if out else seconds:
            raise UserError(f"{word!r} does not come after {out[-1][1] if out else 'a beginning'}",
                            "a rhythm from the start, and times that grow", "--rhythm sinus,af@30")
        out.append((seconds, rhythm))
    if not out:
        raise UserError("no rhythm is given", ", ".join(synth.RHYTHMS), "--rhythm sinus,af@30")
    return out


class Patient:
    """The synthetic patient, endless: segments that are joined between two beats, rhythms by a schedule. Nothing comes
    off and nothing is swapped: electrodes are the business of faults.py."""

    def __init__(self, leads: Sequence[str] = ("I",), rhythm: str = "sinus", seed: int = 0, noise: str = "clinic"):
        from train.noise import PLACES
        self.leads, self.seed, self.noise = tuple(leads), seed, choose(noise, PLACES, "noise")
        self.plan = schedule(rhythm)
        self._made, self._fs, self._seconds = 0, 0.0, 0.0       # segments, their rate, seconds that were taken
        self._uv = np.zeros((len(self.leads), 0), np.int32)
        self._off = np.zeros(self._uv.shape, bool)
        self._next: Future | None = None
        self._maker = ThreadPoolExecutor(1, "patient")          # so that nobody waits for the next minute

    def take(self, n: int, fs: float) -> tuple[np.ndarray, np.ndarray]:
        """As Signal's."""
        if fs != self._fs:
            self._fs, self._next = fs, None
            self._uv, self._off = self._uv[:, :0], self._off[:, :0]
        while self._uv.shape[1] < max(n, 1):
            self._join(*(self._next or self._order()).result())
            self._next = self._order()
        uv, off = self._uv[:, :n], self._off[:, :n]
        self._uv, self._off = self._uv[:, n:], self._off[:, n:]
        self._seconds += n / fs
        return uv, off

    def close(self) -> None:
        """Make no more."""
        self._maker.shutdown(wait=False, cancel_futures=True)

    def _order(self) -> Future:
        at = self._seconds + self._uv.shape[1] / self._fs
        place = max(i for i, (since, _) in enumerate(self.plan) if since <= at + 0.5)
        ends = self.plan[place + 1][0] - at if place + 1 < len(self.plan) else SEGMENT_S
        self._made += 1
        return self._maker.submit(self._segment, self.plan[place][1], self._made, min(ends, SEGMENT_S), self._fs)

    def _segment(self, rhythm: str, number: int, seconds: float, fs: float) -> tuple[np.ndarray, np.ndarray]:
        """From half a beat before its first R wave to half a beat before the first one behind `seconds`."""
        from train import noise, synth
        rate = fs if fs >= SLOWEST else fs * float(np.ceil(SLOWEST / fs))
        place = noise.with_faults(noise.PLACES[self.noise], lead_offs_per_min=0.0, settling=0.0, swapped=0.0)
        made = synth.record(rhythm, self.seed + number, max(seconds, 1.0) + 8, rate, self.leads, place,
                            subject=self.seed)
        beats, want = made.beats.sample, round(max(seconds, 1.0) * rate)
        first, last = 0, want
        if len(beats) > 2:
            half = int(np.median(np.diff(beats))) // 2
            first = max(int(beats[0]) - half, 0)
            behind = beats[beats >= first + want]
            last = max(int(behind[0]) - half, first + 1) if len(behind) else first + want
        off = np.zeros(made.uv.shape, bool) if made.missing is None else made.missing
        uv, off = made.uv[:, first:last], off[:, first:last]
        return (uv, off) if rate == fs else (resampled(uv, rate, fs), off[:, ::round(rate / fs)][:, :uv.shape[1]])

    def _join(self, uv: np.ndarray, off: np.ndarray) -> None:
        """Behind what is there, without a step: the difference fades over BLEND_S."""
        n = min(uv.shape[1], off.shape[1])
        uv, off = uv[:, :n], off[:, :n]
        if self._uv.shape[1] and n:
            fade = np.clip(1 - np.arange(n) / (BLEND_S * self._fs), 0, None)
            uv = np.rint(uv + (self._uv[:, -1:] - uv[:, :1]) * fade).astype(np.int32)
        self._uv, self._off = np.concatenate([self._uv, uv], 1), np.concatenate([self._off, off], 1)


@dataclass(frozen=True)
class Adc:
    """A profile's converter. place: channel of each lead of the signal, -1 for none; sign: turned over where -1;
    nv: nanovolts a count (channel,)."""

    profile: Profile
    place: tuple[int, ...]
    sign: tuple[int, ...]
    nv: tuple[float, ...]

    def counts(self, uv: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lead, moment) -> int32 (moment, channel), uint32 lead-off mask (moment,). An open input goes to its rail;
        channels without a lead stay at zero."""
        n = uv.shape[1]
        channels = self.profile.channels
        counts = np.tile(np.array([c.zero for c in channels], np.int32), (n, 1))
        mask = np.zeros(n, np.uint32)
        for lead, (place, sign) in enumerate(zip(self.place, self.sign, strict=True)):
            if place < 0:
                continue
            c = channels[place]
            real = np.rint(uv[lead] * (1000.0 * sign / self.nv[place]) + c.zero)
            counts[:, place] = np.where(off[lead], c.high, np.clip(real, c.low, c.high))
            mask |= off[lead].astype(np.uint32) << np.uint32(place)
        return counts, mask


def leads_of(profile: Profile, words: str | None = None) -> dict[str, str]:
    """Channel -> lead with its sign, of a map such as `ch1=I,ch2=-II`; by default what the profile says, else in order:
    the limb leads for up to three channels, I, II, V1 ... V6 for more."""
    names = [profile.channels[i].name for i in profile.ecg]
    if words is not None:
        leads, sources = parse_map(words)
        free = [n for n in names if n not in {s.removeprefix("-") for s in sources}]
        out = {}
        for lead, source in zip(leads, sources, strict=True):
            bare = source.removeprefix("-")
            name = bare if bare in names else free.pop(0) if bare == lead and free else None
            if name is None:
                raise UserError(f"{profile.title} has no channel {bare!r}", ", ".join(names))
            out[name] = ("-" if source.startswith("-") else "") + lead
        return out
    given = {profile.channels[i].name: profile.channels[i].lead for i in profile.ecg if profile.channels[i].lead}
    usual = LEADS[:3] if len(names) <= 3 else CHEST
    spare = iter(lead for lead in usual if lead not in given.values())
    return {n: lead for n in names if (lead := given.get(n) or next(spare, None))}


def adc(profile: Profile, have: Sequence[str], words: str | None = None, nv_per_count: float | None = None) -> Adc:
    """The converter for a signal with the leads `have`. A record without the lead that the first channel has usually is
    put on the channels in its own order; UserError when a lead that was asked for is not there."""
    wanted = leads_of(profile, words)
    names = [c.name for c in profile.channels]
    if words is None and next(iter(wanted.values())) not in have:
        wanted = dict(zip(wanted, have, strict=False))
    missing = [w for w in wanted.values() if w.removeprefix("-") not in have] if words is not None else []
    if missing:
        raise UserError(f"the record has no lead {', '.join(missing)}", ", ".join(have), "--leads with leads it has")
    by_lead = {lead.removeprefix("-"): (names.index(n), -1 if lead.startswith("-") else 1)
               for n, lead in wanted.items()}
    pairs = [by_lead.get(lead, (-1, 1)) for lead in have]
    nv = tuple(nv_per_count or c.nv_per_count or max(UNSCALED_NV, SPAN_NV / (c.high - c.low)) for c in profile.channels)
    return Adc(profile, tuple(p for p, _ in pairs), tuple(s for _, s in pairs), nv)
