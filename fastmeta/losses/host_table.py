"""Label rows in the memory of the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmeta.functional.finite import all_finite
from fastmeta.losses.away_table import AwayTable
from fastmeta.losses.table import Start


class HostTable(AwayTable):
    """The label logits (N, C) in the host's memory, for labels on a device that has no room for them.

    ``InstanceLabels(targets, num_classes, table=HostTable)``. A CUDA device sees the rows of one or two batches: they
    go through pinned memory, ahead of the step and behind it where :meth:`ahead` is told. The state is a tensor as a
    dense table's, the buffer `held`; it stays on the host whatever the labels are moved to.
    """

    row_state = frozenset({"held"})
    held: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.register_buffer("held", torch.empty(start.shape, dtype=start.dtype))
        for index in start.pieces():
            self.held[index.cpu()] = start.rows(index).cpu()

    @property
    def dtype(self) -> torch.dtype:
        return self.held.dtype

    def read(self, index: Tensor) -> Tensor:
        return self.held[index]

    def store(self, index: Tensor, rows: Tensor) -> None:
        self.held[index] = rows

    def finite(self) -> bool:
        self.settle()
        return bool(all_finite([self.held]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HostTable:
        """Another dtype, and no other device."""
        dtype = fn(self.held[:0]).dtype
        if dtype != self.held.dtype:
            self.settle()
            self.held = self.held.to(dtype)
        return self
