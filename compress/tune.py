# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: a few epochs of the calibrated program under its own float network as teacher."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F

from compress.program import Program
from train import say

CALIBRATION_BATCHES = 24
TEACHER = 0.7           # share of the distillation loss; the labels have the rest
SOFTNESS = 2.0          # distillation temperature (Hinton et al. 2015)
WINDOWS = 3             # windows drawn from each crop


def inputs(batch, hop: int, window: int, rng: np.random.Generator, count: int = WINDOWS):
    """(program inputs, window numbers): the batch as it is for beats, `count` windows of each crop for records.

    ecg (batch, 1, lead, time) becomes (batch * count, lead, window), recording by recording; side inputs likewise.
    """
    ecg = batch.ecg[:, 0]
    if not batch.crop:
        return [ecg, *batch.sides], None
    total = (ecg.shape[-1] - window) // hop + 1
    pick = np.sort(rng.permutation(total)[:count])
    crops = torch.stack([ecg[..., n * hop:n * hop + window] for n in pick], 1)
    return [crops.flatten(0, 1), *(side[:, pick].flatten(0, 1) for side in batch.sides)], pick


def calibrate(program: Program, source, indices, size: int, seed: int) -> None:
    """Find the activations' ranges on un-augmented training batches."""
    g = source.geometry
    rng = np.random.default_rng(seed)
    batches = source.epoch(indices, size, seed, 0, train=False)
    program.calibrate(inputs(b, g.hop, g.window, rng, 1)[0] for _, b in zip(range(CALIBRATION_BATCHES), batches,
                                                                            strict=False))


def tune(program: Program, teacher: torch.nn.Module, source, indices, epochs: int, size: int, lr: float, seed: int,
         weights: torch.Tensor | None = None, label: str = "QAT") -> list[dict]:
    """Train the program in place; returns a dict per epoch with its losses. lr falls to zero along a cosine.

    `weights` are class weights of the labels' part of the loss. The teacher sees whole crops, so a student window is
    compared with the teacher's logits of the same window.
    """
    g = source.geometry
    teacher.eval()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(program.parameters(), lr=lr, weight_decay=1e-4)
    steps = epochs * source.batches(indices, size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.05)
    history = []
    with say.progress(label, steps) as advance:
        for epoch in range(epochs):
            started, total, seen = time.monotonic(), 0.0, 0
            rng = np.random.default_rng([seed, epoch])
            for batch in source.epoch(indices, size, seed, 10_000 + epoch):
                x, pick = inputs(batch, g.hop, g.window, rng)
                with torch.no_grad():
                    wanted = (teacher(batch.ecg, *batch.sides) if pick is None
                              else teacher.vote(batch.ecg, *batch.sides)[:, pick])
                loss = _loss(program(*x), wanted, batch.target, weights)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(program.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total, seen = total + loss.item(), seen + 1
                advance(1, f"loss {total / seen:.3f}")
            history.append({"epoch": epoch, "loss": total / max(seen, 1), "seconds": time.monotonic() - started})
    return history


def _loss(logits: torch.Tensor, wanted: torch.Tensor, target: torch.Tensor, weights) -> torch.Tensor:
    """Distillation per window plus the labels' loss on the mean logit of the recording."""
    logits = logits.view(wanted.shape)      # (batch, class) or (batch, window, class)
    mean = logits if logits.dim() == 2 else logits.mean(1)
    if target.is_floating_point():          # multi-label
        soft = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid())
        return TEACHER * soft + (1 - TEACHER) * F.binary_cross_entropy_with_logits(mean, target, pos_weight=weights)
    soft = F.kl_div(F.log_softmax(logits.flatten(0, -2) / SOFTNESS, -1),
                    F.log_softmax(wanted.flatten(0, -2) / SOFTNESS, -1), reduction="batchmean", log_target=True)
    return TEACHER * SOFTNESS ** 2 * soft + (1 - TEACHER) * F.cross_entropy(mean, target, weights)
