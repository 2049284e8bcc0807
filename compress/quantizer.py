# SPDX-License-Identifier: Apache-2.0
"""One quantizer for every target: symmetric int8, zero point 0, per-channel weights, per-tensor activations.

Zero point 0 everywhere is the tightest rule of all targets (TensorRT's); what keeps it can be lowered to each of them.
"""

from __future__ import annotations

import torch
from torchao.quantization.pt2e import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.observer import MinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

import compress.attention  # noqa: F401  registers the op
from compress.fold import layer
from compress.lookup import LOOKUP
from compress.lstm import H_SCALE, LSTM
from compress.norm import NORM, arguments
from compress.tables import operand
from compress.tidy import BATCH
from train.say import GraphError

aten = torch.ops.aten
# the words of a program that `tidy.py` has been through
WEIGHTED = {aten.conv2d.default, aten.linear.default}
RELU = {aten.relu.default}
ADD = {aten.add.Tensor, aten.sub.Tensor}
MUL = {aten.mul.Tensor}
ATTENTION = {torch.ops.leadedge.attention.default}
# the codes do not change: input and output share one scale
SAME_CODES = {aten.max_pool2d.default, aten.amax.default, aten.slice.Tensor, aten.reshape.default,
              aten.permute.default, aten.expand.default}
TAKES_PARAMETERS = ADD | MUL | {aten.cat.default, aten.expand.default}     # as data, with a grid of their own
KNOWN = {
    "convolution, linear": WEIGHTED, "add, subtract": ADD, "multiply": MUL,
    "mean, sum": {aten.mean.dim}, "max": {aten.amax.default},
    "pooling": {aten.max_pool2d.default, aten.avg_pool2d.default}, "cat": {aten.cat.default},
    "slice": {aten.slice.Tensor}, "reshape": {aten.reshape.default}, "transpose": {aten.permute.default},
    "a parameter repeated over the batch": {aten.expand.default}, "attention": ATTENTION, "Norm": NORM, "Lstm": LSTM,
    "Lookup": LOOKUP,
}


class ClipObserver(MinMaxObserver):
    """The symmetric range with the least squared quantization error, averaged over the calibration batches.

    Of 24 fractions of the largest magnitude, the one that minimises clipping plus rounding error of an 8-bit grid wins.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x_orig):
        """Observe one batch; returns it unchanged."""
        x = x_orig.detach().float().flatten()
        x = x[:: max(1, x.numel() // 65536)]
        top = x.abs().max().clamp_min(1e-6)
        clips = top * torch.linspace(0.08, 1.0, 24, device=x.device)
        step = clips[:, None] / 127.5
        error = ((x / step).round().clamp(-128, 127) * step - x).square().mean(1)
        best = clips[error.argmin()]
        self.batches += 1
        previous = torch.where(torch.isinf(self.max_val), best, self.max_val)
        self.max_val = previous + (best - previous) / self.batches
        self.min_val = -self.max_val
        return x_orig


ACTIVATION = QuantizationSpec(
    dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_symmetric,
    observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=ClipObserver))
WEIGHT = QuantizationSpec(
    dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=0,
    observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0))


def fixed(scale: float) -> FixedQParamsQuantizationSpec:
    """An input whose grid the front end defines."""
    return FixedQParamsQuantizationSpec(dtype=torch.int8, scale=scale, zero_point=0, quant_min=-128, quant_max=127,
                                        qscheme=torch.per_tensor_symmetric)


class IntegerQuantizer(Quantizer):
    """Annotates every tensor of a BatchNorm-free program; refuses what has no integer form by its layer name."""

    def __init__(self, input_scales: dict[str, float]):
        super().__init__()
        self.input_scales = input_scales

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Write a QuantizationAnnotation on every node."""
        for node in model.graph.nodes:
            if node.op == "placeholder":
                spec = fixed(self.input_scales[node.name])
                node.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
            elif node.op == "call_function":
                self._annotate(node)
        return model

    def _annotate(self, node: torch.fx.Node) -> None:
        target = node.target
        if target is BATCH:
            return
        unary = operand(node) is not None
        inputs = {a: self._spec(a) for a in node.all_input_nodes if a.op != "get_attr" and a.target is not BATCH}
        output = ACTIVATION
        if not unary and target in TAKES_PARAMETERS:
            inputs |= {a: ACTIVATION for a in node.all_input_nodes if a.op == "get_attr"}
        if node.kwargs.get("alpha", 1) != 1 or not (unary or any(target in words for words in KNOWN.values())):
            raise GraphError(f"{layer(node)}: {target} has no integer form",
                             f"{', '.join(KNOWN)}, any function of one tensor (ReLU, GELU, sigmoid, clamp, x * 2, ...)",
                             "replace it in the model; BatchNorm must follow a convolution or linear layer")
        if target in WEIGHTED:
            inputs[node.args[1]] = WEIGHT
        elif target in SAME_CODES:
            output = SharedQuantizationSpec((node.args[0], node))
        elif target in RELU and _fused(node.args[0]):
            inputs = {}
        elif target in LSTM:
            inputs |= {node.args[1]: WEIGHT, node.args[2]: WEIGHT}
            output = fixed(H_SCALE)
        elif target in NORM:
            arguments(node)     # refuses a norm over other axes
        if _fused(node):
            output = None
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True)

    def _spec(self, source: torch.fx.Node):
        """The spec of an edge: an input's own grid as long as its codes are only moved, else the default."""
        while source.target in SAME_CODES:
            source = source.args[0]
        if source.target in LSTM:
            return fixed(H_SCALE)
        return fixed(self.input_scales[source.name]) if source.op == "placeholder" else ACTIVATION

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to check: annotate() refuses as it goes."""


def _fused(node: torch.fx.Node) -> bool:
    """True when the only user of a convolution, linear or sum is a ReLU: one node of the integer graph."""
    return (node.target in WEIGHTED | ADD and operand(node) is None and len(node.users) == 1
            and next(iter(node.users)).target in RELU)
