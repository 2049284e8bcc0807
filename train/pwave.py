# SPDX-License-Identifier: Apache-2.0
"""The P wave before each R: causal, integers only, one lead of the front end's output.

int16 microvolts (n,) at fs and R positions -> onset, peak and end of each beat's P wave, or -1, and how high it is.
All that is known of a beat is known 60 ms behind its R. Where the text says t ms, the code means round(t * fs / 1000)
samples.

QRS. The slope is the rise over 12 ms. Back from 12 ms before R, the first 20 ms of slopes that are all below a tenth of
the steepest one around R end at q, the last sample before the complex; q is 28 to 112 ms before R. `size` is the range
of x within 40 ms of R.

Bump. With s the sum of x over 28 ms (an odd number of samples, m), the bump at n is its height above the chord from
s[n - 56 ms] to s[min(n + 56 ms, q - m // 2)], the last s without a sample of the complex:

    bump[n] = (s[n] * (a + b) - s[n - a] * b - s[n + b] * a) // (a + b)         a, b: the distances to the chord's ends

P is the highest bump from 300 ms before R, or a quarter of the RR interval and 160 ms behind the last R where that is
later (the T wave is over), to 20 ms before q; the lowest one, upside down, when it is more than 1.5 times as deep (its
flanks look like waves half as high). It is
reported when it reaches 14 microvolts and 1/128 of `size`, and when the same bump of the running mean of s before R
reaches 11 microvolts, 1/128 and a third of this one within 12 ms of the place: waves of a fibrillating atrium keep no
place before R and average out. The mean moves by 1/2, 1/4, 1/4 and from then on 1/8 of the difference with each beat.

Onset and end are where s falls furthest below the chord from 100 ms before P to P, and from P to the earlier of 100 ms
behind it and q. Memory: 450 ms of samples and 400 ms of the mean.
"""

from __future__ import annotations

import numpy as np

_FLOOR, _MEAN_FLOOR, _SHARE = 14, 11, 7     # microvolts; the share of `size` is 2^-7
_GUARD = 4                                  # fractional bits of the running mean
DTYPE = np.dtype([("onset", "<i8"), ("peak", "<i8"), ("end", "<i8"), ("height", "<i8"), ("usual", "<i8"),
                  ("size", "<i8")])


def delineate(x: np.ndarray, peaks: np.ndarray, fs: int) -> np.ndarray:
    """P waves of the beats at `peaks` (ascending) in x (time,): a row of DTYPE each.

    onset, peak, end are samples, -1 where no P is reported; height is the bump at P in microvolts, negative when upside
    down, 0 without P (a wave in the rest before the first sample has negative samples too); usual is the running mean's
    bump there, reported or not; size is the range of the QRS complex. Samples beyond the ends of x count as 0.
    """
    return Delineator(fs).beats(x, peaks)


