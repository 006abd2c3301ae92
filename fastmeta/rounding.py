"""Stochastic rounding to bfloat16 in plain torch, with the bits that the kernels draw (csrc/counter_rng.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.counter_rng import random_bits


def column_bits(seed: int, step: int | Tensor, row: Tensor, columns: int) -> Tensor:
    """Sixteen random bits for every column of the rows `row` (n,) int64 of a table: (n, columns) int64.

    A block of 128 bits serves eight columns, each word two of them, its low half the first.
    """
    block = torch.arange((columns + 7) // 8, device=row.device)
    words = random_bits(seed, step, row.unsqueeze(1), block)  # (n, blocks, 4)
    return torch.stack((words & 0xFFFF, words >> 16), -1).reshape(len(row), -1)[:, :columns]


def round_stochastically(x: Tensor, seed: int, step: int | Tensor, row: Tensor) -> Tensor:
    """Rows x (n, C) float32 in bfloat16: each entry becomes one of its two neighbours, with mean x.

    Away from zero where the 16 bits that are dropped and the draw of (seed, step, row_i, column) pass 2^16: a number
    that bfloat16 has stays, and beyond its largest one there is infinity. NaN and infinity stay.
    """
    bits = x.contiguous().view(torch.int32) + column_bits(seed, step, row, x.shape[1]).to(torch.int32)
    rounded = (bits & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
