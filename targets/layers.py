# SPDX-License-Identifier: Apache-2.0
"""Executed instructions of a model on an emulated core: layer by layer, of a window and of a hop of its stream.

Counts are exact and repeatable. They are instructions, not cycles: the emulator knows no wait states and no pipeline.
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compress import graph as graphs
from compress.graph import Graph
from targets import c_model, emulate, toolchain, twin
from targets.c_program import Call, Streaming
from targets.pack import Core
from targets.toolchain import Image
from train.manifest import Manifest
from train.say import UserError

MAIN = toolchain.HERE / "firmware" / "profile_main.c"
FLAGS = ('-DECG_MODEL_SECTION=".ecg_model"',)
HOPS = 3                # of the record; the last one is counted
NONE = '""'             # behind the last layer


@dataclass(frozen=True)
class Row:
    """A layer: instructions and multiply-accumulates of one evaluation; `kernel` is its function."""

    name: str
    kind: str
    kernel: str
    instructions: int
    macs: int
    elements: int


@dataclass(frozen=True)
class Profile:
    """window, hop: layers in order, and all instructions (driver included). Bytes of
    code by part, of the model's data, and of stack at the deepest."""

    window: list[Row]
    window_total: int
    hop: list[Row]
    hop_total: int
    code: dict[str, int]
    model: int
    stack: int


def measure(core: Core, graph: Graph, manifest: Manifest | None = None, hop: int | None = None,
            using: str | None = None) -> Profile:
    """Build, run and count. Inputs are random codes, on which the kernels' instructions depend by less than 1 %."""
    source = c_model.generate(graph, manifest, core, hop=hop)
    processor = core.name.split()[0]
    on = emulate.machine(processor)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        twin.write(source, out)
        (out / "profile.h").write_text(_header(source, graph))
        engine = [toolchain.KERNELS / name for name in twin.ENGINE]
        elf = toolchain.image(processor, [MAIN, toolchain.SEMIHOST, out / "model.c", out / "kernels.c", *engine,
                                          *twin.sources(source.kernels)], out / "profile.elf", on.flash, on.ram,
                              stack=8192, include=[out], flags=FLAGS, using=using)
        found, done = emulate.count(elf, on)
        if done.code:
            raise UserError(f"the image ended with {done.code} and printed\n{done.text[-2000:]}", "exit code 0")
        code, model = _code(elf, source.kernels), Image(elf).sections[".ecg_model"].length
    programs = {"window": source.programs.get("window"), "hop": source.programs.get("stream")}
    rows = {name: _rows(graph, name, p, found) for name, p in programs.items()}
    totals = {name: sum(c.total for k, c in found.items() if k.startswith(f"{name} ")) for name in programs}
    return Profile(rows["window"], totals["window"], rows["hop"], totals["hop"], code, model,
                   int(re.search(r"stack (\d+)", done.text)[1]))


def _calls(program) -> list[Call]:
    if program is None:
        return []
    return [*program.front.calls, *program.back.calls] if isinstance(program, Streaming) else program.calls


def _rows(graph: Graph, form: str, program, found) -> list[Row]:
    rows = []
    front = len(program.front.calls) if isinstance(program, Streaming) else 0
    for i, c in enumerate(_calls(program)):
        macs = graphs.macs(replace(graph, nodes=[c.node], boundary=None))
        elements = math.prod(graph.tensors[c.node.output].shape)
        if i < front:       # of a layer in front of the boundary only the new columns are computed
            whole = graph.tensors[c.node.output].shape[-1]
            new = program.hop // program.front.tensors[c.out].stride
            macs, elements = macs * new // whole, elements * new // whole
        rows.append(Row(c.node.name, c.node.kind, c.layer.kernel, found[f"{form} {i}"].total, macs, elements))
    return rows


def _code(elf: Path, kernels) -> dict[str, int]:
    """Bytes of code by part: the kernels with their helpers, the engine, and the rest of the image."""
    from elftools.elf.elffile import ELFFile
    owned = {"kernels": twin.sources(kernels), "engine": [toolchain.KERNELS / name for name in twin.ENGINE]}
    part_of = {p.name: part for part, paths in owned.items() for p in paths}
    texts = {part: "".join(p.read_text() for p in paths) for part, paths in owned.items()}
    found, file = dict.fromkeys((*owned, "other"), 0), ""
    with open(elf, "rb") as opened:
        for symbol in ELFFile(opened).get_section_by_name(".symtab").iter_symbols():
            kind, bind = symbol["st_info"]["type"], symbol["st_info"]["bind"]
            if kind == "STT_FILE":
                file = symbol.name
            elif kind == "STT_FUNC" and bind == "STB_LOCAL":
                found[part_of.get(Path(file).name, "other")] += symbol["st_size"]
            elif kind == "STT_FUNC":
                found[next((p for p, text in texts.items() if f" {symbol.name}(" in text or f"*{symbol.name}(" in text),
                           "other")] += symbol["st_size"]
    return found


def _header(source: c_model.Source, graph: Graph) -> str:
    """profile.h: random inputs, a record that ends with a hop, the regions' names."""
    rng = np.random.default_rng(0)
    stream = source.programs.get("stream")
    first, *sides = (graph.tensors[t].shape for t in graph.inputs)
    frames = stream.window + HOPS * stream.hop if stream else 0

    def codes(name: str, count: int) -> str:
        x = ",".join(map(str, rng.integers(-128, 128, max(count, 1)).tolist()))
        return f"static const int8_t {name}[] = {{{x}}};\n"
    arrays = [codes(f"profile_input{i}", math.prod(shape)) for i, shape in enumerate([first, *sides])]
    given = ", ".join(f"profile_input{i}" for i in range(len(arrays)))
    marks = [f"static const char *const profile_{form}[] = {{{', '.join([*_names(form, program), NONE])}}};\n"
             for form, program in (("window", source.programs.get("window")), ("hop", stream))]
    classes = graph.tensors[graph.output].shape[0]
    return "".join([f"enum {{ PROFILE_FRAMES = {frames}, PROFILE_CLASSES = {classes} }};\n",
                    *arrays, f"static const int8_t *const profile_inputs[] = {{{given}}};\n",
                    codes("profile_record", frames * first[0]), *marks])


def _names(form: str, program) -> list[str]:
    return [f'"{form} {i}"' for i in range(len(_calls(program)))]


def report(profile: Profile) -> list[tuple]:
    """Rows for a table: name, kernel, instructions, of all, per MAC or element."""
    if not profile.window and not profile.hop:
        raise UserError("nothing was counted", "a model with a window or a stream")
    rows = profile.window or profile.hop
    total = sum(r.instructions for r in rows)
    return [(r.name, r.kernel, r.instructions, f"{r.instructions / total:.1%}",
             f"{r.instructions / r.macs:.2f} / MAC" if r.macs else f"{r.instructions / max(r.elements, 1):.1f} / code")
            for r in rows]
