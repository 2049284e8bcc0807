# SPDX-License-Identifier: Apache-2.0
"""EfficientECG at full size: EfficientNet-B0 over time, fused with age, sex, R and P codes; 3.9 million parameters.

ecg (batch, 1, lead, 2496) -> leads become channels -> stem, 16 MBConv blocks (batch, 320, 1, 78) -> logits (batch,
class). The paper's body could not be read: widths, depths and kernels are those of EfficientNet-B0 (Tan and Le, 2019)
with kernels over time, the codes have 32 units as in the usual LSTM autoencoder. Squeeze-and-excitation takes a mean
over the window, so windows are evaluated one by one. Made for 10 s at 250 Hz; beats are possible too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.fusion import HIDDEN_PATIENT, HIDDEN_PATIENT_BEATS, TOKENS, CrossAttention, SideTokens
from train.models.geometry import Beat, Geometry, Hop
from train.models.network import WholeWindow

WINDOW, STRIDE, STEM, LAST = 2496, 32, 32, 1280
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))     # expand, channels, blocks, stride of the first, kernel
WIDTH, HEADS, CODE, DROPOUT = 64, 4, 32, 0.2


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, (1, kernel), (1, stride), (0, kernel // 2), groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([nn.SiLU()] if act else []))


class Excite(nn.Module):
    """Squeeze-and-excitation: channels weighted by a sigmoid of what the whole window holds."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, 1, time)
        return x * self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


class PaperMbConv(nn.Module):
    """Pointwise widening, depthwise, squeeze-and-excitation to a quarter of the input's channels, pointwise."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = expand * channels
        self.residual = stride == 1 and channels == out
        self.body = nn.Sequential(*([_conv(channels, wide, 1)] if expand > 1 else []),
                                  _conv(wide, wide, kernel, stride, wide), Excite(wide, channels // 4),
                                  _conv(wide, out, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:     # (batch, channel, 1, time)
        return x + self.body(x) if self.residual else self.body(x)


class PaperEfficient(WholeWindow):
    """The whole network, for 10 s windows or beats."""

    def __init__(self, preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0):
        super().__init__()
        blocks, width = [_conv(leads, STEM, 7, 2)], STEM
        for expand, channels, count, stride, kernel in STAGES:
            for n in range(count):
                blocks.append(PaperMbConv(width, channels, kernel, stride if n == 0 else 1, expand))
                width = channels
        self.local = nn.Sequential(*blocks)
        self.last = _conv(width, LAST, 1)
        self.tokens = SideTokens(WIDTH, CODE, HIDDEN_PATIENT_BEATS if rr else HIDDEN_PATIENT)
        self.fuse = CrossAttention(width, WIDTH, HEADS)
        self.logits = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(LAST + TOKENS * WIDTH + rr, classes))
        length = window.before + window.after if isinstance(window, Beat) else WINDOW
        self.geometry = (Geometry(length, STRIDE, length // STRIDE, 0, 0, length, "r-peak", offset=window.before,
                                  streaming=False) if isinstance(window, Beat) else
                         Geometry(length, STRIDE, length // STRIDE, 0, 0, length, "hop", hop=window.hop,
                                  streaming=False))
        self.sides = (*(("rr",) if rr else ()), "beats", "age", "sex")

    def prepare(self, source, indices, seed: int) -> dict:
        """The codes learn to describe 16 beats, see train/autoencoder.py."""
        from train.autoencoder import pretrain
        return {"autoencoder": pretrain(self.tokens, source, indices, seed)}

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, time) -> (batch, 320, 1, time / 32), every step of which depends on the whole window."""
        return self.local(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """Mean over time, the tokens that looked at the columns, and on beat tasks the beat's own features."""
        tokens, _, _ = self.tokens(*sides[-3:])
        fused = self.fuse(tokens, columns).flatten(1)
        pooled = self.last(columns).mean((2, 3))
        return self.logits(torch.cat([pooled, fused, *sides[:-3]], 1))
