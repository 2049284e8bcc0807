# SPDX-License-Identifier: Apache-2.0
"""Many models in one image on an emulated core, compared with the reference bit for bit.

    outcome = parity_image.check("m4", [Case("small", graph, inputs, expected)], folder)
    outcome.wrong       # [] when all bits are equal

The emulator boots once for as many models as its memory holds. Inputs and expected logits are read from a file.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compress.graph import Graph
from targets import c_model, emulate, toolchain, twin
from targets.pack import CORES
from targets.toolchain import Region
from train.manifest import Manifest
from train.say import UserError

MAIN = toolchain.HERE / "firmware" / "parity_main.c"
STACK = 16384
# memory for the models' data beside the machine's flash and RAM, which are for code and tensors
DATA = {"mps2-an385": Region(0x2100_0000, 16 << 20), "mps2-an386": Region(0x2100_0000, 16 << 20),
        "mps2-an500": Region(0x6000_0000, 16 << 20), "mps2-an505": Region(0x8000_0000, 16 << 20),
        "mps3-an547": Region(0x6000_0000, 64 << 20)}
SECTION = '#define ECG_MODEL_SECTION ".ecg_model"\n'
TOGETHER = 40           # models in one C file


@dataclass(frozen=True)
class Case:
    """A model and what it must say.

    inputs: int8 name -> (window, *shape); expected: int8 (window, class). record, decisions: of a stream, int8 (lead,
    time) and name -> (decision, *shape) of sides, and int8 (decision, class); they need a manifest.
    """

    name: str
    graph: Graph
    inputs: dict[str, np.ndarray]
    expected: np.ndarray
    manifest: Manifest | None = None
    record: dict[str, np.ndarray] | None = None
    decisions: np.ndarray | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the model that are compared."""
        return ("window",) if self.record is None else ("window", "stream")


@dataclass
class Outcome:
    """compared: windows and decisions. wrong: what differs, by name. stack: most bytes in use."""

    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    stack: int = 0
    models: int = 0


def check(core: str, cases: list[Case], folder: Path, using: str | None = None, seconds: float = 600) -> Outcome:
    """Run all cases on an emulated core, in as many images as their data needs."""
    outcome = Outcome()
    for number, part in enumerate(parts(core, cases)):
        _run(core, part, folder / f"{core}-{number}", outcome, using, seconds)
    return outcome


def parts(core: str, cases: list[Case]) -> list[list[Case]]:
    """Cases in groups whose data fits on the core's machine; the weights take up to twice their bytes there."""
    room = DATA[emulate.OF_CORE[core]].length // 3
    groups, filled = [[]], 0
    for case in cases:
        size = case.graph.weight_bytes + 4096
        if filled + size > room and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(case)
        filled += size
    return groups


def _run(core: str, cases: list[Case], folder: Path, outcome: Outcome, using: str | None, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    elf, jobs = build(core, cases, folder, using), folder / "jobs.bin"
    names = feed(cases, jobs)
    done = emulate.run(elf, emulate.machine(core), words=os.fspath(jobs.resolve()), seconds=seconds)
    end = re.search(r"^done (\d+) wrong (\d+) stack (\d+)$", done.text, re.MULTILINE)
    if done.code or not end:
        raise UserError(f"the image of {len(cases)} models ended with {done.code} on {core} and printed\n"
                        f"{done.text[-2000:]}", "a comparison of all of them")
    compared, wrong, stack = map(int, end.groups())
    outcome.compared += compared
    outcome.stack = max(outcome.stack, stack)
    outcome.models += len(cases)
    found = re.findall(r"^(window|decision|decisions) (\d+)(.*)$", done.text, re.MULTILINE)
    outcome.wrong += [f"{names[int(job)]}: {what}{rest}" for what, job, rest in found]
    if wrong and not found:
        outcome.wrong.append(f"{wrong} differ")


def build(core: str, cases: list[Case], folder: Path, using: str | None = None) -> Path:
    """The ELF file of all models."""
    sources = [c_model.generate(c.graph, c.manifest, CORES[core], c.forms, f"m{i}") for i, c in enumerate(cases)]
    files = []
    for start in range(0, len(sources), TOGETHER):
        files.append(folder / f"models{start}.c")
        files[-1].write_text(SECTION + "".join(s.code for s in sources[start:start + TOGETHER]))
    for number, source in enumerate(sources):
        (folder / f"m{number}.h").write_text(source.header)
    kernels = sorted({k for s in sources for k in s.kernels})
    files.append(folder / "table.c")
    files[-1].write_text(table(len(sources), max(map(job_bytes, cases))) + c_model.kernel_table(kernels))
    on = emulate.machine(core)
    engine = [toolchain.KERNELS / name for name in twin.ENGINE]
    return toolchain.image(core, [MAIN, toolchain.SEMIHOST, *files, *engine, *twin.sources(kernels)],
                           folder / "parity.elf", on.flash, on.ram, stack=STACK, model=DATA[on.name],
                           include=[folder, MAIN.parent], using=using)


def table(count: int, room: int) -> str:
    """The C that lists the models m0, m1, ... and has `room` bytes for the data of a job."""
    headers = "".join(f'#include "m{i}.h"\n' for i in range(count))
    rows = ", ".join(f"&m{i}" for i in range(count))
    return (f'{headers}#include "parity.h"\n'
            f"const ecg_model *const parity_models[] = {{{rows}}};\nconst uint32_t parity_models_count = {count};\n"
            f"int8_t parity_data[{room}];\n")


def job_bytes(case: Case) -> int:
    """Bytes of data that the image must hold at once for a case."""
    window = sum(x[0].size for x in case.inputs.values()) + case.expected.shape[1]
    stream = sum(x.size for x in case.record.values()) + case.decisions.size if case.record is not None else 0
    return max(window, stream)


def feed(cases: list[Case], path: Path) -> list[str]:
    """Write the jobs; names of the cases by number of the job."""
    names = []
    with open(path, "wb") as out:
        def words(*numbers: int) -> None:
            out.write(struct.pack(f"<{len(numbers)}I", *numbers))

        for number, case in enumerate(cases):
            arrays = [np.ascontiguousarray(case.inputs[name], np.int8) for name in case.graph.inputs]
            words(0, number, len(case.expected), len(arrays), *(a[0].size for a in arrays))
            for window, logits in zip(zip(*arrays, strict=True), case.expected, strict=True):
                out.write(b"".join([*(x.tobytes() for x in window), logits.tobytes()]))
            names.append(case.name)
            if case.record is not None:
                wave, *sides = (np.ascontiguousarray(case.record[name], np.int8) for name in case.graph.inputs)
                words(1, number, wave.shape[1], len(case.decisions), len(sides), *(s[0].size for s in sides))
                out.write(b"".join([wave.T.tobytes(), *(s.tobytes() for s in sides), case.decisions.tobytes()]))
                names.append(case.name)
        words(2)
    return names
