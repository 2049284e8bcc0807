# SPDX-License-Identifier: Apache-2.0
"""Streaming polyphase resampling of integer samples from any input rate to `fs`, exact in integers.

int32 (lead, time) at fs_in -> int32 (lead, time') at fs. Coefficients are Q15 in int16, sums are int64, one rounding
shift per output. Output m is computed as soon as input floor(m * down / up) is there:

    position = m * down;  i = position // up;  phase = position % up
    y[m] = (sum over j of table[phase][j] * x[i - j] + 2^14) >> 15
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from train.say import UserError

BITS = 15                       # Q15 coefficients: every phase sums to exactly 2^15, so a constant stays that constant
PASS_HZ = 40                    # flat up to here: the low-pass behind it ends there
STOP = Fraction(6, 10)          # of the lower rate: what lies between 0.5 and 0.6 folds to above 0.4
ATTENUATION_DB = 60
MAX_PHASES = 4096


@dataclass(frozen=True)
class Kernel:
    """Polyphase coefficients for fs_in * up / down; `delay` is in output samples, exact (linear phase)."""

    up: int
    down: int
    table: np.ndarray           # int16 (phase = up, tap)
    delay: Fraction

    @property
    def taps(self) -> int:
        """Input samples that one output depends on."""
        return self.table.shape[1]


@functools.lru_cache(maxsize=32)
def ratio(fs_in: float, fs: int) -> Fraction:
    """fs / fs_in, rates in Hz: the simplest fraction within 1.5 ppm (333.333 is 1000/3), or UserError."""
    if not 50 <= fs_in <= 20000:
        raise UserError(f"input rate {fs_in} Hz", "50 to 20000 Hz", "check the unit: samples per second")
    for denominator in range(1, 1001):
        rate = Fraction(fs_in).limit_denominator(denominator)
        if abs(float(rate) / fs_in - 1) <= 1.5e-6:
            break
    result = fs / rate
    if result.numerator > MAX_PHASES:
        raise UserError(f"{fs_in} Hz to {fs} Hz needs {result.numerator} filter phases", f"at most {MAX_PHASES}",
                        f"state the rate as a rounder number, e.g. {round(fs_in, 1)} Hz")
    return result


@functools.lru_cache(maxsize=32)
def kernel(fs_in: float, fs: int) -> Kernel:
    """Kaiser-windowed sinc for fs_in -> fs.

    Pass band 0-40 Hz (0.4 of the lower rate below 100 Hz), stop band from 0.6 of the lower rate, 60 dB before rounding
    and 58 dB after it. The transition is wide on purpose: a low-pass of 40 Hz follows, and each halving of the
    transition would double the delay.
    Length by Kaiser's formula, half of it a whole number of input samples, so the delay is exact.
    """
    rate = ratio(fs_in, fs)
    up, down = rate.numerator, rate.denominator
    if up == down:
        return Kernel(1, 1, np.array([[1]], np.int16), Fraction(0))
    lower = min(fs_in, fs)
    passband, stop = min(PASS_HZ, 0.4 * lower), float(STOP) * lower
    length_s = (ATTENUATION_DB - 8) / (2.285 * 2 * math.pi * (stop - passband))
    side = math.ceil(length_s * fs_in / 2)                          # input samples on either side of the centre
    half = side * up
    beta = 0.1102 * (ATTENUATION_DB - 8.7)
    at = np.arange(1 - half, half) / (up * fs_in)                   # seconds; tap 0 would be 0 and is left to the table
    taps = np.sinc((passband + stop) * at) * np.kaiser(2 * half - 1, beta)
    table = np.concatenate([[0.0], taps]).reshape(2 * side, up).T
    return Kernel(up, down, _quantized(table), Fraction(half, down))


def _quantized(table: np.ndarray) -> np.ndarray:
    """Rows of float taps -> int16 Q15 rows that sum to exactly 2^15."""
    rounded = np.rint(table / table.sum(1, keepdims=True) * (1 << BITS)).astype(np.int64)
    for row in rounded:
        for tap in np.argsort(-row, kind="stable"):
            row[tap] = min(row[tap] + (1 << BITS) - row.sum(), (1 << BITS) - 1)      # a tap of 1.0 does not fit int16
            if row.sum() == 1 << BITS:
                break
    return rounded.astype(np.int16)


class Resampler:
    """State of one stream: the last taps - 1 inputs and two counters. Chunked equals one-shot.

    The history starts as the first sample, repeated. `limit` bounds the output, as the filter overshoots by a few
    percent on a full-scale step.
    """

    def __init__(self, fs_in: float, fs: int, limit: int):
        self.kernel, self.limit = kernel(fs_in, fs), limit
        self._table = np.ascontiguousarray(self.kernel.table.T.astype(np.int64))     # (tap, phase)
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next sample is the first of a new one."""
        self._history, self._consumed, self._produced = None, 0, 0

    def push(self, x: np.ndarray) -> np.ndarray:
        """int32 (lead, n) within +-limit -> int32 (lead, m): every output whose last input has come."""
        if self.kernel.up == self.kernel.down or x.shape[1] == 0:
            return x
        up, down, taps = self.kernel.up, self.kernel.down, self.kernel.taps
        if self._history is None:
            self._history = np.repeat(x[:, :1], taps - 1, axis=1)
        buffer = np.concatenate([self._history, x], axis=1).astype(np.int64)
        end = -(-(self._consumed + x.shape[1]) * up // down)
        position = np.arange(self._produced, end) * down
        base, phase = position // up - self._consumed + taps - 1, position % up
        total = np.full((len(x), len(base)), 1 << (BITS - 1), np.int64)
        for j in range(taps):
            total += self._table[j, phase] * buffer[:, base - j]
        self._history = buffer[:, buffer.shape[1] - (taps - 1):].astype(np.int32)
        self._consumed += x.shape[1]
        self._produced = end
        return np.clip(total >> BITS, -self.limit, self.limit).astype(np.int32)
