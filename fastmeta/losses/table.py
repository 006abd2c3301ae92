"""Rows of a table by index, also on CUDA, where torch's own indexing kills the context on a row out of range."""

from __future__ import annotations

import torch
from torch import Tensor

# torch's own indexing kills the CUDA context on a row out of range. These two read and write nothing there, and wait
# for nothing; the kernels skip such a row, because its labels are NaN, and count it.


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of `table`, (n, C); NaN where the index is out of range."""
    inside = (index >= 0) & (index < len(table))
    return torch.where(inside.unsqueeze(1), table[index.clamp(0, len(table) - 1)], torch.nan)


def put_rows_(table: Tensor, index: Tensor, rows: Tensor) -> None:
    """Replace the rows `index` of `table`, those in range; equal indices must come with equal rows."""
    inside = (index >= 0) & (index < len(table))
    # an entry out of range writes once more what some entry in range writes, or, where none is, what is there
    other = inside.to(torch.uint8).argmax().view(1)
    at = torch.where(inside, index, index.gather(0, other)).clamp(0, len(table) - 1)
    rows = torch.where(inside.unsqueeze(1), rows, rows.index_select(0, other))
    table[at] = torch.where(inside.any(), rows, table[at])
