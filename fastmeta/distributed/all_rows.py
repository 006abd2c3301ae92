"""Rows that are spread over ranks, brought to the first one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastmeta.distributed.ranks import Ranks

#: bytes that are sent at once
_PIECE = 2**26


def rows_to_first(rows: Tensor, ranks: Ranks) -> Tensor:
    """On rank 0 the rows (n, ...) of all ranks in their order, on the host; on the others none of them.

    They come in pieces, each to where it belongs: no rank holds more than its rows, a piece, and rank 0 the whole.
    """
    if ranks.size == 1:
        return rows
    counts = ranks.each(len(rows))
    if not ranks.first:
        for piece in _pieces(rows):
            dist.send(_bytes(piece.detach().cpu().contiguous()), group=ranks.side, group_dst=0)
        return rows[:0].cpu()
    whole = torch.empty((sum(counts), *rows.shape[1:]), dtype=rows.dtype)
    own, *others = whole.split(counts)
    own.copy_(rows.detach())
    for rank, part in enumerate(others, 1):
        for piece in _pieces(part):
            dist.recv(_bytes(piece), group=ranks.side, group_src=rank)
    return whole


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    if not rows.numel():
        return ()
    return rows.split(max(1, _PIECE * len(rows) // rows.nbytes))


def _bytes(piece: Tensor) -> Tensor:
    """The same memory: whatever the dtype, bytes can be sent."""
    return piece.view(-1).view(torch.uint8)
