# SPDX-License-Identifier: Apache-2.0
"""Does a model fit on a board? Answered before anything is compiled, from the generated tables and the memory plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.graph import Graph
from targets import target
from targets.c_model import Source
from targets.c_program import Program, Streaming
from targets.pack import Array, Layer
from train.say import UserError

# most bytes of kernels, engine, link, HAL and C library in an image: all kernels of a core and a little
CODE = {"m0plus": 38_500, "m3": 34_500, "m4": 38_000, "m7": 38_000, "m33": 38_000, "m55": 60_000}
# most bytes of the application, its buffers and the stack beside the model's block; more for each lead and class
FIRMWARE_RAM, OF_LEAD, OF_CLASS = 6_800, 160, 32
BYTES = {"int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4, "int64_t": 8,
         "uint64_t": 8, "ecg_scale": 4}
NODE, TENSOR = 20, 24   # sizeof ecg_node and ecg_tensor on a 32-bit core


@dataclass(frozen=True)
class Need:
    """Bytes of flash and RAM of a whole image; the layer with the most data and the tensors at the fullest moment."""

    flash: int
    ram: int
    heaviest: tuple[str, int]
    widest: tuple[str, int]


def need(source: Source, graph: Graph, core: str) -> Need:
    """What an image of the model takes on a core."""
    flat = [p for form in source.programs.values() for p in _programs(form)]
    layers = {id(c.layer): (c.node.name, _layer_bytes(c.layer)) for p in flat for c in p.calls}
    shared = {_key(a): a.values.size * BYTES[a.ctype] for p in flat for c in p.calls for a in _arrays(c.layer)}
    constants = sum(n.params["value"].size for n in graph.nodes if n.kind == "constant")
    tables = sum(NODE * len(p.calls) + TENSOR * len(p.tensors) for p in flat)
    structs = sum(4 * len(c.layer.fields) for p in flat for c in p.calls)
    heaviest = max(layers.values(), key=lambda row: row[1], default=("", 0))
    moments = [_widest(p) for p in flat if p.calls]
    firmware = FIRMWARE_RAM + OF_LEAD * graph.tensors[graph.inputs[0]].shape[0]
    firmware += OF_CLASS * graph.tensors[graph.output].shape[0]
    return Need(sum(shared.values()) + constants + tables + structs + CODE[core], source.ram + firmware, heaviest,
                max(moments, key=lambda row: row[1], default=("", 0)))


def check(found: Need, board: dict) -> None:
    """UserError with the shortfall, the largest layer and the boards that would do, unless the model fits."""
    short = [(name, found_bytes - board[name], layer) for name, found_bytes, layer in
             (("flash", found.flash, found.heaviest), ("ram", found.ram, found.widest)) if found_bytes > board[name]]
    if not short:
        return
    parts = [f"{name.replace('ram', 'RAM')} is {missing / 1000:.1f} kB short, the largest layer is {layer} "
             f"({size / 1000:.1f} kB)" for name, missing, (layer, size) in short]
    others = [key for key, b in target.boards("mcu").items() if found.flash <= b["flash"] and found.ram <= b["ram"]]
    raise UserError(f"the model does not fit on a {board['name']}: {'; '.join(parts)}",
                    f"at most {board['flash'] / 1000:.0f} kB of flash and {board['ram'] / 1000:.0f} kB of RAM in all",
                    f"it fits on {', '.join(others) or 'no board of boards.toml'}; or train a smaller preset: "
                    "python bench/memory.py shows what each takes")


def _programs(form) -> tuple[Program, ...]:
    return (form.front, form.back) if isinstance(form, Streaming) else (form,)


def _arrays(layer: Layer) -> list[Array]:
    return [v for v in layer.fields.values() if isinstance(v, Array)]


def _key(a: Array) -> tuple[str, bytes]:
    return a.ctype, np.ascontiguousarray(a.values).tobytes()


def _layer_bytes(layer: Layer) -> int:
    return sum(a.values.size * BYTES[a.ctype] for a in _arrays(layer))


def _widest(p: Program) -> tuple[str, int]:
    """The call whose inputs and output take the most bytes."""
    def size(call) -> int:
        return sum(p.tensors[t].rows * p.tensors[t].pitch for t in {*call.inputs, call.out}
                   if p.tensors[t].flash is None)
    call = max(p.calls, key=size)
    return call.node.name, size(call)

