# SPDX-License-Identifier: Apache-2.0
"""A graph as the tables that targets/c/ecg_net.c walks: tensors with their places, nodes with their kernels.

`window` evaluates a whole window, `stream` computes each new column once and decides at every hop. Places are those of
plan.py and stream.py; a view costs no node. Layers are packed once and shared by both forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from compress.graph import Graph, Node
from compress.reference import column_stride, strides
from targets import pack, pack_simple, plan, stream
from targets.pack import Core, Layer
from train.say import GraphError

INPUTS_MAX = 12                                     # ECG_INPUTS_MAX
NOWHERE = 0xffffffff                                # place of a tensor whose view the driver makes
NEVER = 0xffff                                      # last_read of a tensor that no node reads
# kinds that need the whole signal along time
WHOLE_SIGNAL = {"dense", "lstm", "lookup"}
FLOWS = {"conv1d": "ECG_SLIDING", "maxpool": "ECG_SLIDING", "meanpool": "ECG_SLIDING"}
WAITS = {"band": "ECG_BAND_WAITS", "block": "ECG_BLOCK_WAITS", "neighbourhood": "ECG_NEIGHBOURHOOD_WAITS"}


@dataclass(frozen=True)
class Place:
    """A row of the tensor table; see ecg_tensor. `flash`: (the constant node's output, byte) or None."""

    rows: int
    columns: int
    pitch: int
    place: int = 0
    flash: tuple[str, int] | None = None
    state: int = 0
    kept: int = 0
    stride: int = 1
    ring: bool = False


@dataclass(frozen=True)
class Call:
    """A row of the node table. `flow`: (name of ecg_net.h, size, stride, pad)."""

    node: Node
    layer: Layer
    inputs: tuple[int, ...]
    out: int
    flow: tuple[str, int, int, int] = ("ECG_ALIKE", 0, 1, 0)


@dataclass
class Program:
    """Calls in order and the tensors they use. `arena`: bytes."""

    calls: list[Call] = field(default_factory=list)
    tensors: list[Place] = field(default_factory=list)
    names: list[str] = field(default_factory=list)      # of tensors, for comments
    given: list[int] = field(default_factory=list)
    out: int = 0
    arena: int = 0

    def number(self, place: Place, name: str) -> int:
        """The row of a tensor; equal rows are one, but for tensors that a stream keeps count of."""
        for i, (other, known) in enumerate(zip(self.tensors, self.names, strict=True)):
            if other == place and (known == name or not place.stride):
                return i
        self.tensors.append(place)
        self.names.append(name)
        return len(self.tensors) - 1

    @property
    def scratch(self) -> int:
        """Bytes that the kernels share."""
        return max((c.layer.scratch for c in self.calls), default=0)


@dataclass(frozen=True)
class Streaming:
    """See ecg_stream. `state`: bytes kept from step to step."""

    front: Program
    back: Program
    last_read: tuple[int, ...]
    hop: int
    stride: int
    ring: int
    cut: int
    start: int
    window: int
    state: int


class Layers:
    """Packs each node once."""

    def __init__(self, graph: Graph, core: Core):
        self.graph, self.core = graph, core
        self._packed: dict[str, Layer] = {}

    def __call__(self, n: Node) -> Layer:
        if n.name not in self._packed:
            self._packed[n.name] = pack.layer(self.graph, n, self.core)
        return self._packed[n.name]


def window(graph: Graph, layers: Layers) -> Program:
    """The tables of one evaluation of the whole graph."""
    planned = plan.window(graph)
    tables = _Tables(graph, planned, layers)
    tables.give(graph.inputs)
    for n in planned.order:
        tables.call(n)
    return tables.finish(graph.output)


class _Tables:
    """Collects the rows of a program whose tensors lie in an arena, without gaps between rows."""

    def __init__(self, graph: Graph, planned: plan.Plan, layers: Layers):
        self.graph, self.plan, self.layers = graph, planned, layers
        self.flash = flash_places(graph)
        self.program = Program(arena=planned.bytes)
        self.elsewhere: dict[str, int] = {}         # tensors that lie outside of the arena, already numbered

    def give(self, names) -> None:
        """Tensors that are filled from outside."""
        for name in names:
            self.program.given.append(self.tensor(name, False))

    def tensor(self, name: str, channels_first: bool) -> int:
        """The row of a tensor, in the form that a kernel takes it."""
        if name in self.elsewhere:
            return self.elsewhere[name]
        *rows, columns = pack.volume(self.graph.tensors[name].shape, channels_first)
        found = Place(math.prod(rows), columns, columns, stride=0)
        if name in self.flash:
            return self.program.number(replace(found, flash=self.flash[name]), name)
        return self.program.number(replace(found, place=self.plan.place[name]), name)

    def call(self, n: Node) -> None:
        """Add a node, unless it moves nothing."""
        if n.output in self.flash:
            return
        view = plan.byte_of_view(self.graph, n) is not None
        if view and n.inputs[0] in self.plan.place:
            return
        first = pack_simple.channels_first(n.kind)
        inputs = tuple(self.tensor(t, first) for t in n.inputs)
        source = self.program.tensors[inputs[0]] if inputs else None
        # a reshape that is no view moves the rows of a ring together
        layer = pack_simple.copy((source.rows, 1, source.columns)) if n.kind == "reshape" else self.layers(n)
        out = self.tensor(n.output, first)
        if n.kind in ("reshape", "max", "mean"):
            out = self._flat(n, out)
        _check(n, inputs)
        self.program.calls.append(Call(n, layer, inputs, out))

    def _flat(self, n: Node, out: int) -> int:
        """The output as the kernel writes it: a copy keeps its input's rows, a reduction over time has only one."""
        place, shape = self.program.tensors[out], self.graph.tensors[n.output].shape
        if n.kind == "reshape":
            source = self.program.tensors[self.tensor(n.inputs[0], False)]
            form = replace(place, rows=source.rows, columns=source.columns, pitch=source.columns)
        elif len(self.graph.tensors[n.inputs[0]].shape) - 1 in n.attrs["axes"]:
            form = replace(place, rows=1, columns=math.prod(shape), pitch=math.prod(shape))
        else:
            return out
        return self.program.number(form, n.output)

    def finish(self, output: str) -> Program:
        """The whole program; its result is a row of codes."""
        self.program.out = self.tensor(output, False)
        return self.program


def flash_places(graph: Graph) -> dict[str, tuple[str, int]]:
    """Tensor in flash -> (output of the constant node, byte)."""
    found: dict[str, tuple[str, int]] = {}
    for n in graph.nodes:
        byte = plan.byte_of_view(graph, n)
        if n.kind == "constant":
            found[n.output] = n.output, 0
        elif byte is not None and n.inputs[0] in found:
            source, start = found[n.inputs[0]]
            found[n.output] = source, start + byte
    return found


def _check(n: Node, inputs: tuple[int, ...]) -> None:
    if len(inputs) > INPUTS_MAX:
        raise GraphError(f"{n.name}: {n.kind} of {len(inputs)} tensors", f"at most {INPUTS_MAX} on a microcontroller",
                         "join them in two steps")


# ---- streaming

def streaming(graph: Graph, hop: int, layers: Layers) -> Streaming:
    """The tables of the streaming form at a hop (samples)."""
    local, (cut, *_) = graph.local_nodes()
    for n in local:
        _check_local(graph, n)
    planned = stream.stream(graph, hop)
    roots = stream.roots_of(graph, local)
    front, rows, state = _front(graph, planned, local, cut, roots, layers)
    ring = rows[roots[cut.inputs[0]]]
    back = _Tables(graph, planned.decide, layers)
    *above, columns = pack.volume(graph.tensors[cut.output].shape)
    back.elsewhere[cut.output] = back.program.number(Place(math.prod(above), columns, columns, NOWHERE, stride=0),
                                                     cut.output)
    back.give(graph.inputs[1:])
    for n in planned.decide.order:
        back.call(n)
    reads = tuple(max((i for i, c in enumerate(front.calls) if t in c.inputs), default=NEVER)
                  for t in range(len(front.tensors)))
    return Streaming(front, back.finish(graph.output), reads, hop, column_stride(graph), ring,
                     back.elsewhere[cut.output], cut.attrs["start"], graph.tensors[graph.inputs[0]].shape[-1], state)


def _front(graph: Graph, planned: stream.Stream, local: list[Node], cut: Node, roots: dict[str, str], layers: Layers):
    """(program, row of each root, bytes of state) of the layers in front of the boundary."""
    flash, stride = flash_places(graph), strides(graph, local)
    program, rows, state = Program(arena=planned.local.bytes), {}, 0
    for t in dict.fromkeys(roots.values()):
        *above, columns = pack.volume(graph.tensors[t].shape)
        height, kept = math.prod(above), planned.state.get(t, 0)
        ring = t == roots[cut.inputs[0]]
        pitch = kept if ring else kept + planned.new[t]
        rows[t] = program.number(Place(height, columns, pitch, state if ring else planned.local.place[t], None, state,
                                       kept, stride[t], ring), t)
        state += height * kept
    program.given = [rows[roots[graph.inputs[0]]]]

    def numbered(t: str) -> int:
        if t not in flash:
            return rows[roots[t]]
        *above, columns = pack.volume(graph.tensors[t].shape)
        return program.number(Place(math.prod(above), columns, columns, flash=flash[t], stride=0), t)
    for n in planned.local.order:
        if n.output in flash or roots.get(n.output) != n.output:
            continue
        inputs = tuple(numbered(t) for t in n.inputs)
        _check(n, inputs)
        program.calls.append(Call(n, layers(n), inputs, rows[n.output], _flow(n)))
    return program, rows, state


def _flow(n: Node) -> tuple[str, int, int, int]:
    """What decides when the columns of a node exist."""
    if n.kind == "attention":
        return WAITS[n.attrs["window"]], n.attrs["size"], 1, 0
    if n.kind in FLOWS:
        kernel = n.params["weight"].shape[2] if n.kind == "conv1d" else n.attrs["kernel"]
        return FLOWS[n.kind], kernel, n.attrs["stride"], n.attrs["pad"][0]
    return "ECG_ALIKE", 0, 1, 0


def _check_local(graph: Graph, n: Node) -> None:
    """GraphError for what cannot be computed column by column."""
    last = len(graph.tensors[n.inputs[0] if n.inputs else n.output].shape) - 1
    axes = n.attrs.get("axes", [n.attrs["axis"]] if "axis" in n.attrs else [])
    moved = n.kind == "transpose" and n.attrs["perm"][-1] != last
    if n.kind in WHOLE_SIGNAL or n.attrs.get("window") == "global" or last in axes or moved:
        raise GraphError(f"{n.name}: {n.kind} needs the whole signal, but lies in front of the boundary",
                         "layers that look at a stretch of time only", "put it behind the boundary")
