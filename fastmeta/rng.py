"""Random bits as a pure function of where they are used: the plain-torch twin of ``csrc/rng.h``.

Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) without any state, so that a
resumed run, a replayed graph and every device draw the same. Words are uint32 held in int64 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

#: integers of 64 bits, of torch or of NumPy
Words = TypeVar("Words", Tensor, np.ndarray)
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Ten rounds over four words, which broadcast against each other: int64 tensors to (..., 4) int64."""
    return torch.stack(_rounds(torch.broadcast_tensors(*counter), key), -1)


def _rounds(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, ...]:
    c0, c1, c2, c3 = counter
    for number in range(10):
        key0, key1 = ((k + number * weyl) & _MASK for k, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        (high_a, low_a), (high_b, low_b) = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ key0, low_b, high_a ^ c3 ^ key1, low_a
    return c0, c1, c2, c3


def _product(a: int, b: Words) -> tuple[Words, Words]:
    """High and low word of a 32 x 32 bit product, in halves of b because int64 has a sign."""
    high, low = a * (b >> 16), a * (b & 0xFFFF)
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def random_bits(seed: int, step: int | Tensor, row: Tensor, block: int | Tensor = 0) -> Tensor:
    """128 bits for (seed, step, row, block) as four words, (..., 4) int64 with values below 2^32.

    Args:
        seed: 64 bits, signed or not.
        step: steps that differ by 2^32 draw alike.
        row: int64, of the training set.
        block: counts draws of four words within a row. `step`, `row` and `block` broadcast.
    """
    # numbers are filled in on the device: a copy from the host could not be captured in a CUDA graph
    step, block = (
        x.to(row.device, torch.int64)
        if isinstance(x, Tensor)
        else torch.full((), x, dtype=torch.int64, device=row.device)
        for x in (step, block)
    )
    counter = (block & _MASK, step & _MASK, row & _MASK, (row >> 32) & _MASK)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def host_bits(seed: int, step: int, row: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four words of :func:`random_bits` for rows (n,) int64, by NumPy: for a batch a quarter of torch's time."""
    zero = np.zeros_like(row)
    counter = (zero, zero + (step & _MASK), row & _MASK, (row >> 32) & _MASK)
    return _rounds(counter, (seed & _MASK, (seed >> 32) & _MASK))


def below_range(word: Words, limit: int) -> Words:
    """Uniform in {0, ..., limit - 1} from one word, limit < 2^31; the bias is below limit / 2^32."""
    return (word * limit) >> 32


# ---------------------------------------------------------------------------------------------------------
# Stochastic rounding to bfloat16, with the bits that the kernels draw
# ---------------------------------------------------------------------------------------------------------


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
