# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm in integers: one integer square root and one division per group, lead and time.

For the n codes x of a group, with s = sum(x), or 0 with rms:
    V    = n * sum(x^2) - s^2                                   n^2 times the variance, below 2^34 as n <= MAX_NORM
    root = max(isqrt(V * 2^28 + eps), 2^14)                     below 2^31; eps = the float one * n^2 / grid^2 * 2^28
    r    = floor((2^44 + floor(root / 2)) / root)               at most 2^30
    t    = ((n * x - s) * r + 2^9) >> 10                        the normalised value times 2^20, below 2^26
    out  = clamp8((t * mul[c] + bias[c] * 2^16 + 2^31) >> 32)   mul = gain * 2^12 / grid, bias in 2^-16 of a code

sum(x^2), s and n * x - s fit int32. Both products of a code are 32 x 32 -> 64 bit (SMULL, SMLAL on a Cortex-M).
isqrt rounds down: 31 steps of shift, compare and subtract on 64 bit; the division is 64 by 32 bit; both are made once
for n codes. The floor of 2^14 is reached only where every n * x - s is 0. All roundings together stay below 1/16 code.
"""

from __future__ import annotations

import numpy as np

from compress.fixed import clamp8
from compress.graph import Node

ROOT_BITS = 14          # fraction of the root


def isqrt(x: np.ndarray) -> np.ndarray:
    """floor(sqrt(x)) of int64 below 2^62, exactly."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)      # off by one at most
    root -= root * root > x
    return root + ((root + 1) * (root + 1) <= x)


def norm(n: Node, args, endless: bool) -> np.ndarray:
    """(batch, channel, ...) -> the same shape; every index behind the channel is normalised by itself."""
    batch, channels, *rest = args[0].shape
    count = channels // n.attrs["groups"]
    x = args[0].astype(np.int64).reshape(batch, n.attrs["groups"], count, *rest)
    total = 0 if n.attrs["rms"] else x.sum(2, keepdims=True)
    square = count * (x * x).sum(2, keepdims=True) - total * total
    root = np.maximum(isqrt((square << 2 * ROOT_BITS) + n.attrs["eps"]), 1 << ROOT_BITS)
    t = ((count * x - total) * (((1 << 44) + root // 2) // root) + (1 << 9)) >> 10
    shape = (channels, *[1] * len(rest))
    mul, bias = (n.params[key].astype(np.int64).reshape(shape) for key in ("mul", "bias"))
    return clamp8((t.reshape(args[0].shape) * mul + (bias << 16) + (1 << 31)) >> 32)
