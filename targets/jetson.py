# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Jetson through TensorRT: the graph as ONNX files from which the device builds its own engines.

Files in runs/<name>/jetson/: model.<form>.onnx (forms in onnx_tensorrt.py), golden windows, job.json, which says what
belongs together, and jetson_device.py, which builds, checks and measures engines there. An engine fits the device and
the TensorRT that built it, so none is made here: `build` asks the linter, NVIDIA's own importer where it is installed,
and ONNX Runtime, which executes the files in TensorRT's stead. No file has run on a Jetson yet.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import jetpacks, onnx_tensorrt, target
from targets.target import Agreement, Built, Runner
from train import runs, say
from train.manifest import Manifest
from train.say import MissingError, UserError

WINDOWS = 64            # golden ones that go to the device
DEVICE = "jetson_device.py"
STAND_IN = "ONNX Runtime, not by TensorRT"
CPU = "CPUExecutionProvider"
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)
HALF_READER = "6.1"     # the first JetPack that reads files with a float16 body
# precision of an engine -> (form of its file, form of its file in a strongly typed network)
ENGINES = {"int8": ("int8", "int8"), "fp16": ("float", "fp16"), "fp32": ("float", None)}


def missing() -> str | None:
    """What is not installed, with the command that installs it."""
    absent = [m for m in ("onnx", "onnxruntime") if find_spec(m) is None]
    return f"{' and '.join(absent)} not installed: pip install -e \".[jetson]\"" if absent else None


def file_name(form: str) -> str:
    """File of a form."""
    return f"model.{form}.onnx"


# ---- what goes to the device

def lower(graph: Graph, manifest: Manifest, out: Path, board: dict | None = None,
          options: target.Options | None = None) -> None:
    """Write the forms that the JetPack can build, golden windows, job.json and the program of the device."""
    jetpack = _jetpack(board, options.jetpack if options else None)
    inputs, logits = target.golden(out.parent, graph, WINDOWS)
    files = {file_name(form): onnx_tensorrt.lower(graph, form, jetpack) for form in onnx_tensorrt.forms(jetpack)}
    files |= {f"golden.{name}.bin": x.astype(np.int8).tobytes() for name, x in inputs.items()}
    files["golden.logits.bin"] = logits.astype(np.int8).tobytes()
    about = json.dumps(_job(graph, manifest, files, jetpack, len(logits)), indent=1) + "\n"
    if out.is_dir() and (not (out / "job.json").is_file() or (out / "job.json").read_text() != about):
        for old in (*out.glob("model.*.onnx"), *out.glob("golden.*.bin"), out / "result.json"):
            old.unlink(missing_ok=True)     # of another model or JetPack
    runs.write(out, files | {DEVICE: Path(__file__).with_name(DEVICE).read_bytes(), "job.json": about})


def _jetpack(board: dict | None, asked: str | None) -> str | None:
    """The JetPack asked for, else the only one that the board can have; UserError when it is not for the board."""
    known = board["jetpacks"] if board else []
    if asked is None:
        return known[0] if len(known) == 1 else None
    name = jetpacks.find(asked).name
    if known and name.split(".")[0] not in {k.split(".")[0] for k in known}:
        say.fail(f"JetPack {asked} is not for {board['name']}", ", ".join(known), f"--jetpack {known[-1]}")
    return name


def _job(graph: Graph, manifest: Manifest, files: dict[str, bytes], jetpack: str | None, windows: int) -> dict:
    """What jetson_device.py has to know, beside the files whose hashes it checks."""
    def described(name: str) -> dict:
        return {"name": name, "shape": [1, *graph.tensors[name].shape], "scale": graph.tensors[name].scale}

    def made(default: str, typed: str | None) -> dict:
        return {kind: file_name(form) for kind, form in (("default", default), ("strongly_typed", typed))
                if form and file_name(form) in files}
    hop = manifest.trigger.hop
    return {"schema": 1, "name": manifest.name, "identity": manifest.identity.hex(),
            "classes": [label.name for label in manifest.classes], "windows": windows,
            "inputs": [described(name) for name in graph.inputs], "output": described(graph.output),
            "forms": {engine: made(*pair) for engine, pair in ENGINES.items() if file_name(pair[0]) in files},
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "decision": asdict(manifest.decision), "period_s": hop / manifest.fs if hop else None,
            "limits": {"labels": target.LABELS, "p99": target.P99, "worst": target.WORST},
            "jetpack": jetpack, "opset": onnx_tensorrt.opset("float", jetpack)}


