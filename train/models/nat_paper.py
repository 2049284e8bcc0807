# SPDX-License-Identifier: Apache-2.0
"""ECG-NAT in a paper's size: four resolutions of neighbourhood attention, 10,163,542 parameters with 12 leads and
26 classes.

ecg (batch, 1, lead, 2500), 10 s at 250 Hz -> tokens (batch, 64, 1, 625) -> stages of 625, 313, 157 and 79 steps and 64,
128, 256 and 512 channels -> logits (batch, class). The paper's abstract gives neither sizes nor a parameter count, and
there is no code: widths, depths, heads of 32 channels, 13 keys, MLP ratio 3, LayerNorm and GELU are inferred from
neighbourhood attention for images (Hassani et al., CVPR 2023), and the count is that of these choices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.models.attention import Neighbourhood, attend
from train.models.geometry import Beat, Geometry, Hop
from train.models.network import WholeWindow
from train.models.norm import Norm
from train.say import fail

WINDOW, HOP = 2500, 1250
WIDTHS, DEPTHS, HEAD, KEYS, RATIO = (64, 128, 256, 512), (2, 2, 6, 2), 32, 13, 3


def _halve(channels: int, out: int, kernel: int, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, (1, kernel), (1, 2), (0, kernel // 2), bias=False), norm)


class PaperBlock(nn.Module):
    """Pre-norm block: x' = x + attention(LN(x));  y = x' + MLP(LN(x'))."""

    def __init__(self, width: int):
        super().__init__()
        self.heads, self.attend_fn = width // HEAD, attend
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(self.heads, 2 * KEYS - 1))
        self.mlp = nn.Sequential(nn.Conv2d(width, RATIO * width, 1), nn.GELU(), nn.Conv2d(RATIO * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, 1, time)
        u = self.norm1(x)
        x = x + self.out(self.attend_fn(self.q(u), self.k(u), self.v(u), self.heads, Neighbourhood(KEYS),
                                        bias=self.bias))
        return x + self.mlp(self.norm2(x))


class PaperNat(WholeWindow):
    """The whole network; only its window of 10 s is possible, RR features are not."""

    def __init__(self, preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        if rr or isinstance(window, Beat):
            fail("the paper preset of nat classifies 10 s of rhythm, not beats", "a task without RR features",
                 "use --preset small or tiny")
        first = WIDTHS[0]
        enter: list[nn.Module] = [_halve(leads, first // 2, 7, nn.BatchNorm2d(first // 2)), nn.ReLU(),
                                  _halve(first // 2, first, 3, nn.BatchNorm2d(first)), nn.ReLU()]
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            begin = enter if i == 0 else [_halve(WIDTHS[i - 1], width, 3, Norm(width))]
            self.stages.append(nn.Sequential(*begin, *(PaperBlock(width) for _ in range(depth))))
        self.norm = Norm(WIDTHS[-1])
        self.head = nn.Linear(WIDTHS[-1], classes)
        self.geometry = Geometry(WINDOW, 1, WINDOW, 0, 0, WINDOW, "hop", hop=HOP, streaming=False)

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, 2500) -> (batch, 512, 1, 79), every step of which depends on where the window lies."""
        return self.levels(ecg)[-1]

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """The columns of one window -> logits (batch, class)."""
        return self.head(self.norm(columns).mean((2, 3)))

    def levels(self, ecg: Tensor) -> list[Tensor]:
        """The output of every stage, from fine to coarse: what pre-training reconstructs the signal from."""
        maps = [ecg.transpose(1, 2)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]
