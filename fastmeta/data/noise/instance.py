"""Noise that depends on the sample: its parts decide how easily it is mistaken, and for what."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastmeta._text import reason
from fastmeta.data.arrays import as_array
from fastmeta.data.errors import InputError
from fastmeta.data.image_stream import statistics
from fastmeta.data.images import Transform
from fastmeta.data.npy_rows import NpyRows
from fastmeta.data.pictures import Pictures
from fastmeta.data.statistics import center_and_deviation, pieces

#: of the flip rates about their mean
DEVIATION = 0.1
#: samples that are projected at once
BLOCK = 1024


def instance(targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Part-dependent noise (Xia et al., 2020), in the form of its common implementation.

    Sample i is mistaken with probability r_i, drawn from a normal distribution of mean `rate` and deviation 0.1 that is
    truncated to [0, 1]; below a rate of 0.1 and above 0.9 the deviation is the distance to 0 or 1. It then becomes
    class k ≠ y_i with probability softmax_k(x_i W_y), where W_y, (d, C), is one standard normal matrix per class y.
    x_i is the sample in d numbers, uint8 images and floats standardised as the trainer does. A hit label is always
    wrong, so labels are wrong at about `rate`.

    Raises:
        InputError: samples that are no numbers, or of several shapes.
    """
    rates = _truncated(rate, min(DEVIATION, rate, 1 - rate), len(targets), generator)
    hit = generator.random(len(targets)) < rates
    pick = generator.random(len(targets))
    block = _rows_of(x)
    width = block(np.zeros(1, np.int64)).shape[1]
    labels = targets.copy()
    for c in np.unique(targets):
        # drawn for each class that is there, whether it is hit or not; in float64, so that no label hangs on the
        # order in which a machine sums
        weight = generator.standard_normal((width, num_classes))
        members = np.flatnonzero((targets == c) & hit)
        for start in range(0, len(members), BLOCK):
            rows = members[start : start + BLOCK]
            scores = block(rows) @ weight
            scores[:, c] = -np.inf
            scores = np.exp(scores - scores.max(1, keepdims=True))
            shares = scores.cumsum(1)
            labels[rows] = (pick[rows, None] * shares[:, -1:] >= shares).sum(1)
    return labels


def _truncated(mean: float, deviation: float, count: int, generator: np.random.Generator) -> np.ndarray:
    """(count,) normal numbers, those outside of [0, 1] drawn again."""
    values = generator.normal(mean, deviation, count)
    while (outside := (values < 0) | (values > 1)).any():
        values[outside] = generator.normal(mean, deviation, int(outside.sum()))
    return values


def _rows_of(x: Any) -> Any:
    """rows (n,) -> these samples as (n, d) float64."""
    if isinstance(x, np.ndarray) and x.dtype == np.uint8:
        images = x[..., None] if x.ndim == 3 else x
        transform = Transform.of(torch.from_numpy(np.ascontiguousarray(images)))
        center, scale = transform.center.double().numpy(), transform.scale.double().numpy()
        return lambda rows: ((images[rows] - center) * scale).reshape(len(rows), -1)
    if isinstance(x, Pictures) or (isinstance(x, NpyRows) and x.dtype == np.uint8):
        transform = statistics(x, len(x), torch.device("cpu"))
        center, scale = transform.center.double().numpy(), transform.scale.double().numpy()
        return lambda rows: ((x.rows(rows) - center) * scale).reshape(len(rows), -1)
    if isinstance(x, NpyRows) or (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
        mean, deviation = (v.numpy().reshape(-1) for v in center_and_deviation(pieces(x)))
        return lambda rows: (x[rows].reshape(len(rows), -1) - mean) / deviation

    def read(rows: np.ndarray) -> np.ndarray:
        """Of samples that come one by one, as a network takes them."""
        try:
            # the first one's shape is asked of all
            return np.stack([as_array(x[int(i)], "sample").astype(np.float64).reshape(-1) for i in [0, *rows]])[1:]
        except (InputError, TypeError, ValueError, IndexError, KeyError) as error:
            raise InputError(
                f"noise instance needs samples of numbers, all of one shape, and gets others ({reason(error)}); take "
                "uniform, pair or class noise"
            ) from error

    return read
