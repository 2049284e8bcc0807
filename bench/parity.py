# SPDX-License-Identifier: Apache-2.0
"""Does a build compute what the reference computes? Logits on golden windows, then layer by layer.

python bench/parity.py --run runs/af [--target arm] [--data DIR] [--n 2000] [--layers]
"""

from __future__ import annotations

import pathlib
import sys
from dataclasses import asdict, dataclass

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import targets
from train import say

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
    p = say.Parser(description="Compare a build with the integer reference, logits and layers.")
    p.add_argument("--run", required=True, metavar="R", help="run folder, built by targets/deploy.py")
    p.add_argument("--target", default="arm", metavar="T", help=f"one of: {', '.join(targets.TARGETS)} (default arm)")
    p.add_argument("--data", metavar="DIR", help="compare on test records of this data set, not on golden windows")
    p.add_argument("--n", type=int, metavar="N", help="windows to compare (default: all golden ones, 2000 of records)")
    p.add_argument("--layers", action="store_true", help="print every layer, not only those that differ most")
    return p


def windows(args, graph):
    """(inputs, the reference's logits): golden windows, or test records' windows with --data."""
    from targets import target
    if args.data is None:
        return target.golden(args.run, graph, args.n)
    from bench.records import held_out, opened
    from compress import evaluate, reference
    manifest, _, source = opened(args.run, args.data)
    inputs = evaluate.sample(source, graph.inputs, held_out(manifest, source)["test"], args.n or RECORD_WINDOWS)
    return inputs, reference.run(graph, inputs)


def main(args) -> dict:
    """Agreement of the logits, the layers, the first one that differs. Fails when the build does not agree."""
    chosen = targets.load(args.target)
    from compress import reference
    from targets import target
    if args.n is not None and args.n < 1:
        say.fail(f"--n {args.n}", "at least one window")
    manifest, graph = target.open_run(args.run)
    built = target.open_build(args.run, args.target, manifest)
    inputs, expected = windows(args, graph)
    agreement = target.compare(manifest, expected, chosen.run(built, inputs))
    say.info(f"{args.target} ({built.path.name}) against the reference, {agreement.windows} windows: "
             f"equal labels {agreement.labels:.2%}, |logit difference| p99 {agreement.p99:g} LSB, "
             f"largest {agreement.worst} LSB")
    few = {name: x[:getattr(chosen, "TRACED", TRACED)] for name, x in inputs.items()}
    rows = layers(graph, reference.run(graph, few, trace=True), chosen.trace(graph, built, few))
    shown = rows if args.layers else sorted(rows, key=lambda r: (r.own_equal, r.equal))[:5]
    say.table([(r.name, r.kind, f"{r.own_equal:.4%}", r.own_worst, f"{r.equal:.4%}", r.worst) for r in shown],
              ("layer" if args.layers else "layers that differ most", "kind", "own: equal", "max LSB",
               "accumulated: equal", "max LSB"))
    first = next((r.name for r in rows if r.differs), None)
    say.info(f"first layer that differs by more than ties: {first or 'none'}")
    if not agreement.ok:
        raise say.UserError(
            f"the {args.target} build does not agree with the reference: equal labels {agreement.labels:.2%}, "
            f"p99 {agreement.p99:g}, largest {agreement.worst} LSB; first layer that differs: {first or 'none'}",
            f"{target.LABELS:.1%}, p99 <= {target.P99}, largest <= {target.WORST}",
            f"python targets/deploy.py --run {args.run} --target {args.target} chooses among forms that agree")
    return {"run": str(args.run), "target": args.target, "file": built.path.name, "agreement": asdict(agreement),
            "first_differing_layer": first, "layers": [asdict(r) for r in rows]}


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
