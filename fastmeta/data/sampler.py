"""Which rows come next."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.data.errors import InputError
from fastmeta.data.seeds import torch_generator


class EpochSampler:
    """Batch number `step` of an endless run through `size` rows, shuffled anew for each pass, without replacement.

    No row stands twice in a batch. A pass drops the partial last batch: shapes stay fixed, and each pass shuffles
    anew, so no row is left out for long. A set smaller than a batch is one batch. The order is a function of
    (seed, stream, pass), and the same on all devices: it is drawn on the host, and sent once for each pass.

    Args:
        batches: of a pass, where that is less than `size` would give.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        stream: str,
        device: torch.device,
        batches: int | None = None,
    ) -> None:
        self.size = size
        self.batch_size = min(batch_size, size)
        self.batches = (size // self.batch_size if size else 0) if batches is None else batches
        self._key = (seed, stream)
        self.device = device
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Row numbers (batch_size,) int64 on the device."""
        if not self.size:
            raise InputError(
                "the method asks for clean rows, and none are held out; leave data.meta_fraction or data.meta_count out"
            )
        number, position = divmod(step, self.batches)
        if number != self._pass:
            order = torch.randperm(self.size, generator=torch_generator(torch.device("cpu"), *self._key, number))
            if self.device.type == "cuda":
                order = order.pin_memory()  # or the copy would wait for the device
            self._order, self._pass = order.to(self.device, non_blocking=True), number
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
