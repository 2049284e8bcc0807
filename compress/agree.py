# SPDX-License-Identifier: Apache-2.0
"""Does the integer reference compute what the converted program computes? Node by node, code by code.

Each node of the graph gets the program's own input codes, so a difference belongs to that node alone. What remains are
ties: the program sums and divides in float32, the reference in integers, and a value that falls between two codes may
land on either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from compress import reference
from compress.graph import Graph


@dataclass(frozen=True)
class Difference:
    """One node: how many codes were compared, how many differ, and by how many LSB at most."""

    name: str
    kind: str
    codes: int
    differing: int
    worst: int


class _Recorder(torch.fx.Interpreter):
    """Runs the program and keeps the codes behind every quantize node that has a tensor in the graph."""

    def __init__(self, program):
        super().__init__(program)
        self.codes: dict[str, np.ndarray] = {}

    def run_node(self, node):
        value = super().run_node(node)
        if "tensor" in node.meta:
            self.codes[node.meta["tensor"]] = value.numpy()
        return value


def compare(program: torch.fx.GraphModule, graph: Graph, inputs: dict[str, np.ndarray]) -> list[Difference]:
    """Differences per node on a batch. inputs: name -> int8 (batch, *shape)."""
    recorder = _Recorder(program)
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(inputs[name]).float() * graph.tensors[name].scale for name in graph.inputs))
    rows = []
    for node in graph.nodes:
        values = {name: recorder.codes[name] for name in node.inputs}
        reference.execute([node], values)
        gap = np.abs(values[node.output].astype(int) - recorder.codes[node.output])
        rows.append(Difference(node.name, node.kind, gap.size, int((gap > 0).sum()), int(gap.max())))
    return rows


def summary(rows: list[Difference]) -> dict:
    """{"codes", "differing", "share", "worst"} over all nodes."""
    codes, differing = sum(r.codes for r in rows), sum(r.differing for r in rows)
    return {"codes": codes, "differing": differing, "share": differing / codes, "worst": max(r.worst for r in rows)}
