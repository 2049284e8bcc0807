# SPDX-License-Identifier: Apache-2.0
"""The rhythms of the synthetic patient: when atria and ventricles fire, and in which shape.

A rhythm is a function (rng, subject, duration in s) -> Course. Most are built as a series of intervals that starts two
beats before the record, so that no wave is missing at its start; times are in s from the first sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from train import heart
from train.heart import ABERRANT, ATRIAL_P, BUNDLE, ECTOPIC, ECTOPIC_2, NORMAL, PACED, RETROGRADE_P, SINUS_P

LEAD_IN = 2         # beats before the record
SHORTEST = 0.24     # s: no two beats are closer, the refractory period of the conduction system


@dataclass
class Course:
    """The electrical events of one record. `pr` is NaN for a beat without a P wave of its own."""

    r: np.ndarray                           # (beat,) s, centre of the QRS
    symbol: np.ndarray                      # (beat,) MIT code
    shape: np.ndarray                       # (beat,) one of heart's shapes
    p: np.ndarray                           # (p,) s, peaks
    p_shape: np.ndarray                     # (p,)
    marks: list[tuple[float, str]]          # (s, rhythm as in MIT's aux strings)
    spikes: np.ndarray = field(default_factory=lambda: np.empty(0))     # (spike,) s, pacemaker
    atria: tuple[str, float, float] | None = None       # ("fibrillation" | "flutter", Hz, uV)
    chaos: tuple[float, float] | None = None            # ventricular fibrillation: (Hz, uV)


def fitted(z, mean, sd, start, duration, shortest=SHORTEST):
    """Intervals (n,) s whose sample mean and standard deviation inside the record are `mean` and `sd`.

    z (n,) is their pattern, of any scale; the first beat falls at `start`. Scaling moves beats over the ends of the
    record and so changes the sample: where that does not settle the pattern is moved on by a beat, and the nearest of
    all rounds is taken.
    """
    intervals, best, miss = np.full(len(z), mean), None, np.inf
    for turn in range(24):
        end = start + np.cumsum(intervals)
        inside = (end - intervals >= 0) & (end <= duration)
        if inside.sum() < 2:
            break
        error = abs(np.std(intervals[inside]) - sd)
        if error < miss:
            best, miss = intervals, error
        if miss < 1e-3 * sd:
            break
        if turn % 4 == 3:
            z = np.roll(z, 1)
        spread = np.std(z[inside])
        intervals = mean + sd * (z - np.mean(z[inside])) / (spread if spread > 0 else 1.0)
        intervals = np.maximum(intervals, shortest)
    return intervals if best is None else best


def _length(mean, duration):
    return int(1.4 * duration / mean) + LEAD_IN + 6


def _start(rng, mean):
    return rng.uniform(0.05, 0.95) * mean - LEAD_IN * mean


def sinus_intervals(rng, subject, mean, duration, start):
    """Sinus R-R intervals with a respiratory (0.2-0.4 Hz), a 0.1 Hz, a slow and a random part, SDNN 20-80 ms.

    Ranges: Task Force of the ESC/NASPE 1996 (bands), Nunan et al. 2010 and Umetani et al. 1998 (short-term SDNN of
    adults). SDNN falls with the heart rate and never passes 12 % of the mean interval unless that is below 22 ms.
    """
    n = _length(mean, duration)
    t = np.arange(n) * mean
    vagal, slow = rng.uniform(0.02, 1.0), rng.uniform(0.3, 1.2)
    z = (vagal * np.sin(2 * np.pi * subject.respiration * t)
         + rng.uniform(0.1, 0.8) * np.sin(2 * np.pi * rng.uniform(0.08, 0.12) * t + rng.uniform(0, 6.28))
         + slow * np.sin(2 * np.pi * rng.uniform(0.005, 0.04) * t + rng.uniform(0, 6.28))
         + rng.uniform(0.05, 0.3) * rng.standard_normal(n))
    sdnn = 0.022 * (78 / 22) ** (0.75 * subject.variability + 0.25 * rng.random())
    return fitted(z, mean, min(sdnn, max(0.022, 0.12 * mean)), start, duration)


def _course(subject, start, intervals, symbol=None, shape=None, pr=None, p_shape=None, marks=None, usual=NORMAL,
            code="N"):
    """Course of beats that follow each other by `intervals`; each has a P wave `pr` s before it unless that is NaN."""
    n = len(intervals) + 1
    r = start + np.concatenate([[0.0], np.cumsum(intervals)])
    symbol = np.full(n, code) if symbol is None else symbol
    shape = np.full(n, usual) if shape is None else shape
    pr = np.full(n, subject.pr) if pr is None else np.broadcast_to(pr, n)
    p_shape = np.full(n, SINUS_P) if p_shape is None else p_shape
    durations = np.array([subject.shapes[k].duration for k in range(len(subject.shapes))])
    has_p = ~np.isnan(pr)
    p = subject.p_peak(r[has_p], pr[has_p], durations[shape[has_p]])
    return Course(r, symbol, shape, p, p_shape[has_p], marks or [(0.0, "(N")])


def _sinus(low, high, centre, spread, usual=NORMAL, code="N", pr=None, aux="(N"):
    """Rhythm function: regular sinus rhythm at a rate drawn from [low, high] beats/min."""
    def rhythm(rng, subject, duration):
        mean = 60 / _rate(rng, low, high, centre, spread)
        start = _start(rng, mean)
        intervals = sinus_intervals(rng, subject, mean, duration, start)
        interval = None if pr is None else rng.uniform(*pr)
        return _course(subject, start, intervals, pr=interval, usual=usual, code=code, marks=[(0.0, aux)])
    return rhythm


def _rate(rng, low, high, centre, spread):
    """A heart rate in beats/min: normal around `centre`, cut to [low, high]."""
    return float(np.clip(rng.normal(centre, spread), low, high))


def _background(rng, subject, duration, low=55, high=105):
    """Sinus rhythm for beats to be planted in: start and intervals."""
    mean = 60 / _rate(rng, low, high, 76, 13)
    start = _start(rng, mean)
    return start, sinus_intervals(rng, subject, mean, duration, start)


def _blank(subject, intervals):
    """Symbols, shapes, PR and P shapes of len(intervals) + 1 ordinary sinus beats."""
    n = len(intervals) + 1
    return np.full(n, "N"), np.full(n, NORMAL), np.full(n, subject.pr), np.full(n, SINUS_P)


def _places(rng, start, intervals, duration, count, apart=3):
    """At most `count` beat indices inside the record, at least `apart` beats from each other."""
    r = start + np.concatenate([[0.0], np.cumsum(intervals)])
    free = list(np.flatnonzero((r > 1.0) & (r < duration - 1.0)))
    free = [k for k in free if LEAD_IN < k < len(intervals) - 2] or [LEAD_IN + 1]
    chosen = []
    for k in rng.permutation(free):
        if len(chosen) < count and all(abs(k - c) >= apart for c in chosen):
            chosen.append(int(k))
    return sorted(chosen)


def af(rng, subject, duration):
    """Atrial fibrillation: 60-170 beats/min, R-R coefficient of variation 0.15-0.35, no P, f-waves of 4-9 Hz.

    The intervals are independent draws from a gamma distribution above the refractory period, the usual finding
    (Bootsma et al. 1970; Bollmann et al. 2006 for the f-waves, of 10-200 uV here).
    """
    mean = 60 / _rate(rng, 60, 170, 93, 25)
    start = _start(rng, mean)
    n = _length(mean, duration)
    order = rng.uniform(2.5, 8)
    z = rng.gamma(order, size=n)
    steady = rng.uniform(0.0, 0.3)          # a little memory from beat to beat
    z[1:] = (1 - steady) * z[1:] + steady * z[:-1]
    largest = (1 - SHORTEST / mean) / 1.7   # so that the shortest interval stays above the refractory period
    cv = 0.165 + rng.beta(1.2, 1.8) * (max(0.18, min(0.33, largest)) - 0.165)
    intervals = fitted(z, mean, cv * mean, start, duration)
    symbol, shape, _, _ = _blank(subject, intervals)
    if rng.random() < 0.2:                  # ventricular or aberrant beats among them
        for k in _places(rng, start, intervals, duration, rng.integers(1, 5)):
            symbol[k], shape[k] = ("V", ECTOPIC) if rng.random() < 0.7 else ("a", ABERRANT)
    course = _course(subject, start, intervals, symbol, shape, pr=np.nan, marks=[(0.0, "(AFIB")])
    course.atria = ("fibrillation", rng.uniform(4.5, 8.5), heart.loguniform(rng, 5, 100))
    return course


def flutter(rng, subject, duration):
    """Atrial flutter: saw-tooth atrial waves at 240-340 per minute, every second, third or fourth conducted."""
    rate = rng.uniform(4.0, 5.6)
    n = _length(2 / rate, duration)
    kind = rng.choice(3, p=(0.5, 0.25, 0.25))
    ratio = np.full(n, 2) if kind == 0 else np.full(n, rng.integers(3, 5)) if kind == 1 else rng.choice([2, 3, 4], n)
    intervals = np.maximum(ratio / rate + rng.normal(0, 0.006, n), SHORTEST)
    start = _start(rng, intervals.mean())
    course = _course(subject, start, intervals, pr=np.nan, marks=[(0.0, "(AFL")])
    course.atria = ("flutter", rate, heart.loguniform(rng, 50, 250))
    return course


def svt(rng, subject, duration):
    """Supraventricular tachycardia: narrow, 150-220 beats/min, spread below 10 ms, P hidden or upside down after QRS.

    Half the records are one long run; in the others it starts and stops abruptly in sinus rhythm.
    """
    fast = 60 / rng.uniform(150, 220)
    start, intervals = _background(rng, subject, duration)
    first, last, intervals = _run(rng, start, intervals, duration, fast, rng.random() < 0.5, (8, 30))
    symbol, shape, pr, p_shape = _blank(subject, intervals)
    run = slice(first, last)
    symbol[run], pr[run] = "A", np.nan
    if rng.random() < 0.4:          # retrograde P in the ST segment: a PR that is negative
        pr[run], p_shape[run] = -rng.uniform(0.11, 0.14), RETROGRADE_P
    course = _course(subject, start, intervals, symbol, shape, pr, p_shape)
    return _run_marks(course, first, last, "(SVTA")


def vt(rng, subject, duration):
    """Ventricular tachycardia: wide beats, 120-210 beats/min, without P; a whole record or a run of 4-25 beats."""
    fast = 60 / rng.uniform(120, 210)
    start, intervals = _background(rng, subject, duration)
    first, last, intervals = _run(rng, start, intervals, duration, fast, rng.random() < 0.5, (4, 25))
    symbol, shape, pr, _ = _blank(subject, intervals)
    symbol[first:last], shape[first:last], pr[first:last] = "V", ECTOPIC, np.nan
    return _run_marks(_course(subject, start, intervals, symbol, shape, pr), first, last, "(VT")


def _run(rng, start, intervals, duration, fast, whole, lengths):
    """Beats [first, last) follow each other by `fast` s: (first, last, intervals)."""
    mean = intervals.mean()
    jitter = rng.uniform(0.002, 0.009)
    if whole:
        n = _length(fast, duration) + int(LEAD_IN * mean / fast) + 4
        return 0, n + 1, np.maximum(rng.normal(fast, jitter, n), SHORTEST)
    count = int(rng.integers(*lengths))
    first = _places(rng, start, intervals, 0.7 * duration, 1)[0]
    run = np.maximum(rng.normal(fast, jitter, count), SHORTEST)
    run[0] = max(run[0], 0.6 * mean)
    after = np.concatenate([[1.2 * mean], intervals[first:]])
    return first, first + count, np.concatenate([intervals[:first - 1], run, after])


def _run_marks(course, first, last, aux):
    course.marks = [(0.0, aux)] if first == 0 else [(0.0, "(N"), (max(0.0, course.r[first] - 0.1), aux)]
    if last < len(course.r):
        course.marks.append((course.r[last] - 0.1, "(N"))
    return course


def vf(rng, subject, duration):
    """Ventricular fibrillation: no beats, only a chaotic wave of 3-8 Hz and 0.15-1.2 mV."""
    none = np.empty(0)
    course = Course(none, np.empty(0, "U1"), np.empty(0, int), none, np.empty(0, int), [(0.0, "(VF")])
    course.chaos = (rng.uniform(3.5, 7.0), heart.loguniform(rng, 150, 1200))
    return course


def pause(rng, subject, duration):
    """Sinus pauses of 2.1-4 s, ended by a sinus, junctional or ventricular beat."""
    start, intervals = _background(rng, subject, duration, 45, 90)
    symbol, shape, pr, p_shape = _blank(subject, intervals)
    for k in _places(rng, start, intervals, max(duration - 4.0, 2.5), 1 + int(duration > 15) * rng.integers(0, 3), 6):
        intervals[k] = rng.uniform(2.1, 4.0)
        ending = rng.random()
        if ending < 0.25:
            symbol[k + 1], pr[k + 1] = "j", np.nan
        elif ending < 0.4:
            symbol[k + 1], shape[k + 1], pr[k + 1] = "E", ECTOPIC, np.nan
    return _course(subject, start, intervals, symbol, shape, pr, p_shape)


def pac(rng, subject, duration):
    """Premature atrial beats at 0.55-0.8 of the sinus interval with their own P, the sinus clock reset after them.

    One in seven comes so early that it is not conducted (its P falls into the T wave and nothing follows), one in
    ten of the conducted ones is aberrant.
    """
    start, intervals = _background(rng, subject, duration)
    symbol, shape, pr, p_shape = _blank(subject, intervals)
    blocked = []
    count = 1 + rng.poisson(heart.loguniform(rng, 0.02, 0.25) * duration)
    for k in _places(rng, start, intervals, duration, count, rng.integers(2, 4)):
        early = rng.uniform(0.55, 0.8)
        if rng.random() < 1 / 7:
            blocked.append((k - 1, rng.uniform(0.42, 0.5) * intervals[k - 1]))
            intervals[k - 1] *= rng.uniform(1.35, 1.55)
            continue
        intervals[k - 1] = max(early * intervals[k - 1], 0.30)
        intervals[k] *= rng.uniform(1.0, 1.25)
        symbol[k], p_shape[k], pr[k] = "A", ATRIAL_P, rng.uniform(0.12, 0.2)
        if rng.random() < 0.1:
            symbol[k], shape[k] = "a", ABERRANT
    course = _course(subject, start, intervals, symbol, shape, pr, p_shape)
    course.p = np.concatenate([course.p, [course.r[k] + late for k, late in blocked]])
    course.p_shape = np.concatenate([course.p_shape, np.full(len(blocked), ATRIAL_P)])
    return course


def pvc(rng, subject, duration):
    """Premature ventricular beats at 0.5-0.75 of the sinus interval, wide, without P, mostly with a compensatory pause.

    Single ones from one or two places, or (a quarter of the records) every third beat.
    """
    start, intervals = _background(rng, subject, duration)
    third = rng.random() < 0.25
    every = list(range(LEAD_IN + 1, len(intervals) - 1, 3))
    some = _places(rng, start, intervals, duration, rng.integers(1, 2 + max(1, int(duration / 4))), 2)
    course = _plant_pvcs(rng, subject, start, intervals, every if third else some, 1 + (rng.random() < 0.25))
    if third:
        course.marks = [(0.0, "(T")]
    return course


def bigeminy(rng, subject, duration):
    """Ventricular bigeminy: after each sinus beat a premature ventricular one."""
    start, intervals = _background(rng, subject, duration)
    course = _plant_pvcs(rng, subject, start, intervals, range(1, len(intervals), 2), 1)
    course.marks = [(0.0, "(B")]
    return course


def _plant_pvcs(rng, subject, start, intervals, places, foci):
    symbol, shape, pr, p_shape = _blank(subject, intervals)
    coupling = rng.uniform(0.5, 0.75, foci)
    compensates = rng.random() < 0.85
    for k in places:
        focus = rng.integers(foci)
        early = max((coupling[focus] + rng.normal(0, 0.015)) * intervals[k - 1], 0.32)
        late = intervals[k - 1] + intervals[k] - early
        intervals[k - 1], intervals[k] = early, late if compensates else rng.uniform(1.0, 1.1) * intervals[k]
        symbol[k], shape[k], pr[k] = "V", (ECTOPIC, ECTOPIC_2)[focus], np.nan
    return _course(subject, start, intervals, symbol, shape, pr, p_shape)


def av_block_2(rng, subject, duration):
    """Second-degree block: a P without a QRS after PR intervals that grow (Mobitz I) or stay (Mobitz II, 2:1)."""
    mean = 60 / _rate(rng, 55, 105, 76, 12)
    start = _start(rng, mean)
    p = start + np.concatenate([[0.0], np.cumsum(sinus_intervals(rng, subject, mean, duration, start))])
    wenckebach = rng.random() < 0.5
    cycle = int(rng.integers(3, 6) if wenckebach else rng.integers(2, 6))
    place = (np.arange(len(p)) + rng.integers(cycle)) % cycle          # the last of each cycle is dropped
    if wenckebach:
        growth = rng.uniform(0.06, 0.11) * np.concatenate([[0.0], np.cumsum(0.6 ** np.arange(cycle))])
        pr = rng.uniform(0.16, 0.22) + growth[place]
    else:
        pr = np.full(len(p), rng.uniform(0.15, 0.22))
    conducted = place < cycle - 1
    r = (p + pr - 0.5 * subject.p_duration + heart.ON * subject.shapes[NORMAL].duration)[conducted]
    return Course(r, np.full(len(r), "N"), np.full(len(r), NORMAL), p, np.full(len(p), SINUS_P), [(0.0, "(BII")])


def av_block_3(rng, subject, duration):
    """Third-degree block: P at 60-110 per minute, and a slow escape rhythm that knows nothing of it.

    The escape is junctional (narrow, 38-55 beats/min, code j) or ventricular (wide, 25-40 beats/min, code E).
    """
    mean = 60 / _rate(rng, 60, 110, 82, 12)
    first_p = _start(rng, mean)
    p = first_p + np.cumsum(sinus_intervals(rng, subject, mean, duration, first_p))
    junctional = rng.random() < 0.5
    slow = 60 / (rng.uniform(38, 55) if junctional else rng.uniform(25, 40))
    start = _start(rng, slow)
    intervals = rng.normal(slow, rng.uniform(0.005, 0.02), _length(slow, duration))
    code, usual = ("j", NORMAL) if junctional else ("E", ECTOPIC)
    course = _course(subject, start, intervals, pr=np.nan, usual=usual, code=code, marks=[(0.0, "(BIII")])
    course.p, course.p_shape = p, np.full(len(p), SINUS_P)
    return course


def paced(rng, subject, duration):
    """Ventricular pacing at 60-90 beats/min: a spike before each wide beat; atria sensed or fibrillating."""
    mean = 60 / rng.uniform(60, 90)
    start = _start(rng, mean)
    sensed = rng.random() < 0.6
    intervals = (sinus_intervals(rng, subject, mean, duration, start) if sensed
                 else rng.normal(mean, 0.002, _length(mean, duration)))
    pr = rng.uniform(0.14, 0.19) if sensed else np.nan
    course = _course(subject, start, intervals, pr=pr, usual=PACED, code="/", marks=[(0.0, "(P")])
    course.spikes = course.r - heart.ON * subject.shapes[PACED].duration - 0.006
    if not sensed:
        course.atria = ("fibrillation", rng.uniform(4.5, 8.5), heart.loguniform(rng, 8, 80))
    return course


COURSES = {
    "sinus": _sinus(60, 99, 75, 11), "bradycardia": _sinus(42, 59, 54, 5), "tachycardia": _sinus(101, 140, 108, 10),
    "af": af, "flutter": flutter, "svt": svt, "vt": vt, "vf": vf, "pause": pause, "pac": pac, "pvc": pvc,
    "bigeminy": bigeminy,
    "lbbb": _sinus(55, 105, 76, 12, BUNDLE, "L"), "rbbb": _sinus(55, 105, 76, 12, BUNDLE, "R"),
    "av-block-1": _sinus(50, 95, 70, 11, pr=(0.215, 0.34), aux="(BI"),
    "av-block-2": av_block_2, "av-block-3": av_block_3,
    "st-elevation": _sinus(55, 110, 82, 14), "paced": paced}
