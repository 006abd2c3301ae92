"""All parts of a split on one device, clean rows behind the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.batches import Transform
from fastmeta.data.splits import Splits


@dataclass(frozen=True)
class DeviceData:
    """Tensors of a :class:`Splits`: rows [0, train_size) of `images` are train, those behind them clean."""

    images: Tensor  # (train + meta, H, W, channels) uint8
    targets: Tensor  # (train + meta,) int64, given
    y_true: Tensor | None  # (train,) int64
    train_size: int
    meta_size: int
    test: tuple[Tensor, Tensor] | None  # images, targets
    num_classes: int
    transform: Transform

    @classmethod
    def of(
        cls,
        splits: Splits,
        device: torch.device,
        *,
        augment: str = "none",
        padding: int = 4,
        pad_mode: Literal["zero", "reflect"] = "zero",
    ) -> DeviceData:
        """Copy to `device`; normalisation by the training rows; `augment` is none, crop or crop_flip."""

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        train, meta, test = splits.train, splits.meta, splits.test
        images = torch.cat([to(train.x), to(meta.x)])
        transform = Transform.of(
            images[: len(train)],
            padding=0 if augment == "none" else padding,
            pad_mode=pad_mode,
            flip=augment == "crop_flip",
        )
        return cls(
            images=images,
            targets=torch.cat([to(train.y), to(meta.y)]),
            y_true=None if train.y_true is None else to(train.y_true),
            train_size=len(train),
            meta_size=len(meta),
            test=None if test is None else (to(test.x), to(test.y)),
            num_classes=splits.num_classes,
            transform=transform,
        )

    def rows(self, run: str) -> tuple[int, int]:
        """First and one past the last row that a run trains on: union and clean are baselines, all else is train."""
        end = self.train_size + self.meta_size
        return {"union": (0, end), "clean": (self.train_size, end)}.get(run, (0, self.train_size))

    @property
    def bytes(self) -> int:
        """Size on the device."""
        tensors = [self.images, self.targets, *(() if self.test is None else self.test)]
        return sum(t.numel() * t.element_size() for t in tensors)
