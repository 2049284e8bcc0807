# SPDX-License-Identifier: Apache-2.0
"""A recording as a file of another format.

    python firmware_bridge/export.py recordings/0f3a_20260101T120000Z --edf night.edf
    python firmware_bridge/export.py recordings/0f3a_20260101T120000Z --edf night.bdf      24 bits
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import say


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Write a recording of live.py --record as EDF+ (16 bits) or BDF+ (24 bits).")
    p.add_argument("recording", metavar="REC", help="folder of the recording, whole or cut off")
    p.add_argument("--edf", required=True, metavar="OUT", help="new file, .edf or .bdf")
    return p


def main(args) -> dict:
    """Write it."""
    from firmware_bridge.recordings import Recording
    from firmware_bridge.sinks.edf import export as written
    done = written(Recording(args.recording), args.edf)
    say.info(f"{done['file']}: {done['channels']} channels, {done['seconds']:.1f} s, {done['annotations']} annotations")
    if done["left_out"]:
        say.warn(f"{done['left_out']} annotations did not fit")
    coarse = {name: step for name, step in done["steps"].items() if step > 1}
    if coarse:
        say.warn("16 bits are fewer than these channels have: " + ", ".join(
            f"{name} in steps of {step:.3g} counts" for name, step in coarse.items()) + "; .bdf holds 24 bits")
    return done


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
