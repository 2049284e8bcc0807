# SPDX-License-Identifier: Apache-2.0
"""The converted program becomes the integer graph: every tensor gets its code, every scale its multiplier.

Works on what torchao's convert_pt2e leaves: each operation between dequantize and quantize nodes, int8 weights behind
dequantize_per_channel. The bounds that `reference.py` and the C kernels rely on are proven here, from the weights.
What has no node kind is refused with the layer's name.
"""

from __future__ import annotations

import numpy as np
import torch

from compress.attention import GLOBAL
from compress.fold import layer, parameter
from compress.graph import MAX_ROW, Graph, Node, Tensor, check
from compress.quantizer import ADD, ATTENTION, RELU, WEIGHTED, aten
from compress.reference import EXP_STEP, exp_table, run
from train.say import GraphError

_Q = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DQ = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_DQ_CHANNEL = torch.ops.quantized_decomposed.dequantize_per_channel.default
_ALIAS = {aten.clone.default, aten.contiguous.default, aten.dropout.default}
_RESHAPE = {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim}
_LOCAL = {"conv1d", "add", "table", "maxpool", "reshape", "attention", "slice", "concat"}


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


def freeze(program: torch.fx.GraphModule, shapes: dict[str, tuple[int, ...]], streaming: bool) -> Graph:
    """The integer graph of a converted program.

    shapes: input name -> shape without batch. A streaming program must cut its time axis exactly once, between the
    local layers and the rest. Biases are rounded to int32 in `program` too, and its quantize nodes carry the tensor's
    name in meta["tensor"], so that the two stay comparable (`agree.py`).
    """
    graph = _Freezer(program, shapes).build()
    if streaming:
        graph.boundary = _boundary(graph)
    check(graph)
    return graph


