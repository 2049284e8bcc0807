# SPDX-License-Identifier: Apache-2.0
"""The generated C on this computer: the same files through its own compiler, called from Python.

This is the bit-exact twin of the microcontroller's code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import c_model, front_data, target, toolchain
from targets.pack import CORES, Core
from train import runs
from train.manifest import Manifest
from train.say import MissingError, UserError

C = Path(__file__).parent / "c"
ENGINE = ("ecg.c", "ecg_net.c", "ecg_front.c", "ecg_rpeak.c", "ecg_beats.c", "ecg_rhythm.c")
FLAGS = ("-std=c11", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function")
ROOM = 4096         # decisions fetched in one call


def sources(kernels) -> list[Path]:
    """The files of targets/c/ that hold these kernels, and those that they call."""
    texts = {path: path.read_text() for path in sorted(C.glob("*.c"))}
    homes = {k: path for path, text in texts.items() for k in re.findall(r"^void ecg_(\w+)\(", text, re.MULTILINE)}
    lost = set(kernels) - set(homes)
    if lost:
        raise MissingError(f"no C for the kernels {', '.join(sorted(lost))}", "a file of targets/c/ that defines them")
    found, wanted = set(), {homes[k] for k in kernels}
    while wanted:           # a variant may leave some layers to the plain kernel
        found |= wanted
        called = {k for path in wanted for k in re.findall(r"\becg_(\w+)\(", texts[path])}
        wanted = {homes[k] for k in called if k in homes} - found
    return sorted(found)


@dataclass(frozen=True)
class Objects:
    """Compiles C files of this project once and keeps the objects in `folder`; flags and headers count."""

    folder: Path
    flags: tuple[str, ...] = FLAGS

    def __call__(self, path: Path) -> Path:
        """The object of a file."""
        headers = b"".join(h.read_bytes() for h in sorted([*C.glob("*.h"), *C.glob("*.def")]))
        name = hashlib.sha256(repr(self.flags).encode() + headers + path.read_bytes()).hexdigest()[:16]
        target = self.folder / f"{path.stem}-{name}.o"
        if not target.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            # another process may make the same one: the name appears when it is whole
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                made = Path(work) / "object.o"
                cc(self.flags, "-c", path, "-o", made)
                os.replace(made, target)
        return target


def cc(flags, *arguments) -> None:
    """Run this computer's compiler; UserError with its words."""
    compiler = toolchain.compiler("host")
    done = subprocess.run([*compiler.command, *flags, f"-I{C}", *map(os.fspath, arguments)], capture_output=True,
                          text=True, errors="replace")
    if done.returncode:
        raise UserError(f"{compiler.name} failed:\n{done.stderr[:2000]}", "C that compiles")


def write(source: c_model.Source, out: Path) -> None:
    """model.c, model.h and kernels.c into `out`."""
    runs.write(out, {"model.c": source.code, "model.h": source.header,
                     "kernels.c": c_model.kernel_table(source.kernels)})


def compile(kernels, out: Path, objects: Objects) -> Path:
    """What `write` wrote, with the engine, as out/model.so."""
    library = out / "model.so"
    made = [objects(p) for p in [*sources(kernels), *(C / name for name in ENGINE), C / "host" / "ecg_host.c"]]
    cc(objects.flags, f"-I{out}", out / "model.c", out / "kernels.c", *made, "-o", library)
    return library


def build(graph: Graph, manifest: Manifest | None, out: Path, core: Core = CORES["host"],
          objects: Objects | None = None, **options) -> Path:
    """Generate and compile a model into out/model.so; `options` are those of c_model.generate."""
    source = c_model.generate(graph, manifest, core, **options)
    write(source, out)
    return compile(source.kernels, out, objects or Objects(out / "objects"))


class _Rate(ctypes.Structure):
    """ecg_rate."""

    _fields_ = (("table", ctypes.c_void_p), ("down", ctypes.c_uint32), ("up", ctypes.c_uint16),
                ("taps", ctypes.c_uint16))


# A decision: sample at the model's rate (the window's last, or R), bit k of `present` for class k, the class of an
# argmax rule or -1, whether it counts for nothing because the signal was bad or settling, the window's logits
def _decisions(classes: int) -> np.dtype:
    return np.dtype([("sample", "<u4"), ("present", "<u4"), ("top", "<i4"), ("unreliable", "<i4"),
                     ("logits", "i1", (classes,))])


