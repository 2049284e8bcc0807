# SPDX-License-Identifier: Apache-2.0
"""The simple node kinds: exact arithmetic on hand-made graphs, and every way to write them in a float network."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress import agree, reference
from compress import graph as graphs
from compress.graph import Graph, Node, Tensor
from compress.program import Program, tensors
from tests import graphs as make
from train.say import GraphError

SCALES = {"ecg": 0.016}
LEADS, TIME, WIDTH = 2, 32, 4


def rounded(real: Fraction, floor: int = -128) -> int:
    """To the nearest integer, ties up, saturated."""
    return max(floor, min(127, math.floor(real + Fraction(1, 2))))


def evaluate(kind, inputs, shape, attrs, params=None):
    """One node on a batch of inputs, its shape checked."""
    known = {f"x{i}": Tensor(x.shape[1:], 1.0) for i, x in enumerate(inputs)}
    node = Node("node", kind, list(known), "y", attrs, params or {})
    graph = Graph(list(known), "y", known | {"y": Tensor(shape, 1.0)}, [node])
    graphs.check(graph)
    return reference.run(graph, dict(zip(known, inputs, strict=True)))


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


# ---- arithmetic

@settings(max_examples=200, deadline=None)
@given(a=st.integers(-128, 127), b=st.integers(-128, 127), m=st.integers(1, 2**31 - 1), k=st.integers(0, 7))
def test_a_product_rounds_once_with_ties_up(a, b, m, k):
    y = evaluate("mul", [np.full((1, 2), v, np.int8) for v in (a, b)], (2,), {"mul": m, "shift": k})
    assert (y == rounded(Fraction(a * b * m * 2**k, 2**32))).all()


@settings(max_examples=200, deadline=None)
@given(a=st.integers(-128, 127), b=st.integers(-128, 127), ma=st.integers(0, 32767), mb=st.integers(0, 32767),
       shift=st.integers(1, 22))
def test_a_difference_is_a_sum_with_a_negative_multiplier(a, b, ma, mb, shift):
    x = [np.full((1, 2), v, np.int8) for v in (a, b)]
    y = evaluate("add", x, (2,), {"mul": [ma, -mb], "shift": shift, "relu": False})
    assert (y == rounded(Fraction(a * ma - b * mb, 2**shift))).all()


@pytest.mark.parametrize("kind, attrs", [("add", {"mul": [1 << 13, 1 << 13], "shift": 14, "relu": False}),
                                         ("mul", {"mul": 1 << 26, "shift": 0})])
@pytest.mark.parametrize("other", [(1, 1, 1), (4, 1, 1), (1, 2, 1), (4, 1, 6), (4, 2, 6)])
def test_an_axis_of_size_one_is_repeated(kind, attrs, other):
    x, y = codes(3, 4, 2, 6), codes(3, *other, seed=1)
    wide = np.broadcast_to(y, x.shape)
    expected = evaluate(kind, [x, wide], (4, 2, 6), attrs)
    np.testing.assert_array_equal(evaluate(kind, [x, y], (4, 2, 6), attrs), expected)
    np.testing.assert_array_equal(evaluate(kind, [y, x], (4, 2, 6), attrs), expected)


@settings(max_examples=40, deadline=None)
@given(kernel=st.integers(1, 5), stride=st.integers(1, 4), left=st.integers(0, 2), right=st.integers(0, 2),
       m=st.integers(1, 2**31 - 1), seed=st.integers(0, 99))
def test_a_mean_pool_is_the_requantized_sum_of_its_window(kernel, stride, left, right, m, seed):
    x = codes(1, 2, 1, 9, seed=seed)
    columns = (9 + left + right - kernel) // stride + 1
    attrs = {"kernel": kernel, "stride": stride, "pad": [left, right], "mul": m, "shift": 0}
    y = evaluate("meanpool", [x], (2, 1, columns), attrs)
    padded = np.pad(x, [(0, 0)] * 3 + [(left, right)]).astype(int)
    for c in range(2):
        for t in range(columns):
            total = int(padded[0, c, 0, t * stride:t * stride + kernel].sum())
            assert y[0, c, 0, t] == rounded(Fraction(total * m, 2**32))


@pytest.mark.parametrize("perm", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_a_transpose_moves_axes_behind_the_batch(perm):
    x = codes(3, 4, 2, 5)
    shape = tuple((4, 2, 5)[a] for a in perm)
    np.testing.assert_array_equal(evaluate("transpose", [x], shape, {"perm": list(perm)}),
                                  x.transpose(0, *(a + 1 for a in perm)))


@pytest.mark.parametrize("shape", [(40,), (1, 4, 2, 5), (8, 5), (4, 10), (2, 2, 10)])
def test_a_reshape_keeps_the_order_of_the_codes(shape):
    x = codes(3, 4, 2, 5)
    np.testing.assert_array_equal(evaluate("reshape", [x], shape, {"shape": list(shape)}), x.reshape(3, *shape))


def test_a_constant_repeats_over_the_batch():
    b = make.Builder(0, {"x": (2, 5)})
    graph = b.graph(b.concat([b.reshape("x", "vector"), b.constant((3,))]))
    value = next(n.params["value"] for n in graph.nodes if n.kind == "constant")
    values = reference.run(graph, {"x": codes(4, 2, 5)}, trace=True)
    assert values[graph.output].shape == (4, 13)
    np.testing.assert_array_equal(values[graph.nodes[1].output], np.repeat(value[None], 4, axis=0))


@pytest.mark.parametrize("kind, inputs, shape, attrs, params, words", [
    ("reshape", [(4, 5)], (3, 5), {"shape": [3, 5]}, {}, ["(4, 5)", "[3, 5]"]),
    ("transpose", [(4, 5)], (4, 5), {"perm": [0, 0]}, {}, ["[0, 0]"]),
    ("mul", [(4, 5), (4, 2)], (4, 5), {"mul": 1, "shift": 0}, {}, ["(4, 5)", "(4, 2)"]),
    ("add", [(4, 5), (5,)], (4, 5), {"mul": [1, 1], "shift": 1, "relu": False}, {}, ["(5,)"]),
    ("constant", [], (3,), {}, {"value": np.zeros(4, np.int8)}, ["(3,)", "(4,)"])])
def test_a_node_that_does_not_fit_is_refused_by_name(kind, inputs, shape, attrs, params, words):
    with pytest.raises(GraphError, match="node") as error:
        evaluate(kind, [np.zeros((1, *s), np.int8) for s in inputs], shape, attrs, params)
    assert all(w in str(error.value) for w in words), str(error.value)


# ---- from a float network

class Net(nn.Module):
    """A convolution, `body`, and a linear layer on what `body` leaves; parameters of every shape a body may want."""

    def __init__(self, body, width: int):
        super().__init__()
        self.body = body
        self.first = nn.Conv2d(1, WIDTH, (1, 3), padding=(0, 1))
        self.last = nn.Linear(width, 3)
        self.cls = nn.Parameter(torch.randn(1, WIDTH, LEADS, 1))
        self.position = nn.Parameter(torch.randn(1, WIDTH, 1, TIME + 1))
        self.gain = nn.Parameter(torch.randn(WIDTH, 1, 1))
        self.one, self.row = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(8) / 4)
        self.register_buffer("code", torch.randn(1, WIDTH, 1, TIME))

    def forward(self, ecg):     # (batch, 1, lead, time)
        return self.last(self.body(self, self.first(ecg)))


def frozen(body, streaming=False):
    """(program, converted, graph, inputs) of a Net around a body."""
    torch.manual_seed(3)
    probe = Net(body, 1)
    with torch.no_grad():
        width = body(probe, probe.first(torch.zeros(2, 1, LEADS, TIME))).shape[1]
    inputs = {"ecg": make.waveform(np.random.default_rng(1), 24, LEADS, TIME)}
    program = Program(Net(body, width).eval(), {"ecg": (LEADS, TIME)}, SCALES, streaming)
    program.calibrate([tensors(inputs, SCALES)])
    return program, *program.convert(), inputs


def pooled(x):
    return x.mean((2, 3))


UNARY = {
    "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "leaky relu": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu, "relu6": F.relu6,
    "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(-0.1, 0.2), "clamp below": lambda x: x.clamp(min=0.05),
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "softplus": F.softplus, "exp": torch.exp, "abs": torch.abs,
    "neg": torch.neg, "times": lambda x: x * 3, "plus": lambda x: x + 0.3, "minus": lambda x: x - 0.3,
    "from": lambda x: 1 - x, "over": lambda x: x / 3, "square": lambda x: x ** 2,
    "in place": lambda x: x.clone().mul_(2),
    "relu twice": lambda x: F.relu(F.max_pool2d(x, (1, 2))),
}


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
def test_a_function_of_one_tensor_is_a_table_that_agrees_exactly(function):
    _, converted, graph, inputs = frozen(lambda net, x: pooled(function(x)))
    rows = [r for r in agree.compare(converted, graph, inputs) if r.kind == "table"]
    assert len(rows) == 1 and rows[0].differing == 0


def chunks(net, x):
    a, b = x.chunk(2, 1)
    first, second = (a * b.sigmoid()).unbind(1)
    return torch.stack([first, second], 1).split([10, 22], -1)[1].mean((2, 3))


def one_dimensional(net, x):
    y = x.transpose(1, 2).reshape(x.shape[0], WIDTH * LEADS, TIME)
    y = F.conv1d(y, net.row.reshape(8, 1, 1) + 0.5, stride=2, groups=8)
    return torch.cat([F.max_pool1d(y, 3, 2, 1).mean(-1), F.avg_pool1d(y, 16).squeeze(-1)], 1)


# what it is -> (body, kinds that its graph must hold)
BODIES = {
    "transpose": (lambda n, x: pooled(x.transpose(1, 2) * x.permute(0, 2, 1, 3).sigmoid()), {"transpose", "mul"}),
    "time last": (lambda n, x: x.movedim(3, 1).amax((2, 3)), {"transpose", "max"}),
    "moving an axis of one": (lambda n, x: pooled(x[:, :, :1].transpose(1, 2).contiguous() + 1), {"reshape", "table"}),
    "reshapes": (lambda n, x: x.view(x.shape[0], 2, 2, LEADS, TIME).flatten(2, 3).unflatten(1, (1, 2)).squeeze(1)
                 .mean((2, 3)), {"reshape"}),
    "a stream of its own for each channel": (lambda n, x: x.flatten(1, 2)[:, None].mean((1, 3)), {"reshape"}),
    "class token": (lambda n, x: torch.cat([n.cls.expand(x.shape[0], -1, -1, -1), x], 3).mean((2, 3)), {"constant"}),
    "class token of every lead": (
        lambda n, x: torch.cat([n.cls[:, :, :1].expand(x.shape[0], WIDTH, LEADS, 1), x], 3)[..., 0].flatten(1),
        {"constant"}),
    "folded chain": (lambda n, x: torch.cat([(n.cls + n.position[..., :1]).expand(x.shape[0], *n.cls.shape[1:]),
                                             x + n.position[..., 1:]], 3).mean((2, 3)), {"constant", "add"}),
    "a buffer": (lambda n, x: pooled(x + n.code), {"constant", "add"}),
    "repeat": (lambda n, x: torch.cat([x, n.cls.repeat(x.shape[0], 1, 1, 1)], 3).mean((2, 3)), {"constant"}),
    "difference": (lambda n, x: pooled(x - F.avg_pool2d(x, (1, 3), 1, (0, 1))), {"add", "meanpool"}),
    "a constant subtracted": (lambda n, x: pooled(n.position[..., 1:] - x), {"constant", "add"}),
    "relu of a difference": (lambda n, x: pooled(F.relu(x - n.code)), {"add"}),
    "gain of each channel": (lambda n, x: pooled(x * n.gain), {"constant", "mul"}),
    "gate": (lambda n, x: pooled(x * F.adaptive_avg_pool2d(x, 1).sigmoid()), {"mul", "mean", "table"}),
    "gate, expanded": (lambda n, x: pooled(x * x.amax((2, 3), keepdim=True).tanh().expand_as(x)), {"mul", "max"}),
    "square": (lambda n, x: pooled(x * x), {"mul"}),
    "scalar parameter": (lambda n, x: pooled(x * (torch.exp((n.row[:4] * n.row[4:]).sum()) - n.one)), {"table"}),
    "mean pool": (lambda n, x: pooled(F.avg_pool2d(x, (1, 4))), {"meanpool"}),
    "pools to one value": (lambda n, x: torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1)
                           .flatten(1), {"max", "mean"}),
    "keepdim": (lambda n, x: (x.mean(3, keepdim=True) + x.max(2, keepdim=True)[0]).sum((2, 3)), {"mean", "max"}),
    "chunk, unbind, stack, split": (chunks, {"slice", "mul"}),
    "every second column": (lambda n, x: pooled(x[..., 1::2]), {"maxpool", "slice"}),
    "one dimension": (one_dimensional, {"conv1d", "maxpool", "meanpool"}),
    "idle": (lambda n, x: pooled(F.dropout(x[:, :, :, :].contiguous().clone().detach(), 0.5, n.training).float()),
             {"mean"}),
    "padding by name": (lambda n, x: pooled(F.conv2d(x, n.row.reshape(4, 1, 1, 2)[..., [0, 1, 0]], padding="same",
                                                     groups=4)), {"conv1d"}),
}


@pytest.mark.parametrize("body, kinds", BODIES.values(), ids=BODIES)
def test_every_way_to_write_it_becomes_nodes_that_agree_with_the_program(body, kinds):
    _, converted, graph, inputs = frozen(body)
    assert kinds <= {n.kind for n in graph.nodes}
    rows = agree.compare(converted, graph, inputs)
    assert max(r.worst for r in rows) <= 1, rows
    assert all(r.differing <= 0.02 * r.codes for r in rows), rows
    assert all(r.differing == 0 for r in rows if r.kind in ("table", "constant", "reshape", "transpose", "slice"))
    again = graphs.loads(*graphs.dumps(graph))
    np.testing.assert_array_equal(reference.run(again, inputs), reference.run(graph, inputs))


def test_a_parameter_used_as_data_keeps_training():
    program, *_, inputs = frozen(BODIES["folded chain"][0])
    program(*tensors(inputs, SCALES)).square().mean().backward()
    assert len(program.parameters()) == 6       # two layers, class token, position: what was folded is one parameter
    assert all(p.grad.abs().sum() > 0 for p in program.parameters())


def test_a_parameter_that_is_still_zero_can_be_added():
    torch.manual_seed(0)
    net = Net(lambda n, x: pooled(x + n.position[..., 1:]), WIDTH)
    nn.init.zeros_(net.position)
    inputs = {"ecg": make.waveform(np.random.default_rng(1), 8, LEADS, TIME)}
    program = Program(net.eval(), {"ecg": (LEADS, TIME)}, SCALES, False)
    program.calibrate([tensors(inputs, SCALES)])
    assert agree.summary(agree.compare(*program.convert(), inputs))["worst"] <= 1


REFUSED = {
    "two tensors divided": (lambda n, x: pooled(x / (x.abs() + 1)), "aten.div.Tensor has no integer form"),
    "a sum with a factor": (lambda n, x: pooled(torch.add(x, n.code, alpha=2)), "has no integer form"),
    "sorting": (lambda n, x: x.sort(3)[0].mean((2, 3)), "aten.sort.default has no integer form"),
    "a mean over the batch": (lambda n, x: pooled(x - x.mean(0, keepdim=True)), "mixes the windows of a batch"),
    "batch and channel in one": (lambda n, x: x.flatten(0, 1).mean((1, 2)).unflatten(0, (-1, WIDTH)), "batch axis"),
    "half of the batch": (lambda n, x: pooled(x + x[:1]), "part of the batch"),
    "a kernel over leads": (lambda n, x: pooled(F.avg_pool2d(x, 2)), "kernel (1, k)"),
    "padding that does not count": (
        lambda n, x: pooled(F.avg_pool2d(x, (1, 3), 1, (0, 1), count_include_pad=False)), "padding (0, p) that counts"),
    "pooling rounded up": (lambda n, x: pooled(F.max_pool2d(x, (1, 5), ceil_mode=True)), "kernel (1, k)"),
    "adaptive pooling to three": (lambda n, x: F.adaptive_avg_pool2d(x, (1, 3)).flatten(1), "one value an axis"),
    "a logarithm": (lambda n, x: pooled(torch.log(x.abs())), "not finite"),
    "a linear layer on columns": (lambda n, x: F.linear(x, torch.eye(TIME)[:4] + n.one).mean((2, 3)), "kernel 1"),
}


@pytest.mark.parametrize("body, words", REFUSED.values(), ids=REFUSED)
def test_what_has_no_node_is_refused_by_name_with_what_there_is(body, words):
    with pytest.raises(GraphError, match="net") as error:
        frozen(body)
    assert words in str(error.value), str(error.value)
    assert error.value.expected


# ---- streaming

LOCAL = {
    "pools": lambda n, x: F.avg_pool2d(x, (1, 3), (1, 2), (0, 1)) - F.max_pool2d(x, (1, 2)),
    "gain and function": lambda n, x: F.gelu(x) * n.gain + n.gain,
    "gate of the leads": lambda n, x: x * x.mean(2, keepdim=True).sigmoid() + x.amax(2, keepdim=True),
    "leads as channels": lambda n, x: F.conv2d(x.transpose(1, 2).flatten(1, 2)[:, :, None], n.row.reshape(8, 1, 1, 1),
                                               groups=8).unflatten(1, (LEADS, WIDTH))[:, :, :, 0],
    "branches that wait": lambda n, x: torch.cat([x, F.avg_pool2d(x, (1, 5), 1, (0, 2))], 1) * 2,
}


@pytest.mark.parametrize("local", LOCAL.values(), ids=LOCAL)
def test_local_nodes_stream_and_equal_the_window(local):
    def body(net, x):
        y = local(net, x)
        y = y[..., 3:-3]
        return torch.cat([y, y[..., :1] * net.one], -1).mean((2, 3))      # a cut behind the boundary is an ordinary one
    _, _, graph, _ = frozen(body, streaming=True)
    stride = reference.column_stride(graph)
    record = make.waveform(np.random.default_rng(2), 1, LEADS, 3 * TIME)[0]
    crops = np.stack([record[:, s:s + TIME] for s in range(0, 2 * TIME + 1, 2 * stride)])
    expected = reference.run(graph, {"ecg": crops})
    np.testing.assert_array_equal(reference.stream(graph, {"ecg": record}, 2 * stride), expected)


@pytest.mark.parametrize("body, words", [
    (lambda n, x: pooled((x + n.code)[..., 2:-2]), "reads a column from before the boundary"),
    (lambda n, x: pooled((x * n.gain)[..., 2:-2] * n.gain), "reads a parameter from before the boundary"),
    (lambda n, x: pooled(x.transpose(1, 3)[:, 2:-2]), "sees the whole window"),
    (lambda n, x: pooled((x * x.mean(3, keepdim=True))[..., 2:-2]), "sees the whole window"),
    (lambda n, x: x.flatten(2)[..., 2:-2].mean(2), "sees the whole window"),
    (lambda n, x: pooled(x[..., 2:-2]) + x.amax((2, 3)), "sees the whole window"),
], ids=["code of each column", "gain on both sides", "time moved", "gate", "time and leads", "around the boundary"])
def test_what_is_not_local_cannot_stand_in_front_of_the_boundary(body, words):
    with pytest.raises(GraphError, match=words):
        frozen(body, streaming=True)


def test_parameters_and_side_inputs_stand_behind_the_boundary():
    *_, graph, _ = frozen(lambda n, x: pooled(x[..., 2:-2] + n.position[..., :TIME - 4]), streaming=True)
    local, rest = graph.local_nodes()
    assert not any(n.kind == "constant" for n in local) and any(n.kind == "constant" for n in rest)


class Normed(nn.Module):
    """A BatchNorm that both a residual and pointwise layers surround."""

    def __init__(self, kernel: int, around: bool):
        super().__init__()
        self.around = around
        self.first, self.norm = nn.Conv2d(1, WIDTH, (1, 3), padding=(0, 1)), nn.BatchNorm2d(WIDTH)
        self.a = nn.Conv2d(WIDTH, 6, (1, kernel), padding=(0, kernel // 2), bias=False)
        self.b = nn.Conv2d(WIDTH, 6, 1, groups=2)
        self.flat, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)
        for norm in (self.norm, self.flat):
            for tensor in (norm.running_mean, norm.weight, norm.bias):
                nn.init.normal_(tensor)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, ecg):
        x = self.first(ecg)
        y = self.norm(x)
        out = self.last(self.flat((self.a(y) * self.b(y)).mean((2, 3))))
        return out + (x + y if self.around else x).mean((2, 3))[:, :3]


def test_a_batchnorm_folds_into_the_pointwise_layers_behind_it():
    torch.manual_seed(0)
    net = Normed(1, around=False).eval()
    program = Program(net, {"ecg": (LEADS, TIME)}, SCALES, False)
    ecg = torch.randn(3, LEADS, TIME)
    torch.testing.assert_close(program(ecg), net(ecg[:, None]), atol=1e-5, rtol=1e-5)
    assert len(program.parameters()) == 8


class Twice(nn.Module):
    """One convolution, normalized in two ways."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Conv2d(1, WIDTH, (1, 3)), nn.Linear(WIDTH, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(3))
        for i, norm in enumerate(self.norms):
            nn.init.constant_(norm.weight, 2.0 if i else 0.5)

    def forward(self, ecg):
        a, b, c = (norm(self.shared(ecg * gain)) for norm, gain in zip(self.norms, (1, 2, 3), strict=True))
        return self.last((a + b * c).mean((2, 3)))


def test_a_layer_that_works_twice_folds_the_batchnorm_of_each_place():
    torch.manual_seed(0)
    net = Twice().eval()
    program = Program(net, {"ecg": (LEADS, TIME)}, SCALES, False)
    ecg = torch.randn(3, LEADS, TIME)
    torch.testing.assert_close(program(ecg), net(ecg[:, None]), atol=1e-5, rtol=1e-5)
    assert len(program.parameters()) == 6       # the second and third place share


@pytest.mark.parametrize("kernel, around", [(3, False), (1, True)], ids=["wider kernel", "also read elsewhere"])
def test_a_batchnorm_that_other_layers_read_as_well_is_refused_by_name(kernel, around):
    with pytest.raises(GraphError, match=r"net\.norm"):
        Program(Normed(kernel, around).eval(), {"ecg": (LEADS, TIME)}, SCALES, False)
