# SPDX-License-Identifier: Apache-2.0
"""Does a build compute what the reference computes? Logits on golden windows, then layer by layer.

python bench/parity.py --run runs/af [--target arm] [--data DIR] [--n 2000] [--layers]
python bench/parity.py --run runs/* --target arm litert --data DIR --write
"""

from __future__ import annotations

import json
import pathlib
import sys
from dataclasses import asdict, dataclass

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import say

RESULTS = pathlib.Path(__file__).parent / "results" / "parity.json"
RECORD_WINDOWS = 2000
TRACED = 32         # windows that are compared layer by layer
TIES = 0.05         # share of codes that may land one beside; attention's exp table alone moves up to 2 %


@dataclass(frozen=True)
class Layer:
    """One node. equal, worst: against the reference's run; own_equal, own_worst: given the build's own inputs.

    Shares of equal codes, differences in LSB.
    """

    name: str
    kind: str
    equal: float
    worst: int
    own_equal: float
    own_worst: int

    @property
    def differs(self) -> bool:
        """By more than ties: a value between two codes may land on either."""
        return self.own_worst > 1 or self.own_equal < 1 - TIES


def layers(graph, expected: dict, got: dict) -> list[Layer]:
    """Compare two traces, tensor -> int8 (window, *shape), node by node."""
    import numpy as np

    from compress import reference
    rows = []
    for node in graph.nodes:
        alone = {name: got[name] for name in node.inputs}
        reference.execute([node], alone)
        gaps = [np.abs(got[node.output].astype(int) - other[node.output].astype(int)) for other in (expected, alone)]
        equal, own_equal = (float((gap == 0).mean()) for gap in gaps)
        rows.append(Layer(node.name, node.kind, equal, int(gaps[0].max()), own_equal, int(gaps[1].max())))
    return rows


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description="Compare builds with the integer reference, logits and layers.")
    p.add_argument("--run", required=True, nargs="+", metavar="R", help="run folders, built by targets/deploy.py")
    p.add_argument("--target", default=["arm"], nargs="+", metavar="T",
                   help=f"some of: {', '.join(targets.TARGETS)} (default arm)")
    p.add_argument("--data", metavar="DIR", help="compare on test records of this data set, not on golden windows")
    p.add_argument("--n", type=int, metavar="N", help="windows to compare (default: all golden ones, 2000 of records)")
    p.add_argument("--layers", action="store_true", help="print every layer, not only those that differ most")
    p.add_argument("--write", action="store_true", help=f"keep the figures in bench/results/{RESULTS.name}")
    return p


def windows(run, args, graph):
    """(inputs, the reference's logits): golden windows, or test records' windows with --data."""
    from targets import target
    if args.data is None:
        return target.golden(run, graph, args.n)
    from bench.records import held_out, opened
    from compress import evaluate, reference
    manifest, _, source = opened(run, args.data)
    inputs = evaluate.sample(source, graph.inputs, held_out(manifest, source)["test"], args.n or RECORD_WINDOWS)
    return inputs, reference.run(graph, inputs)


def compared(run, names: list[str], args) -> list[dict]:
    """One run by each target: agreement of the logits, the layers, the first one that differs."""
    from compress import reference
    from targets import target
    manifest, graph = target.open_run(run)
    builds = {name: target.open_build(run, name, manifest) for name in names}
    inputs, expected = windows(run, args, graph)
    rows = []
    for name, built in builds.items():
        chosen = targets.load(name)
        agreement = target.compare(manifest, expected, chosen.run(built, inputs))
        what = "golden windows" if args.data is None else f"test windows of {manifest.task}"
        say.info(f"{run}, {name} ({built.path.name}) against the reference, {agreement.windows} {what}: "
                 f"equal labels {agreement.labels:.2%}, |logit difference| p99 {agreement.p99:g} LSB, "
                 f"largest {agreement.worst} LSB")
        few = {key: x[:getattr(chosen, "TRACED", TRACED)] for key, x in inputs.items()}
        found = layers(graph, reference.run(graph, few, trace=True), chosen.trace(graph, built, few))
        first = next((r.name for r in found if r.differs), None)
        report(found, first, args.layers)
        rows.append({"run": pathlib.Path(run).name, "target": name, "file": built.path.name, "windows": what,
                     "agreement": asdict(agreement), "agrees": agreement.ok, "first_differing_layer": first,
                     "layers": [asdict(r) for r in found]})
    return rows


def report(rows: list[Layer], first: str | None, every: bool) -> None:
    """The layers as a table: every one, or those that differ most."""
    shown = rows if every else sorted(rows, key=lambda r: (r.own_equal, r.equal))[:5]
    say.table([(r.name, r.kind, f"{r.own_equal:.4%}", r.own_worst, f"{r.equal:.4%}", r.worst) for r in shown],
              ("layer" if every else "layers that differ most", "kind", "own: equal", "max LSB",
               "accumulated: equal", "max LSB"))
    say.info(f"first layer that differs by more than ties: {first or 'none'}")


def keep(rows: list[dict]) -> None:
    """Put the figures into RESULTS, without the layers, in place of older ones of the same run and target."""
    held = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    fresh = {(r["run"], r["target"]): {k: v for k, v in r.items() if k != "layers"} for r in rows}
    held = [r for r in held if (r["run"], r["target"]) not in fresh] + list(fresh.values())
    document = {"rows": sorted(held, key=lambda r: (r["run"], r["target"])), "machine": say.machine()}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def main(args) -> dict:
    """Compare every run with every target. Fails when a build does not agree, after all of them were compared."""
    from targets import target
    if args.n is not None and args.n < 1:
        say.fail(f"--n {args.n}", "at least one window")
    for name in args.target:
        targets.load(name)
    rows = [row for run in args.run for row in compared(run, args.target, args)]
    if args.write:
        keep(rows)
    bad = next((r for r in rows if not r["agrees"]), None)
    if bad:
        a = bad["agreement"]
        raise say.UserError(
            f"the {bad['target']} build of {bad['run']} does not agree with the reference: equal labels "
            f"{a['labels']:.2%}, p99 {a['p99']:g}, largest {a['worst']} LSB; first layer that differs: "
            f"{bad['first_differing_layer'] or 'none'}",
            f"{target.LABELS:.1%}, p99 <= {target.P99}, largest <= {target.WORST}",
            f"python targets/deploy.py --run {bad['run']} --target {bad['target']} chooses among forms that agree")
    return rows[0] if len(rows) == 1 else {"rows": rows}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
