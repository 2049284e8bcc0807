# SPDX-License-Identifier: Apache-2.0
"""conv1d and dense for the DSP extension: conv_dsp.c, fir_dsp.c, dense_dsp.c.

Weights of 16 bits hold a channel's shift already: w << shift fits, and the sum comes out shifted. Layers with a shift
have 16-bit weights on every core, so no kernel for the DSP extension knows shifts.
"""

from __future__ import annotations

import numpy as np

from compress.graph import Graph, Node
from targets.pack import Array, Core, Layer, scales
from targets.pack_plain import conv_layer, dense_layer


def conv1d(graph: Graph, n: Node, core: Core) -> Layer:
    """(channel, lead, time) -> (out, lead, column)."""
    weight = n.params["weight"]         # (out, channel / groups, kernel)
    share = len(weight) // n.attrs["groups"]
    if weight.shape[1] == 1 and (share <= 4 or (weight.shape[2] <= 8 and n.attrs["stride"] <= 2)):
        return _fir(graph, n)
    narrow = not core.wide and not n.params["shift"].any()
    steps = [_paired(by, share) for by in _steps(_shifted(n))]          # each (group, pair of channels, step, 2, 2)
    least = min(steps, key=lambda s: s.shape[2])
    return conv_layer(graph, n, "conv_dsp8" if narrow else "conv_dsp", _words(least, narrow), _folded(n, share % 2),
                       scratch=16 * (least.shape[2] + 1))


def dense(graph: Graph, n: Node, core: Core) -> Layer:
    """(feature,) -> (out,)."""
    weight = n.params["weight"].reshape(len(n.params["weight"]), -1)
    narrow = not core.wide and not n.params["shift"].any()
    steps = _in_fours(_shifted(n).reshape(weight.shape))                # (out, step, 2)
    steps = np.pad(steps, [(0, -len(steps) % 4), (0, steps.shape[1] % 2), (0, 0)])
    out, count, _ = steps.shape
    if narrow:
        quads = steps.reshape(out // 4, 2, 2, count, 2).transpose(0, 3, 1, 4, 2)    # bytes (a0, b0, a1, b1)
    else:
        quads = steps.reshape(out // 4, 4, count, 2).transpose(0, 2, 1, 3)
    return dense_layer(n, "dense_dsp8" if narrow else "dense_dsp", _as_words(quads, narrow),
                        _folded(n, -len(weight) % 4), scratch=4 * count)


def _fir(graph: Graph, n: Node) -> Layer:
    """Every output row is a filtered input row. Scratch holds an end of it with its padding, or all of a short one."""
    steps = _in_fours(_shifted(n)[:, 0])                                # (out, step, 2)
    steps = np.pad(steps, [(0, 0), (0, steps.shape[1] % 2), (0, 0)])
    reach, stride = 2 * steps.shape[1], n.attrs["stride"]
    ends = sum(n.attrs["pad"]) + 2 * reach + 13 * stride
    return conv_layer(graph, n, "fir_dsp", _as_words(steps, False), _folded(n), scratch=max(64, ends) + 8)


def _steps(weight: np.ndarray) -> list[np.ndarray]:
    """(out, depth, kernel) -> both orders of the products of an output, as (out, step, 2).

    The first takes two channels under one tap, the second two taps of one channel; the kernels take the shorter one,
    the first when they are equally long.
    """
    out, depth, kernel = weight.shape
    channels = np.pad(weight, [(0, 0), (0, depth % 2), (0, 0)])
    channels = channels.reshape(out, -1, 2, kernel).transpose(0, 3, 1, 2).reshape(out, -1, 2)
    return [channels, _in_fours(weight).reshape(out, -1, 2)]


def _in_fours(weight: np.ndarray) -> np.ndarray:
    """(..., depth, kernel) -> (..., depth, step, 2): taps (0, 2), (1, 3), (4, 6), ...; an empty pair is cut."""
    *some, kernel = weight.shape
    fours = np.pad(weight, [(0, 0)] * len(some) + [(0, -kernel % 4)]).reshape(*some, -1, 2, 2)
    steps = fours.swapaxes(-1, -2).reshape(*some, -1, 2)
    return steps[..., :steps.shape[-2] - (kernel % 4 == 1), :]


def _paired(steps: np.ndarray, share: int) -> np.ndarray:
    """(out, step, 2) -> (group, pair of channels, step, channel, 2); an odd channel is paired with zeros."""
    groups = steps.reshape(-1, share, *steps.shape[1:])
    groups = np.pad(groups, [(0, 0), (0, share % 2), (0, 0), (0, 0)])
    return groups.reshape(len(groups), -1, 2, *steps.shape[1:]).swapaxes(2, 3)


def _words(pairs: np.ndarray, narrow: bool) -> Array:
    """(..., step, channel, 2) -> words: a pair for each channel, or the bytes (a0, b0, a1, b1)."""
    return _as_words(pairs.swapaxes(-1, -2) if narrow else pairs, narrow)


def _as_words(values: np.ndarray, narrow: bool) -> Array:
    flat = np.ascontiguousarray(values).astype("<i1" if narrow else "<i2")
    return Array("uint32_t", np.frombuffer(flat.tobytes(), "<u4"))


def _shifted(n: Node) -> np.ndarray:
    """Weights as integers, times 2^shift."""
    weight, shift = n.params["weight"].astype(np.int32), n.params["shift"].astype(np.int32)
    return weight << shift.reshape(-1, *(1,) * (weight.ndim - 1))


def _folded(n: Node, more: int = 0) -> dict[str, Array | None]:
    """Bias and multiplier for weights that hold the shift, and for `more` channels that do not exist."""
    bias = n.params["bias"] << n.params["shift"].astype(np.int32)
    return {"scale": scales(np.pad(bias, (0, more)), np.pad(n.params["mul"], (0, more))), "shift": None}
