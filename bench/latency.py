# SPDX-License-Identifier: Apache-2.0
"""How long one window takes: percentiles of measured times, forms side by side; an estimate only under that name.

python bench/latency.py --target arm --run runs/af [--seconds 5]                  this computer; also litert, host
python bench/latency.py --target arm --run runs/af --device pi@raspberrypi        another one that has a checkout
python bench/latency.py --target mcu --run runs/af [--board nrf52840dk]           executed instructions, counted
python bench/latency.py --target jetson --run runs/af --device user@jetson        on a Jetson: without --device
python bench/latency.py --target jetson --run runs/af --estimate orin-nano-super  a range from a model, no device
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import say

ESTIMATED = {"jetson": "jetson", "arm": "arm", "litert": "arm"}     # target -> whose boards
BLOCK = 0.25            # seconds of one form before the next takes its turn, with several threads
FIRST = "orin-nano-super"


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--target", required=True, metavar="T", help=f"one of: {', '.join(names())}")
    p.add_argument("--run", required=True, metavar="R", help="run folder, built by targets/deploy.py")
    p.add_argument("--board", metavar="B", help="a microcontroller of targets/boards.toml (default: any Cortex-M4)")
    p.add_argument("--weights", type=int, default=8, choices=(8, 16), help="bits of a weight on a microcontroller (8)")
    p.add_argument("--seconds", type=float, default=5.0, help="of measuring per thread setting (default 5)")
    p.add_argument("--device", metavar="USER@HOST", help="measure there over ssh: a Jetson needs nothing installed, "
                                                        "another computer a checkout of this repository")
    p.add_argument("--checkout", default="leadedge", metavar="DIR", help="of that repository there (default leadedge)")
    p.add_argument("--estimate", metavar="BOARD", help="a range for a Jetson or ARM board of boards.toml that is not "
                                                       "at hand, from a model whose assumptions are printed")
    p.add_argument("--require-measured", action="store_true", help="exit 2 where only an estimate could be given")
    return p


def names() -> list[str]:
    """Targets that this script knows."""
    return sorted({*targets.TARGETS, *ESTIMATED})


def main(args) -> dict:
    """Measure every form that the target built, estimate, or both; each under its own name."""
    measuring = args.device or args.require_measured or not args.estimate
    chosen = targets.load(args.target) if measuring or args.target not in ESTIMATED else None
    if args.seconds <= 0:
        say.fail(f"--seconds {args.seconds:g}", "more than 0")
    _possible(args)
    if args.target == "mcu":
        return _microcontroller(chosen, args)
    from compress import graph as graphs
    from targets import target
    board = target.read_board(args.estimate, ESTIMATED[args.target]) if args.estimate else None
    opened = target.open_run(args.run)
    result = {"run": str(args.run), "target": args.target, "macs": graphs.macs(opened[1])}
    if measuring:
        where = _jetson if args.target == "jetson" else _there if args.device else _here
        result |= where(args, opened)
    if board:
        from bench import estimate
        result["estimate"] = estimate.of(opened[1], board)
        estimate.show(result["estimate"])
    return result


def _possible(args) -> None:
    """Refuse options that the target has no use for, with what to type instead."""
    here = f"python bench/latency.py --target {args.target} --run {args.run}"
    if args.device and args.target == "mcu":
        say.fail("--device with --target mcu", "instructions counted in the emulator", f"{here} --board B")
    if args.estimate and args.target not in ESTIMATED:
        say.fail(f"--estimate with --target {args.target}", f"--target {', '.join(ESTIMATED)}",
                 f"{here} --board B" if args.target == "mcu" else here)
    if args.require_measured and args.target == "mcu":
        raise say.MissingError("the time of a microcontroller is an estimate from counted instructions",
                               "a target whose time is measured", f"{here}, without --require-measured")


def _microcontroller(chosen, args) -> dict:
    """Counted instructions, and what they may take."""
    absent = chosen.missing()
    if absent:
        raise say.MissingError(f"target mcu cannot run here: {absent}")
    from bench import instructions
    return instructions.measured(args.run, instructions.boards_core(args.board), args.weights)


def _jetson(args, opened) -> dict:
    """Measured on a Jetson: this computer, or --device."""
    from targets import jetson_ssh, target
    if not args.device and not jetson_ssh.on_jetson():
        raise say.MissingError("no Jetson was found: this computer is none, and no --device is named",
                               "a Jetson, or --device user@host; an estimate of " +
                               ", ".join(target.boards("jetson")),
                               f"python bench/latency.py --target jetson --run {args.run} --estimate {FIRST}")
    target.open_build(args.run, "jetson", opened[0])      # deployed, and of this very model
    folder = pathlib.Path(args.run) / "jetson"
    found = jetson_ssh.measure(args.device, folder, args.seconds) if args.device else \
        jetson_ssh.local(folder, args.seconds)
    if found["identity"] != opened[0].identity.hex():
        say.fail(f"the device measured another model ({found['identity'][:16]})", opened[0].identity.hex()[:16],
                 f"python targets/deploy.py --run {args.run} --target jetson")
    from bench import jetson_rows
    jetson_rows.show(found)
    return {"device": args.device, "shipped": found["won"] and found["won"]["form"],
            "measured": jetson_rows.rows(found), "failed": jetson_rows.failed(found), "machine": found["environment"],
            "jetson": {key: value for key, value in found.items() if key not in ("measured", "environment")}}


def _there(args, opened) -> dict:
    """Measured on another computer, over ssh."""
    from bench import elsewhere
    run, identity = pathlib.Path(args.run), opened[0].identity.hex()
    found = elsewhere.measure(args.device, args.checkout, run, identity, args.target, args.seconds)
    _say(found["measured"], found["machine"], args.target)
    say.info(f"shipped there: {found['shipped']}")
    return {"device": args.device} | {key: found[key] for key in ("shipped", "measured", "machine")}


def _here(args, opened) -> dict:
    """Measured on this computer, by one thread and by all."""
    from targets import target
    chosen = targets.load(args.target)
    board = target.read_board(args.estimate, ESTIMATED[args.target]) if args.estimate else None
    if board and platform.machine() != board["machine"]:
        raise say.MissingError(f"this computer ({platform.machine()}) is no {board['name']}: nothing was measured",
                               "that board", f"the same command there, or here --estimate {board['key']} alone")
    absent = chosen.missing()
    if absent:
        raise say.MissingError(f"target {args.target} cannot run here: {absent}")
    manifest, graph = opened
    built = target.open_build(args.run, args.target, manifest)
    inputs, _ = target.golden(args.run, graph, 1)
    machine, rows = conditions(), []
    for threads in getattr(chosen, "THREADS", dict.fromkeys((1, os.cpu_count() or 1))):
        times = in_turns(chosen.calls(graph, built, inputs, threads), threads, args.seconds)
        fast = {form: target.percentiles(t) for form, t in times.items()}
        base = fast.get("float", {}).get("p50_ms")
        rows += [{"form": form, "threads": threads, **p, "float_over_this": base and base / p["p50_ms"]}
                 for form, p in fast.items()]
    _say(rows, machine, args.target)
    say.info(f"shipped: {built.notes['form']} ({built.path.name}, {built.flash / 1000:.0f} kB)")
    return {"shipped": built.notes["form"], "measured": rows, "machine": machine}


def in_turns(calls: dict, threads: int, seconds: float) -> dict:
    """Nanoseconds of each call. One thread: the calls alternate. Several: blocks of a form do, because the workers of
    its pool spin for a while after each call and would slow down whichever comes next."""
    import numpy as np

    from targets import target
    if threads == 1 or len(calls) == 1:
        return target.interleaved(calls, seconds)
    rounds = max(1, round(seconds / len(calls) / BLOCK))
    block = seconds / len(calls) / rounds
    taken = [{form: target.interleaved({form: call}, block)[form] for form, call in calls.items()}
             for _ in range(rounds)]
    return {form: np.concatenate([t[form] for t in taken]) for form in calls}


def conditions() -> dict:
    """say.machine() and what else a time depends on: the cores allowed, their governors, how busy they are; None where
    that cannot be read."""
    governors = set()
    for path in sorted(pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")):
        with contextlib.suppress(OSError):
            governors.add(path.read_text().strip())
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None      # processes that want a core
    return say.machine() | {"affinity": allowed, "governors": sorted(governors) or None, "load": load}


def _say(rows: list[dict], machine: dict, target: str) -> None:
    """The table of measured times and what they were measured on."""
    shown = {"arm": "onnxruntime", "litert": "ai-edge-litert"}.get(target)
    versions = "".join(f", {k} {v}" for k, v in machine["versions"].items() if k in (shown, "numpy"))
    say.info(f"one window, measured on {machine['cpu']}, {machine['cores']} cores, {machine['system']}, "
             f"Python {machine['python']}{versions}; cores allowed: "
             f"{','.join(map(str, machine['affinity'])) if machine['affinity'] else 'unknown'}; governor: "
             f"{', '.join(machine['governors']) if machine['governors'] else 'not readable'}; load {machine['load']}")
    say.table([(r["form"], r["threads"], r["p50_ms"], r["p90_ms"], r["p99_ms"], r["samples"],
                r["float_over_this"] and f"{r['float_over_this']:.2f}x") for r in rows],
              ("form", "threads", "p50 ms", "p90 ms", "p99 ms", "samples", "against float"))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
