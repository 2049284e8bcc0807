# SPDX-License-Identifier: Apache-2.0
"""Random but valid integer graphs with every node kind, inputs for them, and whole run folders around them.

A builder adds one node at a time and runs it on a sample batch, so that each output scale fits the codes that arrive.
`every_kind` is small, for tests; `like_local_lead` has the size of an edge preset, for measurements.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from compress import graph as graphs
from compress import reference, reference_attention, reference_lstm
from compress.graph import Graph, Node, Tensor
from train import frontend, runs
from train import manifest as manifests
from train.sides import SIDES

SAMPLES = 32        # windows that the builder sees while it picks scales
SIGMA = 4           # an activation of this many standard deviations is the largest code


def multiplier(real: float) -> tuple[int, int]:
    """(m, k) with m * 2^k / 2^32 nearest to `real`, 0 < m < 2^31, and k = 0 whenever that is possible."""
    for k in range(8):
        m = round(math.ldexp(real, 32 - k))
        if 0 < m < 1 << 31:
            return m, k
    raise ValueError(f"no multiplier for {real}")


def waveform(rng: np.random.Generator, batch: int, leads: int, time: int) -> np.ndarray:
    """int8 (batch, lead, time): pulses, a slow wave and noise, in another mixture in every window."""
    t = np.arange(time)
    share = rng.dirichlet((0.5, 0.5, 0.5), batch)[:, :, None, None] * 110
    rate = rng.uniform(60, 300, (batch, 1, 1))
    phase = rng.uniform(0, 300, (batch, 1, 1))
    away = (t + phase) % rate - rate / 2
    gain = rng.uniform(-1, 1, (3, batch, leads, 1))
    x = share[:, 0] * gain[0] * np.exp(-(away / rng.uniform(4, 12, (batch, 1, 1))) ** 2)
    x = x + share[:, 1] * gain[1] * np.sin(t / rng.uniform(8, 60, (batch, 1, 1)) + phase)
    x = x + share[:, 2] * gain[2] / 3 * rng.normal(0, 1, (batch, leads, time))
    return np.clip(np.rint(x), -128, 127).astype(np.int8)


class Builder:
    """Adds nodes; every method returns the name of the tensor it wrote."""

    def __init__(self, seed: int, inputs: dict[str, tuple[int, ...]], input_scale: float = 0.016):
        self.rng = np.random.default_rng(seed)
        self.tensors = {name: Tensor(shape, input_scale) for name, shape in inputs.items()}
        self.inputs = list(inputs)
        self.nodes: list[Node] = []
        self.values = random_inputs(inputs, SAMPLES, seed)

    def graph(self, output: str, boundary: str | None = None) -> Graph:
        """The finished graph, checked."""
        built = Graph(self.inputs, output, self.tensors, self.nodes, boundary)
        graphs.check(built)
        return built

    def _put(self, kind: str, inputs, shape, scale: float, attrs=None, params=None) -> str:
        name = f"{kind}{len(self.nodes)}"
        node = Node(name, kind, list(inputs), f"{name}.out", attrs or {}, params or {})
        self.nodes.append(node)
        self.tensors[node.output] = Tensor(tuple(int(s) for s in shape), scale)
        alone = Graph(node.inputs, node.output, self.tensors, [node])
        self.values[node.output] = reference.run(alone, {t: self.values[t] for t in node.inputs})
        return node.output

    def _rms(self, tensor: str) -> float:
        return float(np.sqrt(np.mean(self.values[tensor].astype(float) ** 2))) + 1e-3

    def _random(self, x: str, shape) -> tuple[np.ndarray, float, np.ndarray]:
        """(weights of unequal channel ranges, expected deviation of the output, bias), in real units."""
        weight = self.rng.normal(0, 1, shape) * self.rng.uniform(0.5, 1.5, (shape[0],) + (1,) * (len(shape) - 1))
        sigma = self._rms(x) * self.tensors[x].scale        # zero-mean weights of unit energy keep it
        return weight / math.sqrt(math.prod(shape[1:])), sigma, self.rng.normal(0, 0.3 * sigma, shape[0])

    def _layer(self, kind: str, x: str, shape, weight, sigma: float, bias, attrs) -> str:
        """A conv1d or dense node from real weights and bias; tried on a wide grid first, to see how far it reaches."""
        weight_scale = (np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-3) / 127).astype(np.float32)
        codes = np.rint(weight / weight_scale.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.int8)
        unit = self.tensors[x].scale * weight_scale.astype(float)
        params = {"weight": codes, "bias": np.rint(bias / unit).astype(np.int32), "weight_scale": weight_scale}

        def put(scale: float) -> str:
            pairs = [multiplier(u / scale) for u in unit]
            return self._put(kind, [x], shape, scale, attrs, params | {
                "mul": np.array([m for m, _ in pairs], np.int32), "shift": np.array([k for _, k in pairs], np.int8)})
        wide = put(4 * SIGMA * sigma / 127)
        reach = max(np.percentile(np.abs(self.values.pop(wide).astype(float)), 99.9), 1.0)
        self.nodes.pop()
        return put(self.tensors.pop(wide).scale * reach / 120)

    def conv(self, x: str, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, relu: bool = True) -> str:
        """conv1d padded to ceil(time / stride) columns."""
        channel, lead, time = self.tensors[x].shape
        pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
        column = (time + sum(pad) - kernel) // stride + 1
        return self._layer("conv1d", x, (out, lead, column), *self._random(x, (out, channel // groups, kernel)),
                           {"stride": stride, "pad": pad, "groups": groups, "relu": relu})

    def dense(self, x: str, out: int, relu: bool = False) -> str:
        """Vector to vector."""
        return self._layer("dense", x, (out,), *self._random(x, (out, *self.tensors[x].shape)), {"relu": relu})

    def classifier(self, x: str, classes: int) -> str:
        """A dense layer along the features that differ most between the sample windows, so that labels differ too."""
        real = self.values[x].astype(float) * self.tensors[x].scale
        centre = real.mean(0)
        _, size, axes = np.linalg.svd(real - centre, full_matrices=False)
        turn = np.linalg.qr(self.rng.normal(0, 1, (classes, classes)))[0]
        rows = turn @ (axes[:classes] / (size[:classes, None] + 1e-9)) * math.sqrt(len(real))
        return self._layer("dense", x, (classes,), rows, 1.0, -rows @ centre, {"relu": False})

    def attention(self, q: str, k: str, v: str, heads: int, window: str, size: int = 0, *, bias: bool = False,
                  pair: tuple[str, str] | None = None, lam: float = 0.4) -> str:
        """Lead-joint attention whose scores spread over about one nat; a global query may have its own length.

        `bias` adds random relative positions of about half a nat, `pair` = (q2, k2) subtracts `lam` times their map.
        """
        tensor = self.tensors[v]
        scale = tensor.scale * 0.7
        m, shift, unit, reach = self._scores(q, k, heads)
        attrs = {"heads": heads, "window": window, "size": size, "score_mul": m, "score_shift": shift,
                 "out_mul": round(tensor.scale / scale * (1 << 24)),
                 "export_scales": {"score": reach, "probability": 1 / 127}}
        params = {"table": reference_attention.exp_table()}
        if bias:
            params["bias"] = np.rint(self.rng.normal(0, 0.5, (heads, 2 * size - 1)) / unit).astype(np.int32)
        if pair:
            attrs["score_mul2"], attrs["score_shift2"], _, attrs["export_scales"]["score2"] = self._scores(*pair, heads)
            attrs["out_mul2"] = round(lam * tensor.scale / scale * (1 << 24))
        shape = (tensor.shape[0], *self.tensors[q].shape[1:])
        return self._put("attention", [q, k, v, *(pair or ())], shape, scale, attrs, params)

    def _scores(self, q: str, k: str, heads: int) -> tuple[int, int, float, float]:
        """(multiplier, shift, nats of one score step, grid of the scores)."""
        channel, lead, _ = self.tensors[q].shape
        spread = self._rms(q) * self._rms(k) * math.sqrt(channel // heads * lead)
        m, shift = multiplier(1.0 / spread / reference_attention.EXP_STEP)
        unit = m * 2.0 ** (shift - 32) * reference_attention.EXP_STEP
        return m, shift, unit, unit * spread * SIGMA / 127

    def add(self, a: str, b: str, relu: bool = False, sign: int = 1) -> str:
        """Residual sum, or with sign -1 difference; axes of size 1 repeated."""
        scales = [self.tensors[t].scale for t in (a, b)]
        sigma = math.hypot(*(self._rms(t) * s for t, s in zip((a, b), scales, strict=True)))
        scale = SIGMA * sigma / 127
        shift = 14 - math.ceil(math.log2(max(scales) / scale))      # 15-bit multipliers
        mul = [min(round(s / scale * (1 << shift)), 32767) for s in scales]
        shape = np.broadcast_shapes(*(self.tensors[t].shape for t in (a, b)))
        attrs = {"mul": [mul[0], sign * mul[1]], "shift": shift, "relu": relu}
        return self._put("add", [a, b], shape, scale, attrs)

    def table(self, x: str, function=np.tanh) -> str:
        """A unary function as 256 codes."""
        tensor = self.tensors[x]
        real = function(np.arange(-128, 128) * tensor.scale)
        scale = float(np.abs(real).max()) / 127
        return self._put("table", [x], tensor.shape, scale, {}, {"table": np.rint(real / scale).astype(np.int8)})

    def maxpool(self, x: str, kernel: int, stride: int) -> str:
        """Sliding maximum."""
        channel, lead, time = self.tensors[x].shape
        pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
        return self._put("maxpool", [x], (channel, lead, (time + kernel - 1 - kernel) // stride + 1),
                         self.tensors[x].scale, {"kernel": kernel, "stride": stride, "pad": pad})

    def reduce(self, kind: str, x: str, axes=(1, 2)) -> str:
        """max or mean over whole axes."""
        tensor = self.tensors[x]
        shape = [s for i, s in enumerate(tensor.shape) if i not in axes]
        if kind == "max":
            return self._put("max", [x], shape, tensor.scale, {"axes": list(axes)})
        count = math.prod(tensor.shape[a] for a in axes)
        scale = tensor.scale * 0.47
        m, k = multiplier(tensor.scale / scale / count)
        return self._put("mean", [x], shape, scale, {"axes": list(axes), "mul": m, "shift": k})

    def concat(self, parts: list[str], axis: int = 0) -> str:
        """Side by side on the coarsest scale."""
        tensors = [self.tensors[t] for t in parts]
        scale = max(t.scale for t in tensors)
        pairs = [multiplier(t.scale / scale) for t in tensors]
        shape = list(tensors[0].shape)
        shape[axis] = sum(t.shape[axis] for t in tensors)
        return self._put("concat", parts, shape, scale,
                         {"axis": axis, "mul": [m for m, _ in pairs], "shift": [k for _, k in pairs]})

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        """A part of one axis."""
        shape = list(self.tensors[x].shape)
        shape[axis] = stop - start
        return self._put("slice", [x], shape, self.tensors[x].scale, {"axis": axis, "start": start, "stop": stop})

    def reshape(self, x: str, to: str | tuple[int, ...]) -> str:
        """Same codes, other axes: "channel" (one more in front), "vector" or a shape."""
        shape = self.tensors[x].shape
        shape = {"channel": (1, *shape), "vector": (math.prod(shape),)}.get(to, to)
        return self._put("reshape", [x], shape, self.tensors[x].scale, {"shape": list(shape)})

    def transpose(self, x: str, perm: tuple[int, ...]) -> str:
        """Same codes, other order of the axes."""
        shape = self.tensors[x].shape
        return self._put("transpose", [x], [shape[axis] for axis in perm], self.tensors[x].scale, {"perm": list(perm)})

    def constant(self, shape: tuple[int, ...], scale: float = 0.02) -> str:
        """A parameter as data."""
        value = self.rng.integers(-127, 128, shape).astype(np.int8)
        name = self._put("constant", [], shape, scale, {}, {"value": value})
        self.values[name] = np.repeat(value[None], SAMPLES, axis=0)
        return name

    def mul(self, a: str, b: str) -> str:
        """Elementwise product, axes of size 1 repeated."""
        shapes, scales = zip(*((self.tensors[t].shape, self.tensors[t].scale) for t in (a, b)), strict=True)
        scale = SIGMA * self._rms(a) * self._rms(b) * math.prod(scales) / 127
        m, k = multiplier(math.prod(scales) / scale)
        return self._put("mul", [a, b], np.broadcast_shapes(*shapes), scale, {"mul": m, "shift": k})

    def meanpool(self, x: str, kernel: int, stride: int) -> str:
        """Sliding mean."""
        (channel, lead, time), scale = self.tensors[x].shape, self.tensors[x].scale
        pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
        m, k = multiplier(1 / kernel / 0.7)
        return self._put("meanpool", [x], (channel, lead, (time - 1) // stride + 1), scale * 0.7,
                         {"kernel": kernel, "stride": stride, "pad": pad, "mul": m, "shift": k})

    def norm(self, x: str, groups: int = 1, rms: bool = False, eps: float = 1e-5) -> str:
        """Layer or RMS norm; normalised values have unit energy."""
        tensor = self.tensors[x]
        channels, scale = tensor.shape[0], SIGMA / 127
        gain, bias = self.rng.normal(0, 1, channels), self.rng.normal(0, 0.3, channels)
        floor = round(eps * (channels // groups / tensor.scale) ** 2 * 2 ** 28)
        return self._put("norm", [x], tensor.shape, scale, {"groups": groups, "rms": rms, "eps": floor}, {
            "mul": np.rint(gain / scale * 2 ** 12).astype(np.int32),
            "bias": np.rint(bias / scale * 2 ** 16).astype(np.int32)})

    def lstm(self, x: str, hidden: int, sequence: bool = False) -> str:
        """An LSTM over (step, feature); gates of its first step spread over about one unit."""
        steps, features = self.tensors[x].shape
        rows = 4 * hidden
        spread = self._rms(x) * math.sqrt(features) * 73, 64 * math.sqrt(hidden) * 73      # of a sum of products
        mul_x, mul_h = (self.rng.uniform(32, 96, rows) / s * 2 ** 32 for s in spread)
        params = {"weight_x": self.rng.integers(-127, 128, (rows, features)).astype(np.int8),
                  "weight_h": self.rng.integers(-127, 128, (rows, hidden)).astype(np.int8),
                  "mul_x": mul_x.astype(np.int32), "mul_h": mul_h.astype(np.int32),
                  "bias": (self.rng.normal(0, 32, rows) * 2 ** 16).astype(np.int32),
                  "table": reference_lstm.sigmoid_table()}
        shape = (steps, hidden) if sequence else (hidden,)
        return self._put("lstm", [x], shape, 1 / 128, {"sequence": sequence}, params)

    def lookup(self, x: str, entries: int, width: int, low: int) -> str:
        """Rows of random codes."""
        table = self.rng.integers(-100, 101, (entries, width)).astype(np.int8)
        return self._put("lookup", [x], (width,), 0.02, {"low": low}, {"table": table})

    def block(self, x: str, out: int, heads: int, size: int = 0, *, window: str = "band", stride: int = 1) -> str:
        """An attention block: depthwise mix, q, k, v, attention in a window (size 0: global), two 1x1 layers."""
        channel = self.tensors[x].shape[0]
        skip = self.maxpool(x, 3, stride) if stride > 1 else x
        skip = skip if channel == out else self.conv(skip, out, relu=False)
        local = self.conv(x, channel, 3, stride=stride, groups=channel, relu=False)
        q, k, v = (self.conv(local, out, relu=False) for _ in range(3))
        seen = self.attention(q, k, v, heads, window if size else "global", size)
        x = self.add(skip, self.conv(seen, out, relu=False))
        return self.add(x, self.conv(self.conv(x, 2 * out), out, relu=False))

    def separable(self, x: str, out: int, kernel: int, stride: int = 1) -> str:
        """Depthwise and pointwise; added to its input when the shape stays."""
        channel = self.tensors[x].shape[0]
        y = self.conv(x, channel, kernel, stride=stride, groups=channel)
        same = stride == 1 and channel == out
        y = self.conv(y, out, relu=not same)
        return self.add(x, y) if same else y


def every_kind(seed: int = 0, leads: int = 2, time: int = 96, channel: int = 8, classes: int = 3) -> Graph:
    """A small net with every node kind: stem, depthwise, residual, pools, band and global attention, second input."""
    b = Builder(seed, {"ecg": (leads, time), "rr": (4,)})
    x = b.conv(b.reshape("ecg", "channel"), channel, 5, stride=2)
    x = b.add(x, b.conv(b.conv(x, channel, 3, groups=channel), channel, relu=False), relu=True)
    x = b.maxpool(x, 3, 2)
    x = b.table(b.block(x, channel, heads=2, size=3))
    columns = b.tensors[x].shape[2]
    x = b.block(b.slice(x, 2, columns // 4, columns), channel, heads=2)
    over_leads = b.reshape(b.reduce("mean", b.slice(x, 2, 0, 2), axes=(1,)), "vector")
    features = b.concat([b.reduce("mean", x), b.reduce("max", x), over_leads, b.dense("rr", 4, relu=True)])
    return b.graph(b.classifier(features, classes))


def learned(seed: int = 0, steps: int = 6, features: int = 24, channel: int = 8, classes: int = 3) -> Graph:
    """What `every_kind` lacks: norms, products, a constant, mean pools, LSTMs over rows and over time, a lookup."""
    b = Builder(seed, {"ecg": (steps, features), "age": (1,)})
    x = b.norm(b.conv(b.reshape("ecg", "channel"), channel, 5, stride=2, relu=False), groups=2)
    x = b.reduce("mean", b.norm(b.meanpool(b.mul(x, b.constant((channel, 1, 1))), 3, 2), rms=True))
    state = b.lstm(b.transpose(b.lstm("ecg", channel, sequence=True), (1, 0)), channel)
    age = b.lookup("age", 9, 4, low=-3)
    return b.graph(b.classifier(b.norm(b.concat([x, state, age])), classes))


def gated(seed: int = 0, leads: int = 2, time: int = 96, channel: int = 8, classes: int = 3) -> Graph:
    """Products, differences, constants, mean pools and other axes: a gate, a class token, leads as input channels."""
    b = Builder(seed, {"ecg": (leads, time)})
    x = b.conv(b.transpose(b.reshape("ecg", "channel"), (1, 0, 2)), channel, 5, stride=2)
    x = b.add(x, b.meanpool(x, 5, 1), sign=-1)
    x = b.meanpool(b.add(x, b.constant((channel, 1, time // 2))), 3, 2)
    gate = b.table(b.reshape(b.reduce("mean", x, axes=(1, 2)), (channel, 1, 1)), lambda v: 1 / (1 + np.exp(-v)))
    x = b.concat([b.constant((channel, 1, 1)), b.mul(x, gate)], axis=2)
    x = b.block(x, channel, heads=2)
    other = b.reduce("mean", b.mul(b.transpose(x, (1, 2, 0)), b.constant((1, 1, channel))), axes=(0, 2))
    return b.graph(b.dense(b.concat([b.reduce("mean", x), b.reduce("max", x), other]), classes))


def streaming(seed: int = 0, leads: int = 1, time: int = 160, channel: int = 8, window: str = "band",
              size: int = 3) -> Graph:
    """A net of one waveform input whose boundary cuts off the columns that the window's edges touch; stride 4."""
    b = Builder(seed, {"ecg": (leads, time)})
    x = b.conv(b.reshape("ecg", "channel"), channel, 5, stride=2)
    x = b.block(b.maxpool(x, 3, 2), channel, heads=2, size=size, window=window)
    x = b.slice(x, 2, 8, b.tensors[x].shape[2] - 6)
    boundary = b.nodes[-1].name
    x = b.block(x, channel, heads=2)
    features = b.concat([b.reduce("mean", x), b.reduce("max", x)])
    return b.graph(b.classifier(features, 3), boundary)


