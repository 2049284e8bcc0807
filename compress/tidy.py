# SPDX-License-Identifier: Apache-2.0
"""An exported program in fewer words: many ways to write one thing become one operation, what does nothing vanishes.

Behind `tidy` a program moves data only by reshape, permute, slice, cat and expand, reduces without keepdim, convolves
and pools on (batch, channel, lead, time), changes nothing in place, and no operation mixes the windows of a batch.
"""

from __future__ import annotations

import math
import operator

import torch
from torch.fx import GraphModule, Node

from compress.fold import attribute, layer, parameter
from train.say import GraphError

aten = torch.ops.aten
BATCH = aten.sym_size.int       # how long the batch is; read by expand only

_NOTHING = {aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.alias.default, aten.detach.default,
            aten.lift_fresh_copy.default, aten.feature_dropout.default}
_CASTS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default}
_RESHAPES = {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
             aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
             aten._unsafe_view.default, aten.view_as.default, aten.reshape_as.default}
_MOVES = {aten.transpose.int, aten.permute.default, aten.movedim.int, aten.movedim.intlist, aten.swapaxes.default,
          aten.swapdims.default}
_REDUCES = {aten.mean.dim, aten.amax.default, aten.sum.dim_IntList}
_PARTS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
          aten.tensor_split.sections}
_ADAPTIVE = {aten.adaptive_avg_pool1d.default: aten.mean.dim, aten.adaptive_avg_pool2d.default: aten.mean.dim,
             aten.adaptive_max_pool1d.default: aten.amax.default, aten.adaptive_max_pool2d.default: aten.amax.default}
_MEETS = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}    # operands of one element less or more are repeated


def tidy(program: GraphModule) -> GraphModule:
    """Rewrite in place."""
    held: dict[tuple, Node] = {}        # parameters in another shape; one that is used twice stays one
    for node in list(program.graph.nodes):
        if node.op != "call_function" or (not node.users and node.target is operator.getitem):
            continue
        if "_assert" in str(node.target):
            program.graph.erase_node(node)
            continue
        _functional(node)
        new = _Rewriter(program, node, held).rewritten()
        if new is not node:
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    _refuse_mixed_windows(program)
    program.recompile()
    return program


def _functional(node: Node) -> None:
    """x.relu_() becomes relu(x): the program reads the result, never the changed input."""
    name, _, overload = str(node.target).removeprefix("aten.").partition(".")
    if str(node.target).startswith("aten.") and name.endswith("_") and hasattr(aten, name.rstrip("_")):
        node.target = getattr(getattr(aten, name.rstrip("_")), overload)


def _refuse_mixed_windows(program: GraphModule) -> None:
    first, *_ = program.graph.find_nodes(op="placeholder")
    batch = first.meta["val"].shape[0]
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not BATCH and isinstance(node.meta.get("val"), torch.Tensor):
            shape = node.meta["val"].shape
            if not shape or str(shape[0]) != str(batch):
                raise GraphError(f"{layer(node)}: {node.target} mixes the windows of a batch, {list(shape)}",
                                 "a batch axis in front that every operation leaves alone")


