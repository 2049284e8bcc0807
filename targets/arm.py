# SPDX-License-Identifier: Apache-2.0
"""ARM Linux through ONNX Runtime's CPU provider: the graph as Q/DQ ONNX, the fastest form that agrees is shipped.

Files in runs/<name>/arm/: model.int8.onnx, model.mixed.onnx, model.float.onnx and chosen.json, which says which of them
to run and what was measured where. Input and output of the quantized forms are uint8 codes + 128.
"""

from __future__ import annotations

import functools
import json
import os
import platform
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import onnx_qdq, target
from targets.target import Agreement, Built
from train import runs, say
from train.manifest import Manifest
from train.say import MissingError, UserError

SECONDS = 3.0           # of measuring in build
REFERENCE_FORM = "float"
WORTH = 1.1             # times faster that a form must be to be worth more differences from the reference
ZERO = np.uint8(128)    # the file's code of 0
HALF, BOTTOM, TOP = np.float32(0.5), np.float32(-128), np.float32(127)


def missing() -> str | None:
    """What is not installed, with the command that installs it."""
    absent = [m for m in ("onnx", "onnxruntime") if find_spec(m) is None]
    return f"{' and '.join(absent)} not installed: pip install -e \".[arm]\"" if absent else None


def file_name(form: str) -> str:
    """File of a form."""
    return f"model.{form}.onnx"


def lower(graph: Graph, manifest: Manifest, out: Path, board: dict | None = None,
          options: target.Options | None = None) -> None:
    """Write all forms."""
    runs.write(out, {file_name(form): onnx_qdq.lower(graph, form) for form in onnx_qdq.FORMS})


def build(out: Path, board: dict | None) -> Built:
    """Measure the forms against each other on this machine and choose one; chosen.json keeps the figures.

    UserError when no form agrees with the reference.
    """
    manifest, graph = target.open_run(out.parent)
    inputs, expected = target.golden(out.parent, graph)
    sessions = {form: Session(out / file_name(form), graph) for form in onnx_qdq.FORMS}
    agreed = {form: target.compare(manifest, expected, s.run(inputs)) for form, s in sessions.items()}
    times = target.interleaved({form: s.call(inputs) for form, s in sessions.items()}, SECONDS)
    measured = {form: target.percentiles(t) for form, t in times.items()}
    form, why = pick(agreed, {form: m["p50_ms"] for form, m in measured.items()})
    note = {"form": form, "file": file_name(form), "why": why, "threads": 1, "machine": say.machine(),
            "board": board["name"] if board else None, "measured_on_board": on_board(board),
            "forms": {f: measured[f] | asdict(agreed[f]) for f in measured}}
    runs.write(out, {"chosen.json": json.dumps(note, indent=2) + "\n"})
    say.table([(f, m["p50_ms"], m["p90_ms"], m["p99_ms"], m["samples"], f"{m['labels']:.2%}", m["p99"], m["worst"])
               for f, m in note["forms"].items()],
              ("form, 1 thread", "p50 ms", "p90 ms", "p99 ms", "samples", "equal labels", "p99 LSB", "max LSB"))
    say.info(f"shipped: {form}; {why}" + ("" if on_board(board) else f" (on this machine, not on a {board['name']}: "
                                           "run the same command there before trusting the choice)"))
    path = out / file_name(form)
    return Built(path, path.stat().st_size, None, note)


def pick(agreed: dict[str, Agreement], p50: dict[str, float]) -> tuple[str, str]:
    """(form, why): the fastest form whose labels and logits agree with the reference. UserError when none does.

    Of forms about as fast, within WORTH, the one nearest to the reference: golden windows are few.
    """
    able = {form: p50[form] for form, agreement in agreed.items() if agreement.ok}
    if not able:
        worst = ", ".join(f"{form} {a.labels:.2%}" for form, a in agreed.items())
        raise UserError(f"no ONNX form agrees with the reference: equal labels {worst}",
                        f"{target.LABELS:.1%}, logits within {target.P99} LSB (p99) and {target.WORST} (all)",
                        "python bench/parity.py --run RUN names the first layer that differs")
    about = [f for f in able if able[f] <= WORTH * min(able.values())]
    form = min(about, key=lambda f: (-agreed[f].labels, agreed[f].p99, agreed[f].worst, able[f]))
    ratio = p50[REFERENCE_FORM] / p50[form]
    if form == REFERENCE_FORM:
        return form, f"no other form that agrees with the reference is {WORTH - 1:.0%} faster"
    if ratio < 1:
        return form, f"it agrees with the reference; float is {1 / ratio:.2f}x faster but does not agree"
    return form, f"it is {ratio:.2f}x faster than float and agrees with the reference"


def on_board(board: dict | None) -> bool:
    """True unless a board was named that this machine cannot be."""
    return board is None or platform.machine() == board["machine"]


