# SPDX-License-Identifier: Apache-2.0
"""The heart of the synthetic patient: a moving dipole made of Gaussian waves, seen through lead vectors.

Axes are Frank's, in microvolts: x to the patient's left, y to the feet, z to the back. A wave is a Gaussian in time
(standard deviations in s, one before and one after its peak) times a dipole vector (3,). Frontal angles are the
electrical axis in degrees as cardiologists count them: 0 along lead I, +90 along aVF.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NORMAL, ECTOPIC, ECTOPIC_2, BUNDLE, PACED, ABERRANT = range(6)       # shapes of a ventricular beat
SINUS_P, ATRIAL_P, RETROGRADE_P = range(3)                          # shapes of a P wave

# Dower, Machado & Osborne 1980 ("On deriving the electrocardiogram from vectorcardiographic leads"), lead from x, y, z.
BASE_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD_VECTORS = np.array([
    (0.632, -0.235, 0.059), (0.235, 1.066, -0.132), (-0.515, 0.157, -0.917), (0.044, 0.164, -1.387),
    (0.882, 0.098, -1.277), (1.213, 0.127, -0.601), (1.125, 0.127, -0.086), (0.831, 0.076, 0.230)])

ON, OFF = 0.45, 0.55        # a QRS of duration D runs from -ON*D to OFF*D around its centre
T_TAIL = 2.5                # the T wave ends this many standard deviations after its peak (2.5: 4 % of it is left)


@dataclass(frozen=True)
class Shape:
    """One ventricular beat: QRS parts, T vector and J-point vector; `centre`, `before`, `after` in s, vectors in uV."""

    duration: float             # s, QRS onset to offset
    centre: np.ndarray          # (part,)
    before: np.ndarray          # (part,) standard deviation of the rise
    after: np.ndarray           # (part,) standard deviation of the fall
    dipole: np.ndarray          # (part, 3)
    t_dipole: np.ndarray        # (3,)
    st_dipole: np.ndarray       # (3,)


@dataclass(frozen=True)
class Subject:
    """One patient: what stays the same from beat to beat and from record to record. Times in s, dipoles in uV."""

    name: str
    age: int
    sex: str                    # F | M
    qtc: float                  # corrected QT
    pr: float                   # P onset to QRS onset
    p_duration: float
    p_dipole: np.ndarray        # (3 shapes, 2 atria, 3)
    t_sigma: tuple[float, float]    # of T, before and after its peak, as a share of QT
    u_share: float              # U wave over T wave
    shapes: dict[int, Shape]
    leads: np.ndarray           # (8, 3): this torso's lead vectors, order BASE_LEADS
    respiration: float          # Hz
    respiration_depth: float    # share of QRS amplitude that breathing modulates
    fibrillation: np.ndarray    # (2, 3): directions of the fibrillating atria, unit length
    variability: float          # 0..1, where this patient's heart-rate variability lies in its range

    def p_peak(self, r, pr, duration):
        """Peak times of the P waves whose onsets lie `pr` before the onsets of QRS complexes centred at `r`."""
        return r - ON * duration - pr + 0.5 * self.p_duration


def direction(frontal_deg, posterior_deg):
    """Unit vector at the given angles: (..., 3)."""
    frontal, posterior = np.deg2rad(frontal_deg), np.deg2rad(posterior_deg)
    return np.stack([np.cos(frontal) * np.cos(posterior), np.sin(frontal) * np.cos(posterior),
                     np.sin(posterior) * np.ones_like(frontal)], -1)


def loguniform(rng, low, high):
    """One draw, uniform in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _shape(duration, parts, t_dipole, st_dipole):
    """Shape from rows (centre, before, after as shares of the duration, dipole)."""
    centre, before, after = (np.array([p[k] for p in parts]) * duration for k in range(3))
    return Shape(duration, centre, before, after, np.array([p[3] for p in parts]), t_dipole, st_dipole)


