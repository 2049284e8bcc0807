# SPDX-License-Identifier: Apache-2.0
"""What a target is: five verbs and what it built; and how near to the reference a build must be.

Codes are int8: inputs name -> (window, *shape), logits (window, class).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from compress import graph as graphs
from compress.graph import Graph
from train import manifest as manifests
from train import runs, score
from train.manifest import Manifest
from train.say import UserError, choose

LABELS, P99, WORST = 0.995, 4, 12       # share of equal labels; difference of logits in LSB
ENOUGH = 2000                           # windows that decide about LABELS
BOARDS_OF = {"litert": "arm"}           # target -> the target whose boards it runs on as well


@dataclass(frozen=True)
class Options:
    """What a user may choose beside the board. weights: bits of a weight, 16 are faster on some cores and take twice
    the flash. fs_in: rate of the front-end in Hz, None: the model's. sensor: front-end chip on the board, None: the
    host sends the samples. jetpack: that of the Jetson, None: files for every one from 5.0 on."""

    weights: int = 8
    fs_in: float | None = None
    sensor: str | None = None
    jetpack: str | None = None


@dataclass(frozen=True)
class Built:
    """What `build` made. flash: bytes of the model on the device; ram: bytes it needs, None under an operating system.

    `notes` is what the target found out while building (measurements, choices), as plain JSON.
    """

    path: Path
    flash: int
    ram: int | None
    notes: dict = field(default_factory=dict)


class Target(Protocol):
    """The verbs of a target module, in the order in which `deploy.py` uses them.

    A target that runs in this process also has `runner(built, graph, threads=1)`, a Runner for live use.
    """

    def missing(self) -> str | None:
        """What keeps the target from running here, with the command that gets it; None when nothing does."""

    def lower(self, graph: Graph, manifest: Manifest, out: Path, board: dict | None, options: Options) -> None:
        """Write the graph in the target's form into `out`, a folder inside the run folder.

        UserError when it cannot run on the board.
        """

    def build(self, out: Path, board: dict | None) -> Built:
        """Turn what `lower` wrote into what the device runs."""

    def run(self, built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits of a batch of windows."""

    def flash(self, built: Built, port: str | None) -> None:
        """Put the build on a device, or say in one sentence what to copy where."""


class Runner(Protocol):
    """One window at a time, loaded once in less than a second, its buffers made beforehand."""

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (class,) of one window's inputs, name -> int8 (*shape); UserError when they are not the graph's.

        The logits are good until the next call.
        """


def checked(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One window's inputs in the graph's order; UserError when a name, a shape or the type is not the graph's."""
    for name in graph.inputs:
        x, shape = inputs.get(name), graph.tensors[name].shape
        if x is None or x.shape != shape or x.dtype != np.int8:
            found = "is missing" if x is None else f"is {x.dtype} {x.shape}"
            raise UserError(f"the input {name!r} {found}", f"int8 {shape}")
    extra = sorted(set(inputs) - set(graph.inputs))
    if extra:
        raise UserError(f"the model has no input {extra[0]!r}", ", ".join(graph.inputs))
    return {name: inputs[name] for name in graph.inputs}


@dataclass(frozen=True)
class Agreement:
    """How a build compares with the reference: windows, share of equal labels, differences of logits in LSB."""

    windows: int
    labels: float
    p99: float
    worst: int

    @property
    def ok(self) -> bool:
        """Within what every runtime that rounds in its own way must keep.

        Of fewer windows than ENOUGH, two standard deviations more may differ: 3 of 256 say little about 0.5 %.
        """
        allowed = (1 - LABELS) * self.windows
        if self.windows < ENOUGH:
            allowed += 2 * (allowed * LABELS) ** 0.5
        return round((1 - self.labels) * self.windows) <= allowed and self.p99 <= P99 and self.worst <= WORST


def compare(manifest: Manifest, expected: np.ndarray, got: np.ndarray) -> Agreement:
    """Agreement of two sets of int8 logits (window, class)."""
    gap = np.abs(expected.astype(int) - got.astype(int))
    same = (labels(manifest, expected) == labels(manifest, got)).reshape(len(gap), -1).all(1)
    return Agreement(len(gap), float(same.mean()), float(np.percentile(gap, 99)), int(gap.max()))


