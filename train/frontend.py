# SPDX-License-Identifier: Apache-2.0
"""The front end: what happens to a sample between the amplifier and the network, defined in integers.

int32 microvolts (lead, time) at the input rate -> int16 microvolts (lead, time') at fs -> int8 (`quantize`). The chain
is causal and the same in training, in the bridge and in firmware; any chunking gives the same bits.

    clamp to +-clamp_uv -> resample (`train/resample.py`) -> << guard_bits -> second-order sections
    -> round >> guard_bits -> clip to +-32767 microvolts

Each section is direct form I on int32 signals with guard_bits = 8 fractional bits of a microvolt. Coefficients are Q28
in int32, the sum is int64, and what the shift cuts off is added to the next sum (first-order error feedback: without
it a 0.5 Hz high-pass drifts by hundreds of microvolts):

    sum = b0 x[n] + b1 x[n-1] + b2 x[n-2] - a1 y[n-1] - a2 y[n-2] + e;   y[n] = sum >> 28;   e = sum & (2^28 - 1)

Nothing saturates inside: an input of +-2^20 microvolts (1 V; an electrode offset is at most 0.3 V) keeps every y within
int32, because the sum of |impulse response| up to any section is below 8 (`design` checks it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train import resample
from train.say import ManifestError, RecordError, UserError

SETTLE_S = 2                    # seconds after a start or a gap that are not classified
CLIP_UV = 32767
_QRS_HZ = np.arange(8.0, 18.1)  # the band in which R peaks are placed; most of a QRS complex's energy lies here
_BLOCK = 256                    # samples filtered per pass: the working set stays in the cache
_BATCH = 1 << 24                # row x time samples filtered in lockstep by filter_records
_ROWS = 256                     # rows in lockstep at most


def design(fs: int) -> dict:
    """The front end's constants for output rate `fs` (Hz, 100 to 1000): integers and names, as the manifest keeps them.

    High-pass 0.5 Hz order 2, notches at 50 and 60 Hz (Q 30) where they lie below 0.45 fs, low-pass 40 Hz order 4, all
    Butterworth. Sections are [b0, b1, b2, a1, a2] in Q28. The high-pass has a gain of exactly 0 and the others of
    exactly 1 at 0 Hz, in integers.
    """
    from scipy import signal
    if isinstance(fs, bool) or not isinstance(fs, int) or not 100 <= fs <= 1000:
        raise UserError(f"front end at {fs!r} Hz", "a whole number of Hz, 100 to 1000")
    names, floats = ["highpass 0.5 Hz"], [signal.butter(2, 0.5, "highpass", fs=fs, output="sos")[0]]
    for mains in (50, 60):
        if mains < 0.45 * fs:
            names.append(f"notch {mains} Hz")
            floats.append(np.concatenate(signal.iirnotch(mains, 30, fs=fs)))
    names += ["lowpass 40 Hz, 1 of 2", "lowpass 40 Hz, 2 of 2"]
    floats += list(signal.butter(4, 40, fs=fs, output="sos"))
    spec = {"version": 1, "fs": fs, "clamp_uv": 1 << 20, "guard_bits": 8, "coefficient_bits": 28, "clip_uv": CLIP_UV,
            "filters": names,
            "sections": [_section(name, sos, 1 << 28) for name, sos in zip(names, floats, strict=True)]}
    if not fits(spec):
        raise UserError(f"the front end at {fs} Hz could overflow 32 bits", "another rate")
    return spec


def _section(name: str, sos, one: int) -> list[int]:
    """[b0, b1, b2, a1, a2]: float section -> Q28, with the gain at 0 Hz made exact by choosing b after a."""
    b0, a1, a2 = round(sos[0] * one), round(sos[4] * one), round(sos[5] * one)
    if name.startswith("highpass"):
        return [b0, -2 * b0, b0, a1, a2]
    if name.startswith("notch"):
        a2 += a2 % 2                                    # b0 = b2 = (1 + a2) / 2 must be whole
        return [(one + a2) // 2, a1, (one + a2) // 2, a1, a2]
    total = one + a1 + a2                               # low-pass: b in proportion 1 2 1
    return [total // 4, total - 2 * (total // 4), total // 4, a1, a2]


def fits(spec: dict) -> bool:
    """Whether the sections are stable and no signal between them leaves int32 for inputs within the clamp."""
    one = 1 << spec["coefficient_bits"]
    stable = all(abs(a2) < one and abs(a1) < one + a2 for *_, a1, a2 in spec["sections"])
    return stable and max(_peak_gain(spec)) * spec["clamp_uv"] < 1 << (31 - spec["guard_bits"])


def _peak_gain(spec: dict) -> list[float]:
    """Sum of |impulse response| from the input to each section's output: the largest |output| for |input| <= 1."""
    sections = np.array(spec["sections"]) / (1 << spec["coefficient_bits"])
    length, gains = 12 * spec["fs"], []                 # 12 s: the high-pass has fallen by e^-26
    at = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    response = np.ones_like(at)
    for b0, b1, b2, a1, a2 in sections:
        response = response * (b0 + b1 * at + b2 * at**2) / (1 + a1 * at + a2 * at**2)
        gains.append(float(np.abs(np.fft.irfft(response, length)).sum()))
    return gains


