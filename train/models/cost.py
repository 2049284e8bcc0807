# SPDX-License-Identifier: Apache-2.0
"""What a float network costs: parameters, multiply-accumulates of one window, bytes it will take as int8.

Counted as compress.graph.macs counts the integer graph: convolutions, dense layers, both products of every attention
map and the products of an LSTM. Layers are watched while the network evaluates one window of zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.lstm import Lstm
from train.models.network import Network
from train.sides import SIDES

CHANNEL_BYTES = 9       # of an output channel: bias and multiplier of 4 bytes, a shift
TABLE_BYTES = 2048      # of the exponential, once for all attention


@dataclass(frozen=True)
class Cost:
    """`int8_bytes` is an estimate: the graph that compress/qat.py freezes knows the true number."""

    parameters: int
    macs: int
    int8_bytes: int


def example(net: Network, leads: int, batch: int = 1) -> tuple[Tensor, ...]:
    """One window of zeros, ecg (batch, 1, lead, window) and the side inputs (batch, *shape)."""
    device = next(net.parameters()).device
    shapes = [(1, leads, net.geometry.window), *(SIDES[name].shape for name in net.sides)]
    return tuple(torch.zeros(batch, *shape, device=device) for shape in shapes)


def attentions(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that attend, by name: those with an `attend_fn`."""
    return {name: module for name, module in net.named_modules() if hasattr(module, "attend_fn")}


@contextlib.contextmanager
def attending(net: nn.Module, instead) -> Iterator[None]:
    """Within the block every module that attends calls instead(name, module, attend_fn, q, k, v, heads, ...)."""
    def wrap(name, module, old):
        return lambda *args, **more: instead(name, module, old, *args, **more)
    kept = {module: module.attend_fn for module in attentions(net).values()}
    try:
        for name, module in attentions(net).items():
            module.attend_fn = wrap(name, module, kept[module])
        yield
    finally:
        for module, old in kept.items():
            module.attend_fn = old


def _attention(q: Tensor, k: Tensor, v: Tensor, window, pair) -> int:
    """Both products of all maps: a local window has as many keys as fit, clipped ends are not subtracted."""
    keys = k.shape[3]
    if window.kind != "global":
        keys = min(2 * window.size + 1 if window.kind == "band" else window.size, keys)
    maps = 1 if pair is None else 2
    return maps * (q.shape[1] + v.shape[1]) * q.shape[2] * q.shape[3] * keys


def macs(net: Network, leads: int) -> dict[str, int]:
    """Multiply-accumulates of one window by layer."""
    from train.models.attention import GLOBAL
    found: dict[str, int] = {}

    def attention(name, module, old, q, k, v, heads, window=GLOBAL, *rest, pair=None, **more):
        found[name] = found.get(name, 0) + _attention(q, k, v, window, pair)
        return old(q, k, v, heads, window, *rest, pair=pair, **more)

    def layer(name):
        def hook(module, args, out):
            each = {nn.Conv2d: lambda: module.weight[0].numel() * out.numel(),
                    nn.Linear: lambda: module.in_features * out.numel(),
                    Lstm: lambda: args[0].shape[1] * (module.w_ih.numel() + module.w_hh.numel())}
            found[name] = found.get(name, 0) + each[type(module)]()
        return hook

    hooks = [module.register_forward_hook(layer(name)) for name, module in net.named_modules()
             if type(module) in (nn.Conv2d, nn.Linear, Lstm)]
    mode = net.training
    net.eval()
    try:
        with attending(net, attention), torch.no_grad():
            net(*example(net, leads))
    finally:
        for hook in hooks:
            hook.remove()
        net.train(mode)
    return found


def cost(net: Network, leads: int) -> Cost:
    """Size and work of a network for one window of `leads` leads."""
    count = sum(p.numel() for p in net.parameters())
    held = TABLE_BYTES if attentions(net) else 0
    for module in net.modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            held += module.weight.numel() + CHANNEL_BYTES * len(module.weight)
        elif not isinstance(module, nn.BatchNorm2d):        # folds into the convolution before it
            held += own
    return Cost(count, sum(macs(net, leads).values()), held)
