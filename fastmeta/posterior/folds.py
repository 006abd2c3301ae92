"""Clean rows in folds, and the batches of all but one of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def stratified(targets: Tensor, count: int) -> Tensor:
    """The fold of each row, (m,) int64: rows of one class, in their order, go to the folds in turn."""
    fold = torch.zeros_like(targets)
    for c in targets.unique().tolist():
        rows = (targets == c).nonzero().squeeze(1)
        fold[rows] = (torch.arange(len(rows), device=targets.device) + c) % count
    return fold


def batches(rows: Tensor, size: int, count: int, seed: int) -> Iterator[Tensor]:
    """`count` batches of `rows`: all of them where they are no more than `size`, else passes in shuffled orders."""
    if len(rows) <= size:
        for _ in range(count):
            yield rows
        return
    generator = torch.Generator().manual_seed(seed)
    order = rows[:0]
    for _ in range(count):
        while len(order) < size:
            order = torch.cat([order, rows[torch.randperm(len(rows), generator=generator).to(rows.device)]])
        batch, order = order[:size], order[size:]
        yield batch
