# SPDX-License-Identifier: Apache-2.0
"""The integer graph: the one form of a model that every target builds from.

`graph.json` holds tensors and nodes in execution order, `graph.npz` the weights and multipliers. Every tensor is int8
with zero point 0: value = scale * code. Sequence tensors are (channel, lead, time), vectors are (feature,); the batch
axis is left out. The waveform input is (lead, time). What each kind computes is defined in `reference.py`.

A streaming graph names the `boundary`: the slice node behind which the net sees only its last finished columns.
Everything before it is local in time and can be computed once per column on an endless record.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from train.say import GraphError

SCHEMA = 1
MAX_ROW = 1023      # keys of an attention row: sum of 14-bit weights times int8 values stays inside int32

# kind -> (number of inputs (None: any), attributes, parameters with their dtype)
KINDS = {
    "conv1d": (1, {"stride", "pad", "groups", "relu"},
               {"weight": "int8", "bias": "int32", "mul": "int32", "shift": "int8", "weight_scale": "float32"}),
    "dense": (1, {"relu"},
              {"weight": "int8", "bias": "int32", "mul": "int32", "shift": "int8", "weight_scale": "float32"}),
    "attention": (3, {"heads", "window", "half", "score_mul", "score_shift", "out_mul", "export_scales"},
                  {"table": "uint16"}),
    "add": (2, {"mul", "shift", "relu"}, {}),
    "table": (1, set(), {"table": "int8"}),
    "maxpool": (1, {"kernel", "stride", "pad"}, {}),
    "max": (1, {"axes"}, {}),
    "mean": (1, {"axes", "mul", "shift"}, {}),
    "concat": (None, {"axis", "mul", "shift"}, {}),
    "slice": (1, {"axis", "start", "stop"}, {}),
    "reshape": (1, {"to"}, {}),
}


@dataclass(frozen=True)
class Tensor:
    """Shape without the batch axis, and the value of one int8 step."""

    shape: tuple[int, ...]
    scale: float


@dataclass
class Node:
    """One operation. `name` is the layer's name in the float model, for messages."""

    name: str
    kind: str
    inputs: list[str]
    output: str
    attrs: dict = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Graph:
    """Nodes in execution order. `boundary` names the slice node of a streaming graph, else None."""

    inputs: list[str]
    output: str
    tensors: dict[str, Tensor]
    nodes: list[Node]
    boundary: str | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes a device must store: weights, biases, multipliers, equal tables once; no scales of other runtimes."""
        held = [(k, a) for n in self.nodes for k, a in n.params.items() if k != "weight_scale"]
        tables = {a.tobytes() for k, a in held if k == "table"}
        return sum(a.nbytes for k, a in held if k != "table") + sum(len(t) for t in tables)

    def local_nodes(self) -> tuple[list[Node], list[Node]]:
        """(nodes before the boundary, the rest with the boundary first); GraphError when the graph does not stream."""
        if self.boundary is None:
            raise GraphError("this graph does not stream", "a graph with a boundary")
        at = next(i for i, n in enumerate(self.nodes) if n.name == self.boundary)
        return self.nodes[:at], self.nodes[at:]


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one evaluation: convolutions, dense layers and both attention products."""
    total = 0
    for n in graph.nodes:
        out = graph.tensors[n.output].shape
        if n.kind == "conv1d":
            total += int(np.prod(n.params["weight"].shape[1:])) * int(np.prod(out))
        elif n.kind == "dense":
            total += n.params["weight"].size
        elif n.kind == "attention":
            channel, lead, time = out
            source = graph.tensors[n.inputs[1]].shape[2]
            keys = source if n.attrs["window"] == "global" else min(2 * n.attrs["half"] + 1, source)
            total += 2 * channel * lead * time * keys
    return total