# every form of attention that is no band and not plainly global: arguments of `attending`
FORMS = {
    "block": {"window": "block", "size": 8},
    "block with a short end": {"window": "block", "size": 7, "leads": 2},
    "neighbourhood": {"window": "neighbourhood", "size": 7, "leads": 2},
    "neighbourhood with bias": {"window": "neighbourhood", "size": 7, "bias": True},
    "neighbourhood with bias, all keys": {"window": "neighbourhood", "size": 32, "bias": True, "leads": 3},
    "neighbourhood of an even size": {"window": "neighbourhood", "size": 4, "bias": True},
    "neighbourhood, long": {"window": "neighbourhood", "size": 9, "bias": True, "time": 400},
    "pair": {"lam": 0.4},
    "pair that adds": {"lam": -0.3, "leads": 2},
    "pair in a band": {"window": "band", "size": 5, "lam": 0.6, "time": 128},
    "pair of wide values": {"lam": 0.5, "wide": 16},
    "wide values": {"wide": 12, "leads": 2},
    "one query": {"queries": 1},
    "half the queries": {"queries": 16, "leads": 3},
}


def attending(window: str = "global", size: int = 0, *, leads: int = 1, time: int = 64, wide: int = 8,
              queries: int = 0, bias: bool = False, lam: float | None = None, seed: int = 0) -> Graph:
    """One attention node of two heads behind a convolution of stride 2. `wide`: channels of v; `queries`: 0 is all."""
    b = Builder(seed, {"ecg": (leads, time)})
    x = b.conv(b.reshape("ecg", "channel"), 8, 5, stride=2)
    q, k, *pair = (b.conv(x, 8, relu=False) for _ in range(2 if lam is None else 4))
    if queries:
        q, pair[:1] = b.slice(q, 2, 3, 3 + queries), [b.slice(t, 2, 3, 3 + queries) for t in pair[:1]]
    v = b.conv(x, wide, relu=False)
    y = b.attention(q, k, v, 2, window, size, bias=bias, pair=tuple(pair), lam=lam or 0.0)
    return b.graph(b.classifier(b.concat([b.reduce("mean", y), b.reduce("max", y)]), 3))


