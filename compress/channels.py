# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network live and die together, found by experiment.

One channel of one layer at a time is made NaN and the network evaluated. Whatever treats channels one by one (sums,
depthwise convolutions, norms, pooling, concatenation, slices) passes the NaN on; every layer that mixes channels notes
where it arrives and answers with zeros. Who reads a channel is then known for any code between two layers, and
channels that meet in a sum can only go together. torch-pruning's own trace reads the names of autograd's nodes instead
and takes attention, and the head's flattened (channel, lead) axis, for element-wise.

A head of attention is one unit: the channels of q, k, v and output that belong to it go together.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.models.cost import attending, attentions, example
from train.models.lstm import Lstm
from train.models.network import Network
from train.models.norm import Norm
from train.models.resized import depthwise, heads_of

AT_ONCE = 64        # channels tried in one evaluation, one a row of the batch
FIXED = ("", "fixed", 0)
Slot = tuple[str, str, int]     # layer, side, channel


@dataclass(frozen=True)
class Side:
    """One end of a layer: what of it would be cut. kind: out | in | through | heads | parameter."""

    name: str
    kind: str


@dataclass(frozen=True)
class Family:
    """Units that are alike: each takes the same sides, and any of them may go. units[i]: side -> channels."""

    units: tuple[dict[Side, tuple[int, ...]], ...]

    @property
    def sides(self) -> list[Side]:
        """What its units take away, layers that produce them first."""
        return sorted(self.units[0], key=lambda side: (side.kind != "out", side.name, side.kind))

    @property
    def width(self) -> int:
        """Channels of one unit: 1, or those of a head or of every group."""
        return len(self.units[0][self.sides[0]])

    @property
    def whole(self) -> bool:
        """True when a unit is a head of attention."""
        return any(side.kind == "heads" for side in self.units[0])


class _Joined:
    """Disjoint sets of slots."""

    def __init__(self):
        self.above: dict[Slot, Slot] = {}

    def top(self, slot: Slot) -> Slot:
        path = []
        while self.above.setdefault(slot, slot) != slot:
            path.append(slot)
            slot = self.above[slot]
        for passed in path:
            self.above[passed] = slot
        return slot

    def join(self, a: Slot, b: Slot) -> None:
        self.above[self.top(a)] = self.top(b)


def families(net: Network, leads: int) -> list[Family]:
    """Everything of `net` that can be removed without touching its inputs and logits."""
    joined = _Probe(net, leads).joined
    members: dict[Slot, dict[Side, list[int]]] = defaultdict(lambda: defaultdict(list))
    for slot in sorted(joined.above):
        if slot != FIXED:
            members[joined.top(slot)][Side(*slot[:2])].append(slot[2])
    alike: dict[frozenset, list] = defaultdict(list)
    for top, sides in members.items():
        if joined.top(FIXED) != joined.top(top) and any(side.kind == "out" for side in sides):
            alike[frozenset(sides)].append({side: tuple(channels) for side, channels in sides.items()})
    found = [Family(tuple(units)) for units in alike.values() if len(units) > 1
             and all(len({len(unit[side]) for unit in units}) == 1 for side in units[0])]
    return sorted(found, key=lambda family: (family.sides[0].name, family.sides[0].kind))