def _normal(rng, axis, size, duration):
    """Septal, main, basal and terminal forces of a normally conducted QRS."""
    posterior = rng.uniform(0, 40)
    parts = [
        (-0.27, 0.065, 0.075, size * rng.uniform(0.0, 0.25) * direction(axis + 180 + rng.normal(0, 30), -45)),
        (0.0, rng.uniform(0.09, 0.12), rng.uniform(0.09, 0.12), size * direction(axis, posterior)),
        (0.14, 0.10, 0.10, size * rng.uniform(0.0, 0.35) * direction(axis + rng.normal(0, 30), 60)),
        (0.27, 0.085, 0.095, size * rng.beta(1.5, 3) * direction(axis + 180 + rng.normal(0, 35), 40))]
    low, high = ((0.12, 0.45), (0.0, 0.08), (-0.3, -0.08))[rng.choice(3, p=(0.78, 0.12, 0.10))]   # T up, flat, down
    t_dipole = size * rng.uniform(low, high) * direction(0.5 * axis + 22 + rng.normal(0, 20), rng.uniform(-50, 10))
    return _shape(duration, parts, t_dipole, 0.1 * rng.uniform(-1, 1) * t_dipole)


def _ectopic(rng, size, duration, axis):
    """A beat from one place in the ventricles: slow, tall, with T against it."""
    main = direction(axis, rng.uniform(-60, 60))
    late = direction(axis + rng.normal(0, 50), rng.uniform(-60, 60))
    tall = size * rng.uniform(0.8, 1.9)
    parts = [(-0.02, rng.uniform(0.11, 0.145), 0.15, tall * main),
             (0.20, 0.14, 0.14, tall * rng.uniform(-0.6, 0.6) * late)]
    return _shape(duration, parts, -tall * rng.uniform(0.2, 0.5) * main, -tall * rng.uniform(0.0, 0.08) * main)


def _left_bundle(rng, size, duration):
    """Left bundle branch block: no septal Q, broad notched force to the left and back, T against it."""
    axis = rng.uniform(-45, 45)
    main = direction(axis, rng.uniform(30, 50))
    parts = [(-0.13, 0.11, 0.12, size * main),
             (0.18, 0.13, 0.12, size * rng.uniform(0.6, 1.1) * direction(axis + rng.normal(0, 15), 35))]
    return _shape(duration, parts, -size * rng.uniform(0.15, 0.4) * main, -size * rng.uniform(0.03, 0.1) * main)


def _right_bundle(rng, axis, size, duration):
    """Right bundle branch block: a normal start, then a slow force to the right and front (S in I and V6, R' in V1)."""
    parts = [(-0.29, 0.05, 0.05, size * rng.uniform(0.0, 0.2) * direction(axis + 180, -45)),
             (-0.13, 0.08, 0.08, size * direction(axis, rng.uniform(0, 30))),
             (0.23, 0.12, 0.105, size * rng.uniform(0.4, 0.7) * direction(180 + rng.normal(0, 25), -45))]
    t_dipole = size * rng.uniform(0.1, 0.3) * direction(40 + rng.normal(0, 20), 25)
    return _shape(duration, parts, t_dipole, 0.05 * t_dipole)


def _with_injury(rng, shape):
    """The same beat with ST elevation over the inferior, anterior or lateral wall (0.2-0.45 mV at the heart)."""
    walls = ((100, -10), (10, -75), (-5, -5))
    frontal, posterior = walls[rng.integers(3)]
    injury = rng.uniform(200, 450) * direction(frontal + rng.normal(0, 8), posterior)
    return Shape(shape.duration, shape.centre, shape.before, shape.after, shape.dipole,
                 shape.t_dipole * 0.6 + 0.8 * injury, injury)


def _p_waves(rng):
    """Dipoles of the right and left atrium for the three P shapes: (3, 2, 3), lead amplitudes about 0.02-0.2 mV."""
    size = loguniform(rng, 25, 130)
    axis = rng.normal(45, 20)
    sinus = size * np.stack([direction(axis + 10, -35), rng.uniform(0.6, 1.0) * direction(axis - 15, 25)])
    other = rng.normal(50, 90)
    atrial = size * rng.uniform(0.7, 1.3) * np.stack([direction(other, -35), direction(other - 15, 25)])
    return np.stack([sinus, atrial, -0.9 * sinus])


