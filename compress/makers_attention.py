# SPDX-License-Identifier: Apache-2.0
"""The attention op of a converted program as one node of the integer graph, its int32 bounds proven."""

from __future__ import annotations

import numpy as np
import torch

from compress.fixed import multiplier
from compress.fold import layer, parameter
from compress.graph import MAX_ROW, Node, keys_seen
from compress.reference_attention import EXP_STEP, exp_table, reach, scores, split
from train.say import GraphError


def attention(f, op, scale: float, relu: bool) -> str:
    q, k, v, q2, k2, lam, bias, heads, window, size, score_scale = op.args
    name = layer(op)
    attrs = {"heads": heads, "window": window, "size": size, "export_scales": {}}
    params = {"table": exp_table()}
    unit = f.scale(q) * f.scale(k) * score_scale                # nats of one step of the score's accumulator
    spread = 0
    if bias is not None:
        params["bias"], unit = _bias(f, bias, unit)
        spread = int(2 * np.abs(params["bias"].astype(np.int64)).max())
    attrs["score_mul"], attrs["score_shift"] = multiplier(unit / EXP_STEP, name)
    attrs["out_mul"] = _out_mul(f.scale(v) / scale, name)
    if attrs["out_mul"] <= 0:
        raise GraphError(f"{name}: output grid {scale:.3g}, value grid {f.scale(v):.3g}", "within 2^24")
    sources, shifts = [q, k, v], [attrs["score_shift"]]
    if q2 is not None:
        sources += [q2, k2]
        unit = f.scale(q2) * f.scale(k2) * score_scale
        attrs["score_mul2"], attrs["score_shift2"] = multiplier(unit / EXP_STEP, name)
        attrs["out_mul2"] = _out_mul(parameter(f.program, lam).item() * f.scale(v) / scale, name)
        shifts.append(attrs["score_shift2"])
    channel, lead, _ = f.shape(q)
    depth = channel // heads * lead
    keys = keys_seen(Node(name, "attention", [], "", attrs), f.shape(k)[2])
    if keys > MAX_ROW or (2 * 128 * 128 * depth + spread) << max(shifts) >= 1 << 31:
        raise GraphError(f"{name}: {keys} keys of {channel // heads} x {lead} do not fit int32",
                         f"at most {MAX_ROW} keys", "use a local window, fewer leads or smaller heads")
    return f.emit(op, "attention", sources, scale, attrs, params)


def _out_mul(real: float, name: str) -> int:
    """24 bits behind the point; below 16 the products of the reference stay inside 64 bits."""
    mul = round(real * 2 ** 24)
    if abs(mul) >= 1 << 28:
        raise GraphError(f"{name}: values grow {abs(real):.3g} times on the output's grid", "less than 16 times")
    return mul


def _bias(f, node, unit: float) -> tuple[np.ndarray, int]:
    """(int32 bias on the accumulator's grid, nats of one step of it); the program's bias moves onto it as well.

    Beside scores so small that the bias would leave 2^29 steps the grid is widened. The scores count more than they
    should then, but even the largest stays below depth * lead / 2^14 of the bias: no step of the exp table.
    """
    bias = parameter(f.program, node)
    real = bias.detach().numpy().astype(np.float64)
    unit = max(unit, np.abs(real).max() / 2 ** 29)
    codes = np.rint(real / unit)
    with torch.no_grad():
        bias.copy_(torch.from_numpy((codes * unit).astype(np.float32)))
    return codes.astype(np.int32), unit


def export_scales(n: Node, args: list[np.ndarray]) -> dict[str, float]:
    """Grids that only other runtimes need: the scores that queries see, with their bias, in nats; args are codes."""
    q, k, _, *pair = (split(a, n.attrs["heads"]) for a in args)
    t, s = np.arange(q.shape[-1])[:, None], np.arange(k.shape[-1])
    first, stop = reach(n, t, len(s))
    seen = (s >= first) & (s < stop)
    bias = n.params["bias"][:, np.where(seen, s - t + n.attrs["size"] - 1, 0)] if "bias" in n.params else 0
    found = {}
    for which, one, other, offset in (("", q, k, bias), *([("2", *pair, 0)] if pair else [])):
        unit = n.attrs["score_mul" + which] * 2.0 ** (n.attrs["score_shift" + which] - 32) * EXP_STEP
        found["score" + which] = float((np.abs(scores(one, other) + offset) * seen).max()) * unit / 127
    return found