class _Probe:
    """A copy of the network whose layers note NaN and keep it from mixing."""

    def __init__(self, net: Network, leads: int):
        self.net, self.leads, self.joined = copy.deepcopy(net).eval(), leads, _Joined()
        self.joined.top(FIXED)
        self.source: tuple[Side, range] | None = None       # what is NaN now, a channel each row of the batch
        for name, module in self.net.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, Norm, Lstm)):
                module.forward = self._layer(name, module, module.forward)
            elif _unknown(module):
                module.register_forward_hook(self._unknown(name))
        with attending(self.net, self._attention), torch.no_grad():
            self._run_all()

    def _run_all(self) -> None:
        for name, module in self.net.named_modules():
            if isinstance(module, nn.Conv2d) and not depthwise(module):
                self._try(Side(name, "out"), module.out_channels)
            elif isinstance(module, nn.Linear):
                self._try(Side(name, "out"), module.out_features)
            elif isinstance(module, Lstm) or _unknown(module):      # states and tables keep their widths
                self._try(Side(name, "fixed"), 1)
            elif not isinstance(module, (nn.Conv2d, nn.BatchNorm2d, Norm)):
                self._try_data(name, module)
        for name, module in attentions(self.net).items():
            self._try(Side(name, "heads"), heads_of(module) or 1)

    def _try(self, side: Side, count: int) -> None:
        for first in range(0, count, AT_ONCE):
            rows = range(first, min(first + AT_ONCE, count))
            for channel in rows:
                self.joined.top(self._slot(side, channel))
            self._run(side, rows)

    def _try_data(self, name: str, module: nn.Module) -> None:
        """Tensors (1, channel, lead, time) that are data: class tokens, position codes.

        Other ones keep their shape, and so do those that no file of weights holds: there would be no way back.
        """
        held = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for key, value in held.items():
            if not value.is_floating_point():
                continue
            kept = key not in module._non_persistent_buffers_set
            if kept and value.dim() == 4 and value.shape[0] == 1 and value.shape[1] > 1:
                side = Side(f"{name}.{key}" if name else key, "parameter")
                for channel in range(value.shape[1]):
                    with _nan(value, (0, channel)):
                        self._run(side, range(channel, channel + 1))
            elif not kept or not hasattr(module, "attend_fn"):
                with _nan(value, ...):
                    self._run(Side(name, "fixed"), range(1))

    def _run(self, side: Side, rows: range) -> None:
        self.source = side, rows
        out = self.net(*example(self.net, self.leads, len(rows)))
        for row in out.isnan().any(1).nonzero()[:, 0].tolist():
            self.joined.join(self._slot(side, rows[row]), FIXED)
        self.source = None

    @staticmethod
    def _slot(side: Side, channel: int) -> Slot:
        return FIXED if side.kind == "fixed" else (side.name, side.kind, channel)

    def _see(self, x: Tensor, slot, axis: int = 1) -> None:
        """Join what is NaN now with slot(channel) of every channel of `x` where it arrives."""
        if not x.sum().isnan():
            return
        side, rows = self.source
        hit = x.isnan().movedim(axis, 1).flatten(2).any(2) if x.dim() > 2 else x.isnan()    # (rows * n, channel)
        hit = hit.reshape(len(rows), -1, hit.shape[1]).any(1)
        for row, channel in hit.nonzero().tolist():
            self.joined.join(self._slot(side, rows[row]), slot(channel))

    def _mark(self, out: Tensor, name: str, axis: int = 1, each: int = 1, kind: str = "out") -> Tensor:
        """`out`, with NaN in the channels of the unit that is tried, when this is the layer that is tried."""
        side, rows = self.source
        if side == Side(name, "fixed"):
            return out.fill_(torch.nan)
        if side == Side(name, kind):
            out = out.movedim(axis, 1).unflatten(0, (len(rows), -1))
            for row, unit in enumerate(rows):
                out[row, :, unit * each:(unit + 1) * each] = torch.nan
            out = out.flatten(0, 1).movedim(1, axis)
        return out

    def _layer(self, name: str, module: nn.Module, plain):
        """What the layer does while it is watched: no arithmetic, only shapes and NaN."""
        shapes: dict[torch.Size, torch.Size] = {}

        def forward(x: Tensor) -> Tensor:
            axis = x.dim() - 1 if isinstance(module, (nn.Linear, Lstm)) else 1
            if x.shape[1:] not in shapes:
                shapes[x.shape[1:]] = plain(x[:1]).shape[1:]
            shape = shapes[x.shape[1:]]
            if isinstance(module, (nn.BatchNorm2d, Norm)) or depthwise(module):
                groups = module.groups if isinstance(module, Norm) else 1
                self._join_groups(name, "through", x.shape[1], x.shape[1] // groups if groups > 1 else 1, across=False)
                self._see(x, lambda channel: (name, "through", channel), axis)
                return x.mean(3, keepdim=True).expand(len(x), *shape) if depthwise(module) else x
            if isinstance(module, nn.Conv2d) and module.groups > 1:     # every group loses the same of its channels
                self._join_groups(name, "in", x.shape[1], x.shape[1] // module.groups, across=True)
                self._join_groups(name, "out", shape[0], shape[0] // module.groups, across=True)
            self._see(x, lambda channel: (name, "in", channel), axis)
            return self._mark(x.new_zeros(len(x), *shape), name, axis)
        return forward

    def _join_groups(self, name: str, kind: str, count: int, each: int, across: bool) -> None:
        """Join the channels of each group of `each`, or, `across`, the ones at the same place of every group."""
        for channel in range(count if each > 1 or across else 0):
            other = channel % each if across else channel // each * each
            self.joined.join((name, kind, channel), (name, kind, other))

    def _unknown(self, name: str):
        def hook(module, args, out):
            for x in args:
                self._see(x, lambda channel: FIXED, min(1, x.dim() - 1))
            return self._mark(torch.zeros_like(out), name)
        return hook

    def _attention(self, name, module, old, q, k, v, heads, *rest, pair=None, **more):
        """Every channel of a head is that head; the numbers of channels of q and v may differ."""
        for x in (q, k, v, *(pair or ())[:2]):
            each = x.shape[1] // heads
            self._see(x, (lambda c, each=each: (name, "heads", c // each)) if heads_of(module) == heads
                      else lambda c: FIXED)
        out = v.new_zeros(len(q), v.shape[1], *q.shape[2:])
        if heads_of(module) == heads:
            return self._mark(out, name, 1, v.shape[1] // heads, "heads")
        self.joined.join((name, "heads", 0), FIXED)
        return self._mark(out, name, 1, v.shape[1], "heads")


def _unknown(module: nn.Module) -> bool:
    """True for a layer with tensors of its own that no rule here covers."""
    known = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, Norm, Lstm)
    leaf = next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None
    return leaf and not isinstance(module, known) and not hasattr(module, "attend_fn")


@contextlib.contextmanager
def _nan(value: Tensor, where) -> Iterator[None]:
    kept = value.detach().clone()
    value.data[where] = torch.nan
    try:
        yield
    finally:
        value.data.copy_(kept)
