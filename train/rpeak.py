# SPDX-License-Identifier: Apache-2.0
"""The R-peak detector and the RR features of its beats: causal, integers only, one lead of the front end's output.

int16 microvolts (n,) at fs (100 to 500 Hz) -> R positions (sample indices). Every beat is decided within 300 ms of its
R peak (`latency`): there is no search-back and nothing is revised later. A weak beat after a silence is caught by a
threshold that falls with time instead.

Feature. With s the sum of the last L = 28 ms of samples, a = s[n], b = s[n - L], d = s[n - 2L]:

    y = |a - b| + |2b - a - d| / 2            slope plus curvature: 5-25 Hz, large all through a QRS complex
    f = sum of the last W = 60 ms of y        one hump per QRS, its centre (3L + W - 2) / 2 samples late

Candidates are the samples where f exceeds the 150 ms before and is not exceeded in the 170 ms after. A candidate of
height h at distance `gap` from the last beat is a beat unless

    gap < 180 ms;   or gap < 280 ms, unless h is 1.2 times the last beat's (which then was a P wave or a fragment) or
        gap >= 220 ms and both h and steepness are 0.8 times the last beat's (a tachycardia of up to 270 per minute);
    or gap < 400 ms and its steepest 12 ms are less than 7/16 as steep as the last beat's (a T wave);
    or h < alpha(gap / mean of 8 RR) * level + min(noise, level / 2), or h is below 20 microvolts on average.

`level` is the fourth smallest of the last 8 beats' heights, `noise` the running mean of rejected heights. In the first
2 s a candidate is a beat when it reaches half the largest so far; these give the first level. After 3 s without a beat
every rejected candidate lowers the level by a quarter, so that no change of gain and no artefact locks the detector.
"""

from __future__ import annotations

import numpy as np

from train.say import RecordError, UserError

LATENCY_MS = 300
_LEARN_S, _SILENCE_S = 2, 3
_NO_BEAT = -(1 << 30)                               # the last beat before there was one


def _alpha() -> tuple[int, ...]:
    """Share of the level (Q8) that a beat must reach, by gap / mean RR in sixteenths: lines between knots."""
    knots = (0, 5, 8, 19, 32), (128, 128, 51, 51, 26)
    return tuple(round(v) for v in np.interp(np.arange(33), *knots))


ALPHA = _alpha()


