# SPDX-License-Identifier: Apache-2.0
"""Bare microcontrollers: the model as constant data and a call list, hand-written kernels, and firmware around them.

Files in runs/<name>/mcu/: model.c, model.h, kernels.c, image.c (generated), build.json (for which board), firmware.elf
and the forms that loaders take. A model that cannot fit is refused before anything is compiled.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress import reference
from compress.graph import Graph
from targets import c_model, emulate, firmware_image, fit, seal, target, toolchain, twin
from targets import image as images
from targets.firmware_image import Slot
from targets.pack import CORES, Core
from targets.target import Built, Options
from targets.toolchain import Image, Region
from train import frontend, rpeak, runs, say
from train.manifest import Manifest
from train.say import UserError

SECTION = ('-DECG_MODEL_SECTION=".ecg_model"',)
STACK = 2048
TRACED = 2              # windows compared layer by layer: every code comes out of the emulator as text
RUN = toolchain.HERE / "firmware" / "run_main.c"


def missing() -> str | None:
    """What keeps firmware from being built here; None when there is a compiler for the common cores."""
    return toolchain.missing("m4")


def core_of(board: dict, options: Options) -> Core:
    """The board's core, with weights of the bits asked for."""
    core = CORES[board["core"]]
    if options.weights not in (8, 16):
        raise UserError(f"--weights {options.weights}", "8 or 16 bits")
    return replace(core, wide=options.weights == 16)


def forms(manifest: Manifest) -> tuple[str, ...]:
    """What a device runs: the stream of hops, or windows around beats or by themselves."""
    return ("stream",) if manifest.streaming else ("window",)


def lower(graph: Graph, manifest: Manifest, out: Path, board: dict | None = None,
          options: Options | None = None) -> None:
    """Write the model as C for a board's core; UserError when it does not fit on the board."""
    if board is None:
        raise UserError("a microcontroller has no common form", f"--board, one of {', '.join(target.boards('mcu'))}")
    options = options or Options()
    core = core_of(board, options)
    source = c_model.generate(graph, manifest, core, forms(manifest), fs_in=options.fs_in)
    if manifest.trigger.kind == "hop" and not manifest.streaming:
        say.warn(f"{manifest.name} does not stream: this firmware decides only on windows that the host injects")
    firmware_image.source_of(board, options.sensor, options.fs_in or manifest.fs, 1)
    needed = fit.need(source, graph, board["core"])
    fit.check(needed, board)
    twin.write(source, out)
    about = {"board": board["key"], "core": core.name, "weights": options.weights,
             "fs_in": options.fs_in or manifest.fs, "sensor": options.sensor, "kernels": source.kernels,
             "planned_flash": needed.flash, "planned_ram": needed.ram, "model_ram": source.ram}
    runs.write(out, {"build.json": json.dumps(about, indent=2) + "\n"})


def build(out: Path, board: dict | None) -> Built:
    """Compile and link the firmware of the board, seal its model, write the forms that loaders take."""
    about = json.loads((out / "build.json").read_text())
    manifest, _ = target.open_run(out.parent)
    if board is None or "hal" not in board:
        raise UserError(f"no firmware for {board['name'] if board else 'no board'} here",
                        ", ".join(k for k, b in target.boards("mcu").items() if "hal" in b),
                        f"{out} holds the model as C for a program of your own; see targets/firmware/README.md")
    elf = link(out, [Slot("model", manifest)], board, about)
    image, pieces = Image(elf), images.read_elf(elf)
    images.write_hex(pieces, elf.with_suffix(".hex"))
    if "uf2" in board:
        images.write_uf2(pieces, elf.with_suffix(".uf2"), board["uf2"]["family"])
    due = latency(manifest, about["fs_in"])
    _report(image, board, about)
    say.info(f"latency: the front end takes {due['front_end_ms']:.0f} ms; the first decision that a sample can "
             f"influence falls due at most {due['wait_ms']:.0f} ms later")
    return Built(elf, image.flash, image.ram, {"form": "int8", "board": board["key"], "core": board["core"],
                                               "weights": about["weights"], "sections": _sections(image),
                                               "latency": due, "model_ram": about["model_ram"]})


def link(out: Path, slots: list[Slot], board: dict, about: dict) -> Path:
    """The board's firmware around the models that lie in `out` as <prefix>.c; sealed."""
    source, chip = firmware_image.source_of(board, about.get("sensor"), about["fs_in"],
                                            max(s.manifest.waveform.shape[0] for s in slots))
    runs.write(out, {"image.c": firmware_image.image_c(board["key"], board.get("clock_khz", 0), slots, source)})
    engine = [toolchain.KERNELS / name for name in twin.ENGINE]
    files = [firmware_image.MAIN, *firmware_image.APPLICATION, *firmware_image.hal(board, chip), out / "image.c",
             out / "kernels.c", *(out / f"{s.prefix}.c" for s in slots), *engine, *twin.sources(about["kernels"])]
    elf = toolchain.image(board["core"], files, out / "firmware.elf", Region(board["flash_at"], board["flash"]),
                          Region(board["ram_at"], board["ram"]), stack=STACK, include=[out, firmware_image.FIRMWARE],
                          flags=[*SECTION, *firmware_image.defines(slots, source, chip), *board.get("flags", ())])
    seal.seal(elf)
    return elf


