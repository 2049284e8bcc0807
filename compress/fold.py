# SPDX-License-Identifier: Apache-2.0
"""BatchNorm folded into the convolution or dense layer in front of it, on an exported program (eval mode).

w' = w * g / sqrt(var + eps), b' = (b - mean) * g / sqrt(var + eps) + beta. Folding before quantization-aware training
makes its steps cheaper and lets Linear + BatchNorm fold too.
"""

from __future__ import annotations

import torch

from train.say import GraphError

_LAYERS = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.linear.default}
_NORMS = {torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default}


def layer(node: torch.fx.Node) -> str:
    """The name of the module in the user's net that a node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    name = list(stack.values())[-1][0] if stack else ""
    return name.replace("L['self'].", "").replace("L['self']", "") or node.name


def parameter(program: torch.fx.GraphModule, node) -> torch.Tensor | None:
    """The tensor behind a get_attr node; None stays None."""
    if node is None:
        return None
    value = program
    for part in node.target.split("."):
        value = getattr(value, part)
    return value


def fold(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Fold every BatchNorm in place; GraphError names the one that has no layer of its own in front."""
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target not in _NORMS:
            continue
        source = node.args[0]
        if source.target not in _LAYERS or len(source.users) != 1:
            raise GraphError(f"{layer(node)}: this BatchNorm follows no convolution or dense layer",
                             "conv -> BatchNorm or linear -> BatchNorm, nothing in between",
                             "move the BatchNorm behind the next convolution")
        _fold_one(program, source, node)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _fold_one(program: torch.fx.GraphModule, source: torch.fx.Node, norm: torch.fx.Node) -> None:
    weight, bias = source.args[1], source.args[2] if len(source.args) > 2 else None
    gamma, beta, mean, var = (parameter(program, n) for n in norm.args[1:5])
    eps = next(a for a in norm.args[5:] if isinstance(a, float) and a < 0.01)
    w = parameter(program, weight)
    with torch.no_grad():
        gain = torch.rsqrt(var + eps) * (1 if gamma is None else gamma)
        b = parameter(program, bias)
        b = (-mean if b is None else b - mean) * gain + (0 if beta is None else beta)
        folded = w * gain.reshape(-1, *[1] * (w.dim() - 1))
    name = weight.target.replace(".", "_")
    program.register_parameter(f"{name}_folded", torch.nn.Parameter(folded.clone()))
    program.register_parameter(f"{name}_bias", torch.nn.Parameter(b.clone()))
    with program.graph.inserting_before(source):
        new_weight = program.graph.get_attr(f"{name}_folded")
        new_bias = program.graph.get_attr(f"{name}_bias")
    new_weight.meta, new_bias.meta = dict(weight.meta), dict(weight.meta)
    source.args = (source.args[0], new_weight, new_bias, *source.args[3:])
    norm.replace_all_uses_with(source)
    program.graph.erase_node(norm)
