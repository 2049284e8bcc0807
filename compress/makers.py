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
from compress.lookup import LOOKUP
from compress.lstm import LSTM
from compress.makers_attention import attention
from compress.makers_modules import lookup, lstm, norm
from compress.norm import NORM
from compress.quantizer import ADD, ATTENTION, MUL, WEIGHTED, aten
from compress.tables import operand, table
from train.say import GraphError

_DQ_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default


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
        if len(f.shape(source)) != 1:
            raise GraphError(f"{layer(op)}: a linear layer on {f.shape(source)}", "a vector (feature,)",
                             "use a convolution with kernel 1 on (channel, lead, time)")
        return f.emit(op, "dense", [source], scale, {"relu": relu}, {"weight": codes, **params})
    stride, pad, dilation, groups = _conv_numbers(op)
    if dilation != 1 or codes.shape[2] != 1:
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
    """Sum or difference; a grid so fine that its operand never moves the sum gets the multiplier 0."""
    real = [f.scale(a) / scale for a in op.args[:2]]
    shift = 14
    while shift > 1 and max(real) * 2 ** shift >= 1 << 15:
        shift -= 1
    while shift < 22 and max(real) * 2 ** (shift + 1) < 1 << 15:
        shift += 1
    mul = [round(r * 2 ** shift) for r in real]
    if max(mul) >= 1 << 15 or (min(mul) == 0 and shift < 9):
        raise GraphError(f"{layer(op)}: adds grids {real[0]:.3g} and {real[1]:.3g} times the sum's", "within 2^14")
    if op.target is aten.sub.Tensor:
        mul[1] = -mul[1]
    return f.emit(op, "add", op.args[:2], scale, {"mul": mul, "shift": shift, "relu": relu})


def product(f, op, scale: float, relu: bool) -> str:
    mul, shift = multiplier(f.scale(op.args[0]) * f.scale(op.args[1]) / scale, layer(op))
    return f.emit(op, "mul", op.args[:2], scale, {"mul": mul, "shift": shift})


def pool(f, op, scale: float, relu: bool) -> str:
    """maxpool and meanpool."""
    mean = op.target is aten.avg_pool2d.default
    usual = ([], 0, False, True, None) if mean else ([], 0, 1, False)
    kernel, stride, pad, *rest = (*op.args[1:], *usual[len(op.args) - 2:])
    kernel, stride, pad = _pair(kernel), _pair(stride or kernel), _pair(pad)
    if mean:
        ceil, counts, divisor = rest
        plain = not ceil and (counts or pad == [0, 0]) and divisor is None
    else:
        plain = _pair(rest[0]) == [1, 1] and not rest[1]
    if not plain or kernel[0] != 1 or pad[0] != 0 or (stride[0] != 1 and f.shape(op.args[0])[1] != 1):
        raise GraphError(f"{layer(op)}: pooling {op.args[1:]}",
                         "kernel (1, k), stride (1, s), padding (0, p) that counts")
    attrs = {"kernel": kernel[1], "stride": stride[1], "pad": [pad[1], pad[1]]}
    if not mean:
        f.same(op.args[0], scale)
        return f.emit(op, "maxpool", [op.args[0]], scale, attrs)
    mul, shift = multiplier(f.scale(op.args[0]) / kernel[1] / scale, layer(op))
    return f.emit(op, "meanpool", [op.args[0]], scale, attrs | {"mul": mul, "shift": shift})


def _pair(number) -> list[int]:
    """One number, or one for each axis -> [lead, time]."""
    return (list(number) * 2)[:2] if isinstance(number, (list, tuple)) else [number, number]


def reduced(f, op, scale: float, relu: bool) -> str:
    source, axes = op.args[0], op.args[1]
    axes = [a - 1 for a in axes]
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
    source, dim, start, stop = op.args
    f.same(source, scale)
    return f.emit(op, "slice", [source], scale, {"axis": dim - 1, "start": start, "stop": stop})


def reshape(f, op, scale: float, relu: bool) -> str:
    source, shape = op.args
    f.same(source, scale)
    return f.emit(op, "reshape", [source], scale, {"shape": list(shape[1:])})


def transpose(f, op, scale: float, relu: bool) -> str:
    source, perm = op.args
    f.same(source, scale)
    return f.emit(op, "transpose", [source], scale, {"perm": [axis - 1 for axis in perm[1:]]})


def unary(f, op, scale: float, relu: bool) -> str:
    source = operand(op)
    return f.emit(op, "table", [source], scale, {}, {"table": table(f.program, op, f.scale(source), scale)})


def repeated(f, op, scale: float, relu: bool) -> str:
    """A parameter, repeated over the batch and perhaps along axes of size 1."""
    codes, own = parameter(f.program, op.args[0].args[0]), op.args[0].args[1]
    if own != scale:
        raise GraphError(f"{layer(op)}: requantized from {own} to {scale}", "one grid")
    shape = [int(s) for s in op.meta["val"].shape[1:]]
    return f.emit(op, "constant", [], scale, {}, {"value": codes.expand(1, *shape)[0].contiguous().numpy()})


MAKERS = {**dict.fromkeys(WEIGHTED, weighted), **dict.fromkeys(ADD, add),
           **dict.fromkeys(ATTENTION, attention), **dict.fromkeys(MUL, product),
           **dict.fromkeys(NORM, norm), **dict.fromkeys(LSTM, lstm), **dict.fromkeys(LOOKUP, lookup),
           aten.max_pool2d.default: pool, aten.avg_pool2d.default: pool, aten.mean.dim: reduced,
           aten.amax.default: reduced, aten.cat.default: concat, aten.slice.Tensor: cut, aten.reshape.default: reshape,
           aten.permute.default: transpose, aten.expand.default: repeated}


def _conv_numbers(op) -> tuple[int, int, int, int]:
    """(stride, pad, dilation, groups) along time; the lead axis must be left alone."""
    stride, pad, dilation, groups = (*op.args[3:], *([1], [0], [1], 1)[len(op.args) - 3:])
    return list(stride)[-1], list(pad)[-1], list(dilation)[-1], groups


