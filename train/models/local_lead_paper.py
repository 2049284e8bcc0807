# SPDX-License-Identifier: Apache-2.0
"""The authors' Local Lead-Attention network, 2,404,251 parameters with 12 leads and 26 classes.

ecg (batch, 1, lead, 8192) -> stem (batch, 128, lead, 994) -> resized to 1152 -> embedding -> ten transformer blocks
(batch, 128, lead, 5) -> logits (batch, class). Made for 500 Hz (16.4 s). Where paper and released code disagree:

- Projections: the poster gives every lead its own; the count is only reached with shared ones, as in the code.
- Lead shuffle: the code re-reads the (lead, channel) axis of each head's output as (channel, lead), which moves values
  between leads in a fixed pattern (128 of 1536 slots keep their lead). `shuffle=True` reproduces it; the default keeps
  the lead axis, which is what the equation says.
- The authors z-score each lead over the window; here that is left to the caller.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import GLOBAL, Band, attend
from train.models.geometry import Beat, Geometry, Hop
from train.models.network import WholeWindow
from train.say import fail

WIDTH, HEADS, HALF = 128, 4, 9
WINDOW, FS, HOP, TOKENS = 8192, 500, 4096, 1152
STEM = ((24, 2, 4), (48, 2, 5), (96, 2, 6), (96, 1, 7))     # channels, stride, depth
STRIDES = (1, 1, 2, 2, 2, 2, 2, 2, 2, 2)
WHOLE = 3       # the last blocks attend to every step


def _separable(channels: int, out: int, stride: int = 1, pad: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, (1, 9), (1, stride), (0, pad), groups=channels), nn.LeakyReLU(0.01),
                         nn.BatchNorm2d(out), nn.Conv2d(out, out, 1))


class PaperStage(nn.Module):
    """Two unpadded separable convolutions, then `depth` padded ones around which the input is added."""

    def __init__(self, channels: int, out: int, stride: int, depth: int):
        super().__init__()
        self.enter = nn.Sequential(_separable(channels, out), _separable(out, out, stride))
        self.deep = nn.Sequential(*(_separable(out, out, pad=4) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        x = self.enter(x)
        return x + self.deep(x)


def shuffle_leads(x: Tensor, heads: int) -> Tensor:
    """Each head's flattened (lead, channel) axis re-read as (channel, lead); x is (batch, heads * d, lead, time)."""
    batch, channels, leads, time = x.shape
    x = x.reshape(batch, heads, channels // heads, leads, time).transpose(2, 3)
    return x.reshape(batch, channels, leads, time)


class PaperAttention(nn.Module):
    """q, k, v = pointwise(BN(depthwise(x))) each, lead-joint attention, pointwise."""

    def __init__(self, stride: int, half: int | None, shuffle: bool):
        super().__init__()
        self.window, self.shuffle, self.attend_fn = GLOBAL if half is None else Band(half), shuffle, attend
        self.q, self.k, self.v = (self._project(stride) for _ in range(3))
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)

    @staticmethod
    def _project(stride: int) -> nn.Sequential:
        depthwise = nn.Conv2d(WIDTH, WIDTH, (1, 3), (1, stride), (0, 1), groups=WIDTH, bias=False)
        return nn.Sequential(depthwise, nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        y = self.attend_fn(self.q(x), self.k(x), self.v(x), HEADS, self.window)
        return self.out(shuffle_leads(y, HEADS) if self.shuffle else y)


class PaperBlock(nn.Module):
    """Pre-norm block with BatchNorm; a stride max-pools the skip."""

    def __init__(self, stride: int, half: int | None, shuffle: bool):
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.attention = PaperAttention(stride, half, shuffle)
        self.mlp = nn.Sequential(nn.Conv2d(WIDTH, 4 * WIDTH, 1), nn.GELU(), nn.Conv2d(4 * WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, lead, time)
        skip = F.max_pool2d(x, (1, 3), (1, 2), (0, 1)) if self.stride > 1 else x
        x = skip + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PaperLocalLead(WholeWindow):
    """The whole network; only the paper's window of 8192 samples is possible, RR features are not."""

    def __init__(self, preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0, shuffle: bool = False):
        super().__init__()
        if rr or isinstance(window, Beat):
            fail("the paper preset of local-lead classifies 16 s of rhythm, not beats", "a task without RR features",
                 "use --preset small or tiny")
        widths = (1, *(c for c, _, _ in STEM))
        stages = [PaperStage(i, *spec) for i, spec in zip(widths, STEM, strict=False)]
        self.stem = nn.Sequential(*stages, nn.Conv2d(widths[-1], WIDTH, 1))
        self.embed = nn.Sequential(*(part for _ in range(2) for part in (
            nn.Conv2d(WIDTH, WIDTH, (1, 5), padding=(0, 2), bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())))
        local = len(STRIDES) - WHOLE
        blocks = [PaperBlock(s, HALF if i < local else None, shuffle) for i, s in enumerate(STRIDES)]
        self.local, self.whole = nn.Sequential(*blocks[:local]), nn.Sequential(*blocks[local:])
        self.pool = nn.Sequential(nn.Linear(5 * leads, 32), nn.ReLU(), nn.Linear(32, 1), nn.LeakyReLU(0.01))
        self.logits = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.01), nn.Linear(WIDTH, classes))
        self.geometry = Geometry(WINDOW, 1, WINDOW, 0, 0, WINDOW, "hop", hop=HOP, fs=FS, streaming=False)

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, 8192) -> (batch, 128, lead, 36), every step of which depends on where the window lies."""
        x = self.stem(ecg)
        x = F.interpolate(x, (x.shape[2], TOKENS), mode="bilinear")
        return self.local(self.embed(x))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """The columns of one window -> logits (batch, class)."""
        return self.logits(self.pool(self.whole(columns).flatten(2)).flatten(1))
