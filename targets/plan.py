# SPDX-License-Identifier: Apache-2.0
"""Where every tensor of an integer graph lies in memory, before anything is built: lifetimes, order, offsets.

A buffer is reused as soon as nothing reads it any more. A reshape, and a slice or transpose that leaves the bytes in
order, is a view of its input. An operation that reads an element before it writes the one at its place works in the
buffer of an input that ends there. Constants lie in flash. Inputs are written anew for every evaluation and may be
overwritten. What a kernel needs besides its tensors is counted apart (`ram.py`). `stream.py`
plans the streaming form.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from compress.graph import Graph, Node

ALIGN = 4               # buffers start on a word, so that a kernel loads four codes at once on every core
WIDTH = 64              # partial orders that the search keeps
# Kinds that may write over an input of the output's size. Attention writes a row over its query, norm a column over
# its input: both have read all of it by then.
ELEMENTWISE = {"add", "mul", "table"}
OVERWRITES = ELEMENTWISE | {"norm", "attention"}


@dataclass(frozen=True)
class Buffer:
    """Bytes `offset` .. `offset + size` of the arena, held from step `first` to step `last` by `tensors` in turn."""

    tensors: tuple[str, ...]
    size: int
    first: int
    last: int
    offset: int = 0

    def meets(self, other: Buffer) -> bool:
        """Both are held at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Nodes in the order of execution, and the byte at which each tensor starts. `bound`: no arena can be smaller."""

    order: tuple[Node, ...]
    buffers: tuple[Buffer, ...]
    place: dict[str, int]
    bound: int

    @property
    def bytes(self) -> int:
        """Size of the arena."""
        return max((b.offset + b.size for b in self.buffers), default=0)

    def fullest(self) -> tuple[str, dict[str, int]]:
        """(name of the node at which most bytes are held, the tensors that hold them with their bytes)."""
        if not self.order:
            return "", {}
        step = max(range(len(self.order)), key=lambda s: sum(b.size for b in self.held(s)))
        return self.order[step].name, {b.tensors[0]: b.size for b in self.held(step)}

    def held(self, step: int) -> list[Buffer]:
        """The buffers held at a step."""
        return [b for b in self.buffers if b.first <= step <= b.last]


@dataclass(frozen=True)
class Task:
    """What is planned: nodes, bytes of every tensor that lies in the arena, which must be there first and at the end.

    `kept` tensors are read after their last step too and never overwritten in place.
    """

    graph: Graph
    nodes: list[Node]
    sizes: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    kept: frozenset[str] = frozenset()
    strided_views: bool = True      # a slice may be a view of its input

    def view(self, n: Node) -> int | None:
        """Byte of its input at which the output of a node starts that moves nothing; None for every other node."""
        return byte_of_view(self.graph, n) if self.strided_views or n.kind != "slice" else None


def window(graph: Graph) -> Plan:
    """The plan of one evaluation of the whole graph."""
    flash = constants(graph)
    sizes = {name: math.prod(t.shape) for name, t in graph.tensors.items() if name not in flash}
    return plan(Task(graph, graph.nodes, sizes, graph.inputs, [graph.output]))


def plan(task: Task) -> Plan:
    """The smallest arena over the given order of execution and the best one that is found."""
    roots = _roots(task)
    orders = [task.nodes, _search(task, roots)]
    found = [_laid(task, roots, order) for order in orders]
    best = min(found, key=lambda p: p.bytes)
    return Plan(best.order, best.buffers, best.place, min(p.bound for p in found))


def constants(graph: Graph) -> set[str]:
    """Tensors that lie in flash: constants and views of them."""
    found: set[str] = set()
    for n in graph.nodes:
        if n.kind == "constant" or (byte_of_view(graph, n) is not None and n.inputs[0] in found):
            found.add(n.output)
    return found


def byte_of_view(graph: Graph, n: Node) -> int | None:
    """The byte of its input at which a view starts, tensors lying in the order of their axes; None when n is none."""
    if n.kind == "reshape":
        return 0
    shape = graph.tensors[n.inputs[0]].shape if n.inputs else ()
    if n.kind == "transpose":
        wide = [axis for axis in n.attrs["perm"] if shape[axis] > 1]
        return 0 if wide == sorted(wide) else None
    if n.kind == "slice":
        axis = n.attrs["axis"]
        start = n.attrs["start"] * math.prod(shape[axis + 1:])
        return start if math.prod(shape[:axis]) == 1 and start % ALIGN == 0 else None
    return None


def overwritten(graph: Graph, n: Node) -> list[str]:
    """The inputs in whose buffer a node may write its output, as far as the node's own arithmetic is concerned."""
    shape = graph.tensors[n.output].shape
    inputs = n.inputs[:1] if n.kind == "attention" else n.inputs
    return [t for t in inputs if n.kind in OVERWRITES and graph.tensors[t].shape == shape]


def _roots(task: Task) -> dict[str, tuple[str, int]]:
    """Tensor in the arena -> (the tensor whose bytes it shows, byte at which it starts there)."""
    roots = {t: (t, 0) for t in task.inputs if t in task.sizes}
    for n in task.nodes:
        start = task.view(n)
        if n.output not in task.sizes:
            continue
        if start is None or n.inputs[0] not in roots:
            roots[n.output] = n.output, 0
        else:
            root, byte = roots[n.inputs[0]]
            roots[n.output] = root, byte + start
    return roots


def _readers(task: Task, roots) -> dict[str, set[int]]:
    """Root -> numbers of the nodes that read it or a view of it."""
    readers: dict[str, set[int]] = {root: set() for root, _ in roots.values()}
    for i, n in enumerate(task.nodes):
        for t in n.inputs:
            if t in roots:
                readers[roots[t][0]].add(i)
    return readers


