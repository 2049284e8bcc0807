# SPDX-License-Identifier: Apache-2.0
"""From a float network to the integer graph: folding, freezing, agreement, streaming, the rule."""

import numpy as np
import pytest
import torch
from torch import nn

from compress import agree, graph, reference, rule
from compress.attention import attend
from compress.fixed import multiplier
from compress.freeze import export_scales
from compress.program import Program, tensors
from tests.frozen import lively
from train import score
from train.models import build
from train.say import GraphError

CASES = [("small", "cinc2017", 1, 4, 0), ("tiny", "cinc2017", 3, 4, 0), ("tiny", "mitbih", 2, 3, 5)]


def network(preset, task, leads, classes, rr):
    """A network with lived-in BatchNorm statistics."""
    torch.manual_seed(7)
    return lively(build("local-lead", preset, task, leads, classes, rr))


def codes(net, leads, rr, n, seed=0):
    """int8 inputs that look like a slow wave with noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(net.geometry.window)
    wave = 60 * np.sin(time / generator.uniform(8, 40, (n, leads, 1))) + generator.normal(0, 12, (n, leads, len(time)))
    inputs = {"ecg": wave.clip(-128, 127).astype(np.int8)}
    if rr:
        inputs["rr"] = generator.integers(-128, 128, (n, rr)).astype(np.int8)
    return inputs


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def frozen(request):
    """(net, program, converted program, graph, inputs) of a calibrated network."""
    net = network(*request.param)
    leads, rr = request.param[2], request.param[4]
    inputs = codes(net, leads, rr, 8)
    scales = {"ecg": 0.016, "rr": 1 / 32} if rr else {"ecg": 0.016}
    program = Program(net, {k: v.shape[1:] for k, v in inputs.items()}, scales, net.geometry.streaming)
    before = program(*tensors(inputs, scales)).detach()
    program.calibrate([tensors(inputs, scales)])
    converted, g = program.convert()
    export_scales(g, inputs)
    return net, program, before, converted, g, inputs, scales


def test_the_folded_program_computes_what_the_float_network_computes(frozen):
    net, _, before, _, _, inputs, scales = frozen
    ecg, *rr = tensors(inputs, scales)
    for module in net.modules():
        if hasattr(module, "attend_fn"):
            module.attend_fn = attend
    torch.testing.assert_close(before, net(ecg.unsqueeze(1), *rr), atol=1e-4, rtol=1e-4)


def test_the_reference_equals_the_converted_program_but_for_single_lsb_ties(frozen):
    *_, converted, g, inputs, _ = frozen
    seen = agree.summary(agree.compare(converted, g, inputs))
    assert seen["worst"] <= 1
    assert seen["share"] < 1e-3


def test_no_node_of_the_graph_computes_in_float(frozen):
    g = frozen[4]
    for node in g.nodes:
        assert all(a.dtype.kind in "iu" for k, a in node.params.items() if k != "weight_scale")
    values = reference.run(g, frozen[5], trace=True)
    assert all(v.dtype == np.int8 for v in values.values())


def test_attention_is_one_node_and_every_seed_mechanism_survives(frozen):
    g = frozen[4]
    windows = [n.attrs["window"] for n in g.nodes if n.kind == "attention"]
    assert "band" in windows and "global" in windows
    leads = g.tensors["ecg"].shape[0]
    assert all(g.tensors[n.inputs[0]].shape[1] == leads for n in g.nodes if n.kind == "attention")


def test_streaming_equals_the_window_wherever_the_window_lies(frozen):
    net, *_, g, inputs, _ = frozen
    if not net.geometry.streaming:
        with pytest.raises(GraphError, match="does not stream"):
            reference.stream(g, inputs, 256)
        return
    window, hop = net.geometry.window, net.geometry.hop
    generator = np.random.default_rng(1)
    record = generator.integers(-128, 128, (inputs["ecg"].shape[1], window + 5 * hop + 7)).astype(np.int8)
    crops = np.stack([record[:, i:i + window] for i in range(0, record.shape[1] - window + 1, hop)])
    streamed = reference.stream(g, {"ecg": record}, hop)
    assert len(streamed) == 6
    np.testing.assert_array_equal(streamed, reference.run(g, {"ecg": crops}))
    with pytest.raises(GraphError, match="multiple of the total stride"):
        reference.stream(g, {"ecg": record}, hop + 1)
    short = reference.stream(g, {"ecg": record[:, :window - 1]}, hop)
    assert short.shape == (0, streamed.shape[1])


def test_a_graph_survives_its_files_bit_for_bit(frozen):
    g, inputs = frozen[4], frozen[5]
    again = graph.loads(*graph.dumps(g))
    assert graph.dumps(again) == graph.dumps(g)
    np.testing.assert_array_equal(reference.run(again, inputs), reference.run(g, inputs))


def test_quantization_aware_training_reaches_every_weight(frozen):
    _, program, *_, inputs, scales = frozen
    program(*tensors(inputs, scales)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in program.parameters())
    for p in program.parameters():
        p.grad = None


@pytest.mark.parametrize("scale", [1e-9, 3.7e-5, 0.25, 0.49999, 0.5, 0.75, 1.0, 1.5, 63.0])
def test_a_multiplier_holds_its_scale_and_shifts_only_from_one_half_on(scale):
    m, k = multiplier(scale, "layer")
    assert 0 < m < 1 << 31 and 0 <= k <= 7
    assert abs(m * 2.0 ** (k - 32) - scale) <= max(2.0 ** (k - 33), scale * 1e-9)
    assert k == 0 or scale >= 0.49999


@pytest.mark.parametrize("scale", [0.0, 1e-12, 64.0, 1e9])
def test_a_scale_without_multiplier_is_refused_by_layer(scale):
    with pytest.raises(GraphError, match="stem"):
        multiplier(scale, "stem")


class Odd(nn.Module):
    """Takes a layer that has no integer form."""

    def __init__(self, layer):
        super().__init__()
        self.first = nn.Conv2d(1, 4, (1, 3), padding=(0, 1))
        self.odd = layer
        self.last = nn.Linear(4, 2)

    def forward(self, ecg):
        return self.last(self.odd(self.first(ecg)).mean((2, 3)))


REFUSED = {"instancenorm": nn.InstanceNorm2d(4), "softmax": nn.Softmax(3), "groupnorm": nn.GroupNorm(2, 4),
           "relu-then-batchnorm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
           "dilated": nn.Conv2d(4, 4, (1, 3), dilation=(1, 2), padding=(0, 2))}


@pytest.mark.parametrize("layer", REFUSED.values(), ids=REFUSED)
def test_a_layer_without_integer_form_is_refused_by_name(layer):
    with pytest.raises(GraphError, match="odd"):
        program = Program(Odd(layer).eval(), {"ecg": (1, 64)}, {"ecg": 0.016}, False)
        program.calibrate([[torch.randn(4, 1, 64)]])
        program.convert()


def test_a_streaming_network_that_cuts_time_twice_is_refused():
    class Twice(Odd):
        def forward(self, ecg):
            columns = self.odd(self.first(ecg))
            return self.last((columns[..., 2:60] + columns[..., 3:61]).mean((2, 3)))
    program = Program(Twice(nn.ReLU()).eval(), {"ecg": (1, 64)}, {"ecg": 0.016}, True)
    program.calibrate([[torch.randn(4, 1, 64)]])
    with pytest.raises(GraphError, match="2 slices of the time axis"):
        program.convert()


def test_the_rule_finds_the_offsets_that_a_bias_hides():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 600)
    logits = generator.normal(0, 8, (600, 3)) + 30 * np.eye(3)[truth] + [40, 0, -20]
    counts = np.full(600, 5)
    sums = np.rint(logits * 5).astype(np.int64)
    fitted = rule.fit(sums, counts, truth, np.arange(600) // 2, "synthetic", scale=0.1, vote=0)
    assert all(isinstance(o, int) for o in fitted.offsets)
    before = (truth == score.decide(sums, counts, "argmax", (0, 0, 0))).mean()
    after = (truth == score.decide(sums, counts, fitted.rule, fitted.offsets)).mean()
    assert after > before + 0.2
    np.testing.assert_allclose(rule.probabilities(fitted, sums, counts).sum(1), 1)


def test_the_temperature_makes_confidence_match_accuracy():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 4000)
    told = np.where(generator.random(4000) < 0.8, truth, 1 - truth)     # right four times in five, always sure
    sums = np.where(np.eye(2)[told] > 0, 60, -60).astype(np.int64)
    fitted = rule.fit(sums, np.ones(4000, int), truth, np.arange(4000), "synthetic", scale=0.1, vote=1)
    assert abs(rule.probabilities(fitted, sums, np.ones(4000)).max(1).mean() - 0.8) < 0.02


def test_the_beat_rule_keeps_false_s_within_its_limit():
    generator = np.random.default_rng(1)
    truth = generator.choice(5, 6000, p=[0.88, 0.03, 0.06, 0.02, 0.01])
    logits = np.rint(generator.normal(0, 18, (6000, 3)) + 40 * np.eye(5)[truth][:, :3]).astype(np.int64)
    fitted = rule.fit(logits, np.ones(6000, int), truth, np.arange(6000) % 20, "mitbih", scale=0.1, vote=1)
    predicted = score.decide(logits, np.ones(6000, int), fitted.rule, fitted.offsets)
    assert score.false_share(score.confusion(truth, predicted, 5, 3), 1) <= rule.FALSE_S * 1.5