def _axis(rng):
    """Electrical axis in degrees: normal -30..+90, one in fourteen deviates to the left or right (-60..+110)."""
    usual, deviated = np.clip(rng.normal(40, 25), -30, 90), rng.choice([-45, 100]) + rng.normal(0, 6)
    return float(usual if rng.random() < 0.93 else deviated)


def subject(rng, name, rhythm="sinus"):
    """Draw a patient.

    Normal limits: QRS 80-110 ms and 120-180 ms when conduction starts in or leaves the bundle branches (Surawicz et al.
    2009, AHA/ACCF/HRS), P 80-115 ms and PR 120-200 ms, QTc 370-450 ms with women 10 ms longer (Rautaharju et al. 2009).
    `rhythm` decides which conduction the usual beat has.
    """
    axis, size = _axis(rng), loguniform(rng, 750, 2200)
    sex = "FM"[rng.integers(2)]
    qrs = rng.uniform(0.082, 0.108)
    normal = _normal(rng, axis, size, qrs)
    wide = rng.uniform(0.124, 0.165)
    bundle = _left_bundle(rng, size, wide) if rhythm == "lbbb" else _right_bundle(rng, axis, size, wide)
    shapes = {
        NORMAL: _with_injury(rng, normal) if rhythm == "st-elevation" else normal,
        ECTOPIC: _ectopic(rng, size, rng.uniform(0.125, 0.175), rng.uniform(0, 360)),
        ECTOPIC_2: _ectopic(rng, size, rng.uniform(0.125, 0.175), rng.uniform(0, 360)),
        BUNDLE: bundle,
        PACED: _ectopic(rng, size, rng.uniform(0.135, 0.18), rng.uniform(-95, -45)),
        ABERRANT: _right_bundle(rng, axis, size, rng.uniform(0.122, 0.145))}
    return Subject(
        name=name, age=int(np.clip(rng.normal(60, 17), 18, 95)), sex=sex,
        qtc=float(np.clip(rng.normal(0.408, 0.017) + (0.010 if sex == "F" else 0.0), 0.37, 0.45)),
        pr=rng.uniform(0.125, 0.195), p_duration=rng.uniform(0.08, 0.115), p_dipole=_p_waves(rng),
        t_sigma=(rng.uniform(0.10, 0.14), rng.uniform(0.07, 0.10)),
        u_share=rng.uniform(0.05, 0.15) if rng.random() < 0.2 else 0.0, shapes=shapes,
        leads=LEAD_VECTORS * rng.uniform(0.85, 1.15, (len(BASE_LEADS), 1)) + rng.normal(0, 0.05, LEAD_VECTORS.shape),
        respiration=rng.uniform(0.2, 0.4), respiration_depth=loguniform(rng, 0.01, 0.15),
        fibrillation=direction(rng.uniform(0, 360, 2), rng.uniform(-70, -10, 2)), variability=rng.beta(1.0, 1.6))


def qt_interval(qtc, rr):
    """QT in s from the corrected QT and the R-R interval in s.

    Hodges 1983, QT = QTc - 1.75 ms per beat/min above 60; above about 140 beats/min its straight line falls below
    what hearts can do, and Bazett 1920, QT = QTc * sqrt(RR), takes over.
    """
    rr = np.asarray(rr, float)
    hodges = qtc - 0.00175 * (60 / rr - 60)
    return np.where(rr < 1, np.maximum(hodges, qtc * np.sqrt(np.minimum(rr, 1))), hodges)


def r_offset(shape, vector):
    """Time from the QRS centre to its largest deflection in one lead, s."""
    t = np.arange(-ON, OFF, 1 / 200) * shape.duration
    wave = _gaussians(t[None], shape.centre[:, None], shape.before[:, None], shape.after[:, None])
    return float(t[np.argmax(np.abs((shape.dipole @ vector) @ wave))])


def _gaussians(t, centre, before, after):
    dt = t - centre
    return np.exp(-0.5 * (dt / np.where(dt < 0, before, after)) ** 2)


