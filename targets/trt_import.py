# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own ONNX importer and builder, which run without a GPU: does TensorRT take a file?

`check` parses and builds models with TensorRT-RTX, strongly typed, for compute capability 8.6: the nearest that it
knows to a Jetson Orin's 8.7. It shares TensorRT's importer, but it is a recent one: what an older JetPack refuses,
trt_lint.py says. The engine it builds is thrown away; it does not run on a Jetson.

The library runs in a process of its own, because without a driver it may crash; a crash is never an acceptance.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

MODULE = "tensorrt_rtx_bindings"
SECONDS = 120           # that one model may take
MESSAGES = 20           # of one model, kept
ROOT = pathlib.Path(__file__).resolve().parents[1]
CHILD = "import sys; from targets import trt_import; trt_import._serve(int(sys.argv[1]), sys.argv[2:])"


@dataclass(frozen=True)
class Verdict:
    """What became of one model: `stage` is parse, build, crash, time or, when it was accepted, done.

    layers: kind of layer -> how many the importer made, empty when it refused. bytes: size of the engine.
    """

    accepted: bool
    stage: str
    messages: tuple[str, ...]
    seconds: float
    layers: dict[str, int]
    bytes: int


def missing() -> str | None:
    """What keeps the importer from running here, with the command that gets it."""
    if sys.platform != "linux":
        return "NVIDIA's importer is used on Linux only; everything else works without it"
    if importlib.util.find_spec(MODULE) is None:
        return 'NVIDIA\'s importer is not installed; pip install -e ".[jetson-check]" gets it'
    return None


def check(models: Sequence[bytes | pathlib.Path], seconds: int = SECONDS) -> list[Verdict]:
    """Parse and build every model, each within `seconds`; MissingError without the importer.

    One process does all; when a model brings it down, another goes on behind it.
    """
    from train.say import MissingError
    absent = missing()
    if absent:
        raise MissingError(absent)
    found: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [_stored(model, pathlib.Path(folder) / f"{i}.onnx") for i, model in enumerate(models)]
        while len(found) < len(paths):
            lines, code, last = _child(paths[len(found):], seconds)
            found += [_verdict(line) for line in lines]
            if len(found) < len(paths):
                found.append(_fallen(code, last, seconds))
    return found


def _stored(model: bytes | pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """A model as a file."""
    if isinstance(model, bytes):
        path.write_bytes(model)
        return path
    return pathlib.Path(model).resolve()


def _child(paths: Sequence[pathlib.Path], seconds: int) -> tuple[list[dict], int, str]:
    """(finished models, exit code, last words on stderr) of one process; every model sets an alarm that ends it."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(seconds), *map(str, paths)],
                          stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=ROOT)
    lines = []
    for line in done.stdout.splitlines()[:len(paths)]:
        with contextlib.suppress(ValueError):       # cut off in the middle
            lines.append(json.loads(line))
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return lines, done.returncode, words[-1] if words else ""


def _verdict(line: dict) -> Verdict:
    return Verdict(line["stage"] == "done", line["stage"], tuple(line["messages"]), line["seconds"], line["layers"],
                   line["bytes"])


def _fallen(code: int, last: str, seconds: int) -> Verdict:
    """The model at which the process ended."""
    if code == -signal.SIGALRM:
        return Verdict(False, "time", (f"not parsed and built within {seconds} s",), float(seconds), {}, 0)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Verdict(False, "crash", (f"the importer's process ended with {how}" + (f": {last}" if last else ""),), 0.0,
                   {}, 0)


def _serve(seconds: int, paths: Sequence[str]) -> None:
    """The child: one JSON line a model. The library may write to stdout, so that goes to stderr."""
    import os
    import time
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.alarm(seconds)
    trt = importlib.import_module(MODULE)
    for path in paths:
        signal.alarm(seconds)
        start = time.perf_counter()
        result = _import(trt, path)
        print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 3)}), file=out)
    signal.alarm(0)
    out.flush()
    os._exit(0)         # without the library's own end, which may crash where there is no driver


def _import(trt, path: str) -> dict:
    """Parse and build one file."""
    messages: list[str] = []

    class Logger(trt.ILogger):
        """Keeps errors and warnings."""

        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, text):
            if severity <= trt.ILogger.Severity.WARNING and len(messages) < MESSAGES:
                messages.append(text.strip())
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    result = {"stage": "parse", "messages": messages, "layers": {}, "bytes": 0}
    if not parser.parse_from_file(path):
        told = [parser.get_error(i) for i in range(parser.num_errors)]
        messages[:0] = [f"{e.node_name() or 'the file'} {e.node_operator()}: {e.desc()}" for e in told]
        return result
    for i in range(network.num_layers):
        kind = network.get_layer(i).type.name.lower()
        result["layers"][kind] = result["layers"].get(kind, 0) + 1
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    engine = builder.build_serialized_network(network, config)
    return result | ({"stage": "build"} if engine is None else {"stage": "done", "bytes": engine.nbytes})