def export_scales(graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    """Store the grids that only other runtimes need: attention scores, measured on calibration inputs."""
    values = run(graph, inputs, trace=True)
    for n in graph.nodes:
        if n.kind == "attention":
            q, k = (values[t].astype(np.float64) * graph.tensors[t].scale for t in n.inputs[:2])
            heads = n.attrs["heads"]
            q, k = (a.reshape(a.shape[0], heads, -1, *a.shape[2:]) for a in (q, k))
            score = np.einsum("bhdlt,bhdls->bhts", q, k, optimize=True) / np.sqrt(q.shape[2])
            n.attrs["export_scales"] = {"score": float(np.abs(score).max()) / 127}


class _Freezer:
    """Walks the program once; `self.codes` maps every fx node that holds codes to its tensor's name."""

    def __init__(self, program, shapes):
        self.program, self.shapes = program, shapes
        self.codes: dict[torch.fx.Node, str] = {}
        self.graph = Graph([], "", {}, [])

    def build(self) -> Graph:
        for node in self.program.graph.nodes:
            if node.target is _Q:
                self.codes[node] = node.meta["tensor"] = self._quantized(node.args[0], node.args[1])
            elif node.target is _DQ:
                self.codes[node] = self.codes[node.args[0]]
            elif node.op == "output":
                logits, = node.args[0]
                if logits not in self.codes:
                    raise GraphError("the model's output is not quantized", "one tensor of logits")
                self.graph.output = self.codes[logits]
        return self.graph

    def _quantized(self, source: torch.fx.Node, scale: float) -> str:
        if source.op == "placeholder":
            self.graph.tensors[source.name] = Tensor(tuple(self.shapes[source.name]), scale)
            self.graph.inputs.append(source.name)
            return source.name
        if source in self.codes:                        # the same codes, quantized again on the same grid
            return self._same(source, scale)
        if source.target in _ALIAS:
            return self._same(source.args[0], scale)
        relu = source.target in RELU
        op = source.args[0] if relu else source
        if relu and op in self.codes:
            return self._emit(source, "table", [op], scale, {}, {"table": self._relu_table(op, scale)})
        make = _MAKERS.get(op.target)
        if make is None or (relu and op.target not in WEIGHTED | ADD):
            known = ", ".join(sorted({str(t) for t in _MAKERS}))
            raise GraphError(f"{layer(op)}: {op.target} has no integer form", known)
        return make(self, op, scale, relu)

    def _same(self, source, scale: float) -> str:
        name = self.codes[source]
        own = self.graph.tensors[name].scale
        if own != scale:
            raise GraphError(f"{layer(source)}: requantized from {own} to {scale}", "one grid")
        return name

    def _scale(self, node) -> float:
        return self.graph.tensors[self.codes[node]].scale

    def _shape(self, node) -> tuple[int, ...]:
        return self.graph.tensors[self.codes[node]].shape

    def _emit(self, op, kind: str, sources, scale: float, attrs: dict, params: dict | None = None) -> str:
        """Append a node; its output shape is the program's own, without the batch axis."""
        taken = {n.name for n in self.graph.nodes}
        base = layer(op) if kind in ("conv1d", "dense", "attention") else f"{layer(op)}.{kind}".lstrip(".")
        name = next(c for c in (base, *(f"{base}.{i}" for i in range(2, 1000))) if c not in taken)
        shape = tuple(int(s) for s in op.meta["val"].shape[1:])
        self.graph.tensors[name] = Tensor(shape, scale)
        self.graph.nodes.append(Node(name, kind, [self.codes[s] for s in sources], name, attrs, params or {}))
        return name

    def _relu_table(self, source, scale: float) -> np.ndarray:
        codes = np.arange(-128, 128) * self._scale(source)
        return np.clip(np.floor(np.maximum(codes, 0) / scale + 0.5), -128, 127).astype(np.int8)

    def weighted(self, op, scale: float, relu: bool) -> str:
        """conv1d and dense: codes, int32 bias, one multiplier per output channel."""
        source, weight = op.args[0], op.args[1]
        if weight.target is not _DQ_CHANNEL:
            raise GraphError(f"{layer(op)}: the weight is not quantized per channel")
        codes = parameter(self.program, weight.args[0]).numpy()
        weight_scale = parameter(self.program, weight.args[1]).numpy().astype(np.float32)
        bias = self._bias(op, self._scale(source) * weight_scale.astype(np.float64))
        real = self._scale(source) * weight_scale.astype(np.float64) / scale
        mul, shift = (np.array(x) for x in zip(*(multiplier(r, layer(op)) for r in real), strict=True))
        bound = np.abs(codes.reshape(len(codes), -1).astype(np.int64)).sum(1) * 128 + np.abs(bias)
        if ((bound << shift) >= 1 << 31).any():
            raise GraphError(f"{layer(op)}: the accumulator can leave 31 bits", "fewer inputs or smaller weights")
        params = {"bias": bias.astype(np.int32), "mul": mul.astype(np.int32), "shift": shift.astype(np.int8),
                  "weight_scale": weight_scale}
        if op.target is aten.linear.default:
            return self._emit(op, "dense", [source], scale, {"relu": relu}, {"weight": codes, **params})
        stride, pad, dilation, groups = _conv_numbers(op)
        if dilation != 1 or (codes.ndim == 4 and codes.shape[2] != 1):
            raise GraphError(f"{layer(op)}: kernel {codes.shape[2:]}, dilation {dilation}", "kernel (1, k), dilation 1")
        attrs = {"stride": stride, "pad": [pad, pad], "groups": groups, "relu": relu}
        return self._emit(op, "conv1d", [source], scale, attrs,
                          {"weight": codes.reshape(*codes.shape[:2], codes.shape[-1]), **params})

    def _bias(self, op, grid: np.ndarray) -> np.ndarray:
        """int32 bias on the accumulator's grid; the program's float bias is moved onto it as well."""
        bias = parameter(self.program, op.args[2]) if len(op.args) > 2 else None
        if bias is None:
            return np.zeros(len(grid), np.int64)
        codes = np.rint(bias.detach().numpy().astype(np.float64) / grid).astype(np.int64)
        with torch.no_grad():
            bias.copy_(torch.from_numpy((codes * grid).astype(np.float32)))
        return codes

    def attention(self, op, scale: float, relu: bool) -> str:
        q, k, v, heads, half = op.args
        channel, lead, _ = self._shape(q)
        depth = channel // heads
        score = self._scale(q) * self._scale(k) / np.sqrt(depth) / EXP_STEP
        mul, shift = multiplier(score, layer(op))
        keys = self._shape(k)[2] if half == GLOBAL else min(2 * half + 1, self._shape(k)[2])
        if keys > MAX_ROW or (2 * 128 * 128 * depth * lead) << shift >= 1 << 31:
            raise GraphError(f"{layer(op)}: {keys} keys of {depth} x {lead} do not fit int32",
                             f"at most {MAX_ROW} keys", "use a local window, fewer leads or smaller heads")
        out_mul = round(self._scale(v) / scale * 2 ** 24)
        if not 0 < out_mul < 1 << 28:
            raise GraphError(f"{layer(op)}: output grid {scale:.3g}, value grid {self._scale(v):.3g}", "within 16x")
        attrs = {"heads": heads, "window": "global" if half == GLOBAL else "band", "half": max(half, 0),
                 "score_mul": mul, "score_shift": shift, "out_mul": out_mul, "export_scales": {}}
        return self._emit(op, "attention", [q, k, v], scale, attrs, {"table": exp_table()})

    def add(self, op, scale: float, relu: bool) -> str:
        real = [self._scale(a) / scale for a in op.args[:2]]
        shift = 14
        while shift > 1 and max(real) * 2 ** shift >= 1 << 15:
            shift -= 1
        while shift < 22 and max(real) * 2 ** (shift + 1) < 1 << 15:
            shift += 1
        mul = [round(r * 2 ** shift) for r in real]
        if not all(0 < m < 1 << 15 for m in mul):
            raise GraphError(f"{layer(op)}: adds grids {real[0]:.3g} and {real[1]:.3g} times the sum's", "within 2^14")
        return self._emit(op, "add", op.args[:2], scale, {"mul": mul, "shift": shift, "relu": relu})

    def max_pool(self, op, scale: float, relu: bool) -> str:
        numbers = [list(a)[-1] if isinstance(a, (list, tuple)) else a for a in (*op.args[1:4], 0, 0)][:3]
        kernel, stride, pad = numbers[0], numbers[1] or numbers[0], numbers[2]
        self._same(op.args[0], scale)
        return self._emit(op, "maxpool", [op.args[0]], scale, {"kernel": kernel, "stride": stride, "pad": [pad, pad]})

    def reduced(self, op, scale: float, relu: bool) -> str:
        source, axes = op.args[0], op.args[1]
        axes = sorted(a % (len(self._shape(source)) + 1) - 1 for a in ([axes] if isinstance(axes, int) else axes))
        if len(op.args) > 2 and op.args[2]:
            raise GraphError(f"{layer(op)}: keepdim", "keepdim=False")
        if op.target is aten.amax.default:
            self._same(source, scale)
            return self._emit(op, "max", [source], scale, {"axes": axes})
        count = int(np.prod([self._shape(source)[a] for a in axes]))
        mul, shift = multiplier(self._scale(source) / count / scale, layer(op))
        return self._emit(op, "mean", [source], scale, {"axes": axes, "mul": mul, "shift": shift})

    def concat(self, op, scale: float, relu: bool) -> str:
        sources = list(op.args[0])
        mul, shift = zip(*(multiplier(self._scale(s) / scale, layer(op)) for s in sources), strict=True)
        axis = (op.args[1] if len(op.args) > 1 else 0) % (len(self._shape(sources[0])) + 1) - 1
        return self._emit(op, "concat", sources, scale, {"axis": axis, "mul": list(mul), "shift": list(shift)})

    def cut(self, op, scale: float, relu: bool) -> str:
        source, dim, start, stop = (*op.args, 0, 0, 2 ** 62)[:4] if len(op.args) < 4 else op.args[:4]
        length = self._shape(source)[dim - 1]
        start, stop = (min(max(x + length if x < 0 else x, 0), length) for x in (start or 0, stop))
        self._same(source, scale)
        return self._emit(op, "slice", [source], scale, {"axis": dim - 1, "start": start, "stop": stop})

    def reshape(self, op, scale: float, relu: bool) -> str:
        source = op.args[0]
        shape = tuple(int(s) for s in op.meta["val"].shape[1:])
        if len(shape) != 1 and shape != (1, *self._shape(source)):
            raise GraphError(f"{layer(op)}: reshapes {self._shape(source)} to {shape}", "a vector, or one channel more")
        self._same(source, scale)
        return self._emit(op, "reshape", [source], scale, {"to": "vector" if len(shape) == 1 else "channel"})


_MAKERS = {**dict.fromkeys(WEIGHTED, _Freezer.weighted), **dict.fromkeys(ADD, _Freezer.add),
           **dict.fromkeys(ATTENTION, _Freezer.attention), **dict.fromkeys(_RESHAPE, _Freezer.reshape),
           aten.max_pool1d.default: _Freezer.max_pool, aten.max_pool2d.default: _Freezer.max_pool,
           aten.mean.dim: _Freezer.reduced, aten.amax.default: _Freezer.reduced, aten.cat.default: _Freezer.concat,
           aten.slice.Tensor: _Freezer.cut}


def _conv_numbers(op) -> tuple[int, int, int, int]:
    """(stride, pad, dilation, groups) along time; the lead axis must be left alone."""
    stride, pad, dilation, groups = (*op.args[3:], *([1], [0], [1], 1)[len(op.args) - 3:])
    return list(stride)[-1], list(pad)[-1], list(dilation)[-1], groups


def _boundary(graph: Graph) -> str:
    """The one slice of the time axis; everything before it must be local, everything behind it must read only it."""
    cuts = [i for i, n in enumerate(graph.nodes) if n.kind == "slice" and n.attrs["axis"] == 2]
    if len(cuts) != 1:
        raise GraphError(f"{len(cuts)} slices of the time axis", "one, between the local layers and the rest",
                         "streaming=False evaluates every window anew")
    before, after = graph.nodes[:cuts[0]], graph.nodes[cuts[0] + 1:]
    for n in before:
        if n.kind not in _LOCAL or n.attrs.get("window") == "global" or n.attrs.get("axis") == 2:
            raise GraphError(f"{n.name}: {n.kind} sees the whole window", "local layers in front of the boundary")
    early = {n.output for n in before}
    for n in after:
        if early & set(n.inputs):
            raise GraphError(f"{n.name} reads a column from before the boundary", "only the columns kept")
    return graph.nodes[cuts[0]].name