def like_local_lead(seed: int = 0, leads: int = 1, time: int = 2176, widths=(16, 24, 48, 64), heads=(3, 4),
                    whole: int = 2, classes: int = 4) -> Graph:
    """About the size of an edge preset: separable stages, two band blocks, `whole` global ones, two dense layers."""
    b = Builder(seed, {"ecg": (leads, time)})
    x = b.conv(b.reshape("ecg", "channel"), widths[0], 11, stride=2)
    for width in widths[1:3]:
        x = b.separable(b.separable(x, width, 7, stride=2), width, 7)
    x = b.block(x, widths[2], heads[0], size=8)
    x = b.block(x, widths[2], heads[0], size=6, stride=2)
    columns = b.tensors[x].shape[2]
    x = b.slice(x, 2, columns // 6, columns // 6 + 96)
    boundary = b.nodes[-1].name
    for _ in range(whole):
        x = b.block(x, widths[3], heads[1], stride=2)
    means = b.reshape(b.reduce("mean", x, axes=(2,)), "vector")
    features = b.concat([means, b.reduce("max", x)])
    return b.graph(b.classifier(b.dense(features, 48, relu=True), classes), boundary)


def random_inputs(shapes: dict[str, tuple[int, ...]], batch: int, seed: int) -> dict[str, np.ndarray]:
    """name -> int8 (batch, *shape): waveforms for two axes, uniform codes for vectors."""
    rng = np.random.default_rng([seed, batch])
    return {name: waveform(rng, batch, *shape) if len(shape) == 2
            else rng.integers(-100, 100, (batch, *shape)).astype(np.int8) for name, shape in shapes.items()}


def inputs_of(graph: Graph, batch: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs for a graph."""
    return random_inputs({name: graph.tensors[name].shape for name in graph.inputs}, batch, seed)


def manifest_of(graph: Graph, sha256: str) -> manifests.Manifest:
    """A frozen manifest that fits a graph."""
    def described(name):
        tensor = graph.tensors[name]
        side = SIDES.get(name)
        if side and side.shape == tensor.shape:
            return manifests.Input(name, side.kind, side.shape, side.unit, side.lsb)
        if len(tensor.shape) == 2:
            leads = manifests.LEADS[:tensor.shape[0]]
            return manifests.Input(name, "waveform", tensor.shape, "uV", 16.0, leads)
        return manifests.Input(name, "rr", tensor.shape, "1/32", 1.0)
    waveforms = [graph.tensors[n].shape for n in graph.inputs if len(graph.tensors[n].shape) == 2]
    classes = graph.tensors[graph.output].shape[0]
    return manifests.Manifest(
        name="random", arch="random", preset="test", task="synthetic",
        classes=tuple(manifests.Label(f"c{i}", f"TEST:{i}") for i in range(classes)), multi_label=False, fs=250,
        window=waveforms[0][1], inputs=tuple(described(n) for n in graph.inputs),
        trigger=manifests.Trigger("hop", hop=waveforms[0][1]), streaming=False, frontend=frontend.design(250),
        decision=manifests.Decision("argmax", (0,) * classes, 1 << 12, 1), graph_sha256=sha256)


def clear_inputs(graph: Graph, count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs whose two best classes lie farthest apart, so that one LSB more or less changes no label."""
    inputs = inputs_of(graph, 4 * count, seed)
    logits = np.sort(reference.run(graph, inputs).astype(int), axis=1)
    best = np.argsort(logits[:, -2] - logits[:, -1], kind="stable")[:count]
    return {name: x[np.sort(best)] for name, x in inputs.items()}


def write_run(folder: Path, graph: Graph, golden: int = 64, seed: int = 1,
              manifest: manifests.Manifest | None = None, inputs: dict[str, np.ndarray] | None = None) -> Path:
    """A run folder with graph, golden inputs and logits, and a frozen manifest, by default manifest_of(graph)."""
    inputs = inputs or clear_inputs(graph, golden, seed)
    packed = io.BytesIO()
    np.savez(packed, out=reference.run(graph, inputs), **{f"in.{k}": v for k, v in inputs.items()})
    document, arrays = graphs.dumps(graph)
    runs.write(folder, {"graph.json": document, "graph.npz": arrays, "golden.npz": packed.getvalue()})
    sha256 = runs.sha256(folder / "graph.json", folder / "graph.npz")
    about = replace(manifest or manifest_of(graph, sha256), graph_sha256=sha256)
    runs.write(folder, {"model.json": manifests.dumps(about)})
    return folder