class Delineator:
    """One lead's delineator; beats in any portions give the same waves."""

    def __init__(self, fs: int):
        self.fs = fs
        self.mean, self.count, self.last = None, 0, None    # of s before R, beats in it, R of the last beat

    def reach(self) -> tuple[int, int]:
        """Samples that are looked at before and behind an R."""
        m = _samples(28, self.fs) | 1
        return _samples(420, self.fs) + m, _samples(60, self.fs) + m

    def _running_mean(self, rows: np.ndarray) -> np.ndarray:
        """The mean of s before R as each beat has moved it, (beat, place)."""
        means = np.empty_like(rows)
        for i, row in enumerate(rows):
            self.mean = row << _GUARD if self.mean is None else self.mean
            self.mean = self.mean + (((row << _GUARD) - self.mean) >> min(3, self.count.bit_length()))
            self.count += 1
            means[i] = self.mean >> _GUARD
        return means

    def beats(self, x: np.ndarray, peaks: np.ndarray) -> np.ndarray:
        """Waves of further beats, see delineate; peaks count from x[0], wherever that lies, and `moved` follows it."""
        r, fs = np.asarray(peaks, np.int64), self.fs
        found = np.zeros(len(r), DTYPE)
        if not len(r):
            return found
        m, back, edge = _samples(28, fs) | 1, _samples(420, fs), _samples(60, fs)
        x = np.pad(np.asarray(x, np.int64), (back + m, edge + m))
        total = np.concatenate([[0], np.cumsum(x)])
        s = np.pad(total[m:] - total[:-m], (m // 2, m // 2))                   # (time,), centred
        at = r + back + m
        q, size = _complexes(x, at, fs)
        rows = s[at[:, None] + np.arange(-back, 1)]                             # (beat, 420 ms up to R)
        q, interval = q - at + back, np.diff(r, prepend=r[0] - 60 * fs if self.last is None else self.last)
        self.last = int(r[-1])
        first = back - np.minimum(_samples(300, fs), interval - _samples(160, fs) - interval // 4)
        own, mean = (_bumps(z, q - m // 2, fs) for z in (rows, self._running_mean(rows)))
        place = np.arange(back + 1)
        searched = (place >= first[:, None]) & (place <= q[:, None] - _samples(20, fs))
        where, sign = _strongest(own, searched)
        near = np.clip(where[:, None] + np.arange(-_samples(12, fs), _samples(12, fs) + 1), 0, back)
        near = np.where(np.take_along_axis(searched, near, 1), near, where[:, None])
        height, usual = sign * _pick(own, where), (sign[:, None] * np.take_along_axis(mean, near, 1)).max(1)
        limit = size * m >> _SHARE
        there = searched.any(1)
        seen = there & (height >= np.maximum(_FLOOR * m, limit)) & (usual >= np.maximum(_MEAN_FLOOR * m, limit))
        seen &= 3 * usual >= height
        onset, end = _feet(sign[:, None] * rows, where, q, _samples(100, fs))
        for name, value in (("onset", onset), ("peak", where), ("end", end)):
            found[name] = np.where(seen, value + r - back, -1)
        found["height"], found["usual"] = np.where(seen, sign * height // m, 0), np.where(there, sign * usual // m, 0)
        found["size"] = size
        return found

    def moved(self, samples: int) -> None:
        """x[0] of the next portion lies so many samples later."""
        self.last = None if self.last is None else self.last - samples


def _samples(ms: int, fs: int) -> int:
    return (ms * fs + 500) // 1000


def _complexes(x: np.ndarray, at: np.ndarray, fs: int) -> tuple[np.ndarray, np.ndarray]:
    """(last sample before each QRS complex, range of the samples within 40 ms of R)."""
    before, rise, quiet = _samples(140, fs), _samples(12, fs), _samples(20, fs)
    around = at[:, None] + np.arange(-before, _samples(60, fs))
    slope = np.abs(x[around] - x[around - rise])
    calm = 10 * slope < slope.max(1, keepdims=True)
    spans = np.lib.stride_tricks.sliding_window_view(calm, quiet, 1).all(2)     # spans[j]: calm from j for 20 ms
    low, high = _samples(40, fs) - quiet + 1, before - rise - quiet + 1
    backwards = spans[:, high:low:-1]
    start = np.where(backwards.any(1), high - backwards.argmax(1), low)
    q = np.minimum(at - before + start + quiet - rise, at - _samples(28, fs))
    near = x[at[:, None] + np.arange(-_samples(40, fs), _samples(40, fs))]
    return q, near.max(1) - near.min(1)


def _bumps(s: np.ndarray, q: np.ndarray, fs: int) -> np.ndarray:
    """Height above the chord at every place of s (beat, place); nothing is looked at behind q (beat,)."""
    a = _samples(56, fs)
    place = np.arange(s.shape[1])
    right = np.minimum(place + a, q[:, None])
    b = np.maximum(right - place, 1)
    left = np.take(s, np.maximum(place - a, 0), axis=1)
    return (s * (a + b) - left * b - np.take_along_axis(s, right, 1) * a) // (a + b)


def _strongest(bumps: np.ndarray, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of the P wave, 1 or -1 where it is upside down) among the places searched."""
    shown = np.where(searched, bumps, 0)
    up, down = shown.argmax(1), shown.argmin(1)
    inverted = -2 * _pick(shown, down) > 3 * _pick(shown, up)
    return np.where(inverted, down, up), np.where(inverted, -1, 1)


def _pick(rows: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.take_along_axis(rows, where[:, None], 1)[:, 0]


def _feet(s: np.ndarray, peak: np.ndarray, q: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(onset, end): places furthest below the chords from `reach` before the peak to it and from it to q or `reach`."""
    place = np.arange(s.shape[1])

    def furthest(start, stop):      # (beat,) each
        length = np.maximum(stop - start, 1)[:, None]
        rise = (_pick(s, stop) - _pick(s, start))[:, None]
        below = _pick(s, start)[:, None] * length + rise * (place - start[:, None]) - s * length
        inside = (place >= start[:, None]) & (place <= stop[:, None])
        return np.where(inside, below, -1).argmax(1)
    return (furthest(np.maximum(peak - reach, 0), peak),
            furthest(peak, np.maximum(peak, np.minimum(peak + reach, q))))