def labels(manifest: Manifest, logits: np.ndarray) -> np.ndarray:
    """What one window alone says: class index (window,), or presence (window, class) for a threshold rule."""
    rule = manifest.decision
    return score.decide(logits, np.ones(len(logits), int), rule.rule, rule.offsets)


def open_run(run: str | Path) -> tuple[Manifest, Graph]:
    """Manifest and integer graph of a frozen run; UserError when it is not frozen yet."""
    manifest = manifests.load(run)
    if not manifest.frozen and manifest.preset.startswith("paper"):
        raise UserError(f"{run} has the paper's size, which has no integer graph", "a preset for devices",
                        f"float and Q/DQ ONNX files of it: python compress/export_onnx.py --run {run}")
    if not manifest.frozen:
        raise UserError(f"{run} is trained but not quantized", "a run that compress/qat.py has frozen",
                        f"python compress/qat.py --arch {manifest.arch} --run {run}")
    return manifest, graphs.load(run, manifest.graph_sha256)


def golden(run: str | Path, graph: Graph, count: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(inputs, the reference's logits) of a run's golden windows, the first `count` of them."""
    path = Path(run) / "golden.npz"
    if not path.is_file():
        raise UserError(f"no golden.npz in {run}", "windows with the reference's logits",
                        f"quantize again: python compress/qat.py --arch local-lead --run {run}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {name: arrays[f"in.{name}"][:count] for name in graph.inputs}
            return inputs, arrays["out"][:count]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}", f"arrays {['in.' + n for n in graph.inputs]} and out",
                        f"quantize again: python compress/qat.py --arch local-lead --run {run}") from error


def record_build(run: str | Path, name: str, built: Built, identity: bytes) -> None:
    """Add a build to builds.json."""
    entry = {"path": built.path.relative_to(run).as_posix(), "flash": built.flash, "ram": built.ram,
             "identity": identity.hex(), "notes": built.notes}
    runs.write(run, {"builds.json": json.dumps(read_builds(run) | {name: entry}, indent=2) + "\n"})


def read_builds(run: str | Path) -> dict:
    """builds.json: target -> path, flash, ram, identity, notes."""
    path = Path(run) / "builds.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "what targets/deploy.py wrote", f"delete {path}") from error


def open_build(run: str | Path, name: str, manifest: Manifest) -> Built:
    """The build of this very model for a target; UserError when there is none or it is of another model."""
    entry = read_builds(run).get(name)
    fix = f"python targets/deploy.py --run {run} --target {name}"
    if entry is None:
        raise UserError(f"{run} is not built for {name}", "an entry in builds.json", fix)
    if entry["identity"] != manifest.identity.hex():
        raise UserError(f"the {name} build in {run} is of another model ({entry['identity'][:16]})",
                        manifest.identity.hex()[:16], fix)
    path = Path(run) / entry["path"]
    if not path.is_file():
        raise UserError(f"{path} is gone", "the file that builds.json names", fix)
    return Built(path, entry["flash"], entry["ram"], entry["notes"])


def boards(target: str) -> dict[str, dict]:
    """The boards of boards.toml that a target serves, by key; each knows its own `key`."""
    try:
        import tomllib
    except ImportError:                 # Python 3.10
        import tomli as tomllib
    found, served = tomllib.loads((Path(__file__).parent / "boards.toml").read_text()), BOARDS_OF.get(target, target)
    return {key: facts | {"key": key} for key, facts in found.items() if facts["target"] == served}


def read_board(name: str, target: str) -> dict:
    """A board's facts from boards.toml; UserError when the target does not serve it."""
    served = boards(target)
    return served[choose(name, served, f"{target} board")]


def interleaved(calls: dict[str, Callable[[], object]], seconds: float, warm_up: int = 20) -> dict[str, np.ndarray]:
    """Nanoseconds of each call, int64 (sample,): the calls take turns, so that a busy moment hits all alike."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    samples = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            samples[name].append(time.perf_counter_ns() - start)
    return {name: np.array(taken) for name, taken in samples.items()}


def percentiles(nanoseconds: np.ndarray) -> dict:
    """{"p50_ms", "p90_ms", "p99_ms", "samples"}."""
    p50, p90, p99 = np.percentile(nanoseconds, (50, 90, 99)) / 1e6
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "samples": len(nanoseconds)}
