"""Predicted classes as probabilities: class shares of another set, and a temperature, fitted to rows left out."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.distributed import ALONE, Ranks

#: bounds of the inverse temperature
_LEAST, _MOST = 0.03, 3.0


def shares(targets: Tensor, num_classes: int, ranks: Ranks = ALONE) -> Tensor:
    """Of each class, (C,) float64, among the `targets` of all ranks."""
    count = ranks.sum(torch.bincount(targets, minlength=num_classes).double())
    return count / count.sum()


def share_shift(clean: Tensor, train: Tensor) -> Tensor:
    """log(train / clean), (C,), of two sets' class shares: added to logits for the first set it gives the second's.

    Classes that either set lacks stay as they are.
    """
    known = (train > 0) & (clean > 0)
    return torch.where(known, (train / clean).log(), 0.0)


def inverse_temperature(logits: Tensor, targets: Tensor, weight: Tensor) -> float:
    """b that minimises the weighted mean of -log softmax(b z)_y, between 0.03 and 3; a convex problem, by bisection."""
    z, w = logits.double(), weight.double()
    of_target = z.gather(1, targets[:, None]).squeeze(1)

    def slope(b: float) -> float:
        return float((w * (((b * z).softmax(1) * z).sum(1) - of_target)).sum())

    low, high = _LEAST, _MOST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def row_weights(targets: Tensor, shift: Tensor) -> Tensor:
    """Weights (m,) of mean 1 that give the clean rows the class shares of the training set."""
    weight = shift.exp()[targets]
    return weight / weight.mean()