class Detector:
    """One lead's detector; push() in any chunking gives the same beats."""

    def __init__(self, fs: int):
        if not 100 <= fs <= 500:
            raise UserError(f"R-peak detector at {fs} Hz", "100 to 500 Hz", "run it on the front end's output")
        self.fs = fs
        self.box, self.sum = self._samples(28), self._samples(60)           # L and W
        self.before, self.after = self._samples(150), self._samples(170)
        self.near, self.steep = self._samples(40), self._samples(12)
        self.delay = (3 * self.box + self.sum - 2) // 2
        self.floor = 20 * self.box * self.sum                               # 20 microvolts on average
        self._tail = self.before + 3 * self.box + self.sum + self.steep + self.after
        self.reset()

    def _samples(self, ms: int) -> int:
        return (ms * self.fs + 500) // 1000

    @property
    def latency(self) -> int:
        """Samples from an R peak to its decision, at most."""
        return self.after + self.delay + self.near

    def reset(self) -> None:
        """Forget the past, as at a gap: sample indices start again from 0 and the level is learnt anew."""
        self._x = np.zeros(self._tail, np.int64)                            # before the start: rest
        self._start = -self._tail                                           # sample index of _x[0]
        self._level = self._noise = 0
        self._heights, self._intervals = [0] * 8, [self.fs * 4 // 5] * 8
        self._last, self._last_height, self._last_slope = _NO_BEAT, 0, 0

    def push(self, x: np.ndarray) -> list[int]:
        """int16 (n,) -> the R positions decided by these samples, as indices from the stream's first sample."""
        x = np.asarray(x)
        if x.ndim != 1 or x.dtype.kind not in "iu":
            raise RecordError(f"samples of shape {x.shape} and type {x.dtype}", "int16 microvolts (n,)")
        if not len(x):
            return []
        self._x = np.concatenate([self._x, x])
        first = len(self._x) - len(x) - self.after                          # the first sample not decided before
        feature = self._feature()
        beats = []
        for i in self._candidates(feature, first):
            beat = self._decide(i, int(feature[i]))
            if beat is not None:
                beats.append(beat)
        drop = len(self._x) - self._tail
        self._x, self._start = self._x[drop:], self._start + drop
        return beats

    def _feature(self) -> np.ndarray:
        """f for every sample of the buffer; the first 3L + W - 2 lack history and are never looked at."""
        box, n = self.box, len(self._x)
        total = np.concatenate([np.zeros(3 * box, np.int64), np.cumsum(self._x)])
        s = total[box:] - total[:-box]                                      # s[2 * box + n] ends at sample n
        a, b, d = s[2 * box:], s[box:-box], s[:-2 * box]
        y = np.abs(a - b) + (np.abs(2 * b - a - d) >> 1)
        total = np.concatenate([np.zeros(self.sum, np.int64), np.cumsum(y)])
        return (total[self.sum:] - total[:-self.sum])[:n]

    def _candidates(self, f: np.ndarray, first: int) -> list[int]:
        """Buffer indices from `first` on that exceed the `before` samples and are not exceeded in the `after` ones."""
        stop = len(f) - self.after
        at = first + np.flatnonzero((f[first:stop] > f[first - 1:stop - 1]) & (f[first:stop] >= f[first + 1:stop + 1]))
        rise = f[at[:, None] - np.arange(1, self.before + 1)].max(1, initial=0) < f[at]
        fall = f[at[:, None] + np.arange(1, self.after + 1)].max(1, initial=0) <= f[at]
        return at[rise & fall].tolist()

    def _decide(self, i: int, height: int) -> int | None:
        """R position if the candidate at buffer index i is a beat; updates level, noise and intervals."""
        now, gap = self._start + i, self._start + i - self._last
        if gap < self._samples(180):
            return None
        around = self._x[i - self.delay - self.near:i - self.delay + self.near + 1]
        slope = int(np.abs(self._slopes(i)).max())
        larger = 5 * height >= 6 * self._last_height
        alike = (gap >= self._samples(220) and 5 * height >= 4 * self._last_height
                 and 5 * slope >= 4 * self._last_slope)
        too_early = gap < self._samples(280) and not larger and not alike
        t_wave = gap < self._samples(400) and 16 * slope < 7 * self._last_slope
        if now < _LEARN_S * self.fs + self.delay:
            beat = self._learn(height, not (too_early or t_wave))
        else:
            beat = self._judge(height, gap, not (too_early or t_wave))
        if not beat:
            return None
        if self._last != _NO_BEAT:
            self._intervals = [*self._intervals[1:], min(max(gap, self.fs // 4), 2 * self.fs)]
        self._last, self._last_height, self._last_slope = now, height, slope
        return max(0, now - self.delay + self._r_offset(around))

    def _slopes(self, i: int) -> np.ndarray:
        """Rise over 12 ms at each sample near the QRS centre of candidate i."""
        low, high = i - self.delay - self.near, i - self.delay + self.near + self.steep + 1
        return self._x[low:high] - self._x[low - self.steep:high - self.steep]

    def _learn(self, height: int, plausible: bool) -> bool:
        """The first 2 s: half of the largest so far is a beat."""
        beat = plausible and height >= self.floor and 2 * height >= self._level
        self._level = max(self._level, height)
        self._heights = [self._level] * 8
        if not beat:
            self._noise += (height - self._noise) >> 3
        return beat

    def _judge(self, height: int, gap: int, plausible: bool) -> bool:
        """A beat reaches its share of the level above the noise; what is rejected is noise and lowers a stale level."""
        if not plausible and gap < self._samples(280):
            return False
        alpha = ALPHA[min(16 * gap // (sum(self._intervals) >> 3), len(ALPHA) - 1)]
        threshold = (alpha * self._level >> 8) + min(self._noise, self._level >> 1)
        if plausible and height >= max(threshold, self.floor):
            self._heights = [*self._heights[1:], min(height, 2 * self._level)]
            self._level = max(sorted(self._heights)[3], self.floor)
            return True
        self._noise += (min(height, self._level) - self._noise) >> 3
        if gap > _SILENCE_S * self.fs:
            self._level = max(3 * self._level >> 2, self.floor)
            self._heights = [min(h, self._level) for h in self._heights]
        return False

    def _r_offset(self, around: np.ndarray) -> int:
        """R relative to the QRS centre, from the samples within 40 ms: the highest one, unless the complex is negative.

        A complex more than 2.5 times deeper than it is high has no R to speak of: its centre stands for it.
        """
        if 5 * int(around.max()) < -2 * int(around.min()):
            return 0
        return int(around.argmax()) - self.near


def detect(x: np.ndarray, fs: int) -> np.ndarray:
    """R positions (int64) of a whole lead, int16 (n,), as push() gives them: the last 300 ms may miss a beat."""
    return np.array(Detector(fs).push(x), np.int64)


RR_NAMES = ("previous / short", "next / short", "previous / long", "next / long", "previous / one before",
            "next / previous", "variability")
_SHORT, _LONG = 16, 64                              # RR intervals of context


def rr_features(peaks: np.ndarray, fs: int) -> np.ndarray:
    """RR features of beats at `peaks` (n,) ascending samples -> int8 (n, 7) in the order of RR_NAMES, unit 1/32.

    With p the interval before the beat, q the one before p, n the one after (no later beat is used), short and long the
    medians of the 16 and the 64 intervals before p:

        previous / short, next / short, previous / long, next / long      ratio(p, short), ratio(n, short), ...
        previous / one before, next / previous                            ratio(p, q), ratio(n, p)
        variability       32 * sum of |difference| of neighbours among the 17 intervals before p // (2 * short)

    ratio(a, b) = (64 a + b) // (2 b) - 32: equal intervals give 0, a beat at half the usual interval -16. All are
    clamped to -128..127, intervals to 1 sample .. 10 s. A median of an even count is the upper of the middle two.
    Before the first interval there were only intervals like it; of a single beat they are 0.8 s. The last beat's `n`
    is `short`. RecordError when peaks descend.
    """
    peaks = np.asarray(peaks, np.int64)
    step = np.diff(peaks)
    if (step < 0).any():
        raise RecordError(f"R peak {int(peaks[1:][step < 0][0])} comes before its predecessor", "ascending samples")
    if not len(peaks):
        return np.empty((0, len(RR_NAMES)), np.int8)
    step = np.clip(step, 1, 10 * fs)
    first = step[:1] if len(step) else np.array([fs * 4 // 5])
    p = np.concatenate([first, step])
    before = np.concatenate([np.repeat(first, _LONG), p[:-1]])              # before[_LONG + i - 1] precedes p[i]
    short, long = _median(_windows(before[_LONG - _SHORT:], _SHORT)), _median(_windows(before, _LONG))
    n = np.concatenate([step, short[-1:]])
    q = before[_LONG - 1:]
    change = np.abs(np.diff(before[_LONG - _SHORT - 1:]))
    variability = 32 * _windows(change, _SHORT).sum(1) // (2 * short)
    columns = [_ratio(p, short), _ratio(n, short), _ratio(p, long), _ratio(n, long), _ratio(p, q), _ratio(n, p),
               variability]
    return np.clip(np.stack(columns, 1), -128, 127).astype(np.int8)


def _windows(x: np.ndarray, length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, length)


def _median(windows: np.ndarray) -> np.ndarray:
    middle = windows.shape[1] // 2
    return np.partition(windows, middle, axis=1)[:, middle]


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (64 * a + b) // (2 * b) - 32
