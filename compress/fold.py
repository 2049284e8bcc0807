# SPDX-License-Identifier: Apache-2.0
"""What an exported program (eval mode) computes from parameters alone, computed once.

Operations that see nothing but parameters become one parameter. BatchNorm becomes part of the convolution or dense
layer in front of it, else of the pointwise layers behind it:
w' = w * g / sqrt(var + eps), b' = (b - mean) * g / sqrt(var + eps) + beta. Folding before quantization-aware training
makes its steps cheaper and lets Linear + BatchNorm fold too.
"""

from __future__ import annotations

import itertools

import torch
from torch._subclasses import FakeTensor
from torch.fx.node import map_arg

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


def attribute(program: torch.fx.GraphModule, like: torch.fx.Node, value: torch.Tensor, trains: bool) -> torch.fx.Node:
    """A new get_attr node in front of `like` that holds `value`: a parameter if it trains, else a buffer."""
    name = next(n for i in itertools.count() if not hasattr(program, n := f"folded_{like.name}_{i}"))
    if trains:
        program.register_parameter(name, torch.nn.Parameter(value.clone()))
    else:
        program.register_buffer(name, value.clone())
    with program.graph.inserting_before(like):
        node = program.graph.get_attr(name)
    fake = next(v for v in (n.meta.get("val") for n in program.graph.nodes) if isinstance(v, FakeTensor)).fake_mode
    node.meta = dict(like.meta) | {"val": fake.from_tensor(value, static_shapes=True)}
    return node


def fold(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Fold in place; GraphError names a BatchNorm that has no layer of its own in front."""
    _fold_parameters(program)
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target not in _NORMS:
            continue
        source = node.args[0]
        if source.target in _LAYERS and len(source.users) == 1:
            _fold_in_front(program, source, node)
        elif node.users and all(_pointwise(user, node) for user in node.users):
            _fold_behind(program, node)
        else:
            raise GraphError(f"{layer(node)}: this BatchNorm follows no convolution or dense layer",
                             "conv -> BatchNorm or linear -> BatchNorm, nothing in between",
                             "move the BatchNorm behind the next convolution")
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _fold_parameters(program: torch.fx.GraphModule) -> None:
    """Evaluate every operation that reads no input of the program, nor the size of its batch."""
    values, trains = {}, {}
    for node in list(program.graph.nodes):
        sources = node.all_input_nodes
        if node.op == "get_attr":
            values[node] = parameter(program, node)
            trains[node] = isinstance(values[node], torch.nn.Parameter) and values[node].requires_grad
        elif node.op == "call_function" and all(a in values for a in sources) and not _random(node):
            with torch.no_grad():
                values[node] = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
            trains[node] = any(trains[a] for a in sources)
    for node, value in values.items():
        found = node.op == "call_function" and isinstance(value, torch.Tensor)
        if found and any(user not in values for user in node.users):
            node.replace_all_uses_with(attribute(program, node, value, trains[node] and value.is_floating_point()),
                                       delete_user_cb=lambda user: user not in values)
    program.graph.eliminate_dead_code()


def _random(node: torch.fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _affine(program: torch.fx.GraphModule, norm: torch.fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain, offset) of each channel."""
    gamma, beta, mean, var = (parameter(program, n) for n in norm.args[1:5])
    eps = next(a for a in norm.args[5:] if isinstance(a, float) and a < 0.01)
    with torch.no_grad():
        gain = torch.rsqrt(var + eps) * (1 if gamma is None else gamma)
        return gain, (0 if beta is None else beta) - mean * gain


def _fold_in_front(program: torch.fx.GraphModule, source: torch.fx.Node, norm: torch.fx.Node) -> None:
    """Into the layer whose output is normalized."""
    weight, bias = source.args[1], source.args[2] if len(source.args) > 2 else None
    w, b = parameter(program, weight), parameter(program, bias)
    gain, offset = _affine(program, norm)
    with torch.no_grad():
        bias = offset if b is None else b * gain + offset
        _replace(program, source, w * gain.reshape(-1, *[1] * (w.dim() - 1)), bias)
    norm.replace_all_uses_with(source)
    program.graph.erase_node(norm)


def _fold_behind(program: torch.fx.GraphModule, norm: torch.fx.Node) -> None:
    """Into the pointwise layers that read the normalized tensor: W (g x + o) + b = (W g) x + (W o + b)."""
    gain, offset = _affine(program, norm)
    for user in list(norm.users):
        w, b = (parameter(program, n) for n in (*user.args[1:3], None)[:2])
        depth = w.shape[1]
        rows = w.reshape(len(gain) // depth, -1, depth)         # (group, out / groups, in / groups)
        with torch.no_grad():
            bias = (rows @ offset.reshape(-1, depth, 1)).flatten() + (0 if b is None else b)
            _replace(program, user, (rows * gain.reshape(-1, 1, depth)).reshape(w.shape), bias)
    norm.replace_all_uses_with(norm.args[0])
    program.graph.erase_node(norm)


def _pointwise(user: torch.fx.Node, norm: torch.fx.Node) -> bool:
    """A layer that reads one column of the normalized tensor at a time, without padding."""
    if user.target not in _LAYERS or user.args[0] is not norm:
        return False
    if user.target is torch.ops.aten.linear.default:
        return norm.meta["val"].dim() == 2
    pads = user.args[4] if len(user.args) > 4 else [0]
    return all(k == 1 for k in user.args[1].meta["val"].shape[2:]) and not any(pads)


def _replace(program: torch.fx.GraphModule, source: torch.fx.Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a layer another weight and bias; a layer that works twice keeps sharing them when both fold alike."""
    old, base = source.args[1], source.args[1].target.replace(".", "_")
    for name in itertools.chain((base,), (f"{base}_{i}" for i in itertools.count(2))):
        held = [getattr(program, f"{name}_{part}", None) for part in ("folded", "bias")]
        if held[0] is None:
            program.register_parameter(f"{name}_folded", torch.nn.Parameter(weight.clone()))
            program.register_parameter(f"{name}_bias", torch.nn.Parameter(bias.clone()))
            break
        if torch.equal(held[0], weight) and torch.equal(held[1], bias):
            break
    with program.graph.inserting_before(source):
        new_weight = program.graph.get_attr(f"{name}_folded")
        new_bias = program.graph.get_attr(f"{name}_bias")
    new_weight.meta, new_bias.meta = dict(old.meta), dict(old.meta)
    source.args = (source.args[0], new_weight, new_bias, *source.args[3:])
