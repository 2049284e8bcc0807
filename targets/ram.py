# SPDX-License-Identifier: Apache-2.0
"""RAM of a model on a device, byte by byte as targets/c/ecg.c takes it from its block, without a compiler."""

from __future__ import annotations

from targets import front_data
from targets.pack import Layer
from train import rpeak
from train.manifest import Manifest

QUEUE, WAITING = 4, 4 + 12 + 16 * 9     # ECG_QUEUE, sizeof(ecg_waiting)


def parts(source, classes: int, manifest: Manifest | None = None, rate: Layer | None = None) -> dict[str, int]:
    """Bytes by part, in the order of the block, the gaps between parts in `gaps`; their sum is what ecg_memory() says.

    source: what c_model.generate made, or any object with its bytes of arena, scratch, state and its counters. rate: of
    front_data, from the front-end's rate to the model's.
    """
    cut = [("scratch", source.scratch, 8), ("arena", source.arena, 4), ("state", source.state, 4),
           ("counters", 4 * source.counters, 4), ("sums", 4 * classes, 4), ("new columns", 2 * source.counters, 2),
           ("logits", classes, 1), ("votes", manifest.decision.vote * classes if manifest else 0, 1)]
    if manifest is not None:
        cut += _signal(manifest, rate or front_data.rate(manifest.fs, manifest.fs))
    used, gaps = 0, 0
    for _, size, align in cut:
        start = -(-used // align) * align
        gaps += start - used
        used = start + size
    return {name: size for name, size, _ in cut if size} | {"gaps": gaps + -used % 8}


def total(source, classes: int, manifest: Manifest | None = None, rate: Layer | None = None) -> int:
    """Bytes of the whole block."""
    return sum(parts(source, classes, manifest, rate).values())


def _signal(m: Manifest, rate: Layer) -> list[tuple[str, int, int]]:
    """The front end, and what looks at beats."""
    around, kinds = m.trigger.kind == "r-peak", {i.kind for i in m.inputs}
    asked = kinds | ({"rr"} if around else set())
    found = front_data.memory(front_data.front_spec(m), rate, asked, m.trigger.kind)
    cut = [(name, found[name], 4) for name in ("front", "history", "rpeak", "beats", "rhythm") if name in found]
    if around:
        room = 10 * m.fs + rpeak.Detector(m.fs).latency + m.trigger.offset + 2
        cut += [("beats that wait", QUEUE * WAITING, 4), ("codes around beats", room * m.waveform.shape[0], 1)]
    return cut
