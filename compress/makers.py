# SPDX-License-Identifier: Apache-2.0
"""Which node of the integer graph an operation of the converted program becomes.

A maker takes the freezer, the operation, the scale of its output and whether a ReLU follows; it emits a node and
returns the name of the tensor it writes. The bounds that `reference.py` and the C kernels rely on are proven here.
"""

from __future__ import annotations

import numpy as np
import torch

from compress.fixed import multiplier
from compress.fold import layer, parameter
from compress.makers_attention import attention
from compress.quantizer import ADD, ATTENTION, WEIGHTED, aten
from train.say import GraphError

_DQ_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default
_RESHAPE = {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim}


def weighted(f, op, scale: float, relu: bool) -> str:
    """conv1d and dense: codes, int32 bias, one multiplier per output channel."""
    source, weight = op.args[0], op.args[1]
    if weight.target is not _DQ_CHANNEL:
        raise GraphError(f"{layer(op)}: the weight is not quantized per channel")
    codes = parameter(f.program, weight.args[0]).numpy()
    weight_scale = parameter(f.program, weight.args[1]).numpy().astype(np.float32)
    bias = _bias(f, op, f.scale(source) * weight_scale.astype(np.float64))
    real = f.scale(source) * weight_scale.astype(np.float64) / scale
    mul, shift = (np.array(x) for x in zip(*(multiplier(r, layer(op)) for r in real), strict=True))
    bound = np.abs(codes.reshape(len(codes), -1).astype(np.int64)).sum(1) * 128 + np.abs(bias)
    if ((bound << shift) >= 1 << 31).any():
        raise GraphError(f"{layer(op)}: the accumulator can leave 31 bits", "fewer inputs or smaller weights")
    params = {"bias": bias.astype(np.int32), "mul": mul.astype(np.int32), "shift": shift.astype(np.int8),
              "weight_scale": weight_scale}
    if op.target is aten.linear.default:
        return f.emit(op, "dense", [source], scale, {"relu": relu}, {"weight": codes, **params})
    stride, pad, dilation, groups = _conv_numbers(op)
    if dilation != 1 or (codes.ndim == 4 and codes.shape[2] != 1):
        raise GraphError(f"{layer(op)}: kernel {codes.shape[2:]}, dilation {dilation}", "kernel (1, k), dilation 1")
    attrs = {"stride": stride, "pad": [pad, pad], "groups": groups, "relu": relu}
    return f.emit(op, "conv1d", [source], scale, attrs,
                      {"weight": codes.reshape(*codes.shape[:2], codes.shape[-1]), **params})


def _bias(f, op, grid: np.ndarray) -> np.ndarray:
    """int32 bias on the accumulator's grid; the program's float bias is moved onto it as well."""
    bias = parameter(f.program, op.args[2]) if len(op.args) > 2 else None
    if bias is None:
        return np.zeros(len(grid), np.int64)
    codes = np.rint(bias.detach().numpy().astype(np.float64) / grid).astype(np.int64)
    with torch.no_grad():
        bias.copy_(torch.from_numpy((codes * grid).astype(np.float32)))
    return codes


def add(f, op, scale: float, relu: bool) -> str:
    real = [f.scale(a) / scale for a in op.args[:2]]
    shift = 14
    while shift > 1 and max(real) * 2 ** shift >= 1 << 15:
        shift -= 1
    while shift < 22 and max(real) * 2 ** (shift + 1) < 1 << 15:
        shift += 1
    mul = [round(r * 2 ** shift) for r in real]
    if not all(0 < m < 1 << 15 for m in mul):
        raise GraphError(f"{layer(op)}: adds grids {real[0]:.3g} and {real[1]:.3g} times the sum's", "within 2^14")
    return f.emit(op, "add", op.args[:2], scale, {"mul": mul, "shift": shift, "relu": relu})


def max_pool(f, op, scale: float, relu: bool) -> str:
    numbers = [list(a)[-1] if isinstance(a, (list, tuple)) else a for a in (*op.args[1:4], 0, 0)][:3]
    kernel, stride, pad = numbers[0], numbers[1] or numbers[0], numbers[2]
    f.same(op.args[0], scale)
    return f.emit(op, "maxpool", [op.args[0]], scale, {"kernel": kernel, "stride": stride, "pad": [pad, pad]})


def reduced(f, op, scale: float, relu: bool) -> str:
    source, axes = op.args[0], op.args[1]
    axes = sorted(a % (len(f.shape(source)) + 1) - 1 for a in ([axes] if isinstance(axes, int) else axes))
    if len(op.args) > 2 and op.args[2]:
        raise GraphError(f"{layer(op)}: keepdim", "keepdim=False")
    if op.target is aten.amax.default:
        f.same(source, scale)
        return f.emit(op, "max", [source], scale, {"axes": axes})
    count = int(np.prod([f.shape(source)[a] for a in axes]))
    mul, shift = multiplier(f.scale(source) / count / scale, layer(op))
    return f.emit(op, "mean", [source], scale, {"axes": axes, "mul": mul, "shift": shift})


def concat(f, op, scale: float, relu: bool) -> str:
    sources = list(op.args[0])
    mul, shift = zip(*(multiplier(f.scale(s) / scale, layer(op)) for s in sources), strict=True)
    axis = (op.args[1] if len(op.args) > 1 else 0) % (len(f.shape(sources[0])) + 1) - 1
    return f.emit(op, "concat", sources, scale, {"axis": axis, "mul": list(mul), "shift": list(shift)})


def cut(f, op, scale: float, relu: bool) -> str:
    source, dim, start, stop = (*op.args, 0, 0, 2 ** 62)[:4] if len(op.args) < 4 else op.args[:4]
    length = f.shape(source)[dim - 1]
    start, stop = (min(max(x + length if x < 0 else x, 0), length) for x in (start or 0, stop))
    f.same(source, scale)
    return f.emit(op, "slice", [source], scale, {"axis": dim - 1, "start": start, "stop": stop})


def reshape(f, op, scale: float, relu: bool) -> str:
    source = op.args[0]
    shape = tuple(int(s) for s in op.meta["val"].shape[1:])
    if len(shape) != 1 and shape != (1, *f.shape(source)):
        raise GraphError(f"{layer(op)}: reshapes {f.shape(source)} to {shape}", "a vector, or one channel more")
    f.same(source, scale)
    return f.emit(op, "reshape", [source], scale, {"to": "vector" if len(shape) == 1 else "channel"})


MAKERS = {**dict.fromkeys(WEIGHTED, weighted), **dict.fromkeys(ADD, add),
           **dict.fromkeys(ATTENTION, attention), **dict.fromkeys(_RESHAPE, reshape),
           aten.max_pool1d.default: max_pool, aten.max_pool2d.default: max_pool,
           aten.mean.dim: reduced, aten.amax.default: reduced, aten.cat.default: concat,
           aten.slice.Tensor: cut}


def _conv_numbers(op) -> tuple[int, int, int, int]:
    """(stride, pad, dilation, groups) along time; the lead axis must be left alone."""
    stride, pad, dilation, groups = (*op.args[3:], *([1], [0], [1], 1)[len(op.args) - 3:])
    return list(stride)[-1], list(pad)[-1], list(dilation)[-1], groups


