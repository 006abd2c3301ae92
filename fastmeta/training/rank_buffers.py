"""Running statistics of several ranks, each of which has moved its own along its own rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastmeta.distributed import Ranks


@torch.no_grad()
def average_buffers(models: Iterable[nn.Module], ranks: Ranks) -> None:
    """Float buffers become their mean over ranks, but for those that are the same on all, whose mean could round."""
    if ranks.size == 1:
        return
    buffers = {id(b): b for model in models for b in model.buffers() if b.is_floating_point() and b.numel()}
    by_kind: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers.values():
        by_kind.setdefault(buffer.dtype, []).append(buffer)
    for own in by_kind.values():
        flat = torch.cat([b.flatten() for b in own])
        same = (ranks.largest(flat) == flat) & (-ranks.largest(-flat) == flat)
        (mean,) = ranks.mean([flat])
        for buffer, value in zip(own, torch.where(same, flat, mean).split([b.numel() for b in own]), strict=True):
            buffer.copy_(value.view_as(buffer))