def check(spec: dict) -> None:
    """ManifestError that names the key when `spec` is not the dict of `design`."""
    expected = {"version", "fs", "clamp_uv", "guard_bits", "coefficient_bits", "clip_uv", "filters", "sections"}
    if not isinstance(spec, dict) or set(spec) != expected:
        odd = sorted(set(spec) ^ expected) if isinstance(spec, dict) else spec
        raise ManifestError(f"frontend: missing or unknown {odd}", ", ".join(sorted(expected)), "frontend.design(fs)")
    fixed = {"version": 1, "clamp_uv": 1 << 20, "guard_bits": 8, "coefficient_bits": 28, "clip_uv": CLIP_UV}
    for key, value in fixed.items():
        if spec[key] != value:
            raise ManifestError(f"frontend.{key} is {spec[key]!r}", f"{value}, the arithmetic of this version")
    sections = spec["sections"]
    if not isinstance(sections, list) or not sections or len(sections) != len(spec["filters"]) or not all(
            isinstance(s, list) and len(s) == 5 and all(isinstance(c, int) and abs(c) < 1 << 30 for c in s)
            for s in sections):
        raise ManifestError("frontend.sections", "one [b0, b1, b2, a1, a2] in Q28 per filter")
    if sum(sections[0][:3]):
        raise ManifestError("frontend.sections[0] passes 0 Hz", "the high-pass first: the others start from zero")


def delay(spec: dict, fs_in: float) -> float:
    """Delay of an R peak in output samples: resampler (exact) plus mean phase delay of the sections at 8-18 Hz.

    Phase delay, not group delay: the peak of a pulse is where its components are in phase, and the high-pass turns
    them forward.
    """
    z = np.exp(-2j * np.pi * _QRS_HZ / spec["fs"])
    turned = np.zeros_like(_QRS_HZ)
    for b0, b1, b2, a1, a2 in spec["sections"]:
        turned -= np.angle((b0 + b1 * z + b2 * z**2) / ((1 << spec["coefficient_bits"]) + a1 * z + a2 * z**2))
    return float(resample.kernel(fs_in, spec["fs"]).delay) + float((turned / (2 * np.pi * _QRS_HZ)).mean()) * spec["fs"]


def to_output(spec: dict, sample_in, fs_in: float) -> np.ndarray:
    """Output sample index (int64, same shape) at which a QRS at input sample `sample_in` appears, delay included."""
    position = np.asarray(sample_in, np.float64) * float(resample.ratio(fs_in, spec["fs"]))
    return np.floor(position + delay(spec, fs_in) + 0.5).astype(np.int64)


