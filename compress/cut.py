# SPDX-License-Identifier: Apache-2.0
"""Structured pruning with torch-pruning: what a channel or head is worth, how many go, and taking them away.

The library scores groups of coupled channels and cuts layers; channels.py tells it what is coupled. Importance is the
first-order Taylor estimate |sum of weight * gradient| (Molchanov et al. 2019), averaged over training batches: it
counts in units of the loss, so that layers can be compared with each other. The size of a weight in front of a
BatchNorm, the other common measure, says nothing: the norm undoes it.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import GroupItem
from torch_pruning.dependency import Dependency, Group, Node

from compress.channels import Family, Side
from train.models.cost import macs
from train.models.network import Network
from train.models.norm import Norm
from train.models.resized import depthwise
from train.say import UserError

LEAST = 0.25        # of a layer's width stays: narrower ones starve what comes behind


class _Keeping(tp.BasePruningFunc):
    """A pruner for what torch-pruning does not know: units of one kind, cut alike from either side."""

    def get_out_channels(self, layer):
        return None

    get_in_channels = get_out_channels

    @staticmethod
    def rest(value: Tensor, dim: int, lost: Sequence[int]) -> nn.Parameter:
        kept = sorted(set(range(value.shape[dim])) - set(lost))
        return nn.Parameter(value.data.index_select(dim, torch.tensor(kept, device=value.device)))


class HeadPruner(_Keeping):
    """Whole heads of a module that attends: their number, and tensors with a row for each, such as relative biases.

    The channels of q, k, v and output are layers of their own and in the same group.
    """

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        for key, value in list(layer.named_parameters(recurse=False)):
            if value.dim() in (1, 2, 3) and len(value) == layer.heads:
                setattr(layer, key, self.rest(value, 0, idxs))
        layer.heads -= len(idxs)
        return layer

    prune_in_channels = prune_out_channels


class NormPruner(_Keeping):
    """Channels of a Norm; of several groups only whole ones."""

    def prune_out_channels(self, layer: Norm, idxs: Sequence[int]) -> nn.Module:
        if layer.groups > 1:
            layer.groups -= len(idxs) * layer.groups // len(layer.gain)
        layer.gain = self.rest(layer.gain, 0, idxs)
        layer.bias = None if layer.bias is None else self.rest(layer.bias, 0, idxs)
        return layer

    prune_in_channels = prune_out_channels


class LstmPruner(_Keeping):
    """Inputs of an Lstm; its states stay."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        layer.w_ih = self.rest(layer.w_ih, 1, idxs)
        return layer

    prune_in_channels = prune_out_channels


class ParameterPruner(_Keeping):
    """Channels of a tensor (1, channel, lead, time) that a module holds as data."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        rest = self.rest(getattr(layer, self.key), 1, idxs)
        setattr(layer, self.key, rest.data if self.key in layer._buffers else rest)
        return layer

    prune_in_channels = prune_out_channels


HEADS, NORM, LSTM = HeadPruner(), NormPruner(), LstmPruner()


def _dependency(net: nn.Module, side: Side) -> Dependency:
    """The layer of a side with the pruner that cuts it."""
    name, key = side.name.rpartition(".")[::2] if side.kind == "parameter" else (side.name, "")
    module = net.get_submodule(name)
    if side.kind == "parameter":
        cut = ParameterPruner(key).prune_out_channels
    elif side.kind == "heads":
        cut = HEADS.prune_out_channels
    elif isinstance(module, Norm):
        cut = NORM.prune_out_channels
    elif isinstance(module, nn.Linear):
        cut = tp.prune_linear_out_channels if side.kind == "out" else tp.prune_linear_in_channels
    elif depthwise(module):
        cut = tp.prune_depthwise_conv_out_channels
    elif isinstance(module, nn.Conv2d):
        cut = tp.prune_conv_out_channels if side.kind == "out" else tp.prune_conv_in_channels
    elif isinstance(module, nn.BatchNorm2d):
        cut = tp.prune_batchnorm_out_channels
    else:
        cut = LSTM.prune_in_channels
    node = Node(module, None, side.name)
    return Dependency(cut, cut, source=node, target=node)


def _group(net: nn.Module, family: Family) -> Group:
    """All channels of a family as torch-pruning's group; their roots are the numbers of the units."""
    group = Group()
    for side in family.sides:
        pairs = sorted((channel, n) for n, unit in enumerate(family.units) for channel in unit[side])
        item = GroupItem(_dependency(net, side), [channel for channel, _ in pairs])
        item.root_idxs = [n for _, n in pairs]
        group.items.append(item)
    return group


