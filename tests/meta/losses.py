"""Learnable losses of every kind that the literature has, for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmeta


class Given(fastmeta.LearnableLoss):
    """What all of them hold: the given labels."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("targets", targets)

    def losses(self, logits: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.targets[index], reduction="none")


class SampleWeights(Given):
    """One weight per sample (L2RW)."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.weight = nn.Parameter(torch.rand(len(targets), dtype=torch.float64) + 0.5)

    def forward(self, logits, index, x=None):
        return self.weight[index] * self.losses(logits, index)


class WeightingNet(Given):
    """Meta-Weight-Net: weights by a net of the losses, which are constant in it; normalised by their sum."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.net = nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1)).double()

    def forward(self, logits, index, x=None):
        losses = self.losses(logits, index)
        weight = torch.sigmoid(self.net(losses.detach().unsqueeze(1))).squeeze(1)
        return len(index) * weight / weight.sum() * losses


class Corrector(Given):
    """MLC: a net of the sample and its given label makes the label."""

    def __init__(self, targets: Tensor, num_classes: int, features: int = 6) -> None:
        super().__init__(targets, num_classes)
        self.of_x, self.of_label = nn.Linear(features, 7).double(), nn.Linear(num_classes, 7).double()
        self.out = nn.Linear(7, num_classes).double()

    def forward(self, logits, index, x=None):
        given = F.one_hot(self.targets[index], self.num_classes).to(logits.dtype)
        label = torch.softmax(self.out(torch.tanh(self.of_x(x.flatten(1)) + self.of_label(given))), 1)
        return -(label * F.log_softmax(logits, 1)).sum(1)


class Temperatures(Given):
    """One temperature per sample."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.log_t = nn.Parameter(0.1 * torch.randn(len(targets), dtype=torch.float64))

    def forward(self, logits, index, x=None):
        return self.losses(logits / self.log_t[index].exp().unsqueeze(1), index)


class Transition(Given):
    """A transition matrix on the prediction (forward correction)."""

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__(targets, num_classes)
        self.matrix = nn.Parameter(torch.randn(num_classes, num_classes, dtype=torch.float64))

    def forward(self, logits, index, x=None):
        noisy = torch.softmax(logits, 1) @ torch.softmax(self.matrix, 1)
        return -torch.log(noisy.gather(1, self.targets[index].unsqueeze(1)).squeeze(1))


LOSSES = {
    "sample weights": SampleWeights,
    "weighting net": WeightingNet,
    "corrector": Corrector,
    "temperatures": Temperatures,
    "transition": Transition,
}