def quantize(x: np.ndarray, uv_per_lsb: int) -> np.ndarray:
    """int16 microvolts -> int8: the nearest multiple of uv_per_lsb (ties up), clamped to -128..127."""
    wide = 2 * np.asarray(x).astype(np.int32) + uv_per_lsb
    return np.clip(wide // (2 * uv_per_lsb), -128, 127).astype(np.int8)


class FrontEnd:
    """The chain for one stream of `leads` channels at `fs_in` Hz; the first sample sets the steady state."""

    def __init__(self, spec: dict, fs_in: float, leads: int):
        check(spec)
        self.spec, self.leads = spec, leads
        self._resampler = resample.Resampler(fs_in, spec["fs"], spec["clamp_uv"])
        self._sections = None

    def reset(self) -> None:
        """Forget the past, as at a gap: the next sample is the first of a new stream and sets the steady state."""
        self._resampler.reset()
        self._sections = None

    def push(self, uv: np.ndarray) -> np.ndarray:
        """int32 microvolts (lead, n), n >= 0 -> int16 microvolts (lead, m) at fs: all that can be computed by now."""
        x = self._resampler.push(_clamped(uv, self.leads, self.spec["clamp_uv"]))
        if x.shape[1] == 0:
            return np.empty((self.leads, 0), np.int16)
        if self._sections is None:
            self._sections = _Sections(self.spec, x[:, 0])
        return self._sections.run(x.T).T


def filter_record(spec: dict, uv: np.ndarray, fs_in: float) -> np.ndarray:
    """A whole record, int32 microvolts (lead, time) at fs_in -> int16 microvolts (lead, time') at fs, equal to push."""
    return filter_records(spec, [uv], fs_in)[0]


def filter_records(spec: dict, uvs: Sequence[np.ndarray], fs_in: float) -> list[np.ndarray]:
    """filter_record for many records at once (any lengths, any leads): the way to filter a data set fast.

    All rows advance in lockstep: a sample costs a tenth of a microsecond in a batch of hundreds, ten in a record alone.
    """
    check(spec)
    resampler = resample.Resampler(fs_in, spec["fs"], spec["clamp_uv"])
    order = sorted(range(len(uvs)), key=lambda i: uvs[i].shape[-1])         # equal lengths share a batch
    result: list = [None] * len(uvs)
    batch: list[tuple[int, np.ndarray]] = []
    for i in order:
        resampler.reset()
        x = resampler.push(_clamped(uvs[i], len(uvs[i]), spec["clamp_uv"]))
        rows = len(x) + sum(len(other) for _, other in batch)
        if batch and (rows > _ROWS or rows * x.shape[1] > _BATCH):
            _filter_batch(spec, batch, result)
            batch = []
        batch.append((i, x))
    if batch:
        _filter_batch(spec, batch, result)
    return result


def _filter_batch(spec: dict, batch: list[tuple[int, np.ndarray]], result: list) -> None:
    """Run (index, int32 (lead, n)) pairs side by side, the longest last, and store int16 (lead, n) in result[index]."""
    longest = batch[-1][1].shape[1]
    rows = [np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for _, x in batch]       # padding is filtered and dropped
    x = np.concatenate(rows)
    y = _Sections(spec, x[:, 0]).run(x.T) if x.size else np.zeros(x.T.shape, np.int16)
    row = 0
    for i, part in batch:
        result[i] = np.ascontiguousarray(y[:part.shape[1], row:row + len(part)].T)
        row += len(part)


def _clamped(uv: np.ndarray, leads: int, limit: int) -> np.ndarray:
    """int32 within +-limit, or RecordError when `uv` is not integer (lead, n)."""
    uv = np.asarray(uv)
    if uv.ndim != 2 or len(uv) != leads or uv.dtype.kind not in "iu":
        raise RecordError(f"samples of shape {uv.shape} and type {uv.dtype}", f"integer microvolts ({leads}, n)")
    return np.clip(uv, -limit, limit).astype(np.int32)


class _Sections:
    """The second-order sections for rows that advance in lockstep; state: two past values per signal, and e.

    Sections form a pipeline: in wave s, section k computes sample s - k, so that one numpy operation serves all
    sections of all rows. The bits are those of the formula at the top, sample by sample.
    """

    def __init__(self, spec: dict, first: np.ndarray):
        self._shift, self._guard = spec["coefficient_bits"], spec["guard_bits"]
        self._clip = spec["clip_uv"]
        coefficients = np.array(spec["sections"], np.int64)[:, :, None]             # (section, 5, 1)
        self._b, self._a = coefficients[:, :3], -coefficients[:, 3:]
        count = len(coefficients)
        self._past = np.zeros((count + 1, 2, len(first)), np.int64)                 # signal 0 is the input
        self._past[0] = first.astype(np.int64) << self._guard
        self._error = np.zeros((count, len(first)), np.int64)

    def run(self, x: np.ndarray) -> np.ndarray:
        """int32 (time, row) -> int16 (time, row)."""
        y = np.empty(x.shape, np.int16)
        for start in range(0, len(x), _BLOCK):
            part = slice(start, start + _BLOCK)
            wide = self._block(x[part].astype(np.int64) << self._guard)
            y[part] = np.clip((wide + (1 << (self._guard - 1))) >> self._guard, -self._clip, self._clip)
        return y

    def _block(self, x: np.ndarray) -> np.ndarray:
        """Input signal (time, row) -> signal behind the last section (time, row), all int64 with guard bits."""
        time, rows = x.shape
        count = len(self._error)
        signal = np.empty((count + 1, time + 2, rows), np.int64)                    # two past values in front
        signal[:, :2], signal[0, 2:] = self._past, x
        step, item = rows * signal.itemsize, signal.itemsize
        # wave[w, k] is signal[k, w - k]: a view whose every element lies inside `signal`
        wave = np.lib.stride_tricks.as_strided(signal, (time + 2 + count, count + 1, rows),
                                               (step, (time + 1) * step, item))
        for s in range(1, time + count):
            low, high = max(0, s - time), min(count, s)                     # sections low .. high - 1 have a sample
            self._wave(wave[s - 1:s + 3, low:high + 1], slice(low, high))
        self._past = signal[:, -2:].copy()
        return signal[-1, 2:]

    def _wave(self, w: np.ndarray, sections: slice) -> None:
        """One sample in each of `sections`; w (4, section + 1, row): inputs in w[:3, :-1], outputs in w[1:, 1:]."""
        b, a, error = self._b[sections], self._a[sections], self._error[sections]
        error += b[:, 0] * w[2, :-1]
        error += b[:, 1] * w[1, :-1]
        error += b[:, 2] * w[0, :-1]
        error += a[:, 0] * w[2, 1:]
        error += a[:, 1] * w[1, 1:]
        np.right_shift(error, self._shift, out=w[3, 1:])
        error &= (1 << self._shift) - 1
