# SPDX-License-Identifier: Apache-2.0
"""The authors' LGA-ECG network, 935,110 parameters with 12 leads and 6 classes.

ecg (batch, 1, lead, 2560) -> leads become channels (batch, lead, 1, 2560) -> residual convolutions (batch, 64, 1, 320)
-> five blocks of averaged local queries with global keys and values (batch, 64, 1, 10) -> mean -> logits. 10.24 s at
250 Hz; the rate follows from the data set's, the code does not name it. Where paper and released code disagree:

- Averaging: the paper averages queries over long overlapping windows, and the code carries window and stride as
  arguments; its attention ignores them and averages pairs. The default (2, 2) is what the code runs; `averaging` takes
  another (window, stride), padded so that N tokens ask N / stride queries. Blocks follow until at most ten are left.
- Normalisation: tokens are normalised before the block and once more inside its attention, and the skip takes the
  normalised ones. There is no projection behind the attention. The count of parameters depends on all of it.
- The filters and the scaling of the leads are not published; here they are left to the caller.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import attend
from train.models.geometry import Beat, Geometry, Hop
from train.models.network import WholeWindow
from train.models.norm import Norm
from train.say import fail

WIDTH, HEADS, DROP = 64, 8, 0.1
WINDOW, FS, HOP, LEFT = 2560, 250, 1280, 10
RESIDUALS = ((7, 1), (7, 2), (5, 1), (5, 2))        # kernel, stride
TOKENS = 320                                        # behind them


def _conv(channels: int, out: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out, (1, kernel), (1, stride), (0, kernel // 2), bias=bias)


def average(x: Tensor, window: int, stride: int) -> Tensor:
    """Means over `window` tokens every `stride`: N tokens give N / stride; what lies past the ends does not count."""
    return F.avg_pool2d(x, (1, window), (1, stride), (0, (window - stride) // 2), count_include_pad=False)


class PaperResidual(nn.Module):
    """Two convolutions around which the input is added, pointwise where a stride shortens it."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.deep = nn.Sequential(
            _conv(WIDTH, WIDTH, kernel, stride), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(DROP),
            _conv(WIDTH, WIDTH, kernel), nn.BatchNorm2d(WIDTH), nn.Dropout(DROP))
        self.skip = _conv(WIDTH, WIDTH, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:     # (batch, 64, 1, time)
        return F.relu(self.deep(x) + (x if self.skip is None else self.skip(x)))


class PaperAttention(nn.Module):
    """Queries averaged over neighbouring tokens, keys and values of all: (batch, 64, 1, N) -> (..., N / stride)."""

    def __init__(self, averaging: tuple[int, int]):
        super().__init__()
        self.averaging, self.attend_fn = averaging, attend
        self.norm = Norm(WIDTH)
        self.q, self.k, self.v = (_conv(WIDTH, WIDTH, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.attend_fn(average(self.q(x), *self.averaging), self.k(x), self.v(x), HEADS)


class PaperBlock(nn.Module):
    """u = norm(x); y = attention(u) + pointwise(max-pooled u); y + MLP(norm(y))."""

    def __init__(self, averaging: tuple[int, int], wide: int):
        super().__init__()
        self.stride = averaging[1]
        self.norm1, self.norm2 = Norm(WIDTH), Norm(WIDTH)
        self.attention = PaperAttention(averaging)
        self.skip = _conv(WIDTH, WIDTH, 1, bias=True)
        self.mlp = nn.Sequential(_conv(WIDTH, wide, 1, bias=True), nn.ReLU(), _conv(wide, WIDTH, 1, bias=True))

    def forward(self, x: Tensor) -> Tensor:     # (batch, 64, 1, time)
        u = self.norm1(x)
        y = self.attention(u) + self.skip(F.max_pool2d(u, (1, self.stride)))
        return y + self.mlp(self.norm2(y))


class PaperLga(WholeWindow):
    """The whole network; only the paper's window of 2560 samples is possible, beat features are not."""

    def __init__(self, preset, window: Hop | Beat, leads: int, classes: int, rr: int = 0,
                 averaging: tuple[int, int] = (2, 2)):
        super().__init__()
        if rr or isinstance(window, Beat):
            fail("the paper preset of lga classifies 10 s of rhythm, not beats", "a task without RR features",
                 "use --preset small or tiny")
        wide, stride = averaging
        if not 1 < stride <= wide or (wide - stride) % 2:
            fail(f"averaging over {wide} tokens every {stride}",
                 "a stride of 2 or more, a window at least as long, an even difference", "try averaging=(10, 2)")
        self.stem = nn.Sequential(_conv(leads, WIDTH, 7, 2), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(DROP),
                                  *(PaperResidual(*spec) for spec in RESIDUALS))
        blocks, tokens, width = [], TOKENS, 2 * WIDTH
        while tokens > LEFT:                    # the MLP's width doubles from block to block
            blocks.append(PaperBlock(averaging, width))
            tokens, width = tokens // stride, 2 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
        self.geometry = Geometry(WINDOW, 1, WINDOW, 0, 0, WINDOW, "hop", hop=HOP, fs=FS, streaming=False)

    def columns(self, ecg: Tensor) -> Tensor:
        """(batch, 1, lead, 2560) -> (batch, 64, 1, 320)."""
        return self.stem(ecg.transpose(1, 2))

    def decide(self, columns: Tensor, *sides: Tensor) -> Tensor:
        """The columns of one window -> logits (batch, class)."""
        return self.head(self.blocks(columns).mean((2, 3)))
