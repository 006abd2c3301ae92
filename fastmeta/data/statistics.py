"""Mean and deviation of features over the training rows, in pieces, so that these need not lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.source import own

#: numbers of a piece, in float64 32 MiB. Figures of rows that lie in memory and of those that are read must have the
#: same bits, so pieces go by the shape of a row alone.
PIECE = 2**22
#: a deviation below this share of a column's size is rounding: the column is constant
ROUNDING = 1e-12


def spans(count: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and one past the last row of each piece of `count` rows of this shape."""
    step = max(1, PIECE // max(1, prod(shape)))
    for first in range(0, count, step):
        yield first, min(first + step, count)


def pieces(x: Any) -> Iterator[np.ndarray]:
    """Rows (N, ...) of an array, piece by piece."""
    return (x[first:last] for first, last in spans(len(x), x.shape[1:]))


def moments(parts: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Count, mean and sum of squared distances from the mean, float64, of rows (n, ...) in pieces.

    Pieces are merged as Chan, Golub and LeVeque (1983) do: no square of a large mean is ever taken off another.
    """
    count, mean, spread = 0, np.zeros(()), np.zeros(())
    for part in parts:
        rows = part.astype(np.float64)
        n, center = len(rows), rows.mean(0)
        rows -= center
        scatter = np.square(rows, out=rows).sum(0)
        if count:
            apart = center - mean
            scatter = spread + scatter + np.square(apart) * (count * n / (count + n))
            center = mean + apart * (n / (count + n))
        count, mean, spread = count + n, center, scatter
    return count, mean, spread


def center_and_deviation(parts: Iterable[np.ndarray], total: Callable[[Tensor], Tensor] = own) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each number, float64 of the shape of a row; 1 for the deviation of what is constant.

    On the host, so that the figures depend on no device. `total` adds the sums of other ranks.
    """
    count, mean, spread = (torch.as_tensor(v, dtype=torch.float64) for v in moments(parts))
    every = total(count)
    center = mean if total is own else total(count * mean) / every  # of one process nothing is rounded twice
    variance = total(spread + count * (mean - center).square()) / every
    deviation, size = variance.sqrt(), (variance + center.square()).sqrt()
    return center, torch.where(deviation > ROUNDING * size, deviation, 1.0)


def of_features(parts: Iterable[np.ndarray], total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean, and one over the deviation, in float32."""
    center, deviation = center_and_deviation(parts, total)
    return center.float(), deviation.reciprocal().float()
