# SPDX-License-Identifier: Apache-2.0
"""The authors' three-stage Transformer: a CLS token is relayed through tokens of three time scales.

ecg (batch, 1, lead, 7500) -> leads become channels (batch, lead, 1, 7500) -> convolutions grouped by lead, whose third,
fourth and sixth layers give tokens (batch, D, 1, 410 | 201 | 183) -> stages of four post-norm layers on [CLS; tokens],
each handing its CLS token to the next -> logits (batch, class). 15 s at 500 Hz. With 12 leads and 27 classes:

    paper               differential attention, D = 288, no gate        18,517,693 parameters
    paper-gate          differential attention, D = 288, gate head      18,626,254
    paper-plain-gate    ordinary attention, D = 264, gate head          16,782,022

Where text and released code disagree, the code is followed: six convolutions, not four; tokens leave a convolution
before its BatchNorm and ReLU, so the sixth layer's BatchNorm is counted but reaches nothing; CLS starts at +-0.1
(Xavier reaches every tensor of rank two), not near 0; the position code is added again in every stage, to the relayed
CLS token too. The text keeps leads apart throughout; the code's projections, MLPs and norms are dense and its 8 heads
do not align with 12 leads, so that leads mix from the first layer on. `separate=True` keeps them apart up to the head:
as many heads as leads, everything else in groups of one lead.

The head takes 22 wide features: age, sex and 20 computed by hand, which default to zero, the mean of their z-scores.
The authors scale each lead of the window to [-1, 1] and filter 3-45 Hz; both are left to the caller.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import attend
from train.models.geometry import Beat, Geometry, Hop
from train.models.network import WholeWindow
from train.models.norm import Norm, norm
from train.say import fail

WINDOW, FS, HOP = 7500, 500, 3750
HEADS, FFN, LAYERS, DROP = 8, 2048, 4, 0.1
WIDTHS = {True: 288, False: 264}            # differential attention halves each head, so 16 and 12 must divide
LENGTHS = (410, 201, 183)                   # tokens of the stages
CRAFTED = 20                                # features computed by hand
WIDE = CRAFTED + 2


def wide_features(age: Tensor | None, sex: Tensor | None, crafted: Tensor | None, like: Tensor) -> Tensor:
    """Age in centuries, sex +1 male and -1 female, and the crafted ones: (batch, 22). What is not known is 0.

    age is (batch, 1) in years, below 0 unknown; sex (batch, 1), 0 unknown, 1 male, 2 female; crafted (batch, 20).
    """
    zero = like.new_zeros(len(like), 1)
    old = zero if age is None else age.clamp_min(0) / 100
    male = zero if sex is None else torch.where(sex == 2, -1.0, sex.to(like.dtype))
    return torch.cat([old, male, zero.expand(-1, CRAFTED) if crafted is None else crafted], 1)


def sinusoid(channels: int, length: int) -> Tensor:
    """Position code (1, channels, 1, length): sines on even channels, cosines on odd ones."""
    place = torch.arange(length)
    code = torch.empty(channels, length)
    for i in range(channels):
        angle = place / 10000 ** (i // 2 * 2 / channels)
        code[i] = angle.cos() if i % 2 else angle.sin()
    return code[None, :, None]


def first_lambda(layer: int) -> float:
    """Where the share of the second map starts: 0.2 in the first layer, 0.8 in late ones."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


class Encoder(nn.Module):
    """Six convolutions grouped by lead; tokens leave the third, fourth and sixth before BatchNorm and ReLU."""

    def __init__(self, width: int, leads: int):
        super().__init__()
        spec = ((leads, 132, 14, 3, 2), (132, 264, 14, 3, 0), (264, width, 10, 2, 0), (width, width, 10, 2, 0),
                (width, width, 10, 1, 0), (width, width, 10, 1, 0))         # in, out, kernel, stride, pad
        self.conv = nn.ModuleList(nn.Conv2d(i, o, (1, k), (1, s), (0, p), groups=leads, bias=False)
                                  for i, o, k, s, p in spec)
        self.norm = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _, _ in spec)

    def fine(self, x: Tensor) -> Tensor:        # (batch, lead, 1, 7500) -> (batch, D, 1, 410)
        """The first stage's tokens."""
        for i in (0, 1):
            x = F.relu(self.norm[i](self.conv[i](x)))
        return self.conv[2](x)

    def coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first stage's tokens -> the second's and the third's."""
        second = self.conv[3](F.relu(self.norm[2](x)))
        x = self.conv[4](F.relu(self.norm[3](second)))
        return second, self.conv[5](F.relu(self.norm[4](x)))


