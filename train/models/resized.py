# SPDX-License-Identifier: Apache-2.0
"""A network whose weights are smaller than its preset says: layers take the shapes of the weights, and their heads.

compress/prune.py removes channels and whole heads; nothing else about a layer changes. The shapes tell nearly
everything: depthwise stays depthwise, a group of a norm keeps its number of channels. Numbers of heads stand beside the
weights. Kernels, strides, inputs and classes stay what the preset builds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.models.cost import attentions, example
from train.models.lstm import Lstm
from train.models.network import Network
from train.models.norm import Norm
from train.say import fail

EXPECTED = "the weights of this architecture and preset, or what compress/prune.py left of them"


def heads(net: nn.Module) -> dict[str, int]:
    """Number of heads of every module that attends and says it."""
    return {name: module.heads for name, module in attentions(net).items() if isinstance(heads_of(module), int)}


def heads_of(module: nn.Module) -> int | None:
    """The attribute `heads` of a module that attends; None where the number is part of its code."""
    return getattr(module, "heads", None)


def resize(net: Network, weights: Mapping[str, Tensor], kept: Mapping[str, int], leads: int) -> Network:
    """Give the freshly built `net` the shapes of `weights` and the heads in `kept`, in place; loading is left to do.

    UserError when the shapes cannot be those of a pruned `net`.
    """
    held = net.state_dict()
    if held.keys() != weights.keys() or all(weights[k].shape == v.shape for k, v in held.items()):
        return net      # nothing to do, or not for us: loading names the keys that are wrong
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        changed = [(key, weights[prefix + key].shape) for key, value in own
                   if prefix + key in weights and weights[prefix + key].shape != value.shape]
        if changed:
            _shrink(prefix, module, changed)
    for name, module in attentions(net).items():
        if name in kept and not 0 < kept[name] <= (heads_of(module) or 0):
            fail(f"{kept[name]} heads of {name}", f"at most {heads_of(module)}", EXPECTED)
        if name in kept:
            module.heads = kept[name]
    evaluates(net, leads)
    return net


def evaluates(net: Network, leads: int) -> None:
    """UserError when the layers do not fit each other."""
    try:
        with torch.no_grad():
            net.eval()(*example(net, leads))
    except (RuntimeError, ValueError) as error:
        fail(f"layers of these widths do not fit each other: {str(error).splitlines()[0]}", EXPECTED,
             "its code may name a number of channels that follows from the preset alone")


def _shrink(prefix: str, module: nn.Module, changed: list[tuple[str, torch.Size]]) -> None:
    """New, empty tensors for one layer, and the numbers that describe them."""
    known = isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, Norm, Lstm)) or next(module.children(), None)
    group = len(module.gain) // module.groups if isinstance(module, Norm) else 0
    for key, shape in changed:
        old = getattr(module, key)
        if len(shape) != old.dim() or any(n > was or n < 1 for n, was in zip(shape, old.shape, strict=True)):
            fail(f"{prefix}{key} has the shape {tuple(shape)}", f"{tuple(old.shape)} or less", EXPECTED)
        if not known:
            fail(f"{prefix}{key} of a {type(module).__name__} is smaller than built",
                 "smaller convolutions, dense layers, norms or attention", EXPECTED)
        fresh = torch.zeros(shape, dtype=old.dtype, device=old.device)
        setattr(module, key, nn.Parameter(fresh) if isinstance(old, nn.Parameter) else fresh)
    if isinstance(module, nn.Conv2d):
        _convolution(module, prefix)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(module.weight)
    elif isinstance(module, Norm) and module.groups > 1:
        module.groups = len(module.gain) // group


def _convolution(module: nn.Conv2d, prefix: str) -> None:
    """Channels and groups from the weight (out, in / groups, 1, kernel)."""
    out, each, *_ = module.weight.shape
    module.groups = out if depthwise(module) else module.groups
    module.out_channels, module.in_channels = out, each * module.groups
    if out % module.groups:
        fail(f"{prefix}weight: {out} channels in {module.groups} groups", "equal groups", EXPECTED)


def depthwise(module: nn.Module) -> bool:
    """True for a convolution of which every channel passes by itself."""
    return (isinstance(module, nn.Conv2d) and module.groups > 1
            and module.groups == module.in_channels == module.out_channels)
