# SPDX-License-Identifier: Apache-2.0
"""RAM of a model on a device, byte by byte as targets/c/ecg.c takes it from its block, without a compiler."""

from __future__ import annotations

from dataclasses import dataclass

from compress.graph import Graph
from targets import c_program, front_data, plan
from targets.pack import CORES, Core, Layer
from train import rpeak
from train.manifest import Manifest

QUEUE, WAITING = 4, 4 + 12 + 16 * 9     # ECG_QUEUE, sizeof(ecg_waiting)


@dataclass(frozen=True)
class Form:
    """Bytes that one form of a graph takes: tensors of the moment, kernels' scratch, columns kept; tensors counted."""

    arena: int
    scratch: int
    state: int = 0
    counters: int = 0


def summary(graph: Graph, hop: int | None = None, core: Core = CORES["m4"]) -> dict:
    """Bytes of RAM on a core, as plain JSON, without front end. `ram_bytes` is what a device needs: the streaming form
    where the graph streams by a hop (samples), else a window. `bound_bytes`: no arena of a window can be smaller."""
    layers = c_program.Layers(graph, core)
    program = c_program.window(graph, layers)
    window, flowing = Form(program.arena, program.scratch), None
    if graph.boundary is not None and hop:
        s = c_program.streaming(graph, hop, layers)
        flowing = Form(max(s.front.arena, s.back.arena), max(s.front.scratch, s.back.scratch), s.state,
                       len(s.front.tensors))
    runs = flowing or window
    return {"window_bytes": window.arena, "bound_bytes": plan.window(graph).bound, "scratch_bytes": runs.scratch,
            "stream_bytes": flowing and flowing.arena + flowing.state, "state_bytes": flowing and flowing.state,
            "ram_bytes": total(runs, graph.tensors[graph.output].shape[0])}


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
