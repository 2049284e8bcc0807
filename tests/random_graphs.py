# SPDX-License-Identifier: Apache-2.0
"""Small random graphs with every kind of node, for comparing builds with the reference bit for bit.

    graph = random_graph(seed)

A graph has 3 to 12 nodes behind the reshape of its input. What one of a network's builds may get wrong is likely: odd
numbers of channels, a single column, kernels longer than the signal, codes that saturate or vanish, several leads, side
inputs, residual sums, attention in every window, results that are written over operands.
"""

from __future__ import annotations

import math

import numpy as np

from compress import reference
from compress.graph import WINDOWS, Graph, Tensor
from tests import graphs as make

SAMPLES = 6             # windows that choose the scales
ATTEMPTS = 5
MOST = 1500             # codes in a tensor
LEAST_NODES, MOST_NODES = 3, 12
# how much finer than needed an output's grid is made: mostly it fits, sometimes it saturates, sometimes little is left
FINER = (1,) * 9 + (3, 3, 8, 40, 1 / 16)


class Wild(make.Builder):
    """A builder whose nodes take any shape. Every method adds exactly one node."""

    def __init__(self, seed: int, attempt: int = 0):
        rng = np.random.default_rng([seed, attempt])
        inputs = {"ecg": (int(rng.choice([1, 1, 2, 3, 5])), int(rng.choice([1, 2, 7, 24, 33, 48, 64, 70])))}
        sides = {"rr": (int(rng.integers(1, 8)),), "age": (1,), "beats": tuple(int(i) for i in rng.integers(1, 7, 2))}
        inputs |= {name: sides[name] for name in sides if rng.random() < 0.3}
        super().__init__(seed, inputs, 0.016)
        self.values = {name: x[:SAMPLES] for name, x in self.values.items()}
        self.rng = rng

    def pick(self, *choices):
        """One of them."""
        return choices[self.rng.integers(len(choices))]

    def shape(self, x: str) -> tuple[int, ...]:
        return self.tensors[x].shape

    def divisor(self, n: int) -> int:
        """A divisor, often 1 or the number itself."""
        return int(self.rng.choice([d for d in range(1, n + 1) if n % d == 0]))

    def span(self, time: int) -> tuple[dict, int]:
        """(kernel, stride and padding along time, columns left); one in five kernels is longer than the signal."""
        kernel = self.pick(1, 2, 3, 3, 5, 9) if self.rng.random() < 0.8 else time + int(self.rng.integers(1, 4))
        stride = self.pick(1, 1, 1, 2, 2, 3)
        pad = [int(p) for p in self.rng.integers(0, kernel, 2)]
        if self.rng.random() < 0.5:
            pad = [(kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2]
        pad[1] += max(kernel - time - sum(pad), 0)
        return {"stride": stride, "pad": pad}, kernel

    def convolved(self, x: str) -> str:
        """A convolution: plain, in groups or depthwise."""
        channel, lead, time = self.shape(x)
        attrs, kernel = self.span(time)
        groups = self.pick(1, 1, channel, self.divisor(channel))
        out = groups * self.pick(1, 1, 2) if groups > 1 else self.pick(1, 3, 4, 5, 7, 8, 9, 12)
        columns = (time + sum(attrs["pad"]) - kernel) // attrs["stride"] + 1
        attrs |= {"groups": groups, "relu": bool(self.rng.integers(2))}
        return self.finer(self._layer("conv1d", x, (out, lead, columns), *self._random(
            x, (out, channel // groups, kernel)), attrs))

    def kept(self, x: str) -> str:
        """A node that keeps the shape, whatever it is."""
        shape = self.shape(x)
        choices = [self.tabled, self.normed]
        if len(shape) == 3:
            choices += [lambda x: self.finer(self.conv(x, shape[0], self.pick(1, 3, 4), relu=bool(self.pick(0, 1)))),
                        self.attended]
        return self.pick(*choices)(x)

    def pooled(self, x: str, kind: str) -> str:
        """maxpool or meanpool."""
        channel, lead, time = self.shape(x)
        attrs, kernel = self.span(time)
        scale = self.tensors[x].scale * (0.6 if kind == "meanpool" else 1)
        attrs["kernel"] = kernel
        if kind == "meanpool":
            attrs["mul"], attrs["shift"] = make.multiplier(1 / kernel / 0.6)
        columns = (time + sum(attrs["pad"]) - kernel) // attrs["stride"] + 1
        return self.finer(self._put(kind, [x], (channel, lead, columns), scale, attrs))

    def tabled(self, x: str) -> str:
        return self.table(x, self.pick(np.tanh, np.abs, lambda v: 1 / (1 + np.exp(-v)), lambda v: np.maximum(v, 0)))

    def normed(self, x: str) -> str:
        channels = self.shape(x)[0]
        groups = self.divisor(channels)
        grid = (self.tensors[x].scale * groups / channels) ** 2 * 2.0 ** 32     # eps: up to about a code's square
        return self.finer(self.norm(x, groups, bool(self.rng.integers(2)), self.pick(0.0, 1e-5, 0.5) * min(grid, 1)))

    def summed(self, x: str, other: str) -> str:
        return self.finer(self.add(x, other, bool(self.rng.integers(3) == 0), self.pick(1, 1, -1)))

    def constant(self, shape, scale: float = 0.02) -> str:
        name = super().constant(shape, scale)
        self.values[name] = self.values[name][:SAMPLES]
        return name

    def _rms(self, tensor: str) -> float:
        """Not so little that a scale made of it has no multiplier."""
        return max(super()._rms(tensor), 3.0)

    def constant_for(self, x: str) -> str:
        """A constant that meets x, axes of size 1 among its own."""
        return self.constant(tuple(s if self.rng.integers(2) else 1 for s in self.shape(x)))

    def attended(self, x: str) -> str:
        """Attention of a tensor with itself or with others of its shape; pairs and biases where the window has them."""
        channel, _, time = self.shape(x)
        window = self.pick(*WINDOWS)
        size = {"global": 0, "band": int(self.rng.integers(0, 5))}.get(window, int(self.rng.integers(1, time + 1)))
        size = min(size, 9) if window != "neighbourhood" or time > 9 else size
        alike = [t for t in self.values if self.shape(t) == self.shape(x)]
        k, v, *pair = (self.pick(x, *alike) for _ in range(4))
        wide = [t for t in self.values if len(self.shape(t)) == 3 and self.shape(t)[1:] == self.shape(x)[1:]]
        v = self.pick(v, *wide)
        heads = self.divisor(math.gcd(channel, self.shape(v)[0]))
        bias = window == "neighbourhood" and self.rng.random() < 0.5
        pair = tuple(pair) if not bias and self.rng.random() < 0.3 else None
        lam = float(self.rng.choice([0.4, -0.3]))
        return self.finer(self.attention(x, k, v, heads, window, size, bias=bias, pair=pair, lam=lam))

    def reduced(self, kind: str, x: str) -> str:
        """max or mean over any of the axes, one of them at least left."""
        count = len(self.shape(x))
        axes = tuple(sorted(int(a) for a in self.rng.permutation(count)[:self.rng.integers(1, max(count, 2))]))
        return self.finer(self.reduce(kind, x, axes if count > 1 else (0,)))

    def joined(self, parts: list[str], axis: int) -> str:
        return self.finer(self.concat(parts, axis))

    def cut(self, x: str) -> str:
        """A slice of any axis."""
        shape = self.shape(x)
        axis = int(self.rng.integers(len(shape)))
        start = int(self.rng.integers(shape[axis]))
        return self.slice(x, axis, start, int(self.rng.integers(start + 1, shape[axis] + 1)))

    def turned(self, x: str) -> str:
        return self.transpose(x, tuple(int(i) for i in self.rng.permutation(len(self.shape(x)))))

    def finer(self, x: str) -> str:
        """The node just added, often with another output scale."""
        by = float(self.pick(*FINER))
        node = self.nodes[-1]
        if by == 1 or not _scaled(node, by):
            return x
        tensor = self.tensors[x]
        self.tensors[x] = Tensor(tensor.shape, tensor.scale / by)
        reference.execute([node], self.values)
        return x


def _scaled(node, by: float) -> bool:
    """Multiply a node's output codes; False where that is not possible."""
    attrs, params = node.attrs, node.params
    if node.kind == "add":
        shift = attrs["shift"] - round(math.log2(by))
        if not 1 <= shift <= 22:
            return False
        attrs["shift"] = shift
    elif node.kind in ("conv1d", "dense"):
        pairs = [_multiplied(m, k, by) for m, k in zip(params["mul"], params["shift"], strict=True)]
        if None in pairs:
            return False
        params["mul"], params["shift"] = np.array([m for m, _ in pairs], np.int32), np.array([k for _, k in pairs],
                                                                                            np.int8)
    elif node.kind == "concat":
        pairs = [_multiplied(m, k, by) for m, k in zip(attrs["mul"], attrs["shift"], strict=True)]
        if None in pairs:
            return False
        attrs["mul"], attrs["shift"] = [m for m, _ in pairs], [k for _, k in pairs]
    elif node.kind in ("mul", "mean", "meanpool"):
        pair = _multiplied(attrs["mul"], attrs["shift"], by)
        if pair is None:
            return False
        attrs["mul"], attrs["shift"] = pair
    elif node.kind == "norm":
        if np.abs(params["mul"]).max() * by >= 1 << 24 or np.abs(params["bias"]).max() * by >= (1 << 31) - 1:
            return False
        params["mul"], params["bias"] = (np.rint(params[key] * by).astype(np.int32) for key in ("mul", "bias"))
    elif node.kind == "attention":
        keys = [key for key in ("out_mul", "out_mul2") if key in attrs]
        if any(not 1 <= abs(round(attrs[key] * by)) < 1 << 28 for key in keys):
            return False
        attrs |= {key: round(attrs[key] * by) for key in keys}
    else:
        return False
    return True


def _multiplied(mul: int, shift: int, by: float) -> tuple[int, int] | None:
    """(m, k) of a scale times `by`, None where there is none; no more than 3 bits, which no accumulator here fills."""
    real = math.ldexp(int(mul), int(shift) - 32) * by
    if not 2.0 ** -32 < real < 4:
        return None
    return make.multiplier(real)


class _Growth:
    """Nodes added one after the other until `room` of them are left."""

    def __init__(self, seed: int, attempt: int):
        self.b = b = Wild(seed, attempt)
        self.rng = b.rng
        self.room = int(self.rng.integers(LEAST_NODES, MOST_NODES + 1))
        self.maps = [b.reshape("ecg", "channel")]           # three axes
        self.ends = []                                      # vectors that must reach the output

    def done(self) -> int:
        """Nodes so far, without the first reshape."""
        return len(self.b.nodes) - 1

    def left(self) -> int:
        """Nodes that may still be added in front of those that make the output."""
        ends = self.ends[-2:]
        last = sum(len(self.b.shape(t)) > 1 for t in ends) + bool(ends) + 2
        return self.room - self.done() - last

    def put(self, x: str) -> None:
        """A tensor that later nodes may read."""
        (self.maps if len(self.b.shape(x)) == 3 else self.ends).append(x)

    def last(self) -> str:
        """The newest map, or another late one."""
        return self.maps[-1] if self.rng.random() < 0.7 else self.b.pick(*self.maps[-3:])

    def small(self, x: str) -> bool:
        return math.prod(self.b.shape(x)) <= MOST

    def residual(self) -> None:
        """A tensor and what one or two nodes make of it."""
        x = y = self.last()
        for _ in range(self.b.pick(1, 1, 2) if self.left() > 3 else 1):
            y = self.b.kept(y)
        self.put(self.b.summed(*self.b.pick((x, y), (y, x))) if self.b.shape(x) == self.b.shape(y) else y)

    def attention(self) -> None:
        """Of a map, of a convolution of it, or of some of its columns with all of them."""
        b, x = self.b, self.last()
        channel, _, time = b.shape(x)
        if self.left() > 1 and time > 1 and self.rng.random() < 0.2:
            start = int(self.rng.integers(time - 1))
            queries = b.slice(x, 2, start, int(self.rng.integers(start + 1, time)))
            self.put(b.finer(b.attention(queries, x, x, b.divisor(channel), "global")))
            return
        if self.left() > 1 and channel == 1:
            x = b.convolved(x)
            self.put(x)
        self.put(b.attended(x))

    def constant(self) -> None:
        x = self.last()
        parts = [x, self.b.constant_for(x)]
        self.put(self.b.finer(self.b.mul(*parts)) if self.rng.integers(2) else self.b.summed(*self.b.pick(
            parts, parts[::-1])))

    def two(self, kind: str) -> None:
        """A sum, product or concatenation of tensors that fit."""
        x = self.last()
        axis = int(self.rng.integers(3))
        fits = [t for t in self.maps if all(a == b or (kind == "concat" and i == axis) for i, (a, b) in enumerate(
            zip(self.b.shape(t), self.b.shape(x), strict=True)))]
        other = self.b.pick(*fits)
        if kind == "concat":
            self.put(self.b.joined([x, other], axis))
        else:
            self.put(self.b.summed(x, other) if kind == "add" else self.b.finer(self.b.mul(x, other)))

    def gate(self) -> None:
        """A product with the mean along time."""
        x = self.last()
        *rows, _ = self.b.shape(x)
        mean = self.b.reshape(self.b.finer(self.b.reduce("mean", x, (2,))), (*rows, 1))
        self.put(self.b.finer(self.b.mul(*self.b.pick((x, mean), (mean, x)))))

    def lstm(self) -> None:
        """Over a side input, over the leads of the signal, or over the columns of a map."""
        steps = [t for t in self.b.inputs if len(self.b.shape(t)) == 2]
        x = self.b.pick(*steps) if self.rng.random() < 0.6 else self.b.reduced("mean", self.last())
        if len(self.b.shape(x)) != 2:
            self.put(x)
            return
        y = self.b.lstm(x, int(self.rng.integers(1, 8)), sequence=bool(self.rng.integers(2)))
        self.put(y)

    def lookup(self) -> None:
        """Of the age, or of a code of a vector."""
        vectors = [t for t in [*self.b.inputs, *self.ends] if len(self.b.shape(t)) == 1]
        if not vectors:
            self.put(self.b.reduce(self.b.pick("max", "mean"), self.last(), (0, 2)))
            return
        x = self.b.pick(*vectors)
        if self.b.shape(x) != (1,):
            x = self.b.slice(x, 0, self.b.shape(x)[0] - 1, self.b.shape(x)[0])
        entries, width = (int(i) for i in self.rng.integers(1, (20, 6)))
        self.put(self.b.lookup(x, entries, width, self.b.pick(-3, 0, -100)))

    def reshaped(self) -> None:
        """Channels and leads as other channels and leads, or everything along time."""
        channel, lead, time = self.b.shape(self.last())
        shape = self.b.pick((channel * lead, 1, time), (1, channel * lead, time), (lead, channel, time),
                            (channel, 1, lead * time), (time, lead, channel))
        self.put(self.b.reshape(self.last_of(channel, lead, time), shape))

    def last_of(self, *shape: int) -> str:
        return next(t for t in reversed(self.maps) if self.b.shape(t) == shape)

    def moves(self) -> dict:
        """kind or feature -> (nodes it takes at most, those that bring its end to the output among them; how)."""
        b = self.b
        return {
            "conv1d": (1, lambda: self.put(b.convolved(self.last()))),
            "maxpool": (1, lambda: self.put(b.pooled(self.last(), "maxpool"))),
            "meanpool": (1, lambda: self.put(b.pooled(self.last(), "meanpool"))),
            "table": (1, lambda: self.put(b.tabled(self.last()))),
            "norm": (1, lambda: self.put(b.normed(self.last()))),
            "add": (1, lambda: self.two("add")), "mul": (1, lambda: self.two("mul")),
            "concat": (1, lambda: self.two("concat")), "gate": (3, self.gate), "constant": (2, self.constant),
            "slice": (1, lambda: self.put(b.cut(self.last()))),
            "transpose": (1, lambda: self.put(b.turned(self.last()))),
            "reshape": (1, self.reshaped), "residual": (2, self.residual), "attention": (2, self.attention),
            "lstm": (4, self.lstm), "lookup": (4, self.lookup),
        }

    def grow(self) -> None:
        """First what the graph is to show, then whatever fits."""
        moves = self.moves()
        wanted = [name for name in ("attention", "residual") if self.rng.random() < 0.6]
        wanted += [str(self.rng.choice(list(moves)))]
        self.rng.shuffle(wanted)
        tries = 0
        while self.left() > 0 and tries < 40:
            tries += 1
            name = wanted.pop() if wanted else str(self.rng.choice(list(moves)))
            nodes, how = moves[name]
            if nodes <= self.left():
                how()
            if self.left() > 0 and not self.small(self.maps[-1]):
                self.maps.append(self.b.slice(self.maps[-1], *self.largest(self.maps[-1])))

    def largest(self, x: str) -> tuple[int, int, int]:
        """The first steps along the largest axis."""
        shape = self.b.shape(x)
        return int(np.argmax(shape)), 0, max(shape) // 3

    def output(self) -> str:
        """The last map and the ends as one vector."""
        b = self.b
        vectors = [b.reshape(t, "vector") if len(b.shape(t)) > 1 else t for t in self.ends[-2:]]
        x = self.maps[-1]
        whole = math.prod(b.shape(x)) <= 48 and self.rng.random() < 0.3
        axes = b.pick((1, 2), (0, 2), (0, 1))
        vectors.append(b.reshape(x, "vector") if whole else b.reduce(b.pick("max", "mean"), x, axes))
        x = vectors[0] if len(vectors) == 1 else b.joined(vectors, 0)
        if b.shape(x)[0] > 24 or self.rng.random() < 0.6 or self.done() < LEAST_NODES:
            x = b.finer(b.dense(x, int(self.rng.integers(1, 7)), relu=bool(self.rng.random() < 0.2)))
        return x


def random_graph(seed: int) -> Graph:
    """The graph of a seed: the first one tried whose output tells the sample windows apart."""
    for attempt in range(ATTEMPTS):
        growth = _Growth(seed, attempt)
        growth.grow()
        output = growth.output()
        if len(np.unique(growth.b.values[output], axis=0)) > 1:
            break
    return growth.b.graph(output)


def residual(graph: Graph) -> bool:
    """Whether a tensor is added to something made from it."""
    made: dict[str, set[str]] = {}
    for n in graph.nodes:
        made[n.output] = set(n.inputs).union(*(made.get(t, set()) for t in n.inputs))
    sums = [n.inputs for n in graph.nodes if n.kind == "add"]
    return any(a in made.get(b, ()) or b in made.get(a, ()) for a, b in sums)
