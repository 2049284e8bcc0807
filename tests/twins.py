# SPDX-License-Identifier: Apache-2.0
"""Writers of records in the formats of the public data sets, for tests: uv is microvolts (lead, time)."""

import struct

import numpy as np

RNG = np.random.default_rng(7)


def wave(n_leads=1, n=1000, limit=900):
    """Microvolts in whole steps of 5, so that every gain used here carries them exactly."""
    return 5 * RNG.integers(-limit // 5, limit // 5, (n_leads, n))


def write_dat(folder, name, uv, names, fs=360, fmt="16", gain=200.0, baseline=0, comments=(), units="mV"):
    """A WFDB record through wfdb itself: uv int (lead, time) -> name.hea, name.dat."""
    import wfdb
    folder.mkdir(parents=True, exist_ok=True)
    digital = np.rint(uv.T * gain / 1000).astype(np.int64) + baseline
    wfdb.wrsamp(name, fs=fs, units=[units] * len(names), sig_name=list(names), d_signal=digital, fmt=[fmt] * len(names),
                adc_gain=[gain] * len(names), baseline=[baseline] * len(names), comments=list(comments),
                write_dir=str(folder))
    return folder / f"{name}.hea"


def write_mat(folder, name, uv, names, fs=500, record_line=None, comments=(), gain=1000):
    """A CinC record by hand: MATLAB v4 matrix `val` (lead, time) int16 behind 24 bytes, and its header."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.asarray(np.rint(uv * gain / 1000), "<i2")
    head = struct.pack("<5i", 30, *matrix.shape, 0, 4) + b"val\0"
    (folder / f"{name}.mat").write_bytes(head + matrix.tobytes(order="F"))
    lines = [record_line or f"{name} {len(names)} {fs} {uv.shape[1]} 05:05:15 1/05/2000 "]
    lines += [f"{name}.mat 16+24 {gain}/mV 16 0 {77 - n} 0 0 {lead} " for n, lead in enumerate(names)]
    (folder / f"{name}.hea").write_text("\n".join([*lines, *(f"#{c}" for c in comments)]) + "\n")
    return folder / f"{name}.hea"


def write_code15(folder, tracings, exams, parts=("exams_part0.hdf5",)):
    """exams.csv for `exams` in the named parts, of which only the first is there."""
    import h5py
    with h5py.File(folder / parts[0], "w") as f:
        f["tracings"], f["exam_id"] = tracings.astype(np.float32), np.array([*exams, 0])[:len(tracings)]
    lines = ["exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,normal_ecg,trace_file"]
    lines += [f"{exam},38,{exam % 2 == 0},40,False,True,False,False,False,True,7{exam},False,{part}"
              for part in parts for exam in exams]
    (folder / "exams.csv").write_text("\n".join(lines) + "\n")
