# SPDX-License-Identifier: Apache-2.0
"""Memory of the streaming form of a graph: what each local layer keeps of the past, and the arenas around it.

Samples arrive `hop` at a time. Every local layer computes its new columns once. In the arena the rows of a tensor hold
its past columns, copied from its state, and the new ones behind them; after its last reader the newest columns of a
tensor go into its state. The columns in front of the boundary are kept whole and in order, and the layers behind it
read them where they lie, once for each decision. Both parts use one arena, one after the other.

What exists when is `reference.stream`'s: nothing is appended on the right, so a layer that looks ahead waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress import graph as graphs
from compress.graph import Graph, Node
from compress.reference import column_stride, period
from compress.reference_attention import finished
from targets.plan import Plan, Task, byte_of_view, constants, plan
from train.say import GraphError


@dataclass(frozen=True)
class Stream:
    """`state`: tensor -> columns of it that are kept from hop to hop; `new`: tensor -> most new columns in a hop."""

    local: Plan
    decide: Plan
    state: dict[str, int]
    new: dict[str, int]
    state_bytes: int

    @property
    def bytes(self) -> int:
        """State and the arena that both parts share."""
        return self.state_bytes + self.arena

    @property
    def arena(self) -> int:
        """The larger of the two parts."""
        return max(self.local.bytes, self.decide.bytes)


def stream(graph: Graph, hop: int) -> Stream:
    """The plan of a graph that gets `hop` samples at a time; GraphError when it does not stream by such a hop."""
    local, (cut, *rest) = graph.local_nodes()
    whole = period(graph)
    if hop <= 0 or hop % whole:
        raise GraphError(f"a hop of {hop} samples", f"a multiple of {whole}")
    flash = constants(graph)
    roots = roots_of(graph, local)
    finals = roots[cut.inputs[0]]
    state, new = _flow(graph, local, cut, hop, flash, roots)
    column = {t: math.prod(graph.tensors[t].shape[:-1]) for t in roots}
    sizes = {t: column[t] * (new[t] + state.get(roots[t], 0)) for t in roots if roots[t] != finals}
    ring = frozenset(t for t in roots if state.get(roots[t]))
    front = plan(Task(graph, local, sizes, [t for t in graph.inputs[:1] if t in sizes], [], ring, strided_views=False))
    sizes = {n.output: math.prod(graph.tensors[n.output].shape) for n in rest if n.output not in flash}
    sides = {t: math.prod(graph.tensors[t].shape) for t in graph.inputs[1:]}
    back = plan(Task(graph, rest, sizes | sides, list(sides), [graph.output]))
    return Stream(front, back, state, new, sum(column[t] * columns for t, columns in state.items()))


def macs(graph: Graph, hop: int) -> int:
    """Multiply-accumulates of one hop: its new columns, and the layers behind the boundary once."""
    local, rest = graph.local_nodes()
    flash, far = constants(graph), 4 * graph.tensors[graph.inputs[0]].shape[-1]
    before, after = (columns_after(graph, local, flash, samples) for samples in (far, far + hop))

    def cost(nodes: list[Node]) -> int:
        return graphs.macs(Graph(graph.inputs, graph.output, graph.tensors, nodes))
    moving = (n for n in local if n.output not in flash)
    new = sum(cost([n]) * (after[n.output] - before[n.output]) / graph.tensors[n.output].shape[-1] for n in moving)
    return round(new) + cost(rest)


def roots_of(graph: Graph, local: list[Node]) -> dict[str, str]:
    """Local tensor -> the tensor whose columns it shows under another shape."""
    flash, roots = constants(graph), {graph.inputs[0]: graph.inputs[0]}
    for n in local:
        if n.output not in flash:
            alike = n.kind in ("reshape", "transpose") and byte_of_view(graph, n) is not None
            roots[n.output] = roots[n.inputs[0]] if alike else n.output
    return roots


def _flow(graph: Graph, local: list[Node], cut: Node, hop: int, flash: set[str], roots: dict[str, str]):
    """(root -> columns kept, tensor -> most new columns in a hop), over a record from its first sample on."""
    samples, stride = graph.tensors[graph.inputs[0]].shape[-1], column_stride(graph)
    finals = roots[cut.inputs[0]]
    before = dict.fromkeys(roots, 0)
    state, new = dict.fromkeys(roots.values(), 0), dict.fromkeys(roots, 0)
    for total in range(samples % hop or hop, 4 * samples + hop, hop):
        after = columns_after(graph, local, flash, total)
        for t, count in after.items():
            new[t] = max(new[t], count - before[t])
        for n in local:
            for place, t in enumerate(n.inputs):
                if t not in flash:
                    kept = after[t] - max(first_needed(n, place, after[n.output]), 0)
                    # what lies in front of the boundary keeps its new columns in the state too
                    more = new[t] if roots[t] == finals else 0
                    state[roots[t]] = max(state[roots[t]], min(kept + more, after[t]))
        decided = max(total, samples)       # the decision that comes next or now
        first = (decided - samples) // stride + cut.attrs["start"]
        state[finals] = max(state[finals], after[cut.inputs[0]] - first, new[finals])
        before = after
    return {t: columns for t, columns in state.items() if columns > 0}, new


def columns_after(graph: Graph, local: list[Node], flash: set[str], samples: int) -> dict[str, int]:
    """How many columns of each local tensor exist once `samples` samples have arrived."""
    have = {graph.inputs[0]: samples}
    for n in local:
        if n.output in flash:
            continue
        least = min(have[t] for t in n.inputs if t not in flash)
        if n.kind == "attention":
            least = max(finished(n, least), 0)
        elif n.kind in ("conv1d", "maxpool", "meanpool"):
            least = max((least + n.attrs["pad"][0] - _kernel(n)) // n.attrs["stride"] + 1, 0)
        have[n.output] = least
    return have


def first_needed(n: Node, place: int, done: int) -> int:
    """The first column of its input number `place` that a node reads for its output column `done`."""
    if n.kind in ("conv1d", "maxpool", "meanpool"):
        return done * n.attrs["stride"] - n.attrs["pad"][0]
    if n.kind == "attention" and place in (1, 2, 4):
        size = n.attrs["size"]
        return {"band": done - size, "block": done // max(size, 1) * size,
                "neighbourhood": done - (size - 1) // 2}[n.attrs["window"]]
    return done


def _kernel(n: Node) -> int:
    return n.params["weight"].shape[2] if n.kind == "conv1d" else n.attrs["kernel"]
