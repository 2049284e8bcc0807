# SPDX-License-Identifier: Apache-2.0
"""This computer, by the C of the microcontrollers: the bit-exact twin of a device, and the runner for small computers.

Files in runs/<name>/host/: model.c, model.h, kernels.c (generated) and model.so, the shared library. The compiler may
use what this processor has; the bits stay those of the reference.
"""

from __future__ import annotations

import functools
import math
import platform
from pathlib import Path

import numpy as np

from compress import reference
from compress.graph import Graph
from targets import c_model, target, toolchain, twin
from targets.pack import CORES
from targets.target import Built
from train import say
from train.manifest import Manifest
from train.say import UserError

NATIVE = ("-mcpu=native",) if platform.machine().startswith(("aarch64", "arm")) else ("-march=native",)
FLAGS = (*twin.FLAGS, *NATIVE)
THREADS = (1,)          # the C runs on one, as on a device


def missing() -> str | None:
    """What keeps C from being compiled here."""
    return toolchain.missing("host")


def lower(graph: Graph, manifest: Manifest, out: Path, board: dict | None = None,
          options: target.Options | None = None) -> None:
    """Write the model as C."""
    twin.write(c_model.generate(graph, manifest, CORES["host"]), out)


def build(out: Path, board: dict | None) -> Built:
    """Compile it and check the golden windows; UserError unless every bit is the reference's."""
    manifest, graph = target.open_run(out.parent)
    source = c_model.generate(graph, manifest, CORES["host"])
    library = twin.compile(source.kernels, out, twin.Objects(out / "objects", FLAGS))
    inputs, expected = target.golden(out.parent, graph)
    compiled = twin.Twin(library, graph)
    wrong = int((compiled.run(inputs) != expected).any(1).sum())
    if wrong:
        raise UserError(f"{library} differs from the reference in {wrong} of {len(expected)} golden windows",
                        "the same bits", "python bench/parity.py --target host names the first layer that differs")
    compiler = toolchain.compiler("host")
    say.info(f"{len(expected)} golden windows, every bit as the reference; {compiler.version()}")
    return Built(library, graph.weight_bytes, compiled.memory, {"form": "int8", "compiler": compiler.version(),
                                                              "flags": list(FLAGS), "machine": say.machine()})


@functools.lru_cache(maxsize=4)
def _twin(library: Path, changed: int) -> twin.Twin:
    return twin.Twin(library, target.open_run(library.parent.parent)[1])


def _opened(built: Built) -> twin.Twin:
    return _twin(built.path, built.path.stat().st_mtime_ns)


def run(built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits; the library stays open between calls."""
    return _opened(built).run(inputs)


def runner(built: Built, graph: Graph, threads: int = 1) -> target.Runner:
    """For live use; the C runs on one thread."""
    return twin.Twin(built.path, graph).runner()


def calls(graph: Graph, built: Built, inputs: dict[str, np.ndarray], threads: int) -> dict:
    """form -> a function that evaluates the first window, for timing. The C runs on one thread."""
    one = {name: x[:1] for name, x in inputs.items()}
    return {"int8": functools.partial(_opened(built).run, one)}


def trace(graph: Graph, built: Built, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape)."""
    manifest, _ = target.open_run(built.path.parent.parent)
    window = c_model.generate(graph, manifest, CORES["host"]).programs["window"]
    shapes = {c.node.output: graph.tensors[c.node.output].shape for c in window.calls}
    found = _opened(built).trace(inputs, [math.prod(s) for s in shapes.values()])
    values = inputs | {t: x.reshape(-1, *s) for (t, s), x in zip(shapes.items(), found, strict=True)}
    for n in graph.nodes:           # views and constants, for which no kernel runs
        if n.output not in values:
            reference.execute([n], values)
    return values


def flash(built: Built, port: str | None) -> None:
    """Nothing is flashed on a computer."""
    folder = built.path.parent.parent
    say.info(f"copy the folder {folder} to the computer and run there: "
             f"python targets/deploy.py --run {folder.name} --target host, which compiles for its processor")
