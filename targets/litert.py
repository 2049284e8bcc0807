# SPDX-License-Identifier: Apache-2.0
"""LiteRT (TensorFlow Lite): the graph as an int8 .tflite file with int8 input and output, the graph's own codes.

Files in runs/<name>/litert/: model.int8.tflite, which is shipped and which TFLite Micro and Vela take as well,
model.float.tflite to compare speed with, and chosen.json with what was measured where. The files need ai-edge-litert
to be written; to run them, tflite-runtime, which older boards have, will do.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from compress import reference
from compress.graph import Graph
from targets import target, tflite_lowering
from targets.target import Agreement, Built
from train import runs, say
from train.manifest import Manifest
from train.say import MissingError, UserError

SECONDS = 3.0           # of measuring in build
SHIPPED, REFERENCE_FORM = "int8", "float"
RUNTIMES = ("ai_edge_litert", "tflite_runtime")
TRACED = 16             # windows that are searched for a layer that differs
TIES = 0.05             # share of a layer's codes that may land one beside
TWICE = {"tflite_runtime"}      # runtimes whose kernels round a product twice
LEAST = 0.97            # share of equal labels below which even such a runtime is refused


def missing() -> str | None:
    """What is not installed, with the command that installs it."""
    if any(find_spec(name) for name in RUNTIMES):
        return None
    return "ai-edge-litert not installed: pip install -e \".[litert]\""


def file_name(form: str) -> str:
    """File of a form."""
    return f"model.{form}.tflite"


def lower(graph: Graph, manifest: Manifest, out: Path, board: dict | None = None,
          options: target.Options | None = None) -> None:
    """Write both forms."""
    runs.write(out, {file_name(form): tflite_lowering.lower(graph, form) for form in tflite_lowering.FORMS})


def build(out: Path, board: dict | None) -> Built:
    """Compare int8 with the reference and, in speed, with float on this machine; chosen.json keeps the figures.

    UserError when int8 does not agree with the reference (see require): float is never shipped under this name.
    """
    manifest, graph = target.open_run(out.parent)
    inputs, expected = target.golden(out.parent, graph)
    sessions = {form: Session(out / file_name(form), graph) for form in tflite_lowering.FORMS}
    agreed = {form: target.compare(manifest, expected, s.run(inputs)) for form, s in sessions.items()}
    require(agreed[SHIPPED], graph, inputs)
    times = target.interleaved({form: s.call(inputs) for form, s in sessions.items()}, SECONDS)
    measured = {form: target.percentiles(t) for form, t in times.items()}
    why = verdict(measured[REFERENCE_FORM]["p50_ms"] / measured[SHIPPED]["p50_ms"], agreed[SHIPPED].ok)
    here = board is None or platform.machine() == board["machine"]
    note = {"form": SHIPPED, "file": file_name(SHIPPED), "why": why, "threads": 1, "runtime": runtime_name(),
            "machine": say.machine(), "board": board["name"] if board else None, "measured_on_board": here,
            "forms": {f: measured[f] | asdict(agreed[f]) for f in measured}}
    runs.write(out, {"chosen.json": json.dumps(note, indent=2) + "\n"})
    say.table([(f, m["p50_ms"], m["p90_ms"], m["p99_ms"], m["samples"], f"{m['labels']:.2%}", m["p99"], m["worst"])
               for f, m in note["forms"].items()],
              ("form, 1 thread", "p50 ms", "p90 ms", "p99 ms", "samples", "equal labels", "p99 LSB", "max LSB"))
    say.info(f"shipped: {SHIPPED}; {why}" + ("" if here else f" (on this machine, not on a {board['name']})"))
    path = out / file_name(SHIPPED)
    return Built(path, path.stat().st_size, None, note)


def verdict(ratio: float, agrees: bool = True) -> str:
    """What the measurement says, of float's time over int8's."""
    first = "it agrees with the reference" if agrees else "its labels are nearly all the reference's"
    return (f"{first} and is {ratio:.2f}x faster than float" if ratio > 1 else
            f"{first}; on this machine float is {1 / ratio:.2f}x faster")


def require(agreement: Agreement, graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    """UserError that names the first layer that differs unless int8 agrees, or a warning with the figures.

    A warning is what the runtimes in TWICE get down to LEAST: their kernels round every product to 31 bits and then to
    8, so that about three codes in a thousand of each convolution land one beside. A net may magnify that: the
    reference itself, with as many codes moved by one, gives logits as far away. Labels are what counts there.
    """
    if agreement.ok:
        return
    figures = (f"equal labels {agreement.labels:.2%}, logits p99 {agreement.p99:g}, largest {agreement.worst} LSB")
    if runtime_name() in TWICE and agreement.labels >= LEAST:
        say.warn(f"{runtime_name()} rounds products twice, which the reference does not: {figures}; ai-edge-litert "
                 "rounds once")
        return
    raise UserError(f"the int8 file does not agree with the reference: {figures}; first layer that differs by more "
                    f"than ties: {differing(graph, inputs) or 'none, small differences add up'}",
                    f"{target.LABELS:.1%}, logits within {target.P99} LSB (p99) and {target.WORST} (all)",
                    "another target: --target arm or --target host")


def differing(graph: Graph, inputs: dict[str, np.ndarray]) -> str | None:
    """The first node that, given what its own inputs were in the file, differs from the reference by more than ties."""
    got = traced(graph, SHIPPED, {name: x[:TRACED] for name, x in inputs.items()})
    for node in graph.nodes:
        alone = {name: got[name] for name in node.inputs}
        reference.execute([node], alone)
        gap = np.abs(alone[node.output].astype(int) - got[node.output])
        if gap.max() > 1 or (gap > 0).mean() > TIES:
            return node.name
    return None


def runtime() -> type:
    """The interpreter class of the runtime that is installed; MissingError without one."""
    for name in RUNTIMES:
        if find_spec(name):
            return importlib.import_module(f"{name}.interpreter").Interpreter
    raise MissingError(missing())


def runtime_name() -> str:
    """Module of the runtime in use."""
    return runtime().__module__.split(".")[0]


class Session:
    """A .tflite file, by path or as bytes; takes and gives int8 codes whatever its own types are.

    threads: 0 means all cores.
    """

    def __init__(self, file: Path | bytes, graph: Graph, threads: int = 1):
        source = {"model_content": file} if isinstance(file, bytes) else {"model_path": os.fspath(file)}
        self.interpreter = runtime()(**source, num_threads=threads or os.cpu_count())
        self.interpreter.allocate_tensors()
        self.graph = graph
        self.places = {d["name"]: d["index"] for d in self.interpreter.get_input_details()}
        output = next(d for d in self.interpreter.get_output_details() if d["name"] == graph.output)
        self.output, self.floats = output["index"], output["dtype"] is np.float32

    def feed(self, inputs: dict[str, np.ndarray]) -> None:
        """Put one window's codes, name -> int8 (*shape), into the interpreter's own memory."""
        for name, place in self.places.items():
            x = inputs[name]
            held = self.interpreter.tensor(place)()[0]
            np.copyto(held, x.transpose(tflite_lowering.axes_in_file(x.ndim)))
            if self.floats:
                held *= np.float32(self.graph.tensors[name].scale)

    def codes(self, place: int, tensor: str) -> np.ndarray:
        """A tensor of the graph as int8 (*shape), from the interpreter's own memory."""
        held = self.interpreter.get_tensor(place)[0]
        if self.floats:
            scale = np.float32(self.graph.tensors[tensor].scale)
            held = np.clip(np.floor(held / scale + np.float32(0.5)), -128, 127).astype(np.int8)
        return held.transpose(np.argsort(tflite_lowering.axes_in_file(held.ndim)))

    def evaluate(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (class,) of one window."""
        self.feed(inputs)
        self.interpreter.invoke()
        return self.codes(self.output, self.graph.output)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (window, class) of int8 inputs (window, *shape), one window after the other."""
        return np.stack([self.evaluate({name: x[i] for name, x in inputs.items()})
                         for i in range(len(next(iter(inputs.values()))))])

    def call(self, inputs: dict[str, np.ndarray]) -> Callable[[], None]:
        """A function that evaluates the first window and nothing else, for timing."""
        self.feed({name: x[0] for name, x in inputs.items()})
        return self.interpreter.invoke


@functools.lru_cache(maxsize=4)
def _session(path: Path, changed: int) -> Session:
    return Session(path, target.open_run(path.parent.parent)[1])


def run(built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits; the session stays open between calls."""
    return _session(built.path, built.path.stat().st_mtime_ns).run(inputs)


def runner(built: Built, graph: Graph, threads: int = 1) -> target.Runner:
    """One window at a time, in memory that was allocated once."""
    session = Session(built.path, graph, threads)
    return lambda inputs: session.evaluate(target.checked(graph, inputs))


def calls(graph: Graph, built: Built, inputs: dict[str, np.ndarray], threads: int) -> dict:
    """form -> a function that evaluates the first window, for timing."""
    return {form: Session(built.path.parent / file_name(form), graph, threads).call(inputs)
            for form in tflite_lowering.FORMS}


def traced(graph: Graph, form: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape), by a form with all tensors as outputs."""
    file, places = tflite_lowering.traced(graph, form)
    session = Session(file, graph)
    found: dict[str, list[np.ndarray]] = {name: [] for name in places}
    for i in range(len(next(iter(inputs.values())))):
        session.evaluate({name: x[i] for name, x in inputs.items()})
        for name, codes in found.items():
            codes.append(session.codes(places[name], name))
    values = {name: np.stack(codes) for name, codes in found.items()} | inputs
    reference.execute([n for n in graph.nodes if n.output not in values], values)       # what is data in the file
    return values


def trace(graph: Graph, built: Built, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape), by the built form with all tensors as outputs."""
    return traced(graph, built.notes["form"], inputs)


def flash(built: Built, port: str | None) -> None:
    """Nothing is flashed under Linux."""
    folder = built.path.parent.parent
    say.info(f"copy the folder {folder} to the board (scp -r {folder} user@board:) and run there: python "
             f"bench/latency.py --run {folder.name} --target litert; {built.path.name} alone is what another runtime "
             "of .tflite files needs")
