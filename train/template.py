# SPDX-License-Identifier: Apache-2.0
"""How a beat differs from the patient's usual one: features against a running template, causal, integers only.

int16 microvolts (time,) of one lead at fs and R positions (n,) -> int8 (n, 5), order of TEMPLATE_NAMES, unit 1/32.

The template is the beat's window from 260 ms before R to 140 ms after it. Of the shifts within 16 ms, the one with the
least sum of |w - t| over the QRS part (100 ms before to 140 ms after) aligns the beat w with the template t. With
size(x) = sum of |x| over the QRS part + 8 microvolts for each sample and g = <w, t> / <t, t> over the QRS part:

    QRS          |w - t| / size(t)             shape       |w - g t| / size(w)
    gain         g - 1                         size        size(w) / size(t) - 1
    P            |w - t| / size(t) over the part before the QRS

Quotients are floors. A beat with QRS below 14/32 moves the template by an eighth of the difference; after 12 beats in a
row that are not like it, the last of them replaces it. A template difference against a patient's own beats is what
separates bundle branch block from ventricular beats; compare de Chazal et al., IEEE Trans. Biomed. Eng. 51 (2004).
Differences of the T wave, of sharpness and against the last beat were tried too: out of fold they cost supraventricular
sensitivity.
"""

from __future__ import annotations

import numpy as np

from train import rpeak

TEMPLATE_NAMES = ("QRS", "shape", "gain", "size", "P")
BEAT_NAMES = (*rpeak.RR_NAMES, *TEMPLATE_NAMES)
LIKE, PATIENCE = 14, 12     # QRS feature of a beat like the template; beats unlike it before it is replaced
GUARD = 4                   # fractional bits of the template


def beat_features(x: np.ndarray, peaks: np.ndarray, fs: int) -> np.ndarray:
    """RR and template features of the beats at `peaks` in x (time,) -> int8 (n, K) in the order of BEAT_NAMES."""
    return np.concatenate([rpeak.rr_features(peaks, fs), template_features(x, peaks, fs)], 1)


def template_features(x: np.ndarray, peaks: np.ndarray, fs: int) -> np.ndarray:
    """Features against the running template, int8 (n, 5); samples beyond the ends of x count as 0."""
    t = Template(fs)
    padded = np.pad(np.asarray(x, np.int64), (t.before + t.reach, t.after + t.reach))
    length = t.before + t.after + 2 * t.reach
    rows = [t.compare(padded[r:r + length]) for r in np.asarray(peaks, np.int64).tolist()]
    return np.array(rows, np.int8).reshape(-1, len(TEMPLATE_NAMES))


class Template:
    """The running template of one lead; compare() beats in order of time."""

    def __init__(self, fs: int):
        def samples(ms: int) -> int:
            return ms * fs // 1000
        self.before, self.after, self.reach = samples(260), samples(140), samples(16)
        self.qrs = slice(self.before - samples(100), self.before + self.after)
        self.floor = 8 * (self.qrs.stop - self.qrs.start)
        self.mean: np.ndarray | None = None     # times 2^GUARD
        self.unlike = 0

    def compare(self, around: np.ndarray) -> list[int]:
        """Features of the beat whose window, `reach` longer at both ends, is int64 `around`; then learn from it."""
        length = self.before + self.after
        if self.mean is None:
            self.mean = around[self.reach:self.reach + length] << GUARD
        t = (self.mean + (1 << (GUARD - 1))) >> GUARD
        shifted = np.lib.stride_tricks.sliding_window_view(around, length)
        distance = np.abs(shifted[:, self.qrs] - t[self.qrs]).sum(1)
        w = shifted[int(distance.argmin())]
        row = [int(np.clip(v, -128, 127)) for v in self._features(w, t, int(distance.min()))]
        self._learn(w, row[0])
        return row

    def _features(self, w: np.ndarray, t: np.ndarray, distance: int) -> list[int]:
        wq, tq = w[self.qrs], t[self.qrs]
        size_w, size_t = (int(np.abs(v).sum()) + self.floor for v in (wq, tq))
        dot, norm = int((wq * tq).sum()), max(int((tq * tq).sum()), 1)
        gain = (dot << 8) // norm
        p = int(np.abs(w - t)[:self.qrs.start].sum())
        return [32 * distance // size_t, 32 * int(np.abs(256 * wq - gain * tq).sum()) // (256 * size_w),
                (gain >> 3) - 32, 32 * size_w // size_t - 32, 32 * p // size_t]

    def _learn(self, w: np.ndarray, qrs: int) -> None:
        self.unlike = 0 if qrs < LIKE else self.unlike + 1
        if self.unlike == 0:
            self.mean = self.mean + (((w << GUARD) - self.mean) >> 3)
        elif self.unlike >= PATIENCE:
            self.mean, self.unlike = w << GUARD, 0
