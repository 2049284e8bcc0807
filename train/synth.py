# SPDX-License-Identifier: Apache-2.0
"""A synthetic patient: 1-12 leads of ECG in any of nineteen rhythms, annotated, deterministic by seed.

A `Synthetic` holds int32 microvolts (lead, time). Its heart is a moving dipole (`train/heart.py`) that fires as
`train/rhythms.py` says, seen through the electrodes' noise (`train/noise.py`). Patients of the split "test" come from
other seed streams than those of "train", so no seed of one can make a patient of the other. Numpy only.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np

from train import heart, say
from train import leads as lead_names
from train import noise as noises
from train import rhythms as courses
from train.records import Annotation, Record
from train.say import UserError

RHYTHMS = tuple(courses.COURSES)
SPLITS = {"train": 0, "test": 1, "validation": 2}
STREAMS = ("subject", "timing", "beating", "faults", "population")
# The classes of the `synthetic` task, as in CinC 2017: N normal rhythm, A atrial fibrillation, O anything else.
SYNTHETIC_CLASS = {rhythm: "A" if rhythm == "af" else "N" if rhythm in ("sinus", "bradycardia", "tachycardia") else "O"
                   for rhythm in RHYTHMS}
# Shares in a population: classes first, then rhythms inside the class.
CLASS_SHARE = {"N": 0.40, "A": 0.30, "O": 0.30}
RHYTHM_SHARE = {"sinus": 16, "bradycardia": 2, "tachycardia": 1, "af": 1,
                "pac": 6, "pvc": 4, "bigeminy": 1, "flutter": 2, "svt": 2, "vt": 1, "vf": 0.5, "pause": 1, "lbbb": 1.5,
                "rbbb": 1.5, "av-block-1": 1.5, "av-block-2": 1, "av-block-3": 1, "st-elevation": 1, "paced": 1}
LIMIT_UV = 32_000           # format 16 at 1 uV per unit ends at +-32,767, and -32,768 means "invalid"
_ALIAS = {"MLI": "I", "MLII": "II", "MLIII": "III", "ECG": "I"}
_LIMB = {"RA": 0, "LA": 1, "LL": 2}
_USES_BOTH = ("III", "aVR", "aVL", "aVF")


@dataclass(frozen=True, kw_only=True)
class Synthetic(Record):
    """A record of the synthetic patient.

    `labels` is the class of the `synthetic` task, `missing` says where an electrode was off, annotations["atr"] holds
    beats and rhythm changes with MIT codes, R at the largest deflection of the first lead.
    """

    rhythm: str
    beats: Annotation                       # the beats of "atr" alone
    waves: dict[str, np.ndarray]            # "P", "QRS", "T": int64 (wave, 3) samples of onset, peak and end
    noise: noises.Noise                     # what was added


def record(rhythm: str, seed: int, duration_s: float = 30, fs: float = 250, leads=("I",),
           noise: str | noises.Place = "wearable", split: str = "train", subject: int | None = None) -> Synthetic:
    """One record of a patient in `rhythm`.

    The patient is the one with number `subject` (default: `seed`) of the split; the record is chosen by `seed`. `noise`
    is a name of noise.PLACES or a Place. Raises UserError for an unknown rhythm, lead, place or split and for a
    duration below 3 s (a pause or a dropped beat must fit) or a rate below 100 Hz.
    """
    say.choose(rhythm, RHYTHMS, "rhythm")
    say.choose(split, SPLITS, "split")
    if min(seed, 0 if subject is None else subject) < 0:
        raise UserError(f"seed {seed}, subject {subject}", "numbers that are not negative")
    if not duration_s >= 3 or not fs >= 100:
        raise UserError(f"a synthetic record of {duration_s} s at {fs} Hz", "at least 3 s at 100 Hz or more")
    place = noise if isinstance(noise, noises.Place) else noises.PLACES[say.choose(noise, noises.PLACES, "noise")]
    leads = tuple(lead_names.standard(lead) for lead in leads)
    base, electrodes = _wiring(leads)
    number = seed if subject is None else subject
    patient = f"{split}-{number}"
    body = heart.subject(_stream(split, "subject", number), patient, rhythm)
    # A stream for each, so that neither the leads nor the noise asked for change the heart.
    timing, beating, faults = (_stream(split, use, number, seed, RHYTHMS.index(rhythm)) for use in STREAMS[1:4])
    course = courses.COURSES[rhythm](timing, body, duration_s)
    n = round(duration_s * fs)
    added = noises.draw(faults, place, len(electrodes), n, fs, body.respiration)
    vectors = _lead_vectors(body, base, added.swapped)                      # (base lead, 3)
    uv = heart.activity(beating, body, course, n, fs, vectors) + _mixing(base, electrodes) @ added.uv
    uv = np.clip(np.rint(added.gain * uv), -LIMIT_UV, LIMIT_UV).astype(np.int32)
    uv, missing = _served(leads, base, uv, _off(base, electrodes, added.lead_off, n))
    first = _first_vector(leads[0], base, vectors)
    beats = _beats(body, course, first, n, fs)
    return Synthetic(
        name=f"{rhythm}-{patient}-{seed}", fs=fs, leads=leads, uv=uv, missing=missing, age=body.age, sex=body.sex,
        labels=(SYNTHETIC_CLASS[rhythm],), annotations={"atr": _atr(beats, course, n, fs)}, patient=patient,
        rhythm=rhythm, beats=beats, waves=heart.fiducials(body, course, n, fs), noise=added)


def member(k: int, seed: int, split: str = "train", **options) -> Synthetic:
    """The k-th patient of a population; `options` as for record()."""
    rng = _stream(split, "population", seed, k)
    name = rng.choice(list(CLASS_SHARE), p=list(CLASS_SHARE.values()))
    choices = [r for r in RHYTHMS if SYNTHETIC_CLASS[r] == name]
    share = np.array([RHYTHM_SHARE[r] for r in choices], float)
    rhythm = str(rng.choice(choices, p=share / share.sum()))
    return record(rhythm, seed=(seed << 32) + k, split=split, **options)


def population(n: int, seed: int, split: str = "train", **options) -> Iterator[Synthetic]:
    """`n` patients, one record each, in the mix of CLASS_SHARE and RHYTHM_SHARE; `options` as for record()."""
    say.choose(split, SPLITS, "split")
    return (member(k, seed, split, **options) for k in range(n))


def _stream(split, use, *numbers):
    """A random stream of its own for every split, use and tuple of non-negative numbers."""
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(SPLITS[split], STREAMS.index(use))))


def _wiring(leads):
    """Base leads (of heart.BASE_LEADS) and electrodes (0 RA, 1 LA, 2 LL, 3-8 V1-V6) that serve `leads`."""
    base = set()
    for lead in leads:
        source = _ALIAS.get(lead, lead)
        if source not in heart.BASE_LEADS + _USES_BOTH:
            raise UserError(f"the synthetic patient has no lead {lead!r}", "a standard lead, MLI, MLII or MLIII")
        base |= {"I", "II"} if source in _USES_BOTH else {source}
    if not base or len(set(leads)) < len(leads):
        raise UserError(f"leads {','.join(leads) or '(none)'}", "at least one lead, each once")
    base = [lead for lead in heart.BASE_LEADS if lead in base]
    electrodes = sorted({e for lead in base for e in _electrodes(lead)})
    return base, electrodes


def _electrodes(lead):
    """{electrode: weight} of a base lead, Wilson's central terminal written out."""
    if lead == "I":
        return {1: 1.0, 0: -1.0}
    if lead == "II":
        return {2: 1.0, 0: -1.0}
    return {2 + int(lead[1]): 1.0, 0: -1 / 3, 1: -1 / 3, 2: -1 / 3}


