# SPDX-License-Identifier: Apache-2.0
"""The integer graph: the one form of a model that every target builds from.

`graph.json` holds tensors and nodes in execution order, `graph.npz` the weights and multipliers. Every tensor is int8
with zero point 0: value = scale * code. Sequence tensors are (channel, lead, time), vectors are (feature,); the batch
axis is left out. The waveform input is (lead, time). What each kind computes is defined in `reference.py`. Where two
shapes meet in `add` or `mul`, an axis of size 1 is repeated.

A streaming graph names the `boundary`: the slice node behind which the net sees only its last finished columns.
Everything before it is local in time and can be computed once per column on an endless record.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from train.say import GraphError

SCHEMA = 2
MAX_ROW = 1023      # keys of an attention row: sum of 14-bit weights times int8 values stays inside int32
MAX_NORM = 1023     # channels of a norm: n^2 times the variance stays below 2^34, its root with 14 more bits below 2^31

# attention kind: the keys that query t of T sees; train.models.attention.Window has the same
WINDOWS = {
    "global": "all, also when queries and keys differ in length",
    "band": "t - size .. t + size, clipped at the ends",
    "block": "those of its own block of `size`, the last of which may be short",
    "neighbourhood": "`size` of them from clip(t - (size - 1) // 2, 0, T - size) on",
}
PAIR = ("score_mul2", "score_shift2", "out_mul2")       # what an attention node with q2 and k2 has more

# kind -> (number of inputs (None: any), attributes, parameters with their dtype); `?` marks what may be absent
KINDS = {
    "conv1d": (1, {"stride", "pad", "groups", "relu"},
               {"weight": "int8", "bias": "int32", "mul": "int32", "shift": "int8", "weight_scale": "float32"}),
    "dense": (1, {"relu"},
              {"weight": "int8", "bias": "int32", "mul": "int32", "shift": "int8", "weight_scale": "float32"}),
    "attention": ((3, 5), {"heads", "window", "size", "score_mul", "score_shift", "out_mul", "export_scales",
                           "score_mul2?", "score_shift2?", "out_mul2?"},
                  {"table": "uint16", "bias?": "int32"}),
    "constant": (0, set(), {"value": "int8"}),
    "add": (2, {"mul", "shift", "relu"}, {}),
    "mul": (2, {"mul", "shift"}, {}),
    "table": (1, set(), {"table": "int8"}),
    "maxpool": (1, {"kernel", "stride", "pad"}, {}),
    "meanpool": (1, {"kernel", "stride", "pad", "mul", "shift"}, {}),
    "max": (1, {"axes"}, {}),
    "mean": (1, {"axes", "mul", "shift"}, {}),
    "concat": (None, {"axis", "mul", "shift"}, {}),
    "slice": (1, {"axis", "start", "stop"}, {}),
    "reshape": (1, {"shape"}, {}),
    "transpose": (1, {"perm"}, {}),
    "norm": (1, {"groups", "rms", "eps"}, {"mul": "int32", "bias": "int32"}),
    "lstm": (1, {"sequence"}, {"weight_x": "int8", "weight_h": "int8", "mul_x": "int32", "mul_h": "int32",
                               "bias": "int32", "table": "uint16"}),
    "lookup": (1, {"low"}, {"table": "int8"}),
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
        elif n.kind == "lstm":
            steps = graph.tensors[n.inputs[0]].shape[0]
            total += steps * (n.params["weight_x"].size + n.params["weight_h"].size)
        elif n.kind == "attention":
            maps = 2 if len(n.inputs) == 5 else 1
            channels = graph.tensors[n.inputs[0]].shape[0] + out[0]
            total += maps * channels * out[1] * out[2] * keys_seen(n, graph.tensors[n.inputs[1]].shape[2])
    return total


def keys_seen(n: Node, keys: int) -> int:
    """Keys that a query of an attention node sees at most, of `keys` that there are."""
    size = n.attrs["size"]
    return min({"global": keys, "band": 2 * size + 1, "block": size, "neighbourhood": size}[n.attrs["window"]], keys)


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
        if arity is not None and len(n.inputs) not in (arity if isinstance(arity, tuple) else (arity,)):
            raise GraphError(f"{n.name}: {n.kind} has {len(n.inputs)} inputs", str(arity))
        if not _complete(n.attrs, attrs) or not _complete(n.params, params):
            raise GraphError(f"{n.name}: {n.kind} has {sorted(n.attrs)} and {sorted(n.params)}",
                             f"{sorted(attrs)} and {sorted(params)}")
        for key, array in n.params.items():
            dtype = params.get(key) or params[f"{key}?"]
            if array.dtype != dtype:
                raise GraphError(f"{n.name}: {key} is {array.dtype}", dtype)
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


def _complete(found, known) -> bool:
    """Everything that must be there is found, and nothing that is not known."""
    return {k for k in known if not k.endswith("?")} <= set(found) <= {k.removesuffix("?") for k in known}


def _shape(graph: Graph, n: Node) -> tuple[int, ...]:
    """The output shape that the inputs of a node imply."""
    if n.kind == "constant":
        return n.params["value"].shape
    shapes = [graph.tensors[t].shape for t in n.inputs]
    x = shapes[0]
    if n.kind in ("conv1d", "maxpool", "meanpool"):
        kernel = n.params["weight"].shape[2] if n.kind == "conv1d" else n.attrs["kernel"]
        time = (x[2] + sum(n.attrs["pad"]) - kernel) // n.attrs["stride"] + 1
        return (n.params["weight"].shape[0] if n.kind == "conv1d" else x[0], x[1], time)
    if n.kind == "dense":
        if (n.params["weight"].shape[1],) != x:
            raise GraphError(f"{n.name}: input {x}", f"({n.params['weight'].shape[1]},)")
        return (n.params["weight"].shape[0],)
    if n.kind == "attention":
        return _attention(n, shapes)
    if n.kind in ("add", "mul"):
        if len(shapes[1]) != len(x) or any(a != b and 1 not in (a, b) for a, b in zip(*shapes, strict=False)):
            raise GraphError(f"{n.name}: {n.kind} of {x} and {shapes[1]}", "equal shapes but for axes of size 1")
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    if n.kind in ("max", "mean"):
        return tuple(s for i, s in enumerate(x) if i not in n.attrs["axes"])
    if n.kind == "concat":
        axis = n.attrs["axis"]
        return (*x[:axis], sum(s[axis] for s in shapes), *x[axis + 1:])
    if n.kind == "slice":
        axis = n.attrs["axis"]
        return (*x[:axis], n.attrs["stop"] - n.attrs["start"], *x[axis + 1:])
    if n.kind in _MODULE_SHAPES:
        return _MODULE_SHAPES[n.kind](n, x)
    if n.kind == "reshape":
        if math.prod(n.attrs["shape"]) != math.prod(x):
            raise GraphError(f"{n.name}: reshapes {x} to {n.attrs['shape']}", "as many elements")
        return tuple(n.attrs["shape"])
    if n.kind == "transpose":
        if sorted(n.attrs["perm"]) != list(range(len(x))):
            raise GraphError(f"{n.name}: axes {n.attrs['perm']} of {x}", "every axis once")
        return tuple(x[axis] for axis in n.attrs["perm"])
    return x


def _attention(n: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The output shape of an attention node, whose parts must belong together."""
    q, k, v, *pair = shapes
    window, size, heads = n.attrs["window"], n.attrs["size"], n.attrs["heads"]
    if window not in WINDOWS:
        raise GraphError(f"{n.name}: unknown window {window!r}", ", ".join(WINDOWS))
    if (q[:2] != k[:2] or k[1:] != v[1:] or q[0] % heads or v[0] % heads or (window != "global" and q[2] != k[2])
            or pair not in ([], [q, k])):
        raise GraphError(f"{n.name}: {window} attention of {heads} heads over {shapes}",
                         "q, k and v of equal leads, k and v of equal length, q2 and k2 like q and k")
    if size < (window in ("block", "neighbourhood")) or (window == "neighbourhood" and size > k[2]):
        raise GraphError(f"{n.name}: a {window} of {size} in {k[2]} steps", "a size that fits")
    if keys_seen(n, k[2]) > MAX_ROW:
        raise GraphError(f"{n.name}: {keys_seen(n, k[2])} keys in a row", f"at most {MAX_ROW}", "use a local window")
    if any((key in n.attrs) != bool(pair) for key in PAIR):
        raise GraphError(f"{n.name}: {len(shapes)} inputs with {sorted(n.attrs)}", f"{PAIR} with q2 and k2 only")
    bias = n.params.get("bias")
    if bias is not None and (window != "neighbourhood" or pair or bias.shape != (heads, 2 * size - 1)):
        raise GraphError(f"{n.name}: a bias {bias.shape} in {window} attention of {len(shapes)} inputs",
                         "(heads, 2 * size - 1), in a neighbourhood without a pair")
    return (v[0], *q[1:])


def _norm_shape(n: Node, x: tuple[int, ...]) -> tuple[int, ...]:
    channels, groups = n.params["mul"].size, n.attrs["groups"]
    if x[0] != channels or n.params["bias"].size != channels or channels % groups or channels // groups > MAX_NORM:
        raise GraphError(f"{n.name}: input {x} in {groups} groups",
                         f"({channels}, ...) in equal groups of at most {MAX_NORM}")
    return x


def _lstm_shape(n: Node, x: tuple[int, ...]) -> tuple[int, ...]:
    rows, hidden = n.params["weight_h"].shape
    if len(x) != 2 or n.params["weight_x"].shape != (rows, x[1]) or rows != 4 * hidden:
        raise GraphError(f"{n.name}: input {x}", f"(step, {n.params['weight_x'].shape[1]})")
    return (x[0], hidden) if n.attrs["sequence"] else (hidden,)


def _lookup_shape(n: Node, x: tuple[int, ...]) -> tuple[int, ...]:
    if x != (1,):
        raise GraphError(f"{n.name}: looks up {x}", "(1,)")
    return (n.params["table"].shape[1],)


_MODULE_SHAPES = {"norm": _norm_shape, "lstm": _lstm_shape, "lookup": _lookup_shape}