class _Rewriter:
    """One operation of the program; new operations are put in front of it."""

    def __init__(self, program: GraphModule, node: Node, held: dict[tuple, Node]):
        self.program, self.node, self.held = program, node, held
        self.source = next(iter(node.all_input_nodes), None)

    def rewritten(self) -> Node:
        """The node that holds what this one computed; itself when it stays."""
        node, target = self.node, self.node.target
        if target in _NOTHING or (target in _CASTS and _same(node, self.source)):
            return self.source
        for targets, rule in ((_RESHAPES, self._reshape), (_MOVES, self._move), (_REDUCES, self._reduce),
                              ({operator.getitem}, self._item), ({aten.select.int}, self._select),
                              ({aten.slice.Tensor}, self._slice), ({aten.stack.default}, self._stack),
                              ({aten.expand.default, aten.expand_as.default}, self._expand),
                              ({aten.repeat.default}, self._repeat), (_ADAPTIVE, self._adaptive), (_MEETS, self._meet),
                              ({aten.conv1d.default}, self._conv1d), ({aten.conv2d.padding}, self._same_padding),
                              ({aten.max_pool1d.default, aten.avg_pool1d.default}, self._pool1d)):
            if target in targets:
                return rule()
        return node

    # ---- building

    def put(self, target, *args, **kwargs) -> Node:
        """A new operation with the layer name of this one."""
        with self.program.graph.inserting_before(self.node):
            new = self.program.graph.call_function(target, args, kwargs)
        fakes = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with _value(self.node, self.source).fake_mode:
            new.meta = dict(self.node.meta) | {"val": target(*fakes[0], **fakes[1])}
        return new

    def reshaped(self, source: Node, shape) -> Node:
        """`source` with other axes behind the batch's."""
        shape = [int(s) for s in shape]
        if [int(s) for s in source.meta["val"].shape[1:]] == shape:
            return source
        if source.target is aten.reshape.default:
            source = source.args[0]
        return self.put(aten.reshape.default, source, [-1, *shape])

    def shaped(self, held: Node, *shape: int) -> Node:
        """A parameter in another shape."""
        if (held, shape) not in self.held:
            value = parameter(self.program, held)
            trains = isinstance(value, torch.nn.Parameter) and value.requires_grad
            self.held[held, shape] = attribute(self.program, self.node, value.detach().reshape(shape), trains)
        return self.held[held, shape]

    def cut(self, source: Node, dim: int, start: int, stop: int) -> Node:
        """A part of one axis."""
        if (start, stop) == (0, source.meta["val"].shape[dim]):
            return source
        if dim == 0:
            raise GraphError(f"{layer(self.node)}: takes {start}:{stop} of the batch", "whole batches")
        return self.put(aten.slice.Tensor, source, dim, start, stop)

    # ---- rules

    def _reshape(self) -> Node:
        shape = self.node.meta["val"].shape
        if not all(isinstance(s, int) for s in shape[1:]) or str(shape[:1]) != str(self.source.meta["val"].shape[:1]):
            raise GraphError(f"{layer(self.node)}: reshapes {list(self.source.meta['val'].shape)} to {list(shape)}",
                             "a batch axis in front that stays")
        return self.reshaped(self.source, shape[1:])

    def _move(self) -> Node:
        node, rank = self.node, self.node.meta["val"].dim()
        tagged = torch.empty(tuple(range(2, 2 + rank)), device="meta")      # every axis is known by its size
        perm = [s - 2 for s in node.target(tagged, *node.args[1:], **node.kwargs).shape]
        if perm[0] != 0:
            raise GraphError(f"{layer(node)}: moves the batch axis", "a batch axis in front that stays")
        sizes = self.source.meta["val"].shape
        wide = [axis for axis in perm[1:] if sizes[axis] != 1]
        if wide == sorted(wide):
            return self.reshaped(self.source, node.meta["val"].shape[1:])
        return self.put(aten.permute.default, self.source, perm)

    def _reduce(self) -> Node:
        node = self.node
        axes, keep = (*node.args[1:], *((), False)[len(node.args) - 1:])[:2]
        rank = self.source.meta["val"].dim()
        axes = sorted(a % rank for a in ([axes] if isinstance(axes, int) else axes or range(rank)))
        if node.target is aten.sum.dim_IntList:     # the mean times its count: a table of the same codes
            new = self.put(aten.mean.dim, self.source, axes)
            new = self.put(aten.mul.Tensor, new, math.prod(self.source.meta["val"].shape[axis] for axis in axes))
        else:
            new = self.put(node.target, self.source, axes)
        return self.reshaped(new, node.meta["val"].shape[1:]) if keep or node.kwargs.get("keepdim") else new

    def _item(self) -> Node:
        parent, place = self.node.args
        if not isinstance(parent, Node):
            return self.node
        self.source = next(iter(parent.all_input_nodes), None)
        value, source = self.node.meta["val"], self.source
        if parent.target in _PARTS:
            sizes = [1] if parent.target is aten.unbind.int else [v.shape for v in parent.meta["val"]]
            dim = (parent.args[2 if parent.target is not aten.unbind.int else 1:] or (0,))[0]
            dim = parent.kwargs.get("dim", dim) % source.meta["val"].dim()
            start = place if sizes == [1] else sum(s[dim] for s in sizes[:place])
            stop = start + (1 if sizes == [1] else sizes[place][dim])
            return self.reshaped(self.cut(source, dim, start, stop), value.shape[1:])
        if place == 0 and parent.target is aten.max.dim:
            new = self.put(aten.amax.default, source, [parent.args[1] % source.meta["val"].dim()])
            return self.reshaped(new, value.shape[1:])
        if place == 0 and parent.target in _ADAPTIVE:
            return self._adaptive(parent, value)
        if place == 0 and parent.target is aten.max_pool2d_with_indices.default:
            return self.put(aten.max_pool2d.default, *parent.args)
        return self.node

    def _select(self) -> Node:
        source, dim, place = self.node.args
        value = source.meta["val"]
        dim %= value.dim()
        if dim == 0:
            raise GraphError(f"{layer(self.node)}: takes one window of the batch", "whole batches")
        place %= value.shape[dim]
        return self.reshaped(self.cut(source, dim, place, place + 1), self.node.meta["val"].shape[1:])

    def _slice(self) -> Node:
        source, dim, start, stop, step = (*self.node.args, *(0, None, None, 1)[len(self.node.args) - 1:])
        value = source.meta["val"]
        dim %= value.dim()
        length = value.shape[dim]
        if dim == 0:
            if start in (0, None) and step == 1 and (stop is None or str(stop) == str(length) or stop >= 2 ** 62):
                return source
            raise GraphError(f"{layer(self.node)}: takes a part of the batch", "whole batches")
        start, stop, step = slice(start, stop, step).indices(length)
        if step == 1:
            return self.cut(source, dim, start, stop)
        if dim != 3 or value.dim() != 4:
            raise GraphError(f"{layer(self.node)}: takes every {step}th of an axis", "every one, or steps along time")
        return self.put(aten.max_pool2d.default, self.cut(source, dim, start, stop), [1, 1], [1, step])

    def _stack(self) -> Node:
        sources, dim = (*self.node.args, 0)[:2]
        shape = list(self.node.meta["val"].shape[1:])
        dim %= len(shape) + 1
        shape[dim - 1] = 1
        return self.put(aten.cat.default, [self.reshaped(s, shape) for s in sources], dim)

    def _expand(self) -> Node:
        if _same(self.node, self.source) or (self.source.op != "get_attr" and
                                             all(user.target in _MEETS for user in self.node.users)):
            return self.source      # what adds or multiplies repeats axes of size 1 by itself
        return self.node

    def _repeat(self) -> Node:
        source, times = self.node.args
        if source.op == "get_attr" and len(times) == source.meta["val"].dim() and all(t == 1 for t in times[1:]):
            return self.put(aten.expand.default, source, [times[0], *source.meta["val"].shape[1:]])
        return self.node

    def _adaptive(self, op: Node | None = None, value: torch.Tensor | None = None) -> Node:
        """The mean or maximum over whole axes, when that is what it is."""
        op = op or self.node
        found = self.node.meta["val"] if value is None else value
        if not isinstance(found, torch.Tensor):
            return self.node
        sizes = self.source.meta["val"].shape
        axes = [axis for axis in range(1, len(sizes)) if sizes[axis] != found.shape[axis]]
        if any(found.shape[axis] != 1 for axis in axes):
            raise GraphError(f"{layer(self.node)}: adaptive pooling to {list(found.shape[2:])}", "one value an axis",
                             "use a pooling of fixed kernel")
        if not axes:
            return self.source
        return self.reshaped(self.put(_ADAPTIVE[op.target], self.source, axes), found.shape[1:])

    def _conv1d(self) -> Node:
        """On (batch, channel, 1, time)."""
        _, weight, bias, stride, pad, dilation, groups = (
            *self.node.args, *(None, [1], [0], [1], 1)[len(self.node.args) - 2:])
        out, depth, kernel = weight.meta["val"].shape
        weight = self.shaped(weight, out, depth, 1, kernel)
        return self._flat(aten.conv2d.default, weight, bias, [1, *stride], [0, *pad], [1, *dilation], groups)

    def _pool1d(self) -> Node:
        """On (batch, channel, 1, time)."""
        kernel, stride, pad, *rest = (*self.node.args[1:], *([], [0])[max(len(self.node.args) - 2, 0):])
        target = aten.avg_pool2d.default
        if self.node.target is aten.max_pool1d.default:
            target, rest = aten.max_pool2d.default, [[1, *a] if isinstance(a, (list, tuple)) else a for a in rest]
        return self._flat(target, [1, *kernel], [1, *(stride or kernel)], [0, *pad], *rest)

    def _flat(self, target, *rest) -> Node:
        channel, time = self.source.meta["val"].shape[1:]
        y = self.put(target, self.reshaped(self.source, (channel, 1, time)), *rest)
        return self.reshaped(y, self.node.meta["val"].shape[1:])

    def _meet(self) -> Node:
        """A parameter that is data gets every axis of what it meets."""
        node = self.node
        rank = node.meta["val"].dim()
        for arg in node.all_input_nodes:
            value = arg.meta["val"] if arg.op == "get_attr" else None
            if value is not None and value.numel() > 1 and value.dim() < rank:
                node.replace_input_with(arg, self.shaped(arg, *[1] * (rank - value.dim()), *value.shape))
        return node

    def _same_padding(self) -> Node:
        """Padding by name; a valid convolution, or an odd kernel that keeps its length."""
        x, weight, bias, stride, word, dilation, groups = (
            *self.node.args, *(None, [1, 1], "valid", [1, 1], 1)[len(self.node.args) - 2:])
        kernel = weight.meta["val"].shape[2:]
        if word == "same" and math.prod(kernel) % 2 == 0:
            raise GraphError(f"{layer(self.node)}: padding 'same' of an even kernel", "an odd kernel, or a number")
        pad = [(k - 1) // 2 if word == "same" else 0 for k in kernel]
        return self.put(aten.conv2d.default, x, weight, bias, stride, pad, dilation, groups)


def _value(*nodes: Node) -> torch.Tensor:
    return next(n.meta["val"] for n in nodes if isinstance(n.meta.get("val"), torch.Tensor))


def _same(a: Node, b: Node) -> bool:
    """Equal shape and type."""
    x, y = a.meta["val"], b.meta["val"]
    return str(x.shape) == str(y.shape) and x.dtype == y.dtype
