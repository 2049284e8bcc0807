# SPDX-License-Identifier: Apache-2.0
"""Convolutions and dense layers for the vectors of the Cortex-M55: conv_mve.c, fir_mve.c, dense_mve.c."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.graph import Graph, Node
from targets import pack_plain
from targets.pack import Array, Core, Layer, scales

LANES = 16                                  # codes of a vector
COLUMNS, QUAD = 16, 4                       # as in conv_mve.c and dense_mve.c
FIR_COLUMNS, TILE = 8, 128                  # as in fir_mve.c
MAX_STRIDE = 255 // (LANES - 1)             # offsets of a vector's loads are bytes


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column). A layer with a shift, which is rare, stays plain."""
    plain = pack_plain.conv1d(graph, n, core)
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


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,). A layer with a shift stays plain."""
    plain = pack_plain.dense(graph, n, core)
    if n.params["shift"].any():
        return plain
    weight, more = n.params["weight"].reshape(len(n.params["weight"]), -1), -len(n.params["weight"]) % QUAD
    codes = np.pad(weight.reshape(-1), (0, more * weight.shape[1] + LANES - 1))
    rescale = scales(np.pad(n.params["bias"], (0, more)), np.pad(n.params["mul"], (0, more)))
    return replace(plain, kernel="dense_mve",
                   fields=plain.fields | {"weight": Array("int8_t", codes), "scale": rescale})


def _ceil(count: int, to: int) -> int:
    return -(-count // to) * to
