# SPDX-License-Identifier: Apache-2.0
"""What is known beside the waveform, as four tokens that look at it: age, sex, an R-peak code, a P-wave code.

The codes are the last states of two LSTMs over the last 16 beats (train/rhythm.py), which an autoencoder trains first
(train/autoencoder.py). Age and sex are rows of learnable tables; unknown is a row like any other, and a sequence
without beats a code like any other. All three are hidden from some training examples, so that unknown is learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train import rhythm
from train.models.attention import attend
from train.models.blocks import conv
from train.models.lookup import Lookup
from train.models.lstm import Lstm

AGES, SEXES = 102, 3            # -1 (unknown) to 100 years; unknown, male, female
DECADES = (10, 30, 50, 70, 90)  # centres of the bumps that the rows of neighbouring years start from
HIDDEN_PATIENT = 0.25           # share of training examples without age and sex
HIDDEN_PATIENT_BEATS = 0.75     # on beat tasks, where twenty patients are soon known by their age
HIDDEN_RHYTHM = 0.1             # ... without beats
TOKENS = 4


class SideTokens(nn.Module):
    """beats (batch, 16, feature), age (batch, 1), sex (batch, 1) -> tokens (batch, width, 1, 4) and both codes."""

    def __init__(self, width: int, hidden: int, hidden_patient: float = HIDDEN_PATIENT):
        super().__init__()
        self.hidden_patient = hidden_patient
        self.r_code = Lstm(len(rhythm.R_NAMES), hidden)
        self.p_code = Lstm(len(rhythm.P_NAMES), hidden)
        self.age, self.sex = Lookup(AGES, len(DECADES), -1), Lookup(SEXES, 2, 0)
        years, decades = torch.arange(-1.0, AGES - 1), torch.tensor(DECADES)
        with torch.no_grad():   # alike for neighbouring years: nobody has patients of every age
            self.age.table.copy_(torch.exp(-((years[:, None] - decades) / 20).square()))
            self.age.table[0] = 0
        self.project = nn.ModuleList(nn.Linear(n, width) for n in (len(DECADES), 2, hidden, hidden))

    def forward(self, beats: Tensor, age: Tensor, sex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training:
            beats, age, sex = self._hide(beats, age, sex)
        r = self.r_code(beats[:, :, :len(rhythm.R_NAMES)])
        p = self.p_code(beats[:, :, len(rhythm.R_NAMES):])
        parts = zip(self.project, (self.age(age), self.sex(sex), r, p), strict=True)
        return torch.cat([project(x)[:, :, None, None] for project, x in parts], 3), r, p

    def _hide(self, beats: Tensor, age: Tensor, sex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unknown in place of what some examples tell."""
        dice = torch.rand(len(age), 2, 1, device=age.device)
        stranger = dice[:, 0] < self.hidden_patient
        shown = (dice[:, 1:] >= HIDDEN_RHYTHM).to(beats.dtype)
        return beats * shown, age.masked_fill(stranger, -1), sex.masked_fill(stranger, 0)


class CrossAttention(nn.Module):
    """tokens + attention of the tokens, the queries, to all columns; a token's projection is its query.

    tokens (batch, width, 1, m), columns (batch, channel, 1, time) -> (batch, width, 1, m)
    """

    def __init__(self, channels: int, width: int, heads: int):
        super().__init__()
        self.heads, self.attend_fn = heads, attend
        self.k, self.v = conv(channels, width, 1), conv(channels, width, 1)

    def forward(self, tokens: Tensor, columns: Tensor) -> Tensor:
        return tokens + self.attend_fn(tokens, self.k(columns), self.v(columns), self.heads)