def _mixing(base, electrodes):
    """float32 (base lead, electrode)."""
    mixing = np.zeros((len(base), len(electrodes)), np.float32)
    for row, lead in enumerate(base):
        for electrode, weight in _electrodes(lead).items():
            mixing[row, electrodes.index(electrode)] = weight
    return mixing


def _lead_vectors(body, base, swapped):
    """(base lead, 3); with the arm electrodes exchanged, I is upside down and II shows III."""
    vectors = dict(zip(heart.BASE_LEADS, body.leads, strict=True))
    if swapped:
        vectors["II"] = vectors["II"] - vectors["I"]
        vectors["I"] = -vectors["I"]
    return np.array([vectors[lead] for lead in base])


def _first_vector(lead, base, vectors):
    lead = _ALIAS.get(lead, lead)
    if lead in base:
        return vectors[base.index(lead)]
    i, ii = vectors[base.index("I")], vectors[base.index("II")]
    return {"III": ii - i, "aVR": -(i + ii) / 2, "aVL": i - ii / 2, "aVF": ii - i / 2}[lead]


def _off(base, electrodes, lead_off, n):
    """bool (base lead, time), or None when no electrode was off."""
    if not lead_off:
        return None
    off = np.zeros((len(base), n), bool)
    uses = _mixing(base, electrodes) != 0
    for electrode, first, last in lead_off:
        off[uses[:, electrode], first:last] = True
    return off


