"""The optimizer that a config names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastmeta.training.sections import OptimConfig


def build_optimizer(optim: OptimConfig, params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Over `params`; `optim` is resolved. Its learning rate is the schedule's business."""
    assert optim.lr is not None
    assert optim.weight_decay is not None
    if optim.name == "adamw":
        return torch.optim.AdamW(list(params), lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        list(params), lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, weight_decay=optim.weight_decay
    )
