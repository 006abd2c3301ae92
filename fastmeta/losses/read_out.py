"""The label that a distribution stands for, beside the given one."""

from __future__ import annotations

import torch
from torch import Tensor


def read_out(probs: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    """Labels (n,) int64: the class that leads, if it is at least `margin` times as probable as the given one.

    Where no class leads alone it is the given one: class labels whose alpha has passed (C-1)/C hold all other classes
    equal, which says that the given class is wrong and not which one is right.

    Args:
        probs: (n, C).
        targets: (n,) int64, given.
        margin: at least 1; above it, a change of label has to be worth more than its risk.
    """
    own = probs.gather(1, targets[:, None]).squeeze(1)
    top, leading = probs.max(1)
    stays = ((probs == top[:, None]).sum(1) > 1) | (top < margin * own)
    return torch.where(stays, targets, leading)
