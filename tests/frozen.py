# SPDX-License-Identifier: Apache-2.0
"""An architecture's way to integers in one call, for tests: built, lived in, exported, calibrated, frozen."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from compress import agree, reference
from compress.graph import Graph
from compress.program import Program, tensors
from train.models import build
from train.sides import SIDES

MILLIVOLT = 0.016       # of one code of the waveform


@dataclass(frozen=True)
class Frozen:
    """`float_logits` and `program_logits` are those of the network and of its folded program before quantization."""

    preset: str
    net: nn.Module
    graph: Graph
    inputs: dict[str, np.ndarray]
    float_logits: torch.Tensor
    program_logits: torch.Tensor
    agreement: dict

    @property
    def budget(self) -> int:
        """Bytes of weights and tables that the preset may take."""
        return 160_000 if self.preset.startswith("small") else 48_000

    def kind(self, kind: str) -> list:
        """The graph's nodes of a kind."""
        return [n for n in self.graph.nodes if n.kind == kind]

    def source(self, tensor: str) -> str:
        """The first input of the node that wrote a tensor."""
        return next(n.inputs[0] for n in self.graph.nodes if n.output == tensor)

    def behind(self, start: str) -> set[str]:
        """Every tensor that depends on the tensor `start`."""
        found = {start}
        for n in self.graph.nodes:
            if found & set(n.inputs):
                found.add(n.output)
        return found

    def streams(self) -> bool:
        """Does the graph decide alike on a record's windows and on its stream?"""
        window, hop, leads = self.net.geometry.window, self.net.geometry.hop, self.inputs["ecg"].shape[1]
        record = np.random.default_rng(1).integers(-128, 128, (leads, window + 3 * hop)).astype(np.int8)
        crops = np.stack([record[:, i * hop:i * hop + window] for i in range(4)])
        streamed = reference.stream(self.graph, {"ecg": record}, hop)
        return np.array_equal(streamed, reference.run(self.graph, {"ecg": crops}))

    def time(self, tensor: str) -> int:
        """The length of a tensor (channel, lead, time)."""
        return self.graph.tensors[tensor].shape[2]


def lively(net: nn.Module) -> nn.Module:
    """BatchNorm as after training: statistics and scales that differ by channel."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


def codes(net: nn.Module, leads: int, n: int = 8) -> dict[str, np.ndarray]:
    """int8 inputs: a slow wave with noise, and side inputs of any value."""
    generator = np.random.default_rng(0)
    time = np.arange(net.geometry.window)
    wave = 60 * np.sin(time / generator.uniform(8, 40, (n, leads, 1))) + generator.normal(0, 12, (n, leads, len(time)))
    sides = {name: generator.integers(-128, 128, (n, *SIDES[name].shape)).astype(np.int8) for name in net.sides}
    return {"ecg": wave.clip(-128, 127).astype(np.int8), **sides}


def freeze(arch: str, preset: str, task: str, leads: int) -> Frozen:
    """The network of a task, beats if that is what the task classifies, as an integer graph."""
    torch.manual_seed(7)
    beats = task == "mitbih"
    net = lively(build(arch, preset, task, leads, 4, SIDES["rr"].shape[0] if beats else 0))
    inputs = codes(net, leads)
    scales = {"ecg": MILLIVOLT, **{name: SIDES[name].one for name in net.sides}}
    given = tensors(inputs, scales)
    program = Program(net, {k: v.shape[1:] for k, v in inputs.items()}, scales, net.geometry.streaming)
    with torch.no_grad():
        floats, folded = net(given[0].unsqueeze(1), *given[1:]), program(*given)
    program.calibrate([given])
    converted, graph = program.convert()
    return Frozen(preset, net, graph, inputs, floats, folded, agree.summary(agree.compare(converted, graph, inputs)))
