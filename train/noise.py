# SPDX-License-Identifier: Apache-2.0
"""What the world adds to an ECG: mains hum, baseline wander, muscle, electrode motion, and leads that fall off.

Noise arises at the electrodes, as (electrode, time) arrays in microvolts, so that the leads made from them keep
Einthoven's law. Amplitudes are drawn per record from the ranges of a `Place`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a record is taken: ranges (low, high) that are drawn from uniformly in the logarithm, per record.

    Sizes are root mean squares in uV for hum, wander, muscle and contact, and peak sizes for motion.
    """

    mains_hz: tuple[float, ...]         # grids; one is chosen
    mains_uv: tuple[float, float]
    wander_uv: tuple[float, float]
    muscle_uv: tuple[float, float]
    contact_uv: tuple[float, float]
    motion_uv: tuple[float, float]
    motions_per_min: float              # expected artefacts
    lead_offs_per_min: float            # expected interruptions
    settling: float                     # share of records that begin with the amplifier still settling
    swapped: float                      # share of records with the two arm electrodes exchanged
    gain: tuple[float, float]           # of the whole signal, an uncalibrated amplifier


NONE = Place((50.0,), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), 0.0, 0.0, 0.0, 0.0, (1, 1))
PLACES = {
    "none": NONE,
    # Resting ECG with glued electrodes: the limits a trained technician accepts (AHA/ACC/HRS 2007, Kligfield et al.).
    "clinic": Place((50.0, 60.0), (0.5, 15), (5, 80), (1, 10), (0.5, 5), (50, 300), 0.5, 0.0, 0.05, 0.01, (0.98, 1.02)),
    # Two dry electrodes held in the hands (Clifford et al. 2017 describe such records as short, noisy, often inverted).
    "wearable": Place((50.0, 60.0), (0.3, 20), (10, 200), (0.5, 10), (3, 40), (100, 1500), 2.5, 0.15, 0.35,
                      0.20, (1.0, 2.5))}


@dataclass(frozen=True)
class Noise:
    """The noise of one record. `lead_off` holds (electrode, first sample, last sample + 1)."""

    uv: np.ndarray                                  # float32 (electrode, time)
    lead_off: tuple[tuple[int, int, int], ...]
    swapped: bool
    gain: float
    sizes: dict[str, float]                         # what was drawn, uV: mains, wander, muscle, contact; Hz: mains_hz


def with_faults(place: Place, **changes) -> Place:
    """The same place with some of its fields changed, e.g. with_faults(PLACES["clinic"], lead_offs_per_min=2)."""
    return replace(place, **changes)


def draw(rng, place, electrodes, n, fs, respiration):
    """Noise of one record of `n` samples at `fs` Hz for so many electrodes; `respiration` in Hz moves the baseline."""
    sizes = {"mains_hz": float(rng.choice(place.mains_hz)), "mains": _size(rng, place.mains_uv),
             "wander": _size(rng, place.wander_uv), "muscle": _size(rng, place.muscle_uv),
             "contact": _size(rng, place.contact_uv)}
    uv = np.zeros((electrodes, n), np.float32)
    if sizes["mains"]:
        _add_mains(rng, uv, fs, sizes["mains"], sizes["mains_hz"])
    if sizes["wander"]:
        _add_wander(rng, uv, fs, sizes["wander"], respiration)
    if sizes["muscle"]:
        _add_muscle(rng, uv, fs, sizes["muscle"])
    if sizes["contact"]:
        _add_contact(rng, uv, fs, sizes["contact"])
    for _ in range(rng.poisson(place.motions_per_min * n / fs / 60)):
        _add_motion(rng, uv[rng.integers(electrodes)], fs, _size(rng, place.motion_uv))
    if rng.random() < place.settling:
        _settle(rng, uv[rng.integers(electrodes)], 0, fs)
    lead_off = _lead_off(rng, uv, fs, place.lead_offs_per_min)
    return Noise(uv, lead_off, bool(rng.random() < place.swapped), _size(rng, place.gain), sizes)


def _size(rng, limits):
    low, high = limits
    return float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low > 0 else 0.0


def _slow(rng, n, fs, step_s, rows=1):
    """Smooth random curves (rows, n) of unit spread that change over about `step_s` seconds."""
    step = max(1, round(step_s * fs))
    pieces = n // step + 2
    knots = 1.4 * rng.standard_normal((rows, pieces + 2, 1), dtype=np.float32)
    u = np.arange(step, dtype=np.float32) / step
    weights = (0.5 * (1 - u) ** 2, 0.5 + u * (1 - u), 0.5 * u ** 2)      # quadratic B-spline: no corners
    curves = sum(knots[:, j:j + pieces] * w for j, w in enumerate(weights)).reshape(rows, -1)
    first = rng.integers(step)
    return curves[:, first:first + n]


