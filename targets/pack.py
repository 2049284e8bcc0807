# SPDX-License-Identifier: Apache-2.0
"""A node of the integer graph as a C kernel and its constant layer, laid out for one kind of core.

A packer is a function (graph, node, core) -> Layer. `layer` picks it by the node's kind; the modules pack_*.py hold
them, one for each family of kernels in targets/c/. The fields of a Layer are those of the C struct in ecg_kernels.h.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field

import numpy as np

from compress.graph import Graph, Node

# node kind -> module whose PACKERS holds the kind's packer; loaded on first use
FAMILIES = {"conv1d": "pack_conv", "dense": "pack_conv", "attention": "pack_attention"}
REST = "pack_simple"


@dataclass(frozen=True)
class Core:
    """What a processor can do. `wide`: weights of 16 bits where that is faster; they take twice the flash."""

    name: str
    dsp: bool = False           # SMLAD, SXTB16, SMMULR: Cortex-M4, M7, M33
    mve: bool = False           # vectors of 16 bytes: Cortex-M55
    swar: bool = False          # no DSP, but a 32-bit multiplier: Cortex-M0+, M3
    wide: bool = False

    @property
    def plain(self) -> bool:
        """Any compiler's C."""
        return not (self.dsp or self.mve or self.swar)


CORES = {c.name: c for c in (
    Core("host"), Core("m0plus", swar=True), Core("m3", swar=True), Core("m4", dsp=True), Core("m7", dsp=True),
    Core("m33", dsp=True), Core("m55", mve=True))}


@dataclass(frozen=True)
class Array:
    """A constant array of the model's data: C element type and values."""

    ctype: str
    values: np.ndarray


@dataclass(frozen=True)
class Layer:
    """kernel: a name of ecg_kernels.def. struct: the C type. fields: int, Array or None (NULL) by field name, in the
    order of the struct; a list of int for a C array inside the struct. scratch: bytes the kernel needs."""

    kernel: str
    struct: str
    fields: dict[str, int | Array | list[int] | None] = field(default_factory=dict)
    scratch: int = 0


def layer(graph: Graph, n: Node, core: Core) -> Layer:
    """The C form of a node."""
    module = importlib.import_module(f"targets.{FAMILIES.get(n.kind, REST)}")
    return module.PACKERS[n.kind](graph, n, core)


def volume(shape: tuple[int, ...], channels_first: bool = False) -> tuple[int, int, int]:
    """A shape as the kernels' (channel, lead, time): a vector is one row, or with `channels_first` one column.

    A matrix is (1, lead, time), or (channel, 1, time).
    """
    if len(shape) > 3:
        raise ValueError(f"{shape} has more than three axes")
    if channels_first and 0 < len(shape) < 3:
        return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], 1, shape[1])
    return (*(1,) * (3 - len(shape)), *shape)


def shifts(shift: np.ndarray) -> Array | None:
    """The layers' shifts, or NULL when all of them are 0."""
    return Array("uint8_t", shift) if shift.any() else None


def scales(bias: np.ndarray, mul: np.ndarray) -> Array:
    """Pairs (bias, mul), one for each output channel."""
    return Array("ecg_scale", np.stack([bias, mul], 1))