def _sections(image: Image) -> dict[str, int]:
    return {name: region.length for name, region in image.sections.items() if region.length}


def _report(image: Image, board: dict, about: dict) -> None:
    """What the linker made, beside what was planned."""
    ram = f"the model's block {about['model_ram'] / 1000:.1f} kB, as planned"
    say.info(f"{board['name']}: flash {image.flash / 1000:.1f} kB of {board['flash'] / 1000:.0f}, RAM "
             f"{image.ram / 1000:.1f} kB of {board['ram'] / 1000:.0f} ({ram}), model data "
             f"{image.size('.ecg_model') / 1000:.1f} kB, weights of {about['weights']} bits")


def latency(manifest: Manifest, fs_in: float) -> dict[str, float]:
    """Milliseconds from a sample to the first decision that it can influence: the front end's delay of a QRS complex,
    and the longest wait behind it for a decision to fall due. Computing comes on top."""
    front = 1000 * frontend.delay(manifest.frontend, fs_in) / manifest.fs
    if manifest.trigger.kind == "hop":
        return {"front_end_ms": front, "wait_ms": 1000 * manifest.trigger.hop / manifest.fs}
    behind = manifest.window - 1 - manifest.trigger.offset
    if manifest.trigger.beats_after:    # the next beat may take the 10 s at which intervals are clipped
        behind = 10 * manifest.fs + rpeak.Detector(manifest.fs).latency
    return {"front_end_ms": front, "wait_ms": 1000 * behind / manifest.fs}


def run(built: Built, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits of windows, by the board's core in the emulator."""
    return emulated(*_model(built), inputs)


def trace(graph: Graph, built: Built, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the graph as int8 codes (window, *shape), as the emulated core computes them."""
    _, manifest, core = _model(built)
    source, lines = _emulate(graph, manifest, core, inputs, ("-DRUN_TRACE",))
    written = [c.node.output for c in source.programs["window"].calls]
    period = len(written) + 1           # of lines: those of a window end with its logits
    values = dict(inputs)
    for i, tensor in enumerate(written):
        rows = [np.frombuffer(bytes.fromhex(line), np.int8) for line in lines[i::period]]
        values[tensor] = np.stack(rows).reshape(-1, *graph.tensors[tensor].shape)
    for n in graph.nodes:           # views and constants, for which no kernel runs
        if n.output not in values:
            reference.execute([n], values)
    return values


def _model(built: Built) -> tuple[Graph, Manifest, Core]:
    manifest, graph = target.open_run(built.path.parent.parent)
    return graph, manifest, replace(CORES[built.notes["core"]], wide=built.notes["weights"] == 16)


def emulated(graph: Graph, manifest: Manifest | None, core: Core, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """int8 logits (window, class) of a graph on an emulated core."""
    _, lines = _emulate(graph, manifest, core, inputs)
    return np.array([line.split() for line in lines], np.int64).astype(np.int8)


def _emulate(graph: Graph, manifest: Manifest | None, core: Core, inputs: dict[str, np.ndarray], flags=()):
    """(source, lines that the image printed): one for each window, behind those of a trace."""
    source = c_model.generate(graph, manifest, core, ("window",))
    arrays = [np.ascontiguousarray(inputs[name], np.int8) for name in graph.inputs]
    on = emulate.machine(core.name)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        twin.write(source, out)
        windows = out / "windows.bin"
        windows.write_bytes(struct.pack("<I", len(arrays[0])) + b"".join(
            b"".join(x.tobytes() for x in window) for window in zip(*arrays, strict=True)))
        sizes = (f"-DRUN_INPUT_BYTES={sum(a[0].size for a in arrays)}",
                 f"-DRUN_CLASSES={graph.tensors[graph.output].shape[0]}")
        elf = toolchain.image(
            core.name, [RUN, toolchain.SEMIHOST, out / "model.c", out / "kernels.c",
                        *(toolchain.KERNELS / name for name in twin.ENGINE), *twin.sources(source.kernels)],
            out / "run.elf", on.flash, on.ram, stack=8192, include=[out], flags=[*SECTION, *sizes, *flags])
        done = emulate.run(elf, on, words=os.fspath(windows), seconds=600)
    lines = done.text.splitlines()
    if done.code or not lines:
        raise UserError(f"the emulated image ended with {done.code} and printed\n{done.text[-1000:]}", "logits")
    return source, lines


def flash(built: Built, port: str | None) -> None:
    """Put the image on the board."""
    from targets import flash as loader
    loader.flash(built.path, target.read_board(built.notes["board"], "mcu"), port)
