"""Arrays that do not fit on the device: batches are made on the host, and sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmeta.data.source import Source


class FromHost(Source):
    """`inner`, which is placed on the host, for a run on another device: its batches, bit by bit."""

    def __init__(self, inner: Source) -> None:
        self.inner, self.targets, self.class_names = inner, inner.targets, inner.class_names
        self.noun, self.input_shape, self.options = inner.noun, inner.input_shape, inner.options

    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        at = None if step is None else torch.tensor(int(step))
        made = self.inner.network_input(rows.cpu(), at, torch.device("cpu"))
        if device.type == "cpu":
            return made
        return tree_map(lambda t: t.pin_memory().to(device, non_blocking=True) if isinstance(t, Tensor) else t, made)

    def take(self, rows: np.ndarray) -> Source:
        return self.inner.take(rows)

    def join(self, other: Source) -> Source:
        return self.inner.join(other.inner if isinstance(other, FromHost) else other)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def digests(self) -> Iterator[bytes] | None:
        return self.inner.digests()

    @property
    def x(self) -> Any:
        return self.inner.x
