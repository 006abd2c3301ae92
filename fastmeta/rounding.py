"""Stochastic rounding to bfloat16 by a counter-based generator, in plain torch: the bits that the kernels draw.

Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) is a pure function of (seed, step,
row, column): resumed, replayed and sharded runs draw the same. csrc/counter_rng.h is the same for the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _product(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * x; int64 wraps at 2^64 and keeps them."""
    product = a * x
    return product >> 32 & _LOW, product & _LOW


def random_bits(seed: int, step: int | Tensor, row: Tensor, columns: int) -> Tensor:
    """Sixteen random bits for every column of the rows `row` (n,) int64 of a table: (n, columns) int64."""
    block = torch.arange((columns + 7) // 8, device=row.device)
    a, b = block.expand(len(row), -1), torch.as_tensor(step, device=row.device) & _LOW
    c, d = (row & _LOW).unsqueeze(1), (row >> 32 & _LOW).unsqueeze(1)
    key = seed & _LOW, seed >> 32 & _LOW
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = _product(0xD2511F53, a), _product(0xCD9E8D57, c)
        a, b, c, d = high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a
        key = (key[0] + 0x9E3779B9) & _LOW, (key[1] + 0xBB67AE85) & _LOW
    words = torch.stack(torch.broadcast_tensors(a, b, c, d), -1)  # (n, blocks, 4)
    return torch.stack((words & 0xFFFF, words >> 16), -1).reshape(len(row), -1)[:, :columns]


def round_stochastically(x: Tensor, seed: int, step: int | Tensor, row: Tensor) -> Tensor:
    """Rows x (n, C) float32 in bfloat16: each entry becomes one of its two neighbours, with mean x.

    Away from zero where the 16 bits that are dropped and the draw of (seed, step, row_i, column) pass 2^16: a number
    that bfloat16 has stays, and beyond its largest one there is infinity. NaN and infinity stay.
    """
    bits = x.contiguous().view(torch.int32) + random_bits(seed, step, row, x.shape[1]).to(torch.int32)
    rounded = (bits & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
