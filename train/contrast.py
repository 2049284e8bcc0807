# SPDX-License-Identifier: Apache-2.0
"""Supervised contrastive learning beside the loss of the labels (Khosla et al., NeurIPS 2020).

    L = alpha * L_contrast + (1 - alpha) * L_labels,   alpha falls in a line from its first value to LAST
    L_contrast = mean over i of -1/|P(i)| * sum over p in P(i) of log share(i, p)
    share(i, p) = exp(z_i z_p / TAU) / sum over a != i of exp(z_i z_a / TAU)
P(i) are the other items of the batch with the label of i; items without any do not count. z are unit vectors: what the
network's last layer takes, through a projection that is dropped with the training. For tasks with one label a record;
where several may be present, which records are alike is a matter of taste, and the loss of the labels stays alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.loop import LabelLoss, Voter
from train.say import fail

TAU, WIDTH, LAST = 0.1, 128, 0.1


def contrast(z: Tensor, label: Tensor, tau: float = TAU) -> Tensor:
    """L_contrast of unit vectors (batch, feature) and their classes (batch,); 0 when no two items are of one class."""
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    score = (z @ z.T / tau).masked_fill(itself, -1e9)
    share = (score - score.logsumexp(1, keepdim=True)).masked_fill(itself, 0.0)     # log of i's share of p
    alike = (label[:, None] == label) & ~itself
    many = alike.sum(1)
    each = -(share * alike).sum(1) / many.clamp(min=1)
    return each.sum() / (many > 0).sum().clamp(min=1)


class Projected(nn.Module):
    """A network as training sees it, which also returns unit vectors: (logits, z (batch, WIDTH))."""

    def __init__(self, net: nn.Module, projection: nn.Module):
        super().__init__()
        self.inner, self.projection, self.seen = Voter(net), projection, []
        net.head.logits.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))

    def forward(self, ecg: Tensor, sides: tuple[Tensor, ...], crop: bool) -> tuple[Tensor, Tensor]:
        self.seen.clear()
        logits = self.inner(ecg, sides, crop)
        feature, = self.seen                                        # (batch * window, feature)
        self.seen.clear()
        if crop:
            feature = feature.unflatten(0, logits.shape[:2]).mean(1)
        return logits, F.normalize(self.projection(feature).float(), dim=1)


class Contrastive(nn.Module):
    """The objective, see loop.LabelLoss: `width` features, `alpha` its first weight, `steps` those until the last."""

    def __init__(self, labels: LabelLoss, width: int, alpha: float, steps: int):
        super().__init__()
        self.labels, self.first, self.steps = labels, alpha, steps
        self.projection = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def voter(self, net: nn.Module) -> Projected:
        """The network with the projection beside its last layer."""
        return Projected(net, self.projection)

    @property
    def alpha(self) -> float:
        """The contrastive term's weight at this step."""
        done = min(1.0, int(self.step) / max(1, self.steps))
        return self.first + (min(LAST, self.first) - self.first) * done

    def forward(self, voter: nn.Module, batch) -> Tensor:
        logits, z = voter(batch.ecg, batch.sides, batch.crop)
        alpha = self.alpha
        self.step += 1
        return alpha * contrast(z, batch.target) + (1 - alpha) * self.labels.of(logits.float(), batch)


def objective(net: nn.Module, alpha: float, steps: int):
    """What loop.Training takes as `objective` for a network like `net`; UserError when it has no `head.logits`."""
    last = getattr(getattr(net, "head", None), "logits", None)
    if not isinstance(last, nn.Linear):
        fail("this network has no last layer head.logits", "an edge preset", "leave out --supcon")
    return lambda labels: Contrastive(labels, last.in_features, alpha, steps)
