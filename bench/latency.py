# SPDX-License-Identifier: Apache-2.0
"""How long one window takes on this machine: percentiles of measured times, forms side by side.

python bench/latency.py --target arm --run runs/af [--seconds 5]
python bench/latency.py --target mcu --run runs/af [--board nrf52840dk]     executed instructions, see instructions.py
"""

from __future__ import annotations

import os
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import say


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Measure the time of one window on this machine, float beside integer.")
    p.add_argument("--target", required=True, metavar="T", help=f"one of: {', '.join(targets.TARGETS)}")
    p.add_argument("--run", required=True, metavar="R", help="run folder, built by targets/deploy.py")
    p.add_argument("--board", metavar="B", help="a microcontroller of targets/boards.toml (default: any Cortex-M4)")
    p.add_argument("--weights", type=int, default=8, choices=(8, 16), help="bits of a weight on a microcontroller (8)")
    p.add_argument("--seconds", type=float, default=5.0, help="of measuring per thread setting (default 5)")
    return p


def main(args) -> dict:
    """Measure every form that the target built, with one thread and with all."""
    chosen = targets.load(args.target)
    from compress import graph as graphs
    from targets import target
    if args.seconds <= 0:
        say.fail(f"--seconds {args.seconds:g}", "more than 0")
    absent = chosen.missing()
    if absent:
        raise say.MissingError(f"target {args.target} cannot run here: {absent}")
    if args.target == "mcu":
        from bench import instructions
        return instructions.measured(args.run, instructions.boards_core(args.board), args.weights)
    manifest, graph = target.open_run(args.run)
    built = target.open_build(args.run, args.target, manifest)
    inputs, _ = target.golden(args.run, graph, 1)
    rows = []
    for threads in getattr(chosen, "THREADS", dict.fromkeys((1, os.cpu_count() or 1))):
        # one setting after the other: the workers of a pool spin for a while and would slow the single thread down
        times = target.interleaved(chosen.calls(graph, built, inputs, threads), args.seconds)
        fast = {form: target.percentiles(t) for form, t in times.items()}
        base = fast.get("float", {}).get("p50_ms")
        rows += [{"form": form, "threads": threads, **p, "float_over_this": base and base / p["p50_ms"]}
                 for form, p in fast.items()]
    machine = say.machine()
    say.info(f"{graphs.macs(graph) / 1e6:.1f} M multiply-accumulates, measured on {machine['cpu']}, "
             f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
             + ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k in ("onnxruntime", "numpy")))
    say.table([(r["form"], r["threads"], r["p50_ms"], r["p90_ms"], r["p99_ms"], r["samples"],
                r["float_over_this"] and f"{r['float_over_this']:.2f}x") for r in rows],
              ("form", "threads", "p50 ms", "p90 ms", "p99 ms", "samples", "against float"))
    say.info(f"shipped: {built.notes['form']} ({built.path.name}, {built.flash / 1000:.0f} kB)")
    return {"run": str(args.run), "target": args.target, "shipped": built.notes["form"], "macs": graphs.macs(graph),
            "measured": rows, "machine": machine}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