def _served(leads, base, uv, off):
    """The leads asked for, from the base leads: (uv (lead, time), missing), held at the last valid value."""
    if off is not None:
        uv = np.stack([_held(row, gone) for row, gone in zip(uv, off, strict=True)])
    signals, gaps = [], []
    for lead in leads:
        source = _ALIAS.get(lead, lead)
        rows = [base.index("I"), base.index("II")] if source in _USES_BOTH else [base.index(source)]
        signals.append(lead_names.derive(source, *uv[rows]) if source in _USES_BOTH else uv[rows[0]])
        gaps.append(None if off is None else off[rows].any(0))
    return np.stack(signals), None if off is None else np.stack(gaps)


def _held(row, gone):
    """`row` with the samples that are `gone` replaced by the last one before (or the first one after)."""
    kept = np.flatnonzero(~gone)
    if not len(kept):
        return np.zeros_like(row)
    last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(row))))
    return row[np.where(last < 0, kept[0], last)]


def _beats(body, course, vector, n, fs):
    """The beats whose R lies in the record."""
    offsets = np.zeros(len(body.shapes))
    for k in set(course.shape.tolist()):
        offsets[k] = heart.r_offset(body.shapes[k], vector)
    sample = np.rint((course.r + offsets[course.shape]) * fs).astype(np.int64)
    inside = (sample >= 0) & (sample < n)
    return Annotation(sample[inside], tuple(map(str, course.symbol[inside])), ("",) * int(inside.sum()))


def _atr(beats, course, n, fs):
    """Beats and rhythm changes in order of time; ventricular fibrillation is bracketed by [ and ]."""
    rows = [(int(s), 1, c, "") for s, c in zip(beats.sample, beats.symbol, strict=True)]
    rows += [(round(t * fs), 0, "+", aux) for t, aux in course.marks if round(t * fs) < n]
    if course.chaos:
        rows += [(0, 1, "[", ""), (n - 1, 2, "]", "")]
    rows.sort()
    return Annotation(np.array([r[0] for r in rows], np.int64), tuple(r[2] for r in rows), tuple(r[3] for r in rows))


def write_wfdb(synthetic: Synthetic, folder, name: str | None = None) -> pathlib.Path:
    """Write name.hea, name.dat (format 16, 1 uV per unit) and name.atr into `folder`; returns the path without suffix.

    Samples of a lead that was off become the format's invalid value. Raises MissingError without the package wfdb.
    """
    say.need("wfdb", "train")
    import wfdb
    folder, name = pathlib.Path(folder), name or synthetic.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = synthetic.uv if synthetic.missing is None else np.where(synthetic.missing, -32768, synthetic.uv)
    count = len(synthetic.leads)
    comments = [f"Age: {synthetic.age}", f"Sex: {synthetic.sex}", f"Rhythm: {synthetic.rhythm}", "Synthetic"]
    wfdb.wrsamp(name, fs=synthetic.fs, units=["mV"] * count, sig_name=list(synthetic.leads),
                d_signal=np.ascontiguousarray(samples.T, dtype=np.int64), fmt=["16"] * count,
                adc_gain=[1000.0] * count, baseline=[0] * count, comments=comments, write_dir=str(folder))
    atr = synthetic.annotations["atr"]
    wfdb.wrann(name, "atr", atr.sample, symbol=list(atr.symbol), aux_note=list(atr.aux), fs=synthetic.fs,
               write_dir=str(folder))
    return folder / name


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Write one record of the synthetic patient as a WFDB record.")
    p.add_argument("--rhythm", default="sinus", help=", ".join(RHYTHMS))
    p.add_argument("--seconds", type=float, default=30.0)
    p.add_argument("--fs", type=float, default=250.0, help="samples per second")
    p.add_argument("--leads", default="I", help="for example I,II,V1 or all")
    p.add_argument("--noise", default="wearable", help=", ".join(noises.PLACES))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--split", default="train", help=", ".join(SPLITS))
    p.add_argument("--out", required=True, help="folder for the record")
    return p


def main(args) -> dict:
    """Write the record and say what is in it."""
    every = "I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6"
    leads = (every if args.leads == "all" else args.leads).split(",")
    made = record(args.rhythm, args.seed, args.seconds, args.fs, leads, args.noise, args.split)
    path = write_wfdb(made, args.out)
    say.info(f"{path}: {args.seconds:g} s of {args.rhythm}, {len(made.leads)} lead(s), {len(made.beats.sample)} beats")
    return {"path": str(path), "rhythm": made.rhythm, "class": made.labels[0], "leads": list(made.leads),
            "beats": len(made.beats.sample), "patient": made.patient}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
