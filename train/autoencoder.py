# SPDX-License-Identifier: Apache-2.0
"""The LSTM autoencoder behind `efficient`: R and P features of 16 beats through two codes and back, trained first.

beats (batch, 16, feature) -> two encoders, the network's own LSTMs -> both codes, given to a decoder LSTM at each step
-> a linear layer per step -> beats again. The error counts what is valid only: a row of zeros is no beat, and what a P
wave measures counts where there is one. The decoder stays behind; the encoders go on learning with the
network. Only records that the network is trained on are looked at.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from train import rhythm, say
from train.models.lstm import Lstm

SEQUENCES = 8192            # at most, drawn evenly from the records
STEPS, BATCH, LR = 300, 128, 1e-2
DECODER = 32


class Autoencoder(nn.Module):
    """Two encoders, which are given, and a decoder."""

    def __init__(self, r_code: Lstm, p_code: Lstm):
        super().__init__()
        self.r_code, self.p_code = r_code, p_code
        codes = r_code.w_hh.shape[1] + p_code.w_hh.shape[1]
        self.decoder = Lstm(codes, DECODER, return_sequence=True)
        self.beat = nn.Linear(DECODER, len(rhythm.NAMES))

    def forward(self, beats: Tensor) -> Tensor:     # (batch, 16, feature), in and out
        split = len(rhythm.R_NAMES)
        code = torch.cat([self.r_code(beats[:, :, :split]), self.p_code(beats[:, :, split:])], 1)
        return self.beat(self.decoder(code[:, None].expand(-1, beats.shape[1], -1)))


def valid(beats: Tensor) -> Tensor:
    """1 where a feature says something, 0 where there is no beat, no interval or no P wave: (batch, 16, feature)."""
    names = rhythm.NAMES.index
    seen = (beats[:, :, :1] != 0).expand_as(beats).clone()
    seen[:, :, names("interval"):names("of usual") + 1] &= beats[:, :, :1] > 0
    with_p = beats[:, :, names("P"), None] > 0
    seen[:, :, [names("height"), names("PR"), names("duration")]] &= with_p
    return seen.to(beats.dtype)


def sequences(source, indices, seed: int) -> Tensor:
    """Beat sequences of records `indices` as the network sees them, (n, 16, feature), at most SEQUENCES."""
    place = source.names.index("beats")
    rng = np.random.default_rng(seed)
    most = max(1, SEQUENCES // len(indices))
    found = []
    for i in indices:
        codes = (source.beside(i) if source.geometry.trigger == "r-peak" else source.evaluate(i)[1:])[place]
        pick = rng.permutation(len(codes))[:most]
        found.append(codes[np.sort(pick)])
    codes = np.concatenate(found)
    codes = codes[codes[:, -1, 0] != 0]             # a window before the first beat has nothing to reconstruct
    return torch.from_numpy(codes.astype(np.float32) / 32)


def pretrain(tokens, source, indices, seed: int) -> dict:
    """Train the two encoders of SideTokens in place on records `indices`; returns what training.json keeps of it."""
    began = time.monotonic()
    beats = sequences(source, indices, seed)
    if not len(beats):
        say.warn("no beat was found in the training records: the rhythm codes start untrained")
        return {"sequences": 0}
    generator = torch.Generator().manual_seed(seed)
    net = Autoencoder(tokens.r_code, tokens.p_code)
    adam = torch.optim.Adam(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    net.train()
    for _ in range(STEPS):
        batch = beats[torch.randint(len(beats), (BATCH,), generator=generator)]
        loss = error(net(batch), batch)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        schedule.step()
    return {"sequences": len(beats), "steps": STEPS, **_told(net, beats), "seconds": round(time.monotonic() - began, 1)}


def error(told: Tensor, beats: Tensor) -> Tensor:
    """Mean squared error of what is valid."""
    weight = valid(beats)
    return ((told - beats).square() * weight).sum() / weight.sum().clamp_min(1)


@torch.no_grad()
def _told(net: Autoencoder, beats: Tensor) -> dict:
    """The error of all sequences, and the share of each feature's variance that the codes keep."""
    told = torch.cat([net(part) for part in beats.split(512)])
    weight = valid(beats)
    count = weight.sum((0, 1)).clamp_min(1)
    mean = (beats * weight).sum((0, 1)) / count
    spread = ((beats - mean).square() * weight).sum((0, 1)).clamp_min(1e-6)
    left = ((told - beats).square() * weight).sum((0, 1))
    kept = {name: round(float(1 - a / b), 3) for name, a, b in zip(rhythm.NAMES, left, spread, strict=True)}
    return {"error": round(float(error(told, beats)), 5), "variance_kept": kept}