def dumps(graph: Graph) -> tuple[bytes, bytes]:
    """(graph.json, graph.npz) as bytes; equal graphs give equal bytes."""
    check(graph)
    arrays = {f"{i}.{key}": a for i, n in enumerate(graph.nodes) for key, a in sorted(n.params.items())}
    document = {
        "schema": SCHEMA, "inputs": graph.inputs, "output": graph.output, "boundary": graph.boundary,
        "tensors": {k: {"shape": list(t.shape), "scale": t.scale} for k, t in graph.tensors.items()},
        "nodes": [{"name": n.name, "kind": n.kind, "inputs": n.inputs, "output": n.output, "attrs": n.attrs,
                   "params": sorted(n.params)} for n in graph.nodes],
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return (json.dumps(document, indent=1) + "\n").encode(), packed.getvalue()


def load(run: str | Path, sha256: str | None = None) -> Graph:
    """Read a run folder's graph; with `sha256` (the manifest's) a changed byte in either file is an error."""
    from train import runs
    folder = Path(run)
    again = f"quantize again: python compress/qat.py --arch local-lead --run {folder}"
    paths = [folder / "graph.json", folder / "graph.npz"]
    for path in paths:
        if not path.is_file():
            raise GraphError(f"no {path.name} in {folder}", "a quantized run", again.removeprefix("quantize again: "))
    if sha256 is not None and runs.sha256(*paths) != sha256:
        raise GraphError(f"{folder}: the graph is not the one that model.json vouches for, its sha256 differs",
                         sha256, again)
    return loads(paths[0].read_bytes(), paths[1].read_bytes())


def loads(document: bytes, packed: bytes) -> Graph:
    """Parse and check the two files; never unpickles."""
    try:
        data = json.loads(document)
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            if data.get("schema") != SCHEMA:
                raise GraphError(f"graph schema {data.get('schema')!r}", str(SCHEMA), "quantize it again")
            nodes = [Node(n["name"], n["kind"], n["inputs"], n["output"], n["attrs"],
                          {key: arrays[f"{i}.{key}"] for key in n["params"]}) for i, n in enumerate(data["nodes"])]
        tensors = {k: Tensor(tuple(t["shape"]), t["scale"]) for k, t in data["tensors"].items()}
        graph = Graph(data["inputs"], data["output"], tensors, nodes, data["boundary"])
        check(graph)
    except GraphError:
        raise
    except Exception as error:      # a damaged zip or JSON fails in many ways; all mean the same to the caller
        raise GraphError(f"the graph cannot be read: {error}", "files written by compress/qat.py") from error
    return graph


def check(graph: Graph) -> None:
    """Raise GraphError when a node is unknown, reads what no one wrote, or has the wrong parts or shape."""
    known = set(graph.inputs)
    for n in graph.nodes:
        if n.kind not in KINDS:
            raise GraphError(f"{n.name}: unknown node kind {n.kind!r}", ", ".join(KINDS))
        arity, attrs, params = KINDS[n.kind]
        if arity is not None and len(n.inputs) != arity:
            raise GraphError(f"{n.name}: {n.kind} has {len(n.inputs)} inputs", str(arity))
        if set(n.attrs) != attrs or set(n.params) != set(params):
            raise GraphError(f"{n.name}: {n.kind} has {sorted(n.attrs)} and {sorted(n.params)}",
                             f"{sorted(attrs)} and {sorted(params)}")
        for key, dtype in params.items():
            if n.params[key].dtype != dtype:
                raise GraphError(f"{n.name}: {key} is {n.params[key].dtype}", dtype)
        for tensor in (*n.inputs, n.output):
            if tensor not in graph.tensors:
                raise GraphError(f"{n.name}: tensor {tensor!r} has no shape and scale")
        unwritten = [t for t in n.inputs if t not in known]
        if unwritten or n.output in known:
            raise GraphError(f"{n.name} reads {unwritten or 'its inputs'} and writes {n.output!r}",
                             "each tensor written once, before it is read")
        expected = _shape(graph, n)
        if graph.tensors[n.output].shape != expected:
            raise GraphError(f"{n.name}: shape {graph.tensors[n.output].shape}", str(expected))
        known.add(n.output)
    if graph.output not in known:
        raise GraphError(f"nothing writes the output {graph.output!r}")
    if graph.boundary is not None and not any(n.name == graph.boundary and n.kind == "slice" for n in graph.nodes):
        raise GraphError(f"the boundary {graph.boundary!r} is no slice node")


def _shape(graph: Graph, n: Node) -> tuple[int, ...]:
    """The output shape that the inputs of a node imply."""
    shapes = [graph.tensors[t].shape for t in n.inputs]
    x = shapes[0]
    if n.kind in ("conv1d", "maxpool"):
        kernel = n.params["weight"].shape[2] if n.kind == "conv1d" else n.attrs["kernel"]
        time = (x[2] + sum(n.attrs["pad"]) - kernel) // n.attrs["stride"] + 1
        return (n.params["weight"].shape[0] if n.kind == "conv1d" else x[0], x[1], time)
    if n.kind == "dense":
        if (n.params["weight"].shape[1],) != x:
            raise GraphError(f"{n.name}: input {x}", f"({n.params['weight'].shape[1]},)")
        return (n.params["weight"].shape[0],)
    if n.kind == "attention":
        if shapes[1][2] > MAX_ROW and n.attrs["window"] == "global":
            raise GraphError(f"{n.name}: {shapes[1][2]} keys in a row", f"at most {MAX_ROW}", "use a local window")
        return (shapes[2][0], *x[1:])
    if n.kind == "add" and shapes[1] != x:
        raise GraphError(f"{n.name}: adds {x} and {shapes[1]}", "equal shapes")
    if n.kind in ("max", "mean"):
        return tuple(s for i, s in enumerate(x) if i not in n.attrs["axes"])
    if n.kind == "concat":
        axis = n.attrs["axis"]
        return (*x[:axis], sum(s[axis] for s in shapes), *x[axis + 1:])
    if n.kind == "slice":
        axis = n.attrs["axis"]
        return (*x[:axis], n.attrs["stop"] - n.attrs["start"], *x[axis + 1:])
    if n.kind == "reshape":
        return (int(np.prod(x)),) if n.attrs["to"] == "vector" else (1, *x)
    return x
