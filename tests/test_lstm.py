# SPDX-License-Identifier: Apache-2.0
"""The LSTM: float module, custom op, integer recurrence, and what it is in a frozen graph."""

import math

import numpy as np
import pytest
import torch
from torch import library, nn

from compress import agree, graph, lstm, reference
from compress.graph import Graph, Node, Tensor
from compress.program import Program, tensors
from compress.reference_lstm import ENTRIES, sigmoid_table
from train.models.lstm import Lstm
from train.say import GraphError

torch.set_num_threads(1)
STEPS, FEATURES, HIDDEN = 16, 5, 8
SCALES = {"ecg": 0.016, "beats": 1 / 32}
SHAPES = {"ecg": (1, 8), "beats": (STEPS, FEATURES)}


class Net(nn.Module):
    """The mean of a waveform beside the last state, or the mean state, of sixteen beats."""

    def __init__(self, layer):
        super().__init__()
        self.code = layer
        self.logits = nn.Linear(HIDDEN + 1, 3)

    def forward(self, ecg, beats):      # (batch, 1, lead, time), (batch, step, feature)
        h = self.coded(beats)
        return self.logits(torch.cat([h.mean(1) if h.dim() == 3 else h, ecg.mean((2, 3))], 1))

    def coded(self, beats):
        return self.code(beats)


def steep(layer, gain):
    """The layer with larger weights."""
    with torch.no_grad():
        layer.w_ih *= gain
        layer.w_hh *= gain
    return layer


def inputs(count=24):
    """int8 (batch, step, feature): noise, slow drifts and every extreme."""
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (count, STEPS, FEATURES)).astype(np.int8)
    x[8:16] = np.clip(np.cumsum(rng.normal(0, 12, (8, STEPS, FEATURES)), 1), -128, 127)
    for i, value in enumerate((0, 127, -128)):
        x[i] = value
    x[3], x[3, ::2] = -128, 127
    return {"ecg": rng.integers(-128, 128, (count, 1, 8)).astype(np.int8), "beats": x}


def calibrated(net):
    """A program of the net, calibrated."""
    program = Program(net, SHAPES, SCALES, False)
    program.calibrate([tensors(inputs(), SCALES)])
    return program


@pytest.fixture(scope="module", params=[(False, 1.0), (False, 4.0), (True, 1.0)], ids=["last", "steep", "sequence"])
def frozen(request):
    """(program, converted program, graph)."""
    torch.manual_seed(2)
    sequence, gain = request.param
    program = calibrated(Net(steep(Lstm(FEATURES, HIDDEN, sequence), gain)))
    return program, *program.convert()


def nodes(g):
    return [n for n in g.nodes if n.kind == "lstm"]


def test_an_lstm_is_one_node_with_int8_weights_and_its_state_on_the_fixed_grid(frozen):
    n, = nodes(frozen[2])
    assert n.name == "net.code" and frozen[2].tensors[n.output].scale == 1 / 128
    assert n.params["weight_x"].shape == (4 * HIDDEN, FEATURES) and n.params["weight_h"].shape == (4 * HIDDEN, HIDDEN)
    assert all(np.abs(n.params[k]).max(1).min() >= 126 for k in ("weight_x", "weight_h"))     # every row has a grid


def test_sixteen_steps_of_the_reference_equal_the_converted_program(frozen):
    _, converted, g = frozen
    rows = {r.kind: r for r in agree.compare(converted, g, inputs())}
    assert rows["lstm"].worst <= 1 and rows["lstm"].differing <= rows["lstm"].codes // 500
    assert max(r.worst for r in rows.values()) <= 1


def test_every_weight_of_an_lstm_is_trained(frozen):
    program = frozen[0]
    program(*tensors(inputs(), SCALES)).square().sum().backward()
    for p in program.parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0
        p.grad = None


def test_an_lstm_counts_in_bytes_and_products_and_survives_its_files(frozen):
    g = frozen[2]
    rows = 4 * HIDDEN
    dense = 3 * (HIDDEN + 1)
    assert graph.macs(g) == STEPS * rows * (FEATURES + HIDDEN) + dense
    assert g.weight_bytes == rows * (FEATURES + HIDDEN + 12) + 2 * ENTRIES + dense + 3 * 9
    again = graph.loads(*graph.dumps(g))
    assert graph.dumps(again) == graph.dumps(g)
    np.testing.assert_array_equal(reference.run(again, inputs()), reference.run(g, inputs()))


@pytest.mark.parametrize("sequence", [False, True])
def test_the_lstm_op_passes_opcheck(sequence):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, requires_grad=True)
    layer = Lstm(3, 2)
    library.opcheck(torch.ops.leadedge.lstm.default, (x, layer.w_ih, layer.w_hh, layer.bias, sequence))


