"""All parts of a split as a run trains on them, clean rows behind the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.source import Settings, Source
from fastmeta.data.splits import Splits


@dataclass(frozen=True)
class Pool:
    """Rows [0, train_size) of `source` are train, those behind them clean; labels lie on `device`."""

    source: Source
    targets: Tensor  # (train + meta,) int64, given
    y_true: Tensor | None  # (train,) int64
    train_size: int
    meta_size: int
    test: tuple[Source, Tensor] | None  # samples, targets
    num_classes: int
    device: torch.device

    @classmethod
    def of(cls, splits: Splits, device: torch.device, settings: Settings) -> Pool:
        """Bring everything to `device`; what is estimated of samples, such as a mean, is of the training rows."""

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        train, meta, test = splits.train, splits.meta, splits.test
        source = train.source.join(meta.source).placed(settings, device, len(train))
        return cls(
            source=source,
            targets=torch.cat([to(train.y), to(meta.y)]),
            y_true=None if train.y_true is None else to(train.y_true),
            train_size=len(train),
            meta_size=len(meta),
            test=None if test is None else (test.source.placed(settings, device, None, source), to(test.y)),
            num_classes=splits.num_classes,
            device=device,
        )

    def rows(self, run: str) -> tuple[int, int]:
        """First and one past the last row that a run trains on: union and clean are baselines, all else is train."""
        end = self.train_size + self.meta_size
        return {"union": (0, end), "clean": (self.train_size, end)}.get(run, (0, self.train_size))

    def few(self, count: int) -> Any:
        """Network input of the first `count` samples, as they are measured."""
        rows = torch.arange(count, device="cpu" if self.source.rows_on_host else self.device)
        return self.source.network_input(rows, None, self.device)

    @property
    def bytes(self) -> int:
        """Size on the device."""
        sources = [self.source, *(() if self.test is None else (self.test[0],))]
        return sum(s.nbytes for s in sources) + self.targets.numel() * self.targets.element_size()
