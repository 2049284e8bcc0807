# SPDX-License-Identifier: Apache-2.0
"""The front end, the detector and the beat features of a manifest as constant data for C, and the memory they take.

    front_spec(manifest)    struct ecg_front_spec of targets/c/ecg_front.h
    rate(fs_in, fs)         struct ecg_rate: one for each input rate that a firmware serves
    memory(...)             bytes of each part's state behind pointers, as the C functions ecg_*_memory() answer
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from targets.pack import Array, Layer
from train import frontend, resample, rpeak, template
from train.manifest import Manifest
from train.say import ManifestError, UserError

# Version 1 of the arithmetic; targets/c/ecg_front.h has the same numbers
FIXED = {"ECG_FRONT_CLAMP_UV": 1 << 20, "ECG_FRONT_CLIP_UV": frontend.CLIP_UV, "ECG_FRONT_GUARD": 8,
         "ECG_FRONT_Q": 28, "ECG_RATE_Q": resample.BITS}
_TAPS = 1 << 19         # what the magnitudes of a phase's taps stay below


def front_spec(manifest: Manifest) -> Layer:
    """The chain behind the resampler. ManifestError when C could not compute it in 32 and 64 bits."""
    spec, waveform = manifest.frontend, manifest.waveform
    frontend.check(spec)
    if spec["fs"] != manifest.fs:
        raise ManifestError(f"frontend.fs is {spec['fs']}", f"{manifest.fs} Hz, the rate of the model")
    if not frontend.fits(spec):
        raise ManifestError("frontend.sections could overflow 32 bits", "stable sections", "frontend.design(fs)")
    if waveform.lsb != round(waveform.lsb) or not 1 <= waveform.lsb < 1 << 15:
        raise ManifestError(f"input {waveform.name!r}: lsb is {waveform.lsb}", "whole microvolts, 1 to 32767")
    b_and_minus_a = np.array(spec["sections"]) * [1, 1, 1, -1, -1]
    return Layer("", "ecg_front_spec", {
        "sections": Array("int32_t", b_and_minus_a.astype(np.int32)), "fs": manifest.fs,
        "settle": frontend.SETTLE_S * manifest.fs, "uv_per_lsb": round(waveform.lsb),
        "count": len(spec["sections"]), "leads": len(waveform.leads)})


def rate(fs_in: float, fs: int) -> Layer:
    """The resampler from fs_in Hz. UserError where the rates have no simple ratio or flash could not hold the taps."""
    kernel = resample.kernel(fs_in, fs)
    if kernel.table.size >= 1 << 16 or kernel.down >= 1 << 32:
        raise UserError(f"{fs_in} Hz to {fs} Hz takes {kernel.table.size} filter taps", "at most 65535",
                        f"state the rate as a rounder number, e.g. {round(fs_in)} Hz")
    assert kernel.up == kernel.down or np.abs(kernel.table.astype(int)).sum(1).max() < _TAPS
    return Layer("", "ecg_rate", {"table": Array("int16_t", kernel.table), "down": kernel.down, "up": kernel.up,
                                  "taps": kernel.taps})


def memory(spec: Layer, converted: Layer, kinds: Collection[str] = (), trigger: str = "hop") -> dict[str, int]:
    """Bytes by part, for a model with inputs of `kinds` beside the waveform; `converted` is from rate()."""
    fs, leads = spec.fields["fs"], spec.fields["leads"]
    parts = {"front": 4 * leads * (3 * spec.fields["count"] + 2 + converted.fields["taps"])}
    if trigger != "r-peak" and not {"rr", "beats"} & set(kinds):
        return parts
    detector, beat = rpeak.Detector(fs), template.Template(fs)
    window = beat.before + beat.after
    back, total = _samples(420, fs), _samples(28, fs) | 1
    look = [detector.latency + detector.steep + 1]
    parts["rpeak"] = 4 * (detector.before + 1)
    if "rr" in kinds:
        parts["beats"] = 4 * window + 2 * 64
        look.append(detector.latency + beat.before + beat.reach + 1)
    if "beats" in kinds:
        parts["rhythm"] = 4 * (back + 1)
        look.append(detector.latency + back + total // 2 + 1)
    parts["history"] = 2 * max(look)
    return parts


def _samples(ms: int, fs: int) -> int:
    return (ms * fs + 500) // 1000
