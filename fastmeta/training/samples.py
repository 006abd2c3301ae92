"""The samples of a run as they are measured, for a method that looks at them when an epoch ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import EpochSampler, Pool


def read_rows(data: Pool, rows: Tensor) -> Any:
    """x of the rows `rows` (m,) int64 of the pool, on whichever device these are."""
    (x,) = data.source.read([rows.to("cpu" if data.source.rows_on_host else data.device)], data.device)
    return x


class PoolSamples:
    """:class:`fastmeta.methods.Samples` of one epoch.

    Args:
        name: of the run whose rows of the pool they are.
        chunk: rows at a time.
        clean_order: numbers clean rows; its batches follow each other from one epoch to the next.
    """

    def __init__(self, data: Pool, name: str, *, epoch: int, chunk: int, clean_order: EpochSampler) -> None:
        self._data, self._name, self._chunk = data, name, chunk
        self.epoch, self._clean = epoch, clean_order

    def train(self) -> Iterator[tuple[Any, Tensor]]:
        data = self._data
        device = "cpu" if data.source.rows_on_host else data.device
        batches = torch.arange(sum(map(len, data.rows(self._name))), device=device).split(self._chunk)
        samples = data.source.read([data.numbers(self._name, rows) for rows in batches], data.device)
        for rows, x in zip(batches, samples, strict=True):
            yield x, rows.to(data.device)

    @property
    def clean_targets(self) -> Tensor:
        return self._data.targets[self._data.clean_start :]

    def clean_rows(self, rows: Tensor) -> Any:
        return read_rows(self._data, rows + self._data.clean_start)

    def clean(self, count: int) -> Iterator[tuple[Any, Tensor]]:
        data, begin = self._data, (self.epoch - 1) * count
        batches = [self._clean(number) + data.clean_start for number in range(begin, begin + count)]
        for rows, x in zip(batches, data.source.read(batches, data.device), strict=True):
            yield x, data.targets[rows.to(data.device)]