def _add_mains(rng, uv, fs, rms, hz):
    """Hum with its third and fifth harmonics (20 % and 8 % on average), drifting by up to 0.1 Hz and in size."""
    n = uv.shape[1]
    drift = np.cumsum(_slow(rng, n, fs, 5.0)[0]) * (0.03 / fs)
    phase = 2 * np.pi * (hz * np.arange(n) / fs + drift)
    shares = rng.uniform(0.3, 1.0, len(uv)) * rms * np.sqrt(2)
    wave = np.zeros(n, np.float32)
    for harmonic, share in ((1, 1.0), (3, rng.uniform(0, 0.4)), (5, rng.uniform(0, 0.16))):
        if harmonic * hz < 0.5 * fs:
            wave += share * np.sin(harmonic * phase + rng.uniform(0, 6.28)).astype(np.float32)
    wave *= 1 + 0.3 * np.clip(_slow(rng, n, fs, 2.0)[0], -2, 2)
    uv += shares[:, None].astype(np.float32) * wave


def _add_wander(rng, uv, fs, rms, respiration):
    """Breathing at its own rate (0.2-0.4 Hz) and the drift of the electrodes below 0.5 Hz."""
    rows, n = uv.shape
    breath = np.sin(2 * np.pi * respiration * np.arange(n) / fs + rng.uniform(0, 6.28)).astype(np.float32)
    drift = _slow(rng, n, fs, 1.5, rows) + 2 * _slow(rng, n, fs, 8.0, rows)
    uv += rms * (rng.uniform(0.1, 1.0, (rows, 1)) * breath + rng.uniform(0.2, 0.6, (rows, 1)) * drift)


def _add_muscle(rng, uv, fs, rms):
    """Wide-band noise above about 20 Hz whose strength comes and goes."""
    rows, n = uv.shape
    white = rng.standard_normal((rows, n + 2), dtype=np.float32)
    smooth = rng.uniform(0.0, 0.6)          # between the spectrum of a deep and of a near muscle
    sound = white[:, 2:] - 0.5 * (1 - smooth) * white[:, 1:-1] + 0.5 * smooth * white[:, :-2]
    envelope = np.exp(np.clip(0.5 * _slow(rng, n, fs, 1.0, rows), -1.5, 1.5))
    uv += 0.8 * rms * sound * envelope


def _add_contact(rng, uv, fs, rms):
    """Unsteady skin contact: noise of about 1-12 Hz, the band of P, T and f-waves."""
    rows, n = uv.shape
    slow, fast = _slow(rng, n, fs, 0.2, rows), _slow(rng, n, fs, 0.06, rows)
    share = rng.uniform(0.2, 0.8)
    envelope = np.exp(np.clip(0.5 * _slow(rng, n, fs, 2.0, rows), -1.5, 1.5))
    uv += rms * (share * slow + (1 - share) * fast) * envelope


def _add_motion(rng, row, fs, peak):
    """One electrode moved: a step that decays, a smooth bump, or a burst of 1-8 Hz that looks like beats."""
    n = len(row)
    first = int(rng.integers(n))
    kind = rng.integers(3)
    length = int(fs * (rng.uniform(0.2, 1.5) if kind < 2 else rng.uniform(0.5, 5.0)))
    t = np.arange(min(length, n - first)) / length
    sign = rng.choice([-1.0, 1.0])
    if kind == 0:
        shape = sign * (1 - np.exp(-60 * t)) * np.exp(-4 * t) * (1 - t)
    elif kind == 1:
        shape = sign * np.sin(np.pi * t) ** 2
    else:
        shape = 0.5 * np.sin(np.pi * t) ** 2 * _slow(rng, len(t), fs, 1 / rng.uniform(2, 12))[0]
    row[first:first + len(t)] += peak * shape


def _settle(rng, row, first, fs):
    """The amplifier recovers after an electrode was put on: an offset of 0.3-3 mV that decays with 0.2-0.8 s."""
    t = np.arange(len(row) - first) / fs
    offset = rng.choice([-1.0, 1.0]) * np.exp(rng.uniform(np.log(300), np.log(3000)))
    row[first:] += offset * np.exp(-t / rng.uniform(0.2, 0.8))


def _lead_off(rng, uv, fs, per_min):
    """Choose when an electrode has no contact (0.3-4 s); after each, its amplifier settles again."""
    rows, n = uv.shape
    intervals = []
    for _ in range(rng.poisson(per_min * n / fs / 60)):
        electrode, first = int(rng.integers(rows)), int(rng.integers(n))
        last = min(n, first + int(fs * rng.uniform(0.3, 4.0)))
        intervals.append((electrode, first, last))
        if last < n:
            _settle(rng, uv[electrode], last, fs)
    return tuple(intervals)
