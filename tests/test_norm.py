# SPDX-License-Identifier: Apache-2.0
"""Layer norm and RMS norm: float module, custom op, integer kernel, and what they are in a frozen graph."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import library, nn

from compress import agree, graph, norm, reference
from compress.graph import MAX_NORM, Graph, Node, Tensor
from compress.makers_modules import norm as make_norm
from compress.program import Program, tensors
from compress.reference_norm import isqrt
from train.models.norm import Norm
from train.models.norm import norm as float_norm
from train.say import GraphError

torch.set_num_threads(1)
EXTREMES = {"zero": 0, "top": 127, "bottom": -128}


def randomised(module):
    """The module with gains of both signs and biases."""
    for p in module.parameters():
        nn.init.normal_(p, 0.3, 0.7)
    return module


class Net(nn.Module):
    """Convolution, norms over channels and groups, and norms of vectors; of our own or PyTorch's."""

    def __init__(self, middle, last):
        super().__init__()
        self.first = nn.Conv2d(1, 12, (1, 3), padding=(0, 1))
        self.middle, self.last = middle, last
        self.logits = nn.Linear(12, 3)

    def forward(self, ecg):
        return self.logits(self.last(self.middle(self.first(ecg)).mean((2, 3))))


NETS = {"layer": lambda: Net(Norm(12), Norm(12)), "groups": lambda: Net(Norm(12, groups=3), Norm(12, 2)),
        "rms": lambda: Net(Norm(12, rms=True), Norm(12, 4, rms=True)),
        "torch-layer": lambda: Net(nn.ReLU(), nn.LayerNorm(12)),
        "torch-plain": lambda: Net(nn.ReLU(), nn.LayerNorm(12, elementwise_affine=False)),
        "torch-rms": lambda: Net(nn.ReLU(), nn.RMSNorm(12))}


def inputs():
    """int8 windows: noise, and every extreme."""
    x = np.random.default_rng(0).integers(-128, 128, (9, 2, 40)).astype(np.int8)
    for i, value in enumerate(EXTREMES.values()):
        x[i] = value
    x[3], x[3, :, ::2] = -128, 127
    return {"ecg": x}


@pytest.fixture(scope="module", params=NETS)
def frozen(request):
    """(program, converted program, graph)."""
    torch.manual_seed(1)
    program = Program(randomised(NETS[request.param]()), {"ecg": (2, 40)}, {"ecg": 0.016}, False)
    program.calibrate([tensors(inputs(), {"ecg": 0.016})])
    return program, *program.convert()


def test_a_norm_is_one_node_under_the_name_of_its_layer(frozen):
    names = [n.name for n in frozen[2].nodes if n.kind == "norm"]
    assert names in (["net.middle", "net.last"], ["net.last"])


def test_the_reference_equals_the_converted_program_but_for_single_lsb_ties(frozen):
    _, converted, g = frozen
    seen = agree.summary(agree.compare(converted, g, inputs()))
    assert seen["worst"] <= 1
    assert seen["share"] < 5e-3


def test_gain_and_bias_are_trained(frozen):
    program = frozen[0]
    program(*tensors(inputs(), {"ecg": 0.016})).square().sum().backward()
    for p in program.parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0
        p.grad = None


def test_a_graph_with_norms_survives_its_files(frozen):
    g = frozen[2]
    again = graph.loads(*graph.dumps(g))
    assert graph.dumps(again) == graph.dumps(g)
    np.testing.assert_array_equal(reference.run(again, inputs()), reference.run(g, inputs()))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("shape, groups", [((3, 8, 2, 5), 2), ((4, 6), 1)])
def test_the_norm_op_passes_opcheck(shape, groups, rms):
    x, gain = torch.randn(shape, requires_grad=True), torch.randn(shape[1], requires_grad=True)
    bias = None if rms else torch.randn(shape[1], requires_grad=True)
    library.opcheck(torch.ops.leadedge.norm.default, (x, gain, bias, groups, rms, 1e-5))


@pytest.mark.parametrize("rms, theirs", [(False, nn.LayerNorm), (True, nn.RMSNorm)])
def test_the_float_norm_is_pytorchs_and_so_are_value_and_gradient_of_the_op(rms, theirs):
    torch.manual_seed(0)
    x, ours = torch.randn(5, 7, requires_grad=True), randomised(Norm(7, rms=rms))
    other = theirs(7, eps=1e-5)
    other.weight.data = ours.gain.data.clone()
    if not rms:
        other.bias.data = ours.bias.data.clone()
    pull = torch.randn(5, 7)
    expected, = torch.autograd.grad((other(x) * pull).sum(), x)
    torch.testing.assert_close(ours(x), other(x))
    ours.norm_fn = norm.norm
    torch.testing.assert_close(ours(x), other(x))
    torch.testing.assert_close(torch.autograd.grad((ours(x) * pull).sum(), x)[0], expected)