class Twin:
    """A compiled model. Inputs are int8 as the manifest names them; logits are int8. `fs_in`: Hz of the samples that
    `decide` takes, by default those of the model."""

    def __init__(self, library: Path, graph: Graph, fs_in: float | None = None, fs: int | None = None):
        self.graph = graph
        self.classes = graph.tensors[graph.output].shape[0]
        self._library = lib = ctypes.CDLL(os.fspath(library.resolve()))
        lib.ecg_host_open.restype = ctypes.c_void_p
        lib.ecg_host_memory.restype = ctypes.c_uint32
        error = ctypes.c_int()
        self._rate, self._table = None, None
        if fs_in is not None and fs_in != fs:
            fields = front_data.rate(fs_in, fs).fields
            self._table = np.ascontiguousarray(fields["table"].values, np.int16)      # the library keeps the address
            self._rate = ctypes.pointer(_Rate(self._table.ctypes.data, fields["down"], fields["up"], fields["taps"]))
        self._state = ctypes.c_void_p(lib.ecg_host_open(self._rate, ctypes.byref(error)))
        if not self._state:
            raise UserError(f"{library} does not start: error {error.value} of ecg.h", "a build of this release",
                            "build it again: python targets/deploy.py --target host --run R")
        self._decided = ctypes.c_int32()

    def __del__(self):
        if getattr(self, "_state", None):
            self._library.ecg_host_close(self._state)
            self._state = None

    @property
    def memory(self) -> int:
        """Bytes of RAM that the engine takes from its caller."""
        return self._library.ecg_host_memory(self._rate)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """int8 logits (window, class) of a batch of windows."""
        arrays = [np.ascontiguousarray(inputs[name], np.int8) for name in self.graph.inputs]
        count = len(arrays[0])
        logits = np.empty((count, self.classes), np.int8)
        sizes = (ctypes.c_int32 * len(arrays))(*(a[0].size if count else 0 for a in arrays))
        error = self._library.ecg_host_windows(self._state, count, _pointers(arrays), sizes, _pointer(logits))
        if error:
            raise UserError(f"the build does not evaluate single windows (error {error} of ecg.h)",
                            "a build with the window form", "python targets/deploy.py --target host --run R")
        return logits

    def runner(self):
        """A callable, {name: int8 (*shape)} -> int8 logits (class,), whose buffers are made once."""
        held = {name: np.empty(self.graph.tensors[name].shape, np.int8) for name in self.graph.inputs}
        logits = np.empty(self.classes, np.int8)
        sizes = (ctypes.c_int32 * len(held))(*(x.size for x in held.values()))
        arguments = self._state, 1, _pointers(held.values()), sizes, _pointer(logits)

        def evaluate(inputs: dict[str, np.ndarray]) -> np.ndarray:
            for name, x in target.checked(self.graph, inputs).items():
                held[name][:] = x
            if self._library.ecg_host_windows(*arguments):
                raise UserError("the build does not evaluate single windows", "a build with the window form",
                                "python targets/deploy.py --target host --run R")
            return logits
        return evaluate

    def trace(self, inputs: dict[str, np.ndarray], sizes: list[int]) -> list[np.ndarray]:
        """int8 (window, size) of every call of the window program, in its order; `sizes` are the codes each writes."""
        arrays = [np.ascontiguousarray(inputs[name], np.int8) for name in self.graph.inputs]
        out = np.empty((len(arrays[0]), sum(sizes)), np.int8)
        for window in range(len(out)):
            error = self._library.ecg_host_trace(self._state, _pointers([a[window] for a in arrays]),
                                                 _pointer(out[window]))
            if error:
                raise UserError(f"the build does not evaluate single windows (error {error} of ecg.h)")
        return np.split(out, np.cumsum(sizes)[:-1], axis=1)

    def reset(self) -> None:
        """A new record begins."""
        self._library.ecg_host_reset(self._state)
        self._decided.value = 0

    def push(self, codes: np.ndarray, sides: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """int8 (lead, n) -> int8 (decision, class) of the decisions they complete; sides int8 (decision, *shape) from
        the record's first decision on."""
        frames = np.ascontiguousarray(codes.T, np.int8)
        arrays = [np.ascontiguousarray(sides[name], np.int8) for name in self.graph.inputs[1:]]
        sizes = (ctypes.c_int32 * max(len(arrays), 1))(*(a[0].size for a in arrays))
        parts, at = [], 0
        # a call may decide ROOM times; a step is a sample at least
        for at in range(0, len(frames), ROOM):
            part = frames[at:at + ROOM]
            logits = np.empty((len(part), self.classes), np.int8)
            found = self._library.ecg_host_stream(self._state, _pointer(part), len(part), _pointers(arrays), sizes,
                                                  ctypes.byref(self._decided), _pointer(logits), len(part))
            parts.append(logits[:found])
        return np.concatenate(parts) if parts else np.empty((0, self.classes), np.int8)

    def decide(self, uv: np.ndarray) -> np.ndarray:
        """int32 microvolts (lead, n) through front end, network and decision rule -> the decisions they complete."""
        frames = np.ascontiguousarray(uv.T, np.int32)
        found = np.empty((ROOM, 4), np.uint32)
        logits = np.empty((ROOM, self.classes), np.int8)
        parts, taken = [], ctypes.c_int32()
        while True:
            made = self._library.ecg_host_push(self._state, _pointer(frames), len(frames), ctypes.byref(taken),
                                               _pointer(found), _pointer(logits), ROOM)
            rows = np.empty(made, _decisions(self.classes))
            for i, name in enumerate(("sample", "present", "top", "unreliable")):
                rows[name] = found[:made, i].view(np.int32) if rows[name].dtype == np.int32 else found[:made, i]
            rows["logits"] = logits[:made]
            parts.append(rows)
            frames = frames[taken.value:]
            if made < ROOM:
                return np.concatenate(parts)

    def patient(self, age: int = -1, sex: int = 0) -> None:
        """Years or -1; 1 male, 2 female, 0 unknown."""
        self._library.ecg_host_patient(self._state, age, sex)

    def bad(self) -> None:
        """The samples so far are bad: a window that holds one of them decides nothing."""
        self._library.ecg_host_bad(self._state)

    def stream(self, record: dict[str, np.ndarray]) -> np.ndarray:
        """What reference.stream gives: a whole record, int8 (lead, time) and sides (decision, *shape)."""
        self.reset()
        return self.push(record[self.graph.inputs[0]], {n: record[n] for n in self.graph.inputs[1:]})


def _pointer(array: np.ndarray):
    return array.ctypes.data_as(ctypes.c_void_p)


def _pointers(arrays):
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
