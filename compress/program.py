# SPDX-License-Identifier: Apache-2.0
"""A float network as an exported program: one graph that folds, quantizes, trains and converts.

The only file that drives torchao. Program inputs are ecg (batch, lead, window) in millivolt and the network's side
inputs (batch, *shape); the output is logits (batch, class).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from compress.attention import attend
from compress.fold import fold
from compress.graph import Graph
from compress.lookup import lookup
from compress.lstm import lstm
from compress.norm import norm
from compress.tidy import tidy

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    # torchao reports GPU kernels that this PyTorch cannot load; none of them is used here
    warnings.simplefilter("ignore")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    import torchao.quantization.pt2e as pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    from compress.freeze import freeze
    from compress.quantizer import IntegerQuantizer

# attribute of a module -> the function of the same signature that computes what the integer graph computes
INTEGER = {"attend_fn": attend, "norm_fn": norm, "lstm_fn": lstm, "lookup_fn": lookup}


class Port(nn.Module):
    """The network behind the program's inputs."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, ecg: Tensor, *sides: Tensor) -> Tensor:       # (batch, lead, window), (batch, *shape)
        return self.net(ecg.unsqueeze(1), *sides)


class Program:
    """A folded program with fake quantization. scales: input name -> value of one int8 step, in the program's units."""

    def __init__(self, net: nn.Module, shapes: dict[str, tuple[int, ...]], scales: dict[str, float], streaming: bool):
        self.shapes, self.scales, self.streaming = shapes, scales, streaming
        net = copy.deepcopy(net).eval()
        for module in net.modules():
            for name, function in INTEGER.items():
                if hasattr(module, name):
                    setattr(module, name, function)
        example = tuple(torch.zeros(2, *shape) for shape in shapes.values())
        batch = {0: torch.export.Dim("batch", min=1)}
        sides = ((batch,) * (len(example) - 1),) if len(example) > 1 else ()
        exported = torch.export.export(Port(net), example, dynamic_shapes=(batch, *sides))
        folded = tidy(fold(_named(exported.module(check_guards=False), shapes)))
        self.module = prepare_qat_pt2e(folded, IntegerQuantizer(scales))
        self.module.apply(pt2e.disable_fake_quant)

    def calibrate(self, batches) -> None:
        """Find every activation's range on batches of input tensors, then keep the ranges and turn quantization on."""
        with torch.no_grad():
            for batch in batches:
                self.module(*batch)
        self.module.apply(pt2e.disable_observer)
        self.module.apply(pt2e.enable_fake_quant)
        for module in self.module.modules():        # weights change in training; their grid follows
            if isinstance(module, pt2e.FusedMovingAvgObsFakeQuantize):
                module.enable_observer()

    def parameters(self):
        """What quantization-aware training trains: weights and biases."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)

    def convert(self) -> tuple[torch.fx.GraphModule, Graph]:
        """(the converted program, the integer graph frozen from it); the program itself stays trainable."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)      # copying a program touches what PyTorch renames
            converted = convert_pt2e(copy.deepcopy(self.module))
        return converted, freeze(converted, self.shapes, self.streaming)


def _named(program: torch.fx.GraphModule, names) -> torch.fx.GraphModule:
    """Program inputs get the names of the manifest's inputs, in order."""
    for node, name in zip(program.graph.find_nodes(op="placeholder"), names, strict=True):
        node.name = node.target = name
    program.recompile()
    return program


def tensors(codes: dict[str, np.ndarray], scales: dict[str, float]) -> list[Tensor]:
    """int8 codes as the program's float inputs, in the order of `scales`."""
    return [torch.from_numpy(codes[name]).float() * scale for name, scale in scales.items()]
