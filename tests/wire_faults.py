# SPDX-License-Identifier: Apache-2.0
"""Damage to bytes on a line, with the truth kept: which frames were touched, which came through as they were sent.

drop, flip and insert act on each byte with probability p, as the fault studies of serial protocols do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAULTS = ("drop", "flip", "insert")
RATES = (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Damaged:
    """data: the bytes that arrive; touched: bool (frame,), a byte of the frame was dropped or flipped, or one was put
    into it."""

    data: bytes
    touched: np.ndarray


def damage(frames: list[bytes], fault: str, p: float, seed: int = 0) -> Damaged:
    """Send frames over a bad line."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(f) for f in frames])
    raw = np.frombuffer(b"".join(frames), np.uint8).copy()
    owner = np.repeat(np.arange(len(frames)), lengths)
    hit = rng.random(len(raw)) < p
    touched = np.zeros(len(frames), bool)
    if fault == "flip":
        raw[hit] ^= (1 << rng.integers(0, 8, hit.sum())).astype(np.uint8)
        touched[owner[hit]] = True
        return Damaged(raw.tobytes(), touched)
    if fault == "drop":
        touched[owner[hit]] = True
        return Damaged(raw[~hit].tobytes(), touched)
    # a byte in front of a frame's first one lies between frames and touches none
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    inside = hit & ~np.isin(np.arange(len(raw)), starts)
    touched[owner[inside]] = True
    places = np.flatnonzero(hit)
    return Damaged(np.insert(raw, places, rng.integers(0, 256, len(places))).tobytes(), touched)


def portions(data: bytes, seed: int = 0, most: int = 200) -> list[bytes]:
    """Cut at random, as a port hands bytes over."""
    rng, out, at = np.random.default_rng(seed), [], 0
    while at < len(data):
        size = int(rng.integers(1, most))
        out.append(data[at:at + size])
        at += size
    return out
