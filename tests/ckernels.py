# SPDX-License-Identifier: Apache-2.0
"""Calls one C kernel from numpy, with the host's compiler and its address and undefined-behaviour sanitizers.

    kernels = ckernels.build("conv.c", "conv_dsp.c")
    out = ckernels.call(kernels, pack.layer(graph, node, core), [x], (channel, lead, column))

The kernels run in a process of their own (ckernels.c), where every tensor, array and scratch ends with the bytes that
the call asked for. A report of a sanitizer, a byte written where none belongs and a crash are AssertionErrors.
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from targets.pack import Array, Layer

C = Path(__file__).parent.parent / "targets" / "c"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BYTES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "int64_t": 8,
         "uint64_t": 8, "ecg_scale": 4}
CANARY = -91        # what ckernels.c fills new memory with


class Kernels:
    """A process that runs kernels; started on first use, again after it died."""

    def __init__(self, program: Path):
        self.program = program
        self.process: subprocess.Popen | None = None
        atexit.register(self.close)

    def run(self, request: bytes, answer_bytes: int) -> bytes:
        """Send one call, get the bytes of its output."""
        if self.process is None:
            # stderr is a file: a long report would fill a pipe that nobody reads
            self.report = tempfile.TemporaryFile()
            self.process = subprocess.Popen([self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=self.report)
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
            answer = self.process.stdout.read(answer_bytes + 1)
        except BrokenPipeError:
            answer = b""
        if len(answer) <= answer_bytes:
            status, said = self.close()
            raise AssertionError(f"the kernel's process ended with {status}:\n{said}")
        return answer[:-1]

    def close(self) -> tuple[int, str]:
        """End the process. Returns its exit status and what it wrote to stderr."""
        if self.process is None:
            return 0, ""
        process, self.process = self.process, None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdout.close()
        status = process.wait(timeout=60)
        self.report.seek(0)
        said = self.report.read().decode(errors="replace")
        self.report.close()
        return status, said


@functools.cache
def build(*sources: str, compiler: str = "gcc", flags: tuple[str, ...] = tuple(SANITIZE)) -> Kernels:
    """Compile C files of targets/c with the runner, warnings being errors. Skips when there is no such compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder = tempfile.mkdtemp(prefix="ckernels")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder) / "kernels"
    files = [str(C / name) for name in sources]
    done = subprocess.run([compiler, *STRICT, *flags, f"-I{C}", *files, str(Path(__file__).with_suffix(".c")),
                           "-o", str(program)], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{compiler} {' '.join(sources)}:\n{done.stderr}")
    return Kernels(program)


def call(kernels: Kernels, layer: Layer, inputs: list[np.ndarray], out_shape: tuple[int, ...], *,
         first: int | list[int] = 0, out_first: int = 0, pad_pitch: int = 0, offset: int = 0,
         in_place: int | None = None) -> np.ndarray:
    """Run a kernel on int8 (channel, lead, time) arrays. Returns int8 of `out_shape`.

    first: column that each input starts with (one for all, or a list); out_first: that of the output. pad_pitch: bytes
    between rows, which hold noise in inputs and must stay as they are in the output. offset: of the data from an
    aligned address. in_place: number of the input in whose memory the output goes.
    """
    firsts = first if isinstance(first, list) else [first] * len(inputs)
    shape = tuple(out_shape)
    if in_place is not None:
        assert inputs[in_place].shape == shape, "in place, but of another shape"
        out_first = firsts[in_place]
    number = _numbers()[layer.kernel]
    struct_bytes, arrays = marshal(layer)
    parts = [struct.pack("<6i", number, len(struct_bytes), len(arrays), len(inputs),
                         -1 if in_place is None else in_place, layer.scratch), struct_bytes]
    for place, array in arrays:
        data = np.ascontiguousarray(array.values).tobytes()
        parts += [struct.pack("<3i", len(data), place, BYTES[array.ctype]), data]
    rng = np.random.default_rng(len(inputs))
    for x, start in zip(inputs, firsts, strict=True):
        assert x.ndim == 3 and x.dtype == np.int8, "int8 (channel, lead, time) expected"
        parts += [_view(x.shape, start, pad_pitch, offset), _rows(x, pad_pitch, rng)]
    parts.append(_view(shape, out_first, pad_pitch, offset))
    rows, columns = shape[0] * shape[1], shape[2]
    extent = (rows - 1) * (columns + pad_pitch) + columns if rows else 0
    flat = np.frombuffer(kernels.run(b"".join(parts), extent), np.int8)
    padded = np.full(rows * (columns + pad_pitch), CANARY, np.int8)
    padded[:extent] = flat
    table = padded.reshape(rows, columns + pad_pitch)
    if in_place is None:
        assert (table[:, columns:] == CANARY).all(), "bytes between the rows of the output were written"
    return table[:, :columns].reshape(shape)


def marshal(layer: Layer, pointer: int = 8) -> tuple[bytes, list[tuple[int, Array]]]:
    """(bytes of the layer's struct, its arrays with the byte at which the pointer to each lies)."""
    declared = structs()[layer.struct]
    assert list(layer.fields) == [name for name, *_ in declared], f"{layer.struct}: {list(layer.fields)}"
    out, arrays, widest = bytearray(), [], 1
    for name, ctype, count, is_pointer in declared:
        value = layer.fields[name]
        size = pointer if is_pointer else BYTES[ctype]
        widest = max(widest, size)
        out += bytes(-len(out) % size)
        if is_pointer:
            assert value is None or isinstance(value, Array), f"{name} is no array"
            if value is not None:
                assert ctype in ("void", value.ctype), f"{name} holds {value.ctype}, not {ctype}"
                arrays.append((len(out), value))
            out += bytes(size)
            continue
        values = value if isinstance(value, list) else [value]
        assert len(values) == count, f"{name} has {count} elements"
        for v in values:
            out += int(v).to_bytes(size, "little", signed=not ctype.startswith("u"))
    out += bytes(-len(out) % widest)
    return bytes(out), arrays


@functools.cache
def structs() -> dict[str, list[tuple[str, str, int, bool]]]:
    """The structs of ecg_kernels.h: name -> (field, C type, elements, whether it is a pointer)."""
    text = re.sub(r"/\*.*?\*/", "", (C / "ecg_kernels.h").read_text(), flags=re.S)
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\}\s*(\w+);", text, flags=re.S):
        fields = []
        for statement in filter(None, (s.strip() for s in body.split(";"))):
            ctype, names = re.fullmatch(r"(?:const\s+)?(\w+)\s+(.*)", statement, flags=re.S).groups()
            for declared in names.split(","):
                star, field, count = re.fullmatch(r"\s*(\*?)\s*(\w+)(?:\[(\d+)\])?\s*", declared).groups()
                fields.append((field, ctype, int(count or 1), bool(star)))
        found[name] = fields
    return found


@functools.cache
def _numbers() -> dict[str, int]:
    """Kernel name -> number."""
    text = (C / "ecg_kernels.def").read_text()
    return {name: int(number) for number, name in re.findall(r"ECG_KERNEL\((\d+), (\w+)\)", text)}


def _view(shape: tuple[int, ...], first: int, pad_pitch: int, offset: int) -> bytes:
    return struct.pack("<5i", shape[0] * shape[1], shape[2] + pad_pitch, first, first + shape[2], offset)


def _rows(x: np.ndarray, pad_pitch: int, rng: np.random.Generator) -> bytes:
    """The rows of a tensor with noise between them, and none behind the last."""
    rows, columns = x.shape[0] * x.shape[1], x.shape[2]
    wide = rng.integers(-128, 128, (rows, columns + pad_pitch)).astype(np.int8)
    wide[:, :columns] = x.reshape(rows, columns)
    return wide.tobytes()[:max(rows * (columns + pad_pitch) - pad_pitch, 0)]
