# SPDX-License-Identifier: Apache-2.0
"""How often the grade of a second is right: MIT-BIH records with noise of the NSTDB added at known SNR.

Every second record only: the limits were chosen on the others.

python bench/quality.py --data DIR        a folder with mitdb and nstdb in it
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say

RESULTS = pathlib.Path(__file__).parent / "results" / "quality.json"
SNR_DB = (30, 24, 18, 12, 6, 0, -6)
MINUTES = 3
FS = 250
GRADES = ("A", "B", "C")


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Grades of signal quality against the SNR that was made.")
    p.add_argument("--data", required=True, metavar="DIR", help="folder with mitdb and nstdb (WFDB)")
    p.add_argument("--write", action="store_true", help=f"keep the figures in bench/results/{RESULTS.name}")
    return p


def signals(folder: pathlib.Path, what: str, names=None) -> dict:
    """Name -> int32 microvolts (1, n) of the first channel, and its rate."""
    import numpy as np
    import wfdb
    found = {}
    for path in sorted((folder / what).glob("*.hea")):
        if names is None or path.stem in names:
            record = wfdb.rdrecord(str(path.with_suffix("")), channels=[0])
            end = int(record.fs * 60 * MINUTES)
            found[path.stem] = np.rint(record.p_signal[:end, 0] * 1000).astype(np.int32)[None], record.fs
    if not found:
        say.fail(f"no records in {folder / what}", f"WFDB files of {what}")
    return found


def graded(x, clean, noise) -> list[tuple[str, float]]:
    """(grade, true SNR of its last 4 s in dB) of every second behind the first ten."""
    import numpy as np

    from firmware_bridge.quality import RECENT_S, Graded, Monitor
    still = np.zeros(x.shape, bool)
    span, rows = int(RECENT_S * FS), []
    for item in Monitor(FS, 1).push(x, still, still):
        if isinstance(item, Graded) and item.index > 10 * FS:
            part = slice(item.index - span, item.index)
            rows.append((item.grades[0], 10 * np.log10(clean[0, part].var() / max(noise[0, part].var(), 1e-9))))
    return rows


def main(args) -> dict:
    """Share of seconds of each grade, by the band that the true SNR lies in."""
    import numpy as np

    from train import frontend
    folder, spec, rows = pathlib.Path(args.data), frontend.design(FS), []
    hearts, noises = signals(folder, "mitdb"), signals(folder, "nstdb", ("ma", "em"))
    filtered = {name: frontend.filter_record(spec, uv, fs).astype(float) for name, (uv, fs) in noises.items()}
    hearts = dict(list(hearts.items())[1::2])
    with say.progress("records", len(hearts)) as advance:
        for uv, fs in hearts.values():
            clean = frontend.filter_record(spec, uv, fs).astype(float)
            for noise in filtered.values():
                for snr in SNR_DB:
                    n = noise[:, :clean.shape[1]] * np.sqrt(clean.var() / noise.var() / 10 ** (snr / 10))
                    x = np.clip(np.rint(clean + n), -32768, 32767).astype(np.int16)
                    rows += graded(x, clean, n)
            advance(1)
    true = np.array([snr for _, snr in rows])
    given = np.array([GRADES.index(grade) for grade, _ in rows])
    bands = {"A": true >= 18, "B": (true >= 5) & (true < 18), "C": true < 5}
    table = {name: {g: float((given[m] == k).mean()) for k, g in enumerate(GRADES)} | {"seconds": int(m.sum())}
             for name, m in bands.items()}
    say.table([(f"{n} by its SNR", *(f"{t[g]:.1%}" for g in GRADES), t["seconds"]) for n, t in table.items()],
              ("a second that is", "graded A", "B", "C", "seconds"))
    found = {"records": len(hearts), "noise": sorted(filtered), "snr_db": SNR_DB, "graded": table,
             "machine": say.machine()}
    if args.write:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
