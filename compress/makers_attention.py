# SPDX-License-Identifier: Apache-2.0
"""The attention op of a converted program as one node of the integer graph."""

from __future__ import annotations

import numpy as np

from compress.attention import EVERY
from compress.fixed import multiplier
from compress.fold import layer
from compress.graph import MAX_ROW
from compress.reference_attention import EXP_STEP, exp_table
from train.say import GraphError


def attention(f, op, scale: float, relu: bool) -> str:
    q, k, v, heads, half = op.args
    channel, lead, _ = f.shape(q)
    depth = channel // heads
    score = f.scale(q) * f.scale(k) / np.sqrt(depth) / EXP_STEP
    mul, shift = multiplier(score, layer(op))
    keys = f.shape(k)[2] if half == EVERY else min(2 * half + 1, f.shape(k)[2])
    if keys > MAX_ROW or (2 * 128 * 128 * depth * lead) << shift >= 1 << 31:
        raise GraphError(f"{layer(op)}: {keys} keys of {depth} x {lead} do not fit int32",
                         f"at most {MAX_ROW} keys", "use a local window, fewer leads or smaller heads")
    out_mul = round(f.scale(v) / scale * 2 ** 24)
    if not 0 < out_mul < 1 << 28:
        raise GraphError(f"{layer(op)}: output grid {scale:.3g}, value grid {f.scale(v):.3g}", "within 16x")
    attrs = {"heads": heads, "window": "global" if half == EVERY else "band", "half": max(half, 0),
             "score_mul": mul, "score_shift": shift, "out_mul": out_mul, "export_scales": {}}
    return f.emit(op, "attention", [q, k, v], scale, attrs, {"table": exp_table()})
