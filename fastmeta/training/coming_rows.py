"""Which training rows come next, for a step and for a label table that likes to know of them before."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import EpochSampler
from fastmeta.losses import LabelTable

#: batches that reach the host at once where they are drawn on a device, for which it waits
_AT_ONCE = 64


class ComingRows:
    """Batches of `sampler` up to step `last`, each as it is drawn and as a tensor on `device`.

    A table is told of the next batch by the very tensor that the next step hands to its method.
    """

    def __init__(self, labels: Any, sampler: EpochSampler, device: torch.device, last: int) -> None:
        table = getattr(labels, "table", None)
        self.table = table if isinstance(table, LabelTable) else None
        self._sampler, self._device, self._last = sampler, device, last
        self._known: deque[tuple[Tensor, Tensor, Tensor]] = deque()  # as drawn, on the device, on the host
        self._step = -1  # of the first one

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Rows (n,) int64 of this step: as they are drawn, and on the device."""
        if self.table is None:
            drawn = self._sampler(step)
            return drawn, drawn.to(self._device)
        if step != self._step:
            if step == 0:
                self.table.begin()
            self._known.clear()
            self._step = step
            self._draw()
        drawn, index, _ = self._known.popleft()
        self._step += 1
        return drawn, index

    def _draw(self) -> None:
        assert self.table is not None
        first = self._step + len(self._known)
        batch = self._sampler.batch_size
        count = max(2, self.table.horizon(batch), _AT_ONCE if self._device.type == "cuda" else 0)
        drawn = [self._sampler(step) for step in range(first, min(first + count, self._last))]
        if not drawn:
            return
        together = torch.cat(drawn)
        hosts = together.cpu().split(batch)
        devices = drawn if together.device == self._device else list(together.to(self._device).split(batch))
        self._known.extend(zip(drawn, devices, hosts, strict=True))
        if self.table.horizon(batch):
            self.table.soon(together.cpu())

    def ahead(self) -> None:
        """Behind a step: the table hears of the next one."""
        if self.table is None:
            return
        if not self._known:
            self._draw()
        if self._known:
            _, index, on_host = self._known[0]
            self.table.ahead(index, on_host)

    def saved(self) -> None:
        """The state that was asked for last counts: the run goes on from it."""
        if self.table is not None:
            self.table.saved()

    def finished(self) -> None:
        """The run goes on from no step of this stage."""
        if self.table is not None:
            self.table.finished()
