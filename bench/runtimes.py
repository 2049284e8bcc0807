# SPDX-License-Identifier: Apache-2.0
"""Runtimes of this computer side by side: every form of ONNX Runtime and LiteRT, and the generated C, in one go.

python bench/runtimes.py --runs runs/a runs/b [--seconds 20] [--threads 1 2] [--write]

A form's gain is the median of its runtime's float over its own, once for each round; the table has the middle round and
the range of all. The forms of a runtime alternate call by call and the runtimes round by round, so that a busy moment
hits all alike and is seen as a wide range.
"""

from __future__ import annotations

import json
import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from bench import latency
from train import runs, say

RESULTS = pathlib.Path(__file__).parent / "results"
FILE = "runtimes.json"
RUNTIMES = {"arm": "ONNX Runtime", "litert": "LiteRT", "host": "generated C"}
FLOAT = "float"


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--runs", required=True, nargs="+", metavar="R", help="run folders, built by targets/deploy.py")
    p.add_argument("--targets", nargs="+", default=list(RUNTIMES), metavar="T",
                   help=f"some of: {', '.join(RUNTIMES)} (default all)")
    p.add_argument("--threads", nargs="+", type=say.positive(int), default=[1], metavar="N",
                   help="one setting after the other (default 1)")
    p.add_argument("--seconds", type=say.positive(float), default=20.0, help="for each run and setting (default 20)")
    p.add_argument("--rounds", type=say.positive(int), default=7, metavar="N", help="in those seconds (default 7)")
    p.add_argument("--write", action="store_true", help=f"keep the figures in bench/results/{FILE}")
    return p


def opened(names: list[str]) -> dict:
    """target -> module, of those that run here; says which do not."""
    found = {}
    for name in names:
        say.choose(name, RUNTIMES, "runtime")
        try:
            absent = targets.load(name).missing()
        except say.MissingError as error:
            absent = error.what
        if absent:
            say.warn(f"{RUNTIMES[name]} is left out: {absent}")
        else:
            found[name] = targets.load(name)
    return found


def builds(run: str, names, manifest) -> dict:
    """target -> Built, of those that the run is built for; UserError when it is built for none."""
    from targets import target
    found, error = {}, say.MissingError("no runtime is left")
    for name in names:
        try:
            found[name] = target.open_build(run, name, manifest)
        except say.UserError as caught:
            error = caught
            say.warn(f"{RUNTIMES[name]} is left out: {caught.what}; {caught.fix}")
    if not found:
        raise error
    return found


def measured(run: str, modules: dict, threads: int, seconds: float, rounds: int) -> list[dict]:
    """A row for each form of each runtime. Runtimes take turns in rounds, their forms within a round."""
    from compress import graph as graphs
    from targets import target
    manifest, graph = target.open_run(run)
    built = builds(run, modules, manifest)
    inputs, _ = target.golden(run, graph, 1)
    calls = {name: modules[name].calls(graph, build, inputs, threads) for name, build in built.items()
             if threads in getattr(modules[name], "THREADS", (threads,))}
    times = [turn(calls, threads, seconds / rounds, backwards=i % 2 == 1) for i in range(rounds)]
    about = {"run": pathlib.Path(run).name, "arch": manifest.arch, "preset": manifest.preset, "task": manifest.task,
             "macs": graphs.macs(graph), "threads": threads}
    return [about | {"target": name, "form": form, "shipped": form == built[name].notes["form"]}
            | figures(times, (name, form)) for name, forms in calls.items() for form in forms]


def turn(calls: dict[str, dict], threads: int, seconds: float, backwards: bool) -> dict:
    """One round: (target, form) -> nanoseconds of its calls. Every other round goes backwards through all of them."""
    order = reversed if backwards else list
    return {(name, form): t for name in order(list(calls))
            for form, t in latency.in_turns(dict(order(list(calls[name].items()))), threads,
                                            seconds / len(calls)).items()}


def figures(times: list[dict], key: tuple[str, str]) -> dict:
    """Percentiles over all rounds, and the gain of each round over the runtime's float: middle, smallest, largest."""
    import numpy as np

    from targets import target
    row, base = target.percentiles(np.concatenate([t[key] for t in times])), (key[0], FLOAT)
    if base not in times[0]:
        return row | {"gain": None}
    gains = [float(np.median(t[base]) / np.median(t[key])) for t in times]
    return row | {"gain": {"median": float(np.median(gains)), "range": [min(gains), max(gains)], "rounds": len(gains)}}


def gain(row: dict) -> str:
    """In words."""
    if row["gain"] is None:
        return "-"
    low, high = row["gain"]["range"]
    return f"{row['gain']['median']:.2f} ({low:.2f} to {high:.2f})"


def main(args) -> dict:
    """Measure, print, keep."""
    modules = opened(args.targets)
    before, rows = latency.conditions(), []
    for run in args.runs:
        for threads in dict.fromkeys(args.threads):
            fresh = measured(run, modules, threads, args.seconds, args.rounds)
            say.info(f"{run}, {threads} thread{'s' * (threads > 1)}, {fresh[0]['macs'] / 1e6:.1f} M "
                     "multiply-accumulates" if fresh else f"{run}: nothing runs with {threads} threads")
            _print(fresh)
            rows += fresh
    slower = [f"{r['run']}, {RUNTIMES[r['target']]} {r['form']}, threads: {r['threads']}" for r in rows
              if r["shipped"] and r["gain"] and r["gain"]["median"] < 1]
    say.info("shipped and slower than float: " + ("; ".join(slower) or "none"))
    result = {"rows": rows, "shipped_slower_than_float": slower, "seconds": args.seconds, "machine": before}
    if args.write:
        runs.write(RESULTS, {FILE: json.dumps(result, indent=1) + "\n"})
    return result


def _print(rows: list[dict]) -> None:
    say.table([(f"{RUNTIMES[r['target']]} {r['form']}", r["p50_ms"], r["p90_ms"], r["p99_ms"], r["samples"], gain(r),
                "shipped" if r["shipped"] else "") for r in rows],
              ("form", "p50 ms", "p90 ms", "p99 ms", "samples", "float / this (rounds)", ""))


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