def add_waves(out, fs, centre, before, after, weight):
    """Add Gaussian waves to `out` (channel, time), in uV.

    centre, before, after: (wave,) s; weight: (wave, channel) uV. What lies outside the record is dropped.
    """
    if not len(centre):
        return
    n = out.shape[1]
    half = int(np.ceil(4 * max(np.max(before), np.max(after)) * fs)) + 1
    index = np.floor(centre * fs).astype(np.int64)[:, None] + np.arange(-half, half + 1)     # (wave, local time)
    wave = _gaussians(index / fs, centre[:, None], before[:, None], after[:, None])
    inside = np.clip(index, -1, n) + 1              # cells 0 and n + 1 collect what falls outside
    for channel in range(out.shape[0]):
        cells = np.bincount(inside.ravel(), (wave * weight[:, channel, None]).ravel(), n + 2)
        out[channel] += cells[1:-1]


def activity(rng, body, course, n, fs, vectors):
    """The heart's signal without noise: float32 (lead, n), uV, in the leads of `vectors` (lead, 3).

    Up to three leads are computed as they are; more go through the three dipole components.
    """
    view = vectors if len(vectors) <= 3 else np.eye(3)
    out = np.zeros((len(view), n))
    if len(course.r):
        _add_beats(rng, body, course, out, fs, view)
    _add_p(rng, body, course, out, fs, view)
    if len(course.spikes):
        width = np.full(len(course.spikes), max(0.6 / fs, 0.0008))
        spike = loguniform(rng, 300, 2500) * direction(rng.uniform(0, 360), rng.uniform(-40, 40))
        add_waves(out, fs, course.spikes, width, width, np.tile(spike @ view.T, (len(width), 1)))
    if course.atria:
        kind, hz, uv = course.atria
        paint = _fibrillation if kind == "fibrillation" else _flutter
        out += paint(rng, body, n, fs, hz, uv, view)
    if course.chaos:
        out += _ventricular_fibrillation(rng, n, fs, *course.chaos, view)
    return (out if view is vectors else vectors @ out).astype(np.float32)


def _durations(body):
    return np.array([body.shapes[k].duration for k in range(len(body.shapes))])


def t_times(body, course):
    """Peak and the two standard deviations of every beat's T wave, (beat,) s each.

    QT follows the mean of the last intervals, the most recent weighing most; a wide QRS adds its extra width.
    """
    rr = np.diff(course.r, prepend=course.r[0] - np.median(np.diff(course.r)) if len(course.r) > 1 else course.r[0] - 1)
    late = np.concatenate([rr[[0, 0, 0]], rr])
    recent = 0.4 * late[3:] + 0.3 * late[2:-1] + 0.2 * late[1:-2] + 0.1 * late[:-3]
    duration = _durations(body)[course.shape]
    qt = qt_interval(body.qtc, recent) + np.maximum(duration - 0.11, 0)
    before, after = body.t_sigma[0] * qt, body.t_sigma[1] * qt
    return course.r - ON * duration + qt - T_TAIL * after, before, after


def _add_beats(rng, body, course, out, fs, view):
    """QRS, ST, T and U of all beats; breathing and chance modulate each dipole component on its own."""
    beats = len(course.r)
    breath = np.sin(2 * np.pi * body.respiration * course.r[:, None] + rng.uniform(0, 6.28, 3))     # (beat, 3)
    swing = 1 + body.respiration_depth * breath + rng.normal(0, 0.015, (beats, 3))
    peak, before, after = t_times(body, course)
    t_swing = swing * (1 + rng.normal(0, 0.04, (beats, 1)))
    for k, shape in body.shapes.items():
        mine = course.shape == k
        if not mine.any():
            continue
        r = course.r[mine]
        for part in range(len(shape.centre)):
            ones = np.ones(len(r))
            add_waves(out, fs, r + shape.centre[part], shape.before[part] * ones, shape.after[part] * ones,
                      (swing[mine] * shape.dipole[part]) @ view.T)
        add_waves(out, fs, peak[mine], before[mine], after[mine], (t_swing[mine] * shape.t_dipole) @ view.T)
        if np.any(shape.st_dipole):
            rise = np.full(len(r), 0.15 * shape.duration)       # within QRS, full at the J point
            plateau = np.maximum(0.35 * (peak[mine] - r), 0.03)
            add_waves(out, fs, r + OFF * shape.duration, rise, plateau, (swing[mine] * shape.st_dipole) @ view.T)
        if body.u_share:
            width = np.full(len(r), 0.03)
            add_waves(out, fs, peak[mine] + T_TAIL * after[mine] + 0.05, width, width,
                      body.u_share * (t_swing[mine] * shape.t_dipole) @ view.T)


