# SPDX-License-Identifier: Apache-2.0
"""Do random graphs, as generated C, have the reference's bits? On this computer and on emulated cores.

python bench/parity_random.py [--core m4] [--count 1000] [--windows 3]

The graphs are those of tests/random_graphs.py: 3 to 12 nodes with every kind of node and every window of attention.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)

from train import runs, say

RESULTS = ROOT / "bench" / "results"
TOGETHER = 100          # graphs in one library or image


def parser() -> say.Parser:
    """The command line."""
    p = say.Parser(description=__doc__)
    p.add_argument("--core", default="host", metavar="C", help="host, or a core that QEMU emulates (default host)")
    p.add_argument("--count", type=say.positive(int), default=1000, metavar="N", help="graphs (default 1000)")
    p.add_argument("--first", type=int, default=0, metavar="S", help="seed of the first one (default 0)")
    p.add_argument("--windows", type=say.positive(int), default=3, metavar="N", help="windows of each (default 3)")
    p.add_argument("--write", action="store_true", help="keep the figures in bench/results/parity_random.json")
    return p


def made(first: int, count: int, windows: int) -> list:
    """parity_image.Case of the seeds from `first` on, with the reference's logits."""
    from compress import reference
    from targets.parity_image import Case
    from tests import graphs, random_graphs
    found = []
    for seed in range(first, first + count):
        graph = random_graphs.random_graph(seed)
        inputs = graphs.inputs_of(graph, windows, seed)
        found.append(Case(f"seed {seed}", graph, inputs, reference.run(graph, inputs)))
    return found


def on_host(cases: list, folder: pathlib.Path) -> list[str]:
    """Names of the cases that differ on this computer."""
    import numpy as np

    from targets import twin
    from targets.pack import CORES
    from tests import many
    library = many.build([c.graph for c in cases], CORES["host"], folder, twin.Objects(folder.parent / "objects"))
    return [c.name for i, c in enumerate(cases) if not np.array_equal(library.run(i, c.inputs), c.expected)]


def emulated(core: str, cases: list, folder: pathlib.Path) -> list[str]:
    """What differs on an emulated core."""
    from targets import parity_image
    return parity_image.check(core, cases, folder).wrong


def held(cases: list) -> dict:
    """What the graphs are made of: graphs with a residual sum and with attention, nodes and windows by kind."""
    from tests.random_graphs import residual
    kinds, windows = Counter(), Counter()
    for case in cases:
        kinds.update(n.kind for n in case.graph.nodes)
        windows.update(n.attrs["window"] for n in case.graph.nodes if n.kind == "attention")
    return {"residual": sum(residual(c.graph) for c in cases),
            "attention": sum(any(n.kind == "attention" for n in c.graph.nodes) for c in cases),
            "nodes": dict(kinds.most_common()), "attention_windows": dict(windows.most_common())}


def main(args) -> dict:
    """Counts, and the graphs that differ; fails when there are any."""
    from targets import emulate, toolchain
    from targets.pack import CORES
    say.choose(args.core, CORES, "core")
    absent = toolchain.missing(args.core) or (emulate.missing() if args.core != "host" else None)
    if absent:
        raise say.MissingError(absent)
    wrong, seen = [], []
    with tempfile.TemporaryDirectory() as work, say.progress("graphs", args.count) as advance:
        for start in range(0, args.count, TOGETHER):
            cases = made(args.first + start, min(TOGETHER, args.count - start), args.windows)
            folder = pathlib.Path(work) / str(start)
            wrong += on_host(cases, folder) if args.core == "host" else emulated(args.core, cases, folder)
            seen += cases
            advance(len(cases))
    result = {"core": args.core, "compiler": toolchain.compiler(args.core).version(), "graphs": len(seen),
              "windows": len(seen) * args.windows, "wrong": wrong} | held(seen)
    say.info(f"{args.core}: {result['windows']} windows of {len(seen)} graphs, {len(wrong)} differ; "
             f"{result['residual']} graphs with a residual sum, {result['attention']} with attention")
    if args.write:
        path = RESULTS / "parity_random.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        runs.write(RESULTS, {path.name: json.dumps(kept | {args.core: result}, indent=1) + "\n"})
    if wrong:
        raise say.UserError(f"{len(wrong)} of {len(seen)} graphs differ from the reference on {args.core}: "
                            f"{', '.join(wrong[:8])}", "the same bits")
    return result


if __name__ == "__main__":
    sys.exit(say.run(main, parser()))
