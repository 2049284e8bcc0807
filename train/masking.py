# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder: hide most of an ECG, and let a network's layers and a light decoder say what was there.

A crop is cut into patches of 25 samples, 0.1 s; of a share of them, the same on every lead, the network sees a learnt
token in place of the signal, so that its convolutions and windows keep their grid (the way of Xie et al., "SimMIM",
CVPR 2022). The decoder sums the layers' outputs of all resolutions and guesses the samples; only hidden ones count.
Decoder and token are dropped with the training.

A network may offer `levels(ecg)`, its outputs from fine to coarse; of others, `columns` alone are pre-trained.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 25          # samples, 0.1 s: a QRS complex is hidden whole more often than not
RATIO = 0.65        # of the patches
WIDTH = 32          # channels of the decoder
FLOOR_MV = 0.03     # added to a patch's spread: what is flatter is noise, not to be blown up into a target


def draw(rng: np.random.Generator, batch: int, samples: int, ratio: float = RATIO) -> np.ndarray:
    """Which whole patches of crops are hidden: bool (batch, patch), equally many in every row."""
    patches = samples // PATCH
    rank = rng.random((batch, patches)).argsort(1).argsort(1)
    return rank < round(ratio * patches)


def levels(net: nn.Module, ecg: Tensor) -> list[Tensor]:
    """(batch, channel, lead, time) of each resolution that is pre-trained, from fine to coarse."""
    return net.levels(ecg) if hasattr(net, "levels") else [net.columns(ecg)]


def backbone(net: nn.Module, leads: int) -> list[str]:
    """Names in the state of `net` that pre-training trains: of every module whose parameters `levels` depends on."""
    twin = copy.deepcopy(net).train()
    crop = torch.randn(2, 1, leads, net.geometry.window)
    sum(x.square().sum() for x in levels(twin, crop)).backward()
    kept = []
    for prefix, module in twin.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.grad is not None for p in own.values()):
            names = [*own, *(name for name, _ in module.named_buffers(recurse=False))]
            kept += [f"{prefix}.{name}".lstrip(".") for name in names]
    return kept


class Decoder(nn.Module):
    """Outputs of several resolutions -> the samples of every lead: (batch, lead, time)."""

    def __init__(self, net: nn.Module, leads: int):
        super().__init__()
        self.leads, time = leads, net.geometry.window
        with torch.no_grad():
            maps = levels(copy.deepcopy(net).eval(), torch.zeros(1, 1, leads, time))
        self.steps = [-(-maps[0].shape[3] // m.shape[3]) for m in maps]     # how often a step is repeated
        stride = -(-time // maps[0].shape[3])
        self.enter = nn.ModuleList(nn.Conv2d(m.shape[1], WIDTH, 1) for m in maps)
        self.mix = nn.Conv2d(WIDTH, WIDTH, (1, 3), padding=(0, 1))
        self.out = nn.Conv2d(WIDTH, stride * leads // maps[0].shape[2], 1)

    def forward(self, maps: list[Tensor], time: int) -> Tensor:
        total = 0
        for x, enter, steps in zip(maps, self.enter, self.steps, strict=True):
            total = total + enter(x).repeat_interleave(steps, 3)[..., :maps[0].shape[3]]
        y = self.out(F.relu(self.mix(F.relu(total))))           # (batch, lead-and-sample or sample, 1 or lead, column)
        batch, _, rows, columns = y.shape
        y = y.reshape(batch, self.leads // rows, -1, rows, columns).permute(0, 1, 3, 4, 2)
        return y.reshape(batch, self.leads, -1)[..., :time]


def error(guess: Tensor, ecg: Tensor, hidden: Tensor) -> Tensor:
    """Mean square error of (batch, lead, time) over hidden patches (batch, patch), in units of each patch's spread."""
    patches = hidden.shape[1]
    guess, truth = (x[..., :patches * PATCH].unflatten(2, (patches, PATCH)) for x in (guess, ecg))
    spread = (truth.var(3, correction=0, keepdim=True) + FLOOR_MV ** 2).sqrt()
    truth = (truth - truth.mean(3, keepdim=True)) / spread
    each = (guess - truth).square().mean((1, 3))                # (batch, patch)
    return (each * hidden).sum() / hidden.sum()


class Masked(nn.Module):
    """A network as pre-training sees it: hide, look, guess; returns the error."""

    def __init__(self, net: nn.Module, decoder: Decoder, token: nn.Parameter):
        super().__init__()
        self.net, self.decoder, self.token = net, decoder, token

    def forward(self, ecg: Tensor, hidden: Tensor) -> Tensor:   # (batch, 1, lead, time), (batch, patch)
        time = ecg.shape[3]
        where = F.pad(hidden.repeat_interleave(PATCH, 1), (0, time - PATCH * hidden.shape[1]))
        token = self.token.repeat(-(-time // PATCH))[:time]
        shown = torch.where(where[:, None, None], token, ecg)
        return error(self.decoder(levels(self.net, shown), time).float(), ecg[:, 0], hidden)


class Reconstruction(nn.Module):
    """The objective of pre-training, see loop.LabelLoss; a batch's side input says what is hidden."""

    def __init__(self, net: nn.Module, leads: int):
        super().__init__()
        self.decoder = Decoder(net, leads)
        self.token = nn.Parameter(torch.zeros(PATCH))

    def voter(self, net: nn.Module) -> Masked:
        """The network between mask and decoder."""
        return Masked(net, self.decoder, self.token)

    def forward(self, voter: nn.Module, batch) -> Tensor:
        return voter(batch.ecg, *batch.sides)