def _add_p(rng, body, course, out, fs, view):
    """Right and left atrium of every P wave, a Gaussian each, together as long as the P wave."""
    if not len(course.p):
        return
    swing = 1 + rng.normal(0, 0.08, (len(course.p), 1))
    width = np.full(len(course.p), body.p_duration * 0.16)
    for atrium, shift in enumerate((-0.12, 0.12)):
        dipoles = body.p_dipole[course.p_shape, atrium] * swing
        add_waves(out, fs, course.p + shift * body.p_duration, width, width, dipoles @ view.T)


def _phase(rng, n, fs, hz, spread):
    """Phase (n,) of an oscillator around `hz` whose frequency wanders by the share `spread`."""
    knots = rng.normal(0, spread, int(n / fs * 1.5) + 3)
    wander = np.interp(np.arange(n) / fs * 1.5, np.arange(len(knots)), knots)
    return 2 * np.pi * np.cumsum(hz * np.clip(1 + wander, 0.6, 1.5)) / fs + rng.uniform(0, 6.28)


def _strength(rng, n, fs, spread):
    """Positive envelope (n,) of mean near 1 that changes within about a second."""
    knots = np.exp(rng.normal(0, spread, int(n / fs) + 3))
    return np.interp(np.arange(n) / fs, np.arange(len(knots)), knots)


def _fibrillation(rng, body, n, fs, hz, uv, view):
    """f-waves: two wandering sources, each with a second harmonic, strongest towards the front (V1)."""
    out = 0
    for source, share in zip(body.fibrillation, (1.0, 0.6), strict=True):
        phase = _phase(rng, n, fs, hz, 0.08)
        wave = (np.sin(phase) + 0.35 * np.sin(2 * phase + 1.0)) * _strength(rng, n, fs, 0.35)
        out = out + np.outer(view @ source, share * uv * wave)
    return out


def _flutter(rng, body, n, fs, hz, uv, view):
    """F-waves: a saw-tooth that descends slowly in the inferior leads."""
    phase = 2 * np.pi * hz * np.arange(n) / fs + rng.uniform(0, 6.28)
    saw = sum(np.sin(k * phase) / k for k in (1, 2, 3, 4))
    return np.outer(view @ direction(90 + rng.normal(0, 25), rng.uniform(-40, 0)), uv * saw)


def _ventricular_fibrillation(rng, n, fs, hz, uv, view):
    """Three components that wander in rate and size, each on its own."""
    waves = [np.sin(_phase(rng, n, fs, hz, 0.22)) * _strength(rng, n, fs, 0.4) for _ in range(3)]
    return uv * (view @ np.array(waves))


def fiducials(body, course, n, fs):
    """{"P" | "QRS" | "T": int64 (wave, 3) samples of onset, peak and end} of the waves that lie wholly in the record.

    The peak of QRS is its centre, where the dipole is near its largest.
    """
    half = 0.5 * body.p_duration
    rows = {"P": (course.p - half, course.p, course.p + half)}
    duration = _durations(body)[course.shape] if len(course.r) else np.empty(0)
    rows["QRS"] = (course.r - ON * duration, course.r, course.r + OFF * duration)
    if len(course.r):
        peak, before, after = t_times(body, course)
        rows["T"] = (peak - T_TAIL * before, peak, peak + T_TAIL * after)
    else:
        rows["T"] = rows["QRS"]
    found = {name: np.rint(np.stack(times, -1) * fs).astype(np.int64) for name, times in rows.items()}
    return {name: w[(w[:, 0] >= 0) & (w[:, 2] < n)] for name, w in found.items()}
