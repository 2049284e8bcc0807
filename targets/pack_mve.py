# SPDX-License-Identifier: Apache-2.0
"""Convolutions for the vectors of the Cortex-M55: conv_mve.c."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.graph import Graph, Node
from targets import pack_conv
from targets.pack import CORES, Array, Core, Layer

LANES = 16                                  # codes of a vector
COLUMNS, QUAD = 16, 4                       # as in conv_mve.c
FIR_COLUMNS, TILE = 8, 128                  # as in fir_mve.c
MAX_STRIDE = 255 // (LANES - 1)             # offsets of a vector's loads are bytes


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column). A layer with a shift, which is rare, stays plain."""
    plain = pack_conv.conv1d(graph, n, CORES["host"])
    weight, stride = n.params["weight"], n.attrs["stride"]
    out, depth, kernel = weight.shape
    vectors, share = -(-depth * kernel // LANES), out // n.attrs["groups"]
    if n.params["shift"].any() or stride > MAX_STRIDE:
        return plain
    if depth == 1:
        codes = np.pad(weight.reshape(out, kernel), [(0, 0), (0, -kernel % LANES)]).reshape(-1)
        scratch = _ceil((TILE - 1) * stride + vectors * LANES, LANES) + FIR_COLUMNS * share
    else:
        codes = np.pad(weight.reshape(-1), (0, LANES - 1))
        scratch = (1 + vectors * (1 if vectors > 2 else 4)) * COLUMNS * LANES + QUAD * share
    return replace(plain, kernel="fir_mve" if depth == 1 else "conv_mve", scratch=scratch,
                   fields=plain.fields | {"weight": Array("int8_t", codes)})


def _ceil(count: int, to: int) -> int:
    return -(-count // to) * to