def _read_job(out: Path) -> dict:
    try:
        return json.loads((out / "job.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{out}/job.json cannot be read: {error}", "what targets/deploy.py wrote",
                        f"python targets/deploy.py --run {out.parent} --target jetson") from error


# ---- what can be known without a device

def build(out: Path, board: dict | None) -> Built:
    """Ask the linter, the importer and ONNX Runtime; UserError when TensorRT would refuse or int8 does not agree."""
    from targets import jetson_ssh
    manifest, graph = target.open_run(out.parent)
    job = _read_job(out)
    forms = onnx_tensorrt.forms(job["jetpack"])
    warnings = {form: _linted(out / file_name(form), form, job["jetpack"]) for form in forms}
    imported = _imported({form: out / file_name(form) for form in forms})
    inputs, expected = target.golden(out.parent, graph)
    agreed = {form: target.compare(manifest, expected, Session(out / file_name(form), graph).run(inputs))
              for form in forms}
    _show(agreed, warnings, imported)
    form = "int8" if "int8" in forms else "float"
    if form == "int8" and not agreed[form].ok:
        raise UserError(f"{file_name(form)}, executed by {STAND_IN}, does not agree with the reference: equal labels "
                        f"{agreed[form].labels:.2%}, p99 {agreed[form].p99:g} LSB, largest {agreed[form].worst} LSB",
                        f"{target.LABELS:.1%}, {target.P99} and {target.WORST} LSB",
                        f"python bench/parity.py --run {out.parent} --target jetson names the first layer that differs")
    here = "not built on a Jetson: the engine is built there"
    if not jetson_ssh.on_jetson():
        say.info(here)
    path = out / file_name(form)
    note = {"form": form, "jetpack": job["jetpack"], "opset": job["opset"], "executed_by": STAND_IN,
            "engine": "not built yet" if jetson_ssh.on_jetson() else here,
            "forms": {f: asdict(agreed[f]) | {"agrees": agreed[f].ok, "lint": warnings[f], "importer": imported[f]}
                      for f in forms}}
    return Built(path, path.stat().st_size, None, note)


def _linted(path: Path, form: str, jetpack: str | None) -> dict[str, int]:
    """Warnings, rule -> nodes; UserError with the first thing that TensorRT refuses."""
    from targets import trt_lint
    found = trt_lint.demand(path, jetpack or (HALF_READER if "fp16" in form else None))
    rules = [finding.rule for finding in found]
    return {rule: rules.count(rule) for rule in sorted(set(rules))}


def _imported(paths: dict[str, Path]) -> dict[str, str]:
    """form -> what NVIDIA's importer and builder say; UserError when they refuse a file."""
    from targets import trt_import
    absent = trt_import.missing()
    if absent:
        return dict.fromkeys(paths, f"not asked: {absent}")
    said = {}
    for form, verdict in zip(paths, trt_import.check(list(paths.values())), strict=True):
        if verdict.stage in ("parse", "build"):
            raise UserError(f"NVIDIA's importer refuses {paths[form].name}: {'; '.join(verdict.messages[:1])}",
                            "a file that it parses and builds", f"python targets/trt_lint.py {paths[form]} --importer")
        if not verdict.accepted:
            say.warn(f"NVIDIA's importer did not finish with {paths[form].name}: {'; '.join(verdict.messages[:1])}")
        said[form] = "taken" if verdict.accepted else verdict.stage
    return said


def _show(agreed: dict[str, Agreement], warnings: dict[str, dict[str, int]], imported: dict[str, str]) -> None:
    """The forms as a table."""
    say.table([(form, f"{a.labels:.2%}", a.p99, a.worst, "yes" if a.ok else "no", sum(warnings[form].values()),
                imported[form].split(":")[0]) for form, a in agreed.items()],
              (f"form, executed by {STAND_IN}", "equal labels", "p99 LSB", "max LSB", "agrees", "lint warnings",
               "NVIDIA's importer"))
    if not all(a.ok for a in agreed.values()):
        say.info("a form without int8 codes rounds nothing, one with a float16 body rounds more often; what does not "
                 "agree is for comparison")


# ---- ONNX Runtime

class Session:
    """A file, by path or as bytes, executed by ONNX Runtime as it is written; takes and gives int8 codes.

    threads: 0 means all cores. Without the option ONNX Runtime turns pairs into integer kernels of its own and
    quantizes weights and biases that have none, which TensorRT does not.
    """

    def __init__(self, file: Path | bytes, graph: Graph, threads: int = 1, providers=(CPU,)):
        if find_spec("onnxruntime") is None:
            raise MissingError(missing())
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(file if isinstance(file, bytes) else os.fspath(file), options,
                                                    providers=list(providers))
        self.graph = graph
        self.scales = {name: np.float32(tensor.scale) for name, tensor in graph.tensors.items()}
        self.feed = {name: np.empty((1, *graph.tensors[name].shape), np.float32) for name in graph.inputs}

    def values(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Values of the file for one window, name -> int8 (*shape)."""
        for name, held in self.feed.items():
            np.multiply(inputs[name], self.scales[name], out=held[0])
        return self.session.run(names, self.feed)

    def codes(self, values: np.ndarray, tensor: str) -> np.ndarray:
        """Real values as int8 codes of a tensor."""
        return np.clip(np.floor(values / self.scales[tensor] + 0.5), -128, 127).astype(np.int8)

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (class,) of one window."""
        return self.codes(self.values([self.graph.output], inputs)[0][0], self.graph.output)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (window, class) of int8 inputs (window, *shape), one window after the other."""
        return _each(self, inputs)


def _each(runner: Runner, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of every window."""
    count = len(next(iter(inputs.values())))
    return np.stack([runner({name: x[i] for name, x in inputs.items()}).copy() for i in range(count)])


def trace(graph: Graph, built: Built, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape), by the built form with all tensors as outputs."""
    note = built.notes
    session = Session(onnx_tensorrt.lower(graph, note["form"], note["jetpack"], trace=True), graph)
    names = [o.name for o in session.session.get_outputs()]
    count = len(next(iter(inputs.values())))
    windows = [session.values(names, {name: x[i] for name, x in inputs.items()}) for i in range(count)]
    columns = {name.removesuffix(".real"): np.concatenate(values)
               for name, values in zip(names, zip(*windows, strict=True), strict=True)}
    return inputs | {tensor: session.codes(values, tensor) for tensor, values in columns.items()}


def calls(graph: Graph, built: Built, inputs: dict[str, np.ndarray], threads: int) -> dict:
    """What -> a function that evaluates the first window, for timing; on the processor, not by TensorRT."""
    one = {name: x[0] for name, x in inputs.items()}
    made = {form: built.path.parent / file_name(form) for form in built.notes["forms"]}
    return {f"{form}, ONNX Runtime": functools.partial(Session(path, graph, threads), one)
            for form, path in made.items()}


# ---- live

def runner(built: Built, graph: Graph, threads: int = 1) -> Runner:
    """TensorRT in the worker of jetson_device.py where its engine is, else ONNX Runtime; says which."""
    found = _worker(built) or _providers(built, graph, threads)

    def evaluate(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return found(target.checked(graph, inputs))
    return evaluate


def _worker(built: Built) -> Runner | None:
    """The engine on this Jetson that was built from this very file; None without one."""
    from targets import jetson_ssh
    folder = built.path.parent
    engine = "int8" if built.notes["form"] == "int8" else "fp16"
    if not jetson_ssh.on_jetson() or not (folder / "engines" / f"{engine}.engine").is_file():
        return None
    again = f"python3 {folder / DEVICE} --build"
    job = _read_job(folder)
    try:
        of = json.loads((folder / "engines" / f"{engine}.json").read_text())["engine"]
        fresh = job["sha256"].get(of["model"]) == of["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        fresh = False
    if not fresh:
        say.warn(f"the {engine} engine is of another model: {again}")
        return None
    try:
        worker = jetson_ssh.Worker(jetson_ssh.worker_command(folder, engine), job)
    except MissingError as error:
        say.warn(f"the {engine} engine cannot be used: {error.what}")
        return None
    say.info(f"live by TensorRT {worker.about.get('tensorrt', '')}, {engine} engine")
    return worker


def _providers(built: Built, graph: Graph, threads: int) -> Session:
    """ONNX Runtime with the fastest provider that it has."""
    if find_spec("onnxruntime") is None:
        raise MissingError(missing())
    import onnxruntime
    able = onnxruntime.get_available_providers()
    kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(built.path.parent / "engines"),
            "trt_fp16_enable": "1", "trt_int8_enable": "1" if built.notes["form"] == "int8" else "0"}
    chosen = [(name, kept) if name == PROVIDERS[0] else name for name in PROVIDERS if name in able]
    session = Session(built.path, graph, threads, chosen)
    name = session.session.get_providers()[0].removesuffix("ExecutionProvider")
    how = "ONNX Runtime, by its TensorRT" if name == "Tensorrt" else f"{STAND_IN} ({name})"
    say.info(f"{built.path.name} executed by {how}")
    return session


@functools.lru_cache(maxsize=4)
def _opened(path: Path, changed: int, form: str) -> Runner:
    return runner(Built(path, 0, None, {"form": form}), target.open_run(path.parent.parent)[1])


def run(built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits; engine or session stay open between calls."""
    return _each(_opened(built.path, built.path.stat().st_mtime_ns, built.notes["form"]), inputs)


def flash(built: Built, port: str | None) -> None:
    """Nothing is flashed under Linux."""
    folder = built.path.parent
    say.info(f"copy the folder {folder} to the Jetson (scp -r {folder} user@jetson:) and run there: python3 "
             f"jetson/{DEVICE}, which builds and checks the engines; or from here: python targets/deploy.py "
             f"--run {folder.parent} --target jetson --device user@jetson")
