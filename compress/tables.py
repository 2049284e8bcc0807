# SPDX-License-Identifier: Apache-2.0
"""Unary functions as tables: 256 codes in, 256 codes out.

A table is filled by the program's own operation and the program's own rounding, so the two agree code by code. An
operation of two operands is unary too when the second is a number or a parameter of one element.
"""

from __future__ import annotations

import numbers

import numpy as np
import torch
from torch.fx import GraphModule, Node

from compress.fold import layer, parameter
from train.say import GraphError

aten = torch.ops.aten
_Q = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_NAMES = ("relu relu6 gelu silu sigmoid tanh leaky_relu elu celu selu hardtanh hardswish hardsigmoid softplus mish "
          "log_sigmoid clamp clamp_min clamp_max exp expm1 log log1p sqrt rsqrt square reciprocal abs neg erf sign "
          "sin cos round floor ceil hardshrink softshrink").split()
FUNCTIONS = {getattr(aten, name).default for name in _NAMES} | {aten.pow.Tensor_Scalar}
WITH_SCALAR = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.prelu.default,
               aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.rsub.Scalar, aten.rsub.Tensor}


def operand(op: Node) -> Node | None:
    """The one tensor that a unary function reads; None for every other operation."""
    if op.target not in FUNCTIONS | WITH_SCALAR:
        return None
    nodes = [a for a in (*op.args, *op.kwargs.values()) if isinstance(a, Node)]
    data = [a for a in nodes if not (a.op == "get_attr" and a.meta["val"].numel() == 1)]
    scalars = all(isinstance(a, (Node, numbers.Number, str, type(None))) for a in (*op.args, *op.kwargs.values()))
    return data[0] if len(data) == 1 and data[0].op != "get_attr" and scalars else None


def table(program: GraphModule, op: Node, source_scale: float, scale: float) -> np.ndarray:
    """int8 (256,): what the program makes of each input code."""
    source = operand(op)
    codes = _DQ(torch.arange(-128, 128, dtype=torch.int8), source_scale, 0, -128, 127, torch.int8)

    def value(argument):
        if argument is source:
            return codes
        return parameter(program, argument).detach() if isinstance(argument, Node) else argument
    with torch.no_grad():
        real = op.target(*map(value, op.args), **{k: value(a) for k, a in op.kwargs.items()}).reshape(256)
        if not real.isfinite().all():
            raise GraphError(f"{layer(op)}: {op.target} is not finite on every code of its input",
                             "a function of every real number", "clamp its input first")
        return _Q(real, scale, 0, -128, 127, torch.int8).numpy()
