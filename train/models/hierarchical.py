# SPDX-License-Identifier: Apache-2.0
"""Three-stage hierarchical Transformer: a CLS token asks tokens of three time scales, one after the other.

ecg (batch, 1, lead, window) -> leads become channels -> lead-grouped convolutions, the fine tokens (batch, channel, 1,
column) -> stage 1; strided convolutions -> stage 2; once more -> stage 3 -> logits (batch, class). After Tang et al.,
"Hierarchical Transformer for ECG", MIDL 2025. The presets `paper`, `paper-gate` and `paper-plain-gate` are the authors'
networks, in hierarchical_paper.py. The edge presets keep the relay of the CLS token, differential attention with a norm
over each head and post-norm layers, with these changes for integers and small memories:

- Fine tokens stream: they are the columns. The coarser ones are made from the window's columns.
- One layer per stage, in which only the CLS token asks: what other tokens would become is never used. `cls_only=False`
  computes it all the same, to compare: `small` takes 8.0 million multiplications a window then, instead of 2.8.
- The share of the second map is one trained number per stage; in the paper it comes from four vectors.
- Convolutions keep leads apart, projections do not, as in the released code.

`small-gate` has the paper's gate head, for which the last stage's tokens all ask. `small-plain` and `tiny-plain` have
convolutions of about equal cost in place of the stages, and the mean and maximum of the last tokens in place of CLS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from train.models.attention import attend
from train.models.blocks import Head, Separable, Stage, conv, stem
from train.models.geometry import Beat, Hop, Span, geometry
from train.models.hierarchical_paper import PaperHierarchical, first_lambda, sinusoid
from train.models.network import Network
from train.models.norm import Norm

STAGES = 3
PLACE = 0.2     # of the position code: at full size it outweighs the tokens, and the first epochs are lost to it
PER_LEAD = 4    # least channels of the stem for each lead: with twelve leads, one in eight shared ones sees little


@dataclass(frozen=True)
class Preset:
    """The width and depth of an edge network. Widths grow to the next one that leads and heads divide."""

    stem: tuple[Stage, ...]     # the last one's channels are the tokens'
    heads: int
    kernel: int                 # of the convolutions between stages
    expand: int                 # MLP width / width
    hidden: int                 # width of the head's dense layer
    gate: bool = False          # the gate head
    plain: bool = False         # convolutions in place of the stages: what they are compared with
    cls_only: bool = True       # only the CLS token asks


SMALL = Preset(stem=(Stage(16, 11, 2, 0), Stage(24, 7, 2, 1), Stage(32, 7, 2, 1), Stage(48, 7, 2, 1)),
               heads=4, kernel=7, expand=4, hidden=48)
TINY = Preset(stem=(Stage(8, 11, 2, 0), Stage(16, 7, 2, 1), Stage(24, 7, 2, 1), Stage(24, 7, 2, 1)),
              heads=2, kernel=7, expand=4, hidden=24)


def up(width: int, *divisors: int) -> int:
    """The next width that all divisors divide."""
    step = math.lcm(*divisors)
    return -(-width // step) * step


class Relay(nn.Module):
    """One stage: CLS and tokens get their places, CLS asks all of them, and is handed on with what it learnt.

    y = norm(cls + out(norm of each head(map1 v - lam * map2 v))); norm(y + MLP(y))
    """

    def __init__(self, width: int, tokens: int, p: Preset, stage: int):
        super().__init__()
        self.heads, self.attend_fn = p.heads, attend
        self.whole = p.gate and stage == STAGES - 1         # hands on the tokens too
        self.cls_only = p.cls_only and not self.whole
        place = PLACE * sinusoid(width, 1 + tokens)
        self.register_buffer("first", place[..., :1].clone())
        self.register_buffer("place", place[..., 1:].clone())
        self.q1, self.q2, self.k1, self.k2 = (conv(width, width // 2, 1) for _ in range(4))
        self.v, self.out = conv(width, width, 1), conv(width, width, 1)
        self.lam = nn.Parameter(torch.tensor(first_lambda(stage)))
        self.head_norm = Norm(width, p.heads, rms=True)
        nn.init.constant_(self.head_norm.gain, 1 - first_lambda(stage))
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.mlp = nn.Sequential(conv(width, p.expand * width, 1), nn.ReLU(), conv(p.expand * width, width, 1))

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """(batch, channel, 1, 1), (batch, channel, 1, token) -> CLS, in front of a gate with the tokens behind it."""
        cls = cls + self.first
        x = torch.cat([cls, tokens + self.place], 3)
        asks = cls if self.cls_only else x
        y = self.attend_fn(self.q1(asks), self.k1(x), self.v(x), self.heads, pair=(self.q2(asks), self.k2(x), self.lam))
        y = self.norm1(asks + self.out(self.head_norm(y)))
        y = self.norm2(y + self.mlp(y))
        return y if self.cls_only or self.whole else y[..., :1]


class Gate(nn.Module):
    """Gated attention over channels: every class weighs the courses over tokens of all channels and beat features.

    A course is a channel's values over the tokens. a = tanh(Wa x) * sigmoid(Wb x); each class asks a with a query of
    its own, the softmax runs over courses; the answer passes a dense layer, ReLU and the class's own weights.
    """

    def __init__(self, tokens: int, classes: int, rr: int):
        super().__init__()
        self.attend_fn = attend
        self.lift = nn.Sequential(conv(1, tokens // 2, 1), nn.ReLU(), conv(tokens // 2, tokens, 1)) if rr else None
        self.a = nn.Sequential(conv(tokens, tokens, 1), nn.Tanh())
        self.b = nn.Sequential(conv(tokens, tokens, 1), nn.Sigmoid())
        # wide enough that classes differ from the start: over normalised channels an even mean would be zero
        self.ask = nn.Parameter(torch.randn(1, tokens, 1, classes))
        self.value = nn.Sequential(conv(tokens, tokens, 1), nn.ReLU())
        self.logits = nn.Conv2d(classes, classes, (1, tokens), groups=classes)

    def forward(self, x: Tensor, rr: Tensor | None = None) -> Tensor:   # (batch, channel, 1, token)
        x = x.transpose(1, 3)                                           # (batch, token, 1, course)
        if self.lift is not None:
            x = torch.cat([self.lift(rr.unsqueeze(1).unsqueeze(1)), x], 3)
        ask = self.ask.expand(x.shape[0], *self.ask.shape[1:])
        y = self.attend_fn(ask, self.a(x) * self.b(x), x, 1, scale=1.0)
        return self.logits(self.value(y).transpose(1, 3)).flatten(1)    # from (batch, class, 1, token)


class Hierarchical(Network):
    """The edge network: lead-grouped convolutions are local, the three stages and the head decide."""

    PRESETS: ClassVar = {"paper": PaperHierarchical, "paper-gate": PaperHierarchical,
                         "paper-plain-gate": PaperHierarchical, "small": SMALL, "tiny": TINY,
                         "small-gate": replace(SMALL, gate=True), "small-plain": replace(SMALL, plain=True),
                         "tiny-plain": replace(TINY, plain=True)}

    def __init__(self, preset: str | Preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        self.p = p = preset if isinstance(preset, Preset) else self.PRESETS[preset]
        width = up(p.stem[-1].channels, leads, 2 * p.heads)
        stages = [replace(stage, channels=up(max(stage.channels, PER_LEAD * leads), leads)) for stage in p.stem]
        self.local = stem((*stages[:-1], replace(stages[-1], channels=width)), leads, groups=leads)
        span = Span()
        for block in self.local:
            span = block.span(span)
        self.geometry = geometry(span, window)
        self.sides = ("rr",) if rr else ()
        self.coarser = nn.ModuleList(nn.Sequential(Separable(width, width, p.kernel, 2, leads),
                                                   Separable(width, width, p.kernel, 1, leads))
                                     for _ in range(STAGES - 1))
        if p.plain:
            self.stages = nn.ModuleList(nn.Sequential(*(Separable(width, width, p.kernel) for _ in range(2)))
                                        for _ in range(STAGES))
            self.head = Head(width, 1, p.hidden, classes, rr)
            return
        tokens = [-(-self.geometry.columns // 2 ** i) for i in range(STAGES)]
        self.cls = nn.Parameter(torch.empty(1, width, 1, 1).uniform_(-0.1, 0.1))
        self.stages = nn.ModuleList(Relay(width, n, p, i) for i, n in enumerate(tokens))
        self.head = Gate(tokens[-1] + 1, classes, rr) if p.gate else Head(width, 0, p.hidden, classes, rr)

    def columns(self, ecg: Tensor) -> Tensor:
        """Fine tokens, on leads as channels: (batch, 1, lead, time) -> (batch, channel, 1, time / stride)."""
        return self.local(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """Three stages and a head."""
        if self.p.plain:
            return self.head(self.convolve(columns), *sides)
        x = self.relay(columns)
        return self.head(x, *sides) if self.p.gate else self.head.classify(x.flatten(1), *sides)

    def relay(self, tokens: Tensor) -> Tensor:
        """CLS behind the last stage (batch, channel, 1, 1), in front of a gate with that stage's tokens behind it."""
        x = self.stages[0](self.cls.expand(tokens.shape[0], *self.cls.shape[1:]), tokens)
        for coarser, stage in zip(self.coarser, self.stages[1:], strict=True):
            tokens = coarser(tokens)
            x = stage(x, tokens)
        return x

    def convolve(self, tokens: Tensor) -> Tensor:
        """The last stage's tokens of a plain preset."""
        tokens = self.stages[0](tokens)
        for coarser, stage in zip(self.coarser, self.stages[1:], strict=True):
            tokens = stage(coarser(tokens))
        return tokens