class Session:
    """An ONNX file, by path or as bytes, on the CPU provider; takes and gives int8 codes whatever its own types are.

    It reads and writes arrays that are bound to it once. threads: 0 means all cores.
    """

    def __init__(self, file: Path | bytes, graph: Graph, threads: int = 1):
        if find_spec("onnxruntime") is None:
            raise MissingError(missing())
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(file if isinstance(file, bytes) else os.fspath(file), options,
                                                    providers=["CPUExecutionProvider"])
        self.floats = "float" in self.session.get_inputs()[0].type
        self.output = graph.output
        self.scales = {name: np.float32(tensor.scale) for name, tensor in graph.tensors.items()}
        kind = np.float32 if self.floats else np.uint8
        self.held = {name: np.zeros((1, *graph.tensors[name].shape), kind) for name in graph.inputs}
        self.given = np.zeros((1, *graph.tensors[graph.output].shape), kind)
        self.binding = self.session.io_binding()
        self.bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in self.held.items()}
        self.bound[graph.output] = onnxruntime.OrtValue.ortvalue_from_numpy(self.given)
        for name in graph.inputs:
            self.binding.bind_ortvalue_input(name, self.bound[name])
        self.binding.bind_ortvalue_output(graph.output, self.bound[graph.output])

    def feed(self, inputs: dict[str, np.ndarray]) -> None:
        """One window's int8 codes, name -> (*shape), as the file wants them."""
        for name, held in self.held.items():
            if self.floats:
                np.multiply(inputs[name], self.scales[name], out=held[0])
            else:
                np.bitwise_xor(inputs[name].view(np.uint8), ZERO, out=held[0])

    def invoke(self) -> None:
        """Evaluate what was fed."""
        self.session.run_with_iobinding(self.binding)

    def evaluate(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (class,) of one window, name -> int8 (*shape)."""
        self.feed(inputs)
        self.invoke()
        return self.codes(self.given[0], self.output)

    def codes(self, values: np.ndarray, tensor: str) -> np.ndarray:
        """A value of the file as int8 codes of a tensor."""
        if values.dtype == np.uint8:
            return (values ^ ZERO).view(np.int8)
        codes = values / self.scales[tensor]
        codes += HALF
        np.floor(codes, out=codes)
        np.minimum(codes, TOP, out=codes)       # np.clip costs three times as much of a few logits
        np.maximum(codes, BOTTOM, out=codes)
        return codes.astype(np.int8)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (window, class) of int8 inputs (window, *shape), one window after the other."""
        return np.stack([self.evaluate(window) for window in _windows(inputs)])

    def every(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs of the file, name -> (window, *shape) in its own types."""
        names, rows = [o.name for o in self.session.get_outputs()], []
        for window in _windows(inputs):
            self.feed(window)
            rows.append(self.session.run(names, self.held))
        return {name: np.concatenate(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}

    def call(self, inputs: dict[str, np.ndarray]):
        """A function that evaluates the first window and nothing else, for timing."""
        self.feed(next(_windows(inputs)))
        return self.invoke


def _windows(inputs: dict[str, np.ndarray]):
    """Each window's inputs, name -> (*shape), C-contiguous."""
    inputs = {name: np.ascontiguousarray(x) for name, x in inputs.items()}
    return ({name: x[i] for name, x in inputs.items()} for i in range(len(next(iter(inputs.values())))))


@functools.lru_cache(maxsize=4)
def _session(path: Path, changed: int) -> Session:
    return Session(path, target.open_run(path.parent.parent)[1])


def run(built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits; the session stays open between calls."""
    return _session(built.path, built.path.stat().st_mtime_ns).run(inputs)


def runner(built: Built, graph: Graph, threads: int = 1) -> target.Runner:
    """One window at a time, in memory that was bound once; needs onnxruntime alone."""
    session = Session(built.path, graph, threads)
    return lambda inputs: session.evaluate(target.checked(graph, inputs))


def calls(graph: Graph, built: Built, inputs: dict[str, np.ndarray], threads: int) -> dict:
    """form -> a function that evaluates the first window, for timing."""
    return {form: Session(built.path.parent / file_name(form), graph, threads).call(inputs) for form in onnx_qdq.FORMS}


def trace(graph: Graph, built: Built, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape), by the built form with all tensors as outputs."""
    session = Session(onnx_qdq.lower(graph, built.notes["form"], trace=True), graph)
    values = {name.removesuffix(".codes").removesuffix(".real"): x for name, x in session.every(inputs).items()}
    return inputs | {tensor: session.codes(x, tensor) for tensor, x in values.items()}


def flash(built: Built, port: str | None) -> None:
    """Nothing is flashed under Linux."""
    run_folder = built.path.parent.parent
    say.info(f"copy the folder {run_folder} to the board (scp -r {run_folder} user@board:) and run there: "
             f"python targets/deploy.py --run {run_folder.name} --target arm, which measures and chooses on the board")
