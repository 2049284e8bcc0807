# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM and lookup of a converted program as one node each of the integer graph."""

from __future__ import annotations

import numpy as np
import torch

from compress import norm as norms
from compress.fixed import multiplier
from compress.fold import layer, parameter
from compress.graph import MAX_NORM
from compress.lstm import H_SCALE
from compress.reference_lstm import STEPS, sigmoid_table
from train.say import GraphError


def norm(f, op, scale: float, relu: bool) -> str:
    """Gain and bias leave the program's float and become multipliers of 24 and 32 bits."""
    x, gain, bias, groups, rms, eps = norms.arguments(op)
    channels = f.shape(x)[0]
    count = channels // groups
    floor = round(eps * count ** 2 / f.scale(x) ** 2 * 2 ** 28)
    if count > MAX_NORM or (count ** 2 << 42) + floor >= 1 << 62:
        raise GraphError(f"{layer(op)}: a norm over {count} channels on a grid of {f.scale(x):.3g}",
                         f"at most {MAX_NORM} channels", "more groups")
    mul = np.rint(_vector(f, gain, channels, 1) / scale * 2 ** 12)
    offset = np.rint(_vector(f, bias, channels, 0) / scale * 2 ** 16)
    if (np.abs(mul) >= 1 << 24).any() or (np.abs(offset) >= 1 << 31).any():
        raise GraphError(f"{layer(op)}: gain or bias far beyond the output's grid {scale:.3g}",
                         "gain < 2^12 grids, bias < 2^15", "a dead or exploding layer: train it again")
    return f.emit(op, "norm", [x], scale, {"groups": groups, "rms": rms, "eps": floor},
                  {"mul": mul.astype(np.int32), "bias": offset.astype(np.int32)})


def _vector(f, node, length: int, default: float) -> np.ndarray:
    """A float parameter (length,), or `default` where the layer has none."""
    found = parameter(f.program, node)
    return np.full(length, float(default)) if found is None else found.detach().numpy().astype(np.float64)


def lstm(f, op, scale: float, relu: bool) -> str:
    """Codes of both matrices; a multiplier per row brings their sums to pre-activation steps."""
    x, w_ih, w_hh, bias, sequence = op.args
    if scale != H_SCALE:
        raise GraphError(f"{layer(op)}: the state's grid is {scale:.3g}", f"{H_SCALE}")
    steps = np.full((4, op.meta["val"].shape[-1]), float(STEPS))
    steps[2] *= 2                                   # the rows of g count 2z
    steps = steps.flatten()
    weight_x, mul_x = _rows(f, op, w_ih, f.scale(x) * steps)
    weight_h, mul_h = _rows(f, op, w_hh, H_SCALE * steps)
    offset = np.rint(_vector(f, bias, len(steps), 0) * steps * 2 ** 16)
    if (np.abs(offset) >= 1 << 31).any():
        raise GraphError(f"{layer(op)}: a bias of {np.abs(offset / steps).max() / 2 ** 16:.3g}", "below 256",
                         "an exploding layer: train it again")
    params = {"weight_x": weight_x, "weight_h": weight_h, "mul_x": mul_x, "mul_h": mul_h,
              "bias": offset.astype(np.int32), "table": sigmoid_table()}
    return f.emit(op, "lstm", [x], scale, {"sequence": sequence}, params)


def _rows(f, op, weight, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, multiplier of each row); `grid` is what a weight of 1 times an input code of 1 counts."""
    if weight.target is not torch.ops.quantized_decomposed.dequantize_per_channel.default:
        raise GraphError(f"{layer(op)}: the weight is not quantized per channel")
    codes = parameter(f.program, weight.args[0]).numpy()
    scales = parameter(f.program, weight.args[1]).numpy().astype(np.float64)
    mul, shift = (np.array(a) for a in zip(*(multiplier(r, layer(op)) for r in grid * scales), strict=True))
    if shift.any() or codes.shape[1] * 127 * 128 >= 1 << 31:
        raise GraphError(f"{layer(op)}: one product of codes moves a gate by {(grid * scales).max() / STEPS:.3g}",
                         f"below {0.5 / STEPS:.3g}", "smaller inputs: divide them before the LSTM")
    return codes, mul.astype(np.int32)


def lookup(f, op, scale: float, relu: bool) -> str:
    """The rows on the output's grid. Codes are the integers themselves, so the input must count ones."""
    x, table, low = op.args
    if f.scale(x) != 1 or len(f.shape(x)) != 1:
        raise GraphError(f"{layer(op)}: looks up {f.shape(x)} on a grid of {f.scale(x):.3g}",
                         "one code (1,) whose value is the integer itself, grid 1",
                         "declare the side input with `one` = 1")
    rows = parameter(f.program, table).detach().numpy()
    codes = np.clip(np.floor(rows / np.float32(scale) + 0.5), -128, 127).astype(np.int8)
    return f.emit(op, "lookup", [x], scale, {"low": low}, {"table": codes})
