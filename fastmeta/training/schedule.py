"""The learning rate of a step."""

from __future__ import annotations

import math

from fastmeta.methods.label_updates import LEAST_SHARE
from fastmeta.training.sections import LabelConfig, OptimConfig


def lr_at(optim: OptimConfig, step: int, total: int, warmup: float = 0) -> float:
    """Learning rate of step number `step` (from 0) of `total`.

    cosine: lr (1 + cos(pi step / total)) / 2; step: lr gamma^(number of milestones passed); constant: lr. In the first
    `warmup` steps that is multiplied by (step + 1) / warmup.
    """
    assert optim.lr is not None
    progress = step / total
    lr = optim.lr * min(1.0, (step + 1) / warmup) if warmup else optim.lr
    if optim.schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "step":
        return lr * optim.gamma ** sum(progress >= m for m in optim.milestones)
    return lr


def lr_share(optim: OptimConfig, step: int, total: int, warmup: float = 0) -> float:
    """Share of the run's summed learning rate that the first `step` steps have had.

    Labels move in proportion to the learning rate (Eqs. (3), (4)), so this is how far along they are.
    """
    points = 256
    rates = [lr_at(optim, i, points, warmup / total * points) for i in range(points)]
    done = step / total * points
    whole = int(done)
    part = (done - whole) * rates[whole] if whole < points else 0.0
    return (sum(rates[:whole]) + part) / sum(rates)


def stepped_share(
    optim: OptimConfig, labels: LabelConfig, first: int, step: int, total: int, warmup: float = 0
) -> float:
    """Share of the way of labels that move in each step behind the first `first`, by the rate of the look-ahead."""
    fixed = labels.lookahead_rate is not None
    before, done = (k / total if fixed else lr_share(optim, k, total, warmup) for k in (first, step))
    return max(0.0, (done - before) / (1 - before))


def moved_share(optim: OptimConfig, labels: LabelConfig, epoch: int, epochs: int) -> float:
    """Share of a run's summed rate of clean steps that the first `epoch` epochs have had: labels move by these."""
    assert optim.lr is not None
    ends = [e for e in range(1, epochs + 1) if labels.moves_after(e, epochs)]
    rates = {e: max(LEAST_SHARE, lr_at(optim, e, epochs, optim.warmup or 0) / optim.lr) for e in ends}
    return sum(rate for e, rate in rates.items() if e <= epoch) / sum(rates.values())