def _reused(task: Task, roots, n: Node) -> list[str]:
    """Roots whose buffer node n could take over if nothing read them later."""
    found = []
    for t in overwritten(task.graph, n):
        if t not in roots or n.output not in roots:
            continue
        root = roots[t][0]
        readings = sum(o in roots and roots[o][0] == root for o in n.inputs)
        if task.sizes[root] == task.sizes[n.output] and not {root, n.output} & task.kept and (
                n.kind in ELEMENTWISE or readings == 1):
            found.append(root)
    return found


def _search(task: Task, roots) -> list[Node]:
    """An order in which little is held at once: partial orders side by side, the WIDTH emptiest of each length."""
    nodes, sizes = task.nodes, task.sizes
    readers = _readers(task, roots)
    ends = {roots[t][0] for t in task.outputs if t in roots}
    writer = {n.output: i for i, n in enumerate(nodes)}
    needs = [sum(1 << writer[t] for t in set(n.inputs) if t in writer) for n in nodes]
    reads = [{roots[t][0] for t in n.inputs if t in roots} for n in nodes]
    masks = {root: sum(1 << i for i in who) for root, who in readers.items()}
    writes = [n.output if n.output in roots and roots[n.output][0] == n.output else None for n in nodes]
    reused = [_reused(task, roots, n) for n in nodes]
    start = sum(sizes[t] for t in task.inputs if t in sizes)
    beam = {0: (start, start, ())}      # nodes done, one bit each -> (most bytes held so far, bytes held, order)
    for _ in nodes:
        grown: dict[int, tuple] = {}
        for done, (most, held, order) in beam.items():
            for i in range(len(nodes)):
                if done >> i & 1 or needs[i] & ~done:
                    continue
                after = done | 1 << i
                over = {r for r in reads[i] if r not in ends and not masks[r] & ~after}
                more = sizes[writes[i]] if writes[i] else 0
                during = held + (0 if over & set(reused[i]) else more)
                idle = more if writes[i] and not masks[writes[i]] and writes[i] not in ends else 0
                now = held + more - idle - sum(sizes[r] for r in over)
                entry = (max(most, during), now, (*order, i))
                if after not in grown or entry < grown[after]:
                    grown[after] = entry
        beam = dict(sorted(grown.items(), key=lambda kv: kv[1])[:WIDTH])
    (_, _, order), = beam.values()
    return [nodes[i] for i in order]


def _laid(task: Task, roots, order: list[Node]) -> Plan:
    """Buffers and offsets of one order of execution."""
    step_of = {id(n): s for s, n in enumerate(order)}
    end = len(order) - 1
    last = {root: max((step_of[id(task.nodes[i])] for i in who), default=-1)
            for root, who in _readers(task, roots).items()}
    last |= dict.fromkeys((roots[t][0] for t in task.outputs if t in roots), end)
    held: dict[str, list] = {}      # root -> [size, first, last, tensors]; roots that share a buffer share the list
    for t in task.inputs:
        if t in task.sizes:
            held[t] = [task.sizes[t], 0, max(last[t], 0), [t]]
    for step, n in enumerate(order):
        if n.output not in roots or roots[n.output][0] != n.output:
            continue
        until = max(last[n.output], step)
        taken = next((r for r in _reused(task, roots, n) if held[r][2] == step), None)
        if taken is None:
            held[n.output] = [task.sizes[n.output], step, until, [n.output]]
        else:
            held[n.output] = held[taken]
            held[taken][2] = until
            held[taken][3].append(n.output)
    buffers = [Buffer(tuple(names), size, first, stop)
               for size, first, stop, names in {id(b): b for b in held.values()}.values()]
    bound = max((sum(b.size for b in buffers if b.first <= s <= b.last) for s in range(len(order))), default=0)
    placed = _offsets(buffers, bound)
    starts = {t: b.offset for b in placed for t in b.tensors}
    return Plan(tuple(order), tuple(placed), {t: starts[root] + byte for t, (root, byte) in roots.items()}, bound)


def _offsets(buffers: list[Buffer], bound: int) -> list[Buffer]:
    """Best fit: each buffer goes into the smallest gap that holds it; of several orders of placing, the best."""
    keys = (lambda b: (-b.size, b.first), lambda b: (b.first, -b.size), lambda b: (-(b.last - b.first), -b.size),
            lambda b: (-b.size * (b.last - b.first + 1), b.first), lambda b: (b.last, -b.size))
    best: list[Buffer] = []
    for key in keys:
        found = _fitted(sorted(buffers, key=key))
        if not best or _top(found) < _top(best):
            best = found
        if _top(best) <= bound:
            break
    else:
        best = _improved(best, bound)
    return best


def _improved(best: list[Buffer], bound: int, tries: int = 64) -> list[Buffer]:
    """Places what lies highest earlier, again and again."""
    order = list(best)
    for _ in range(tries):
        high = max(order, key=lambda b: b.offset + b.size)
        order.remove(high)
        order.insert(0, high)
        order = _fitted(order)
        if _top(order) < _top(best):
            best = order
        if _top(best) <= bound:
            break
    return best


def _fitted(order: list[Buffer]) -> list[Buffer]:
    placed: list[Buffer] = []
    for b in order:
        taken = sorted((o.offset, o.offset + o.size) for o in placed if b.meets(o))
        free, gaps = 0, []
        for start, stop in taken:
            if start - free >= b.size:
                gaps.append((start - free, free))
            free = max(free, -(-stop // ALIGN) * ALIGN)
        offset = min(gaps)[1] if gaps else free
        placed.append(Buffer(b.tensors, b.size, b.first, b.last, offset))
    return placed


def _top(buffers: list[Buffer]) -> int:
    return max(itertools.chain((b.offset + b.size for b in buffers), (0,)))