def test_the_float_lstm_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = Lstm(FEATURES, HIDDEN, True), nn.LSTM(FEATURES, HIDDEN, batch_first=True)
    theirs.load_state_dict({"weight_ih_l0": ours.w_ih, "weight_hh_l0": ours.w_hh, "bias_ih_l0": ours.bias,
                            "bias_hh_l0": torch.zeros(4 * HIDDEN)})
    x = torch.randn(4, STEPS, FEATURES)
    torch.testing.assert_close(ours(x), theirs(x)[0])
    ours.return_sequence = False
    torch.testing.assert_close(ours(x), theirs(x)[1][0][0])


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_the_integer_recurrence_stays_close_to_the_float_one_and_has_its_gradient(gain):
    torch.manual_seed(0)
    layer, x = Lstm(FEATURES, HIDDEN), torch.randn(64, STEPS, FEATURES)
    layer.w_ih.data *= gain
    expected, pull = layer(x), torch.randn(64, HIDDEN)
    gradients = torch.autograd.grad((expected * pull).sum(), layer.parameters())
    layer.lstm_fn = lstm.lstm
    got = layer(x)
    assert (got * 128).round().equal(got * 128)
    assert (got - expected).abs().max() < 3 / 128
    for a, b in zip(torch.autograd.grad((got * pull).sum(), layer.parameters()), gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_table_holds_a_rising_sigmoid():
    table = sigmoid_table().astype(int)
    assert table[ENTRIES // 2] == 1 << 14 and (np.diff(table) >= 0).all() and table[-1] < 1 << 15
    np.testing.assert_allclose((table[1:ENTRIES // 2] + table[:ENTRIES // 2:-1]), 1 << 15)     # odd about one half


def scalar(n, x):
    """The recurrence of one window in Python integers, from the formulas alone."""
    p = {k: a.tolist() for k, a in n.params.items()}
    hidden = len(p["weight_h"][0])
    h, c = [0] * hidden, [0] * hidden

    def gate(z):
        return p["table"][max(-512, min(511, z)) + 512]
    for now in x.tolist():
        z = []
        for r in range(4 * hidden):
            sums = (sum(map(int.__mul__, p["weight_x"][r], now)), sum(map(int.__mul__, p["weight_h"][r], h)))
            assert max(map(abs, sums)) < 2**31
            total = sums[0] * p["mul_x"][r] + sums[1] * p["mul_h"][r] + p["bias"][r] * 2**16
            assert abs(total) + 2**31 < 2**63
            z.append(math.floor((total + 2**31) / 2**32) if abs(total) < 2**50 else (total + 2**31) // 2**32)
        for j in range(hidden):
            i, f, g, o = (gate(z[k * hidden + j]) for k in range(4))
            new = f * c[j] + (i * (2 * g - 2**15)) // 16 + 2**14
            assert abs(new) < 2**31
            c[j] = max(-2**15, min(2**15 - 1, new // 2**15))
            h[j] = min(127, (o * (2 * gate((c[j] + 8) // 16) - 2**15) + 2**22) // 2**23)
    return h


@pytest.mark.parametrize("big", [1 << 20, (1 << 31) - 1])
def test_the_kernel_is_its_formula_to_the_bit_even_where_everything_saturates(big):
    rng = np.random.default_rng(4)
    rows = 4 * 3
    params = {"weight_x": rng.integers(-127, 128, (rows, 4)).astype(np.int8),
              "weight_h": rng.integers(-127, 128, (rows, 3)).astype(np.int8),
              "mul_x": rng.integers(1, big, rows).astype(np.int32),
              "mul_h": rng.integers(1, big, rows).astype(np.int32),
              "bias": rng.integers(-2**31, 2**31, rows).astype(np.int32) // (1 if big > 1 << 20 else 256),
              "table": sigmoid_table()}
    n = Node("lstm", "lstm", ["x"], "y", {"sequence": False}, params)
    g = Graph(["x"], "y", {"x": Tensor((40, 4), 1.0), "y": Tensor((3,), 1 / 128)}, [n])
    x = rng.integers(-128, 128, (6, 40, 4)).astype(np.int8)
    x[0], x[1] = 127, -128
    got = reference.run(g, {"x": x})
    for window, h in zip(x, got, strict=True):
        assert scalar(n, window) == h.tolist()


def test_a_cell_that_only_ever_grows_saturates_at_sixteen():
    rows = np.array([32000, 32000, 32000, 32000], np.int32)     # every gate about wide open: c grows by one a step
    params = {"weight_x": np.zeros((4, 1), np.int8), "weight_h": np.zeros((4, 1), np.int8),
              "mul_x": np.ones(4, np.int32), "mul_h": np.ones(4, np.int32), "bias": rows * 65536 // 64,
              "table": np.full(ENTRIES, 32767, np.uint16)}
    n = Node("lstm", "lstm", ["x"], "y", {"sequence": True}, params)
    g = Graph(["x"], "y", {"x": Tensor((60, 1), 1.0), "y": Tensor((60, 1), 1 / 128)}, [n])
    assert (reference.run(g, {"x": np.zeros((1, 60, 1), np.int8)})[0, 4:] == 127).all()


@pytest.mark.parametrize("weight, scale", [("w_ih", 1e4), ("w_hh", 1e4), ("bias", 1e4)])
def test_an_exploding_lstm_is_refused_by_layer(weight, scale):
    torch.manual_seed(0)
    layer = Lstm(FEATURES, HIDDEN)
    getattr(layer, weight).data *= scale
    program = calibrated(Net(layer))
    with pytest.raises(GraphError, match="code"):
        program.convert()


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_pytorchs_own_lstm_is_refused_by_layer():
    class Own(Net):
        def coded(self, beats):
            return self.code(beats)[0]
    with pytest.raises(GraphError, match="code"):
        calibrated(Own(nn.LSTM(FEATURES, HIDDEN, batch_first=True)))