@given(st.integers(0, 2**62 - 1))
def test_the_integer_root_rounds_down(x):
    assert isqrt(np.array([x]))[0] == math.isqrt(x)


@pytest.mark.parametrize("x", [0, 1, 2**61, 2**62 - 1, (2**31 - 1) ** 2 - 1, (2**31 - 1) ** 2, (2**30 + 1) ** 2 - 1])
def test_the_integer_root_at_its_limits(x):
    assert isqrt(np.array([x]))[0] == math.isqrt(x)


class Freezer:
    """What a maker needs, around one op."""

    def __init__(self, shape, scale):
        self.program, self.grid, self.x = nn.Module(), scale, shape

    def scale(self, node):
        return self.grid

    def shape(self, node):
        return self.x

    def emit(self, op, kind, sources, scale, attrs, params):
        tensors = {"x": Tensor(self.x, self.grid), "y": Tensor(self.x, scale)}
        return Graph(["x"], "y", tensors, [Node("norm", kind, ["x"], "y", attrs, params)])


def node(gain, bias, groups, rms, eps=1e-5, scale=0.02, out=0.03, shape=None):
    """The graph of one norm, as a maker builds it."""
    f = Freezer(shape or (len(gain),), scale)
    fx = torch.fx.Graph()
    x = fx.placeholder("x")
    f.program.gain, f.program.bias = torch.as_tensor(gain), torch.as_tensor(bias)
    args = (x, fx.get_attr("gain"), fx.get_attr("bias"), groups, rms, eps)
    return make_norm(f, fx.call_function(torch.ops.leadedge.norm.default, args), out, False)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("channels, groups", [(2, 1), (3, 1), (16, 1), (24, 4), (MAX_NORM, 1)])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-3])
def test_all_roundings_of_a_norm_together_stay_below_a_sixteenth_of_a_code(channels, groups, rms, eps):
    rng = np.random.default_rng(channels)
    x = rng.integers(-128, 128, (60, channels)).astype(np.int8)
    x[:20] = rng.integers(-1, 2, (20, channels))
    x[20:24] = np.array([0, 127, -128, 1])[:, None]
    x[24], x[24, 0] = -128, 127
    x[25], x[25, ::2] = 127, -128
    gain, bias = rng.normal(0, 1, channels), rng.normal(0, 1, channels)
    got = reference.run(node(gain, bias, groups, rms, eps), {"x": x})
    real = float_norm(torch.from_numpy(x * 0.02), torch.from_numpy(gain), torch.from_numpy(bias), groups, rms, eps)
    gap = np.abs(got - np.clip(real.numpy() / 0.03, -128, 127))
    assert gap.max() < 0.5 + 1 / 16


def test_a_norm_treats_every_lead_and_time_by_itself():
    rng = np.random.default_rng(3)
    gain, bias = rng.normal(0, 1, 8), rng.normal(0, 1, 8)
    x = rng.integers(-128, 128, (2, 8, 3, 4)).astype(np.int8)
    whole = reference.run(node(gain, bias, 2, False, shape=(8, 3, 4)), {"x": x})
    columns = x.transpose(0, 2, 3, 1).reshape(-1, 8)
    alone = reference.run(node(gain, bias, 2, False), {"x": columns}).reshape(2, 3, 4, 8).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize("gain, bias, scale", [(1e9, 0, 0.02), (1, 1e9, 0.02), (1, 0, 1e-9)])
def test_a_norm_off_every_grid_is_refused(gain, bias, scale):
    with pytest.raises(GraphError):
        node(np.full(4, gain), np.full(4, bias), 1, False, scale=scale)


def test_a_norm_over_too_many_channels_is_refused():
    with pytest.raises(GraphError, match="1024 channels"):
        node(np.ones(1024), np.zeros(1024), 1, False)


@pytest.mark.parametrize("odd", [nn.LayerNorm(40), nn.LayerNorm((2, 40)), nn.RMSNorm(40)])
def test_a_norm_over_other_axes_is_refused_by_layer(odd):
    with pytest.raises(GraphError, match="middle"):
        Program(Net(odd, nn.ReLU()), {"ecg": (2, 40)}, {"ecg": 0.016}, False)


def test_channels_that_do_not_split_are_refused():
    with pytest.raises(ValueError, match="10 channels"):
        Norm(10, groups=3)(torch.zeros(1, 10))
