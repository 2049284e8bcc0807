# SPDX-License-Identifier: Apache-2.0
"""The bridge's numbers: a day of signal with every moment accounted for, its share of a core, its delay, damaged bytes.

    python bench/bridge.py                                  a day, a minute at real time, 10^7 damaged bytes a protocol
    python bench/bridge.py --only endurance --hours 1 --run runs/af --fault ""
    python bench/bridge.py --only live --run runs/af
    python bench/bridge.py --only fuzz --profiles cyton shimmer3

endurance: bytes of the front-end through decoder, bridge and a sink that knows what was sent, as fast as it goes; with
--run the C twin decides too. live: the simulator in another process, on a pseudo terminal. What exceeds the limits ends
with exit code 1.
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from train import runs, say

RESULT = pathlib.Path(__file__).resolve().parent / "results" / "bridge.json"
PARTS = ("endurance", "live", "fuzz")
EXCESS = 1e-3           # share of the moments that may be lost beside the touched ones
UNSEEN = 2.0**-16                           # of damaged frames that a CRC of 16 bits lets through
UNPLUGGED = (0.06, 0.23, 0.58, 0.93)        # of the time: when the line is pulled out
AWAY_S = (3, 30, 120, 5)


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (all)")
    p.add_argument("--protocol", default="cyton", help="front-end of the first two parts (cyton)")
    p.add_argument("--run", metavar="R", help="run folder with the host target, to classify as well")
    p.add_argument("--hours", type=say.positive(float), default=24.0, help="of signal (24)")
    p.add_argument("--fault", help="faults of simulate.py (a few of all, and a line that is pulled out)")
    p.add_argument("--portion", type=say.positive(float), default=0.1, metavar="S", help="of signal at once (0.1)")
    p.add_argument("--seconds", type=say.positive(float), default=60.0, help="at real time (60)")
    p.add_argument("--profiles", nargs="+", metavar="P", help="front-ends to send damaged bytes of (one a protocol)")
    p.add_argument("--bytes", type=say.positive(int), default=10_000_000, help="damaged ones, for each (10^7)")
    p.add_argument("--seed", type=int, default=0, help="of patient and faults (0)")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    return p


def usual(hours: float) -> str:
    """A little of every fault, and a line that is pulled out four times."""
    from bench import bridge_day
    seconds = 3600 * hours
    pulled = [f"unplug={seconds * at:.0f}/{s}" for at, s in zip(UNPLUGGED, AWAY_S, strict=True) if seconds > 3600]
    return ",".join([bridge_day.USUAL, *pulled])


def endurance(args) -> tuple[dict, list[str]]:
    """(figures, what is beyond the limits)."""
    from bench import bridge_day
    words = usual(args.hours) if args.fault is None else args.fault
    r = bridge_day.endurance(args.protocol, args.hours, args.run, words, args.portion, args.seed)
    say.info(f"{r['hours']:g} h of {r['protocol']}, {r['channels']} channels at {r['fs']:g} Hz, leads "
             f"{', '.join(r['leads'])}{', ' + r['model'] if r['model'] else ', no model'}: "
             f"{r['times_real_time']:g} times real time ({r['times_real_time_cpu']:g} by processor time)")
    say.info(f"{r['sent']} moments sent, {r['taken']} taken, {r['missing']} missing, {r['unaccounted']} unaccounted")
    say.info(f"{r['touched']} were touched on the way: {r['lost_touched']} of these are missing, {r['wrong']} came out "
             f"with another value; of the others {r['lost_untouched']} are missing, {r['wrong_untouched']} wrong")
    if r["rss_mb_by_hour"]:
        say.info(f"memory after each hour: {r['rss_mb_by_hour'][0]:g} to {r['rss_mb_by_hour'][-1]:g} MB")
    return r, broken_rules(r)


def broken_rules(r: dict) -> list[str]:
    """What a day must not show, however fast the machine is."""
    beyond = []
    if r["unaccounted"] or r["doubled"] or r["came_out"] != r["taken"]:
        beyond.append(f"{r['unaccounted']} moments unaccounted for, {r['doubled']} twice")
    if r["wrong_untouched"]:
        beyond.append(f"{r['wrong_untouched']} moments at another index than they were sent with")
    if r["lost_untouched"] > EXCESS * r["sent"]:
        beyond.append(f"{r['lost_untouched']} moments lost that came whole")
    return beyond


def live(args) -> tuple[dict, list[str]]:
    """(figures, what is beyond the limits)."""
    from bench import bridge_live
    r = bridge_live.live(args.protocol, args.run, args.seconds)
    say.info(f"{r['seconds']:g} s at real time, {r['channels']} channels, leads {', '.join(r['leads'])}"
             f"{', ' + r['model'] if r['model'] else ', no model'}: {r['share_of_a_core']:.1%} of a core")
    names = {"bridge": "bridge's own, from the arrival", "from_the_last_moment": "from the taking of the last moment",
             "from_any_moment": "from the taking of any moment, with the wait for the hop"}
    rows = [[names[k], v["count"], *(v[f"p{p}_ms"] for p in bridge_live.PERCENTILES)] for k, v in r["latency"].items()]
    if r["model"]:
        say.table(rows, ("delay of a decision, ms", "n", "p50", "p95", "p99"))
    return r, [f"{r['missing']} moments lost"] if r["missing"] else []


def fuzz(args) -> tuple[dict, list[str]]:
    """(figures, what is beyond the limits)."""
    from bench import bridge_fuzz
    from firmware_bridge import profiles
    names = args.profiles or [next(iter(profiles.module(p).PROFILES)) for p in profiles.PROTOCOLS]
    found = [bridge_fuzz.fuzz(profiles.find(name).name, args.bytes, args.seed) for name in names]
    rows = [[r["profile"], r["check"], r["bytes"], r["touched"], r["moments_sent"], r["moments"], r["wrong"],
             r["held_bytes"]] for r in found]
    say.table(rows, ("front-end", "check", "bytes", "touched", "sent", "came out", "wrong", "bytes held"))
    beyond = [f"{r['profile']}: {r['wrong']} wrong moments behind a CRC" for r in found
              if r["check"] in bridge_fuzz.FULL and r["wrong"] > unseen(r)]
    beyond += [f"{r['profile']} holds {r['held_bytes']} bytes, {r['held_bytes_first_tenth']} in the first tenth"
               for r in found if r["held_bytes"] > 2 * r["held_bytes_first_tenth"] + 65536]
    beyond += [f"{r['profile']}: {r['unaccounted']} moments unaccounted for" for r in found if r["unaccounted"]]
    return {"profiles": found}, beyond


def unseen(r: dict) -> float:
    """Moments that a CRC of 16 bits may let through: twice the expected frames, and three for chance."""
    from firmware_bridge import profiles
    return (2 * UNSEEN * (r["touched"] + r["damaged"]) + 3) * profiles.find(r["profile"]).per_frame


def keep(found: dict) -> None:
    """Into bench/results, beside the parts that were measured before, with and without a model."""
    old = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    machine = say.machine()
    runs.write(RESULT.parent, {RESULT.name: json.dumps(
        old | {part: {"machine": machine} | r for part, r in found.items()}, indent=1) + "\n"})


def main(args) -> dict:
    """Measure, print, keep."""
    found, beyond = {}, []
    for part, measure in zip(PARTS, (endurance, live, fuzz), strict=True):
        if part in args.only:
            result, more = measure(args)
            found[part + ("_classified" if result.get("model") else "")] = result
            beyond += more
    if args.write:
        keep(found)
    for words in beyond:
        say.warn(words)
    if beyond:
        raise say.UserError("the bridge breaks a promise", "all moments accounted for, none wrong behind a CRC",
                            "the figures above say where")
    return found | {"machine": say.machine()}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