def halves(x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """The two queries, or keys, of every head: (batch, heads * 2 * d, lead, token) -> twice (batch, heads * d, ...)."""
    first, second = x.unflatten(1, (heads, 2, -1)).unbind(2)
    return first.flatten(1, 2), second.flatten(1, 2)


class PaperDifferential(nn.Module):
    """Two maps per head, the second subtracted lambda times; RMSNorm of each head, times 1 - lambda's first value.

    lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + first_lambda(layer), four learned vectors that the heads share, as they
    share the norm's gain.
    """

    def __init__(self, width: int, heads: int, groups: int, layer: int):
        super().__init__()
        self.heads, self.start, self.attend_fn, self.norm_fn = heads, first_lambda(layer), attend, norm
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1, groups=groups, bias=False) for _ in range(4))
        self.vectors = nn.Parameter(0.1 * torch.randn(4, width // heads // 2))      # lq1, lk1, lq2, lk2
        self.gain = nn.Parameter(torch.ones(width // heads))

    def forward(self, x: Tensor) -> Tensor:     # (batch, D, 1, token)
        (q1, q2), (k1, k2) = halves(self.q(x), self.heads), halves(self.k(x), self.heads)
        a, b, c, d = self.vectors
        share = (a * b).sum().exp() - (c * d).sum().exp() + self.start
        y = self.attend_fn(q1, k1, self.v(x), self.heads, pair=(q2, k2, share))
        y = self.norm_fn(y, self.gain.repeat(self.heads), None, self.heads, True)
        return self.out((1 - self.start) * y)


class PaperPlain(nn.Module):
    """Ordinary attention; its projections have biases."""

    def __init__(self, width: int, heads: int, groups: int):
        super().__init__()
        self.heads, self.attend_fn = heads, attend
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1, groups=groups) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:     # (batch, D, 1, token)
        return self.out(self.attend_fn(self.q(x), self.k(x), self.v(x), self.heads))


class PaperLayer(nn.Module):
    """Attention and MLP, each added to its input and then normalised; `groups` of channels stay apart in all of it."""

    def __init__(self, width: int, differential: bool, groups: int, layer: int):
        super().__init__()
        heads = HEADS if groups == 1 else groups        # heads that lie within one lead's channels
        self.attention = (PaperDifferential(width, heads, groups, layer) if differential
                          else PaperPlain(width, heads, groups))
        wide = FFN - FFN % groups
        self.mlp = nn.Sequential(nn.Conv2d(width, wide, 1, groups=groups), nn.ReLU(), nn.Dropout(DROP),
                                 nn.Conv2d(wide, width, 1, groups=groups))
        self.norm1, self.norm2, self.drop = Norm(width, groups), Norm(width, groups), nn.Dropout(DROP)

    def forward(self, x: Tensor) -> Tensor:     # (batch, D, 1, token)
        x = self.norm1(x + self.drop(self.attention(x)))
        return self.norm2(x + self.drop(self.mlp(x)))


class PaperStage(nn.Module):
    """[CLS; tokens] with the position code through four layers."""

    def __init__(self, stage: int, width: int, differential: bool, groups: int):
        super().__init__()
        self.register_buffer("place", sinusoid(width, 1 + LENGTHS[stage]), persistent=False)
        self.drop = nn.Dropout(DROP)
        self.layers = nn.Sequential(*(PaperLayer(width, differential, groups, stage * LAYERS + i)
                                      for i in range(LAYERS)))

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:   # (batch, D, 1, 1), (batch, D, 1, token)
        return self.layers(self.drop(torch.cat([cls, tokens], 3) + self.place))


class PaperHead(nn.Module):
    """The last CLS token and the wide features, one dense layer each way."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.2))
        self.logits = nn.Linear(64 + WIDE, classes)

    def forward(self, x: Tensor, wide: Tensor) -> Tensor:       # (batch, D, 1, token), (batch, 22)
        return self.logits(torch.cat([self.deep(x[:, :, 0, 0]), wide], 1))


class PaperGate(nn.Module):
    """Gated attention over channels: every class weighs the courses over time of all channels and wide features.

    X holds a course in each row; a = tanh(Wa X) * sigmoid(Wb X); weights = softmax over rows of Wc a; each class reads
    its own logit from the weighted sum of X.
    """

    def __init__(self, classes: int):
        super().__init__()
        tokens = 1 + LENGTHS[-1]
        self.lift = nn.Sequential(nn.Linear(1, tokens // 2), nn.ReLU(), nn.Linear(tokens // 2, tokens))
        self.a, self.b, self.c = nn.Linear(tokens, tokens), nn.Linear(tokens, tokens), nn.Linear(tokens, classes)
        self.drop, self.value = nn.Dropout(0.25), nn.Linear(tokens, tokens)
        self.weight, self.bias = nn.Parameter(torch.empty(classes, tokens)), nn.Parameter(torch.zeros(classes))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, wide: Tensor) -> Tensor:       # (batch, D, 1, token), (batch, 22)
        x = torch.cat([self.lift(wide[:, :, None]), x[:, :, 0]], 1)             # (batch, row, token)
        gated = self.drop(self.a(x).tanh()) * self.drop(self.b(x).sigmoid())
        weights = self.c(gated).softmax(1)                                      # (batch, row, class)
        value = self.drop(F.relu(self.value(weights.transpose(1, 2) @ x)))      # (batch, class, token)
        return (value * self.weight).sum(2) + self.bias


class PaperHierarchical(WholeWindow):
    """The whole network in one of its VARIANTS; only the paper's window of 7500 samples is possible, beats are not."""

    VARIANTS: ClassVar = {"paper": (True, False), "paper-gate": (True, True), "paper-plain-gate": (False, True)}

    def __init__(self, preset: str, window: Hop | Beat, leads: int, classes: int, rr: int = 0, separate: bool = False):
        super().__init__()
        if rr or isinstance(window, Beat):
            fail("the paper presets of hierarchical classify 15 s of rhythm, not beats", "a task without RR features",
                 "use --preset small or tiny")
        differential, gate = self.VARIANTS[preset]
        width = WIDTHS[differential]
        if 12 % leads:
            fail(f"{leads} leads do not divide the channels of hierarchical {preset}", "1, 2, 3, 4, 6 or 12 leads",
                 "use --preset small or tiny, or fewer leads")
        self.encoder = Encoder(width, leads)
        self.cls = nn.Parameter(torch.empty(1, width, 1, 1).uniform_(-0.1, 0.1))
        groups = leads if separate else 1
        self.stages = nn.ModuleList(PaperStage(i, width, differential, groups) for i in range(3))
        self.head = PaperGate(classes) if gate else PaperHead(width, classes)
        self.geometry = Geometry(WINDOW, 1, WINDOW, 0, 0, WINDOW, "hop", hop=HOP, fs=FS, streaming=False)
        self.sides = ("age", "sex")
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(part.weight)

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, 7500) -> the first stage's tokens (batch, D, 1, 410)."""
        return self.encoder.fine(ecg.transpose(1, 2))

    def relay(self, columns: Tensor) -> Tensor:
        """All tokens behind the last stage, (batch, D, 1, 184); the first is CLS."""
        x = self.cls.expand(len(columns), -1, -1, -1)
        for stage, tokens in zip(self.stages, (columns, *self.encoder.coarse(columns)), strict=True):
            x = stage(x[..., :1], tokens)
        return x

    def decide(self, columns: Tensor, age: Tensor | None = None, sex: Tensor | None = None,
               crafted: Tensor | None = None) -> Tensor:
        """The columns of one window and what is known of the patient -> logits (batch, class)."""
        return self.head(self.relay(columns), wide_features(age, sex, crafted, columns))