def importance(net: Network, families: Sequence[Family], labels, batches: Iterable) -> list[Tensor]:
    """What removing each unit would cost in loss, roughly: per family (unit,). `labels` is the loop's LabelLoss."""
    from train.loop import Voter
    score = tp.importance.GroupTaylorImportance(group_reduction="mean", normalizer=None, multivariable=True)
    net = copy.deepcopy(net).eval()
    found, seen = [torch.zeros(len(family.units)) for family in families], 0
    groups = [_group(net, family) for family in families]
    for batch in batches:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        labels(Voter(net), batch).backward()
        for total, group in zip(found, groups, strict=True):
            total += score(group)[:len(total)].cpu()
        seen += 1
    return [total / seen for total in found]


class Budget:
    """Multiply-accumulates of a network of which some units are gone: products of what is left of each layer's ends."""

    def __init__(self, net: Network, families: Sequence[Family], leads: int):
        self.layers, self.whole = macs(net, leads), sum(macs(net, leads).values())
        self.ends: dict[str, list[tuple[int, float]]] = defaultdict(list)       # layer -> (family, share of a unit)
        for number, family in enumerate(families):
            for side in family.sides:
                if side.name in self.layers:
                    share = len(family.units[0][side]) / _size(net.get_submodule(side.name), side.kind)
                    self.ends[side.name, side.kind].append((number, share))

    def macs(self, gone: Sequence[int]) -> float:
        """Of the network without `gone` units of each family."""
        left = dict(self.layers)
        for (name, _), parts in self.ends.items():
            left[name] *= 1 - sum(gone[number] * share for number, share in parts)
        return sum(left.values())


def _size(module: nn.Module, kind: str) -> int:
    if kind == "heads":
        return module.heads
    if kind == "in":
        return getattr(module, "in_features", None) or getattr(module, "in_channels", None) or module.w_ih.shape[1]
    return len(module.weight)


def plan(families: Sequence[Family], worth: Sequence[Tensor], budget: Budget, keep: float, multiple: int) -> list[int]:
    """How many units each family loses until `keep` of the multiply-accumulates is left.

    The cheapest step, in loss per multiply-accumulate, is taken again and again, at last the one that costs least of
    those that suffice. A step leaves a width that is a multiple of `multiple`, or takes one head.
    """
    gone = [0] * len(families)
    sums = [torch.cat([torch.zeros(1), w.sort().values.cumsum(0)]) for w in worth]
    while (now := budget.macs(gone)) > keep * budget.whole:
        steps = []
        for n, family in enumerate(families):
            more = _step(family, gone[n], multiple)
            if more:
                after = [*gone[:n], gone[n] + more, *gone[n + 1:]]
                left, price = budget.macs(after), float(sums[n][after[n]] - sums[n][gone[n]])
                steps.append((price / max(now - left, 1e-9), price, left, after))
        if not steps:
            raise UserError(f"--keep {keep:g} of the multiply-accumulates",
                            f"{now / budget.whole:.2f} or more at --round {multiple}",
                            "a smaller preset, or a smaller --round")
        *_, left, gone = min(steps)
        if left <= keep * budget.whole:
            gone = min(step[1:] for step in steps if step[2] <= keep * budget.whole)[-1]
    return gone


def _step(family: Family, gone: int, multiple: int) -> int:
    """Units to take next; 0 when no more may go."""
    count = len(family.units)
    size = 1 if family.whole else max(1, multiple // family.width)
    left = (count - gone - 1) // size * size
    return count - gone - left if left >= max(1, math.ceil(LEAST * count)) else 0


def cut(net: Network, families: Sequence[Family], worth: Sequence[Tensor], gone: Sequence[int]) -> Network:
    """A copy of the network without the `gone` least worthy units of each family."""
    lost: dict[Side, set[int]] = defaultdict(set)
    for family, values, count in zip(families, worth, gone, strict=True):
        for n in values.argsort(stable=True)[:count].tolist():
            for side, channels in family.units[n].items():
                lost[side].update(channels)
    net = copy.deepcopy(net)
    for side, channels in lost.items():
        _dependency(net, side)(sorted(channels))
    return net
