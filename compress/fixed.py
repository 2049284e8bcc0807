# SPDX-License-Identifier: Apache-2.0
"""Fixed-point arithmetic that freezing and the reference share: multipliers, requantization, saturation."""

from __future__ import annotations

import numpy as np

from train.say import GraphError


def multiplier(scale: float, where: str) -> tuple[int, int]:
    """(m, k) with scale = m * 2^k / 2^32, 0 < m < 2^31, 0 <= k <= 7, k = 0 whenever scale < 0.5."""
    k = 0
    while k < 7 and round(scale * 2.0 ** (32 - k)) >= 1 << 31:
        k += 1
    m = round(scale * 2.0 ** (32 - k))
    if not 0 < m < 1 << 31:
        raise GraphError(f"{where}: a rescaling by {scale:.3g} has no 31-bit multiplier", "2^-33 < scale < 64",
                         "a dead or exploding layer: train it again, or remove it")
    return m, k


def rescale(acc: np.ndarray, m, k) -> np.ndarray:
    """((acc << k) * m + 2^31) >> 32 without the clamp."""
    return ((acc.astype(np.int64) << np.int64(k)) * np.int64(m) + (1 << 31)) >> 32


def clamp8(x: np.ndarray, relu: bool = False) -> np.ndarray:
    """Saturate to int8; with relu the floor is 0."""
    return np.clip(x, 0 if relu else -128, 127).astype(np.int8)
