# SPDX-License-Identifier: Apache-2.0
"""What may differ between two recordings of one heart: gain, polarity, mains hum, wander, muscle, a lost lead.

int16 microvolts behind the front end (batch, lead, time) -> the same shape and type, before quantization. Levels are
those that pass the front end's filters. Time shifts come from where a crop is cut (dataset.py). Numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLIP_UV = 32767


@dataclass(frozen=True)
class Augment:
    """How much of each; a probability of 0 switches a kind off. Levels are amplitudes in microvolt, drawn up to."""

    gain: tuple[float, float] = (0.4, 2.5)      # of the whole recording, log-uniform
    polarity: float = 0.2                       # electrodes swapped: all leads change sign
    mains: float = 0.3                          # 50 or 60 Hz, what the notches leave of it
    mains_uv: float = 30
    wander: float = 0.3                         # 0.3 to 0.9 Hz, what the high-pass leaves of breathing and motion
    wander_uv: float = 150
    muscle: float = 0.3                         # broad-band noise below 40 Hz, standard deviation
    muscle_uv: float = 40
    lead_loss: float = 0.1                      # of each lead when there is more than one; never of all
    jitter_s: float = 0.05                      # R position, beat windows only


PLAIN = Augment((1.0, 1.0), 0, 0, 0, 0, 0, 0, 0, 0, 0)


def augment(x: np.ndarray, rng: np.random.Generator, kinds: Augment, fs: float) -> np.ndarray:
    """Augment each recording of a batch by draws of its own: int16 (batch, lead, time) -> int16, clipped."""
    batch, leads, time = x.shape
    y = x.astype(np.float32)
    y *= np.exp(rng.uniform(*np.log(kinds.gain), (batch, 1, 1))).astype(np.float32)
    y[rng.random(batch) < kinds.polarity] *= -1
    t = np.arange(time, dtype=np.float32) / np.float32(fs)
    for i in np.flatnonzero(rng.random(batch) < kinds.mains):
        y[i] += _sine(rng, t, rng.choice((50.0, 60.0)), kinds.mains_uv, leads)
    for i in np.flatnonzero(rng.random(batch) < kinds.wander):
        y[i] += _sine(rng, t, rng.uniform(0.3, 0.9), kinds.wander_uv, leads)
    for i in np.flatnonzero(rng.random(batch) < kinds.muscle):
        y[i] += _muscle(rng, leads, time, fs) * np.float32(rng.uniform(0, kinds.muscle_uv))
    if leads > 1 and kinds.lead_loss:
        y[_lost(rng, batch, leads, kinds.lead_loss)] = 0
    return np.clip(np.rint(y), -CLIP_UV, CLIP_UV).astype(np.int16)


def jitter(rng: np.random.Generator, n: int, kinds: Augment, fs: float) -> np.ndarray:
    """Shifts of the R position in samples: int64 (n,), uniform within +-jitter_s."""
    reach = int(kinds.jitter_s * fs)
    return rng.integers(-reach, reach + 1, n)


def _sine(rng: np.random.Generator, t: np.ndarray, hertz: float, level: float, leads: int) -> np.ndarray:
    """One frequency on all leads, each with an amplitude of its own: (lead, time)."""
    amplitude = rng.uniform(0, level, (leads, 1)).astype(np.float32)
    return amplitude * np.sin(np.float32(2 * np.pi * hertz) * t + np.float32(rng.uniform(0, 2 * np.pi)))


def _muscle(rng: np.random.Generator, leads: int, time: int, fs: float) -> np.ndarray:
    """Noise of standard deviation 1 with its power below 40 Hz, as behind the low-pass: (lead, time)."""
    taps = max(1, round(fs / 80))       # a moving average with its first zero at 80 Hz is 3 dB down near 40 Hz
    white = rng.standard_normal((leads, time + taps - 1), dtype=np.float32)
    total = np.cumsum(np.pad(white, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    return ((total[:, taps:] - total[:, :-taps]) / np.sqrt(taps)).astype(np.float32)


def _lost(rng: np.random.Generator, batch: int, leads: int, chance: float) -> np.ndarray:
    """Which leads are off: bool (batch, lead), at least one on in every row."""
    lost = rng.random((batch, leads)) < chance
    lost[np.arange(batch), rng.integers(0, leads, batch)] = False
    return lost
