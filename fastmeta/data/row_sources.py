"""Sources of rows in .npy files: read into memory where that is asked for, else as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.image_stream import ImageStream
from fastmeta.data.npy_rows import NpyRows
from fastmeta.data.read_ahead import ReadAhead
from fastmeta.data.resident import Features, Images
from fastmeta.data.source import Settings, Source, as_slice
from fastmeta.data.statistics import of_features


class ImageRows(ImageStream):
    """uint8 images (N, H, W, channels)."""

    pixels: NpyRows

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        if not settings.held:
            return super().placed(settings, device, fit, like)
        return Images(self.pixels[:], self.targets, self.class_names).placed(settings, device, fit, like)

    @property
    def bytes_to_hold(self) -> int:
        return self.pixels.nbytes


class FeatureRows(ReadAhead):
    """float32 samples (N, ...) of any shape: batches are read, and the step standardises them as `Features` does."""

    options = frozenset({"standardise", "workers", "resident"})
    transform: Standardised

    def __init__(self, rows: NpyRows, targets: np.ndarray, class_names: tuple[str, ...] | None = None) -> None:
        self.rows, self.targets, self.class_names = rows, targets, class_names

    @property
    def x(self) -> NpyRows:
        return self.rows

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.rows.shape[1:]

    def take(self, rows: np.ndarray) -> Source:
        return FeatureRows(self.rows.take(rows), self.targets[as_slice(rows)], self.class_names)

    def join(self, other: Source) -> Source:
        if not isinstance(other, FeatureRows):
            return super().join(other)
        targets = np.concatenate([self.targets, other.targets])
        return FeatureRows(self.rows.join(other.rows), targets, self.class_names)

    def fingerprint(self) -> str:
        return self.rows.fingerprint(self.targets)

    def digests(self) -> Iterator[bytes] | None:
        return self.rows.digests()

    @property
    def bytes_to_hold(self) -> int:
        return self.rows.nbytes

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        if settings.held:
            return Features(self.rows[:], self.targets, self.class_names).placed(settings, device, fit, like)
        placed = FeatureRows(self.rows, self.targets, self.class_names)
        placed.workers = settings.workers
        if isinstance(like, FeatureRows):
            placed.transform = like.transform
        elif settings.standardise:
            center, scale = of_features(self.rows.pieces(fit), settings.total)
            placed.transform = Standardised(center.to(device), scale.to(device))
        else:
            placed.transform = Standardised()
        return placed

    def batch_of(self, rows: list[int], step: int | None) -> Tensor:
        return self.pinned(torch.from_numpy(self.rows.rows(rows)))


class Standardised:
    """Rows (n, ...) float32 less `center` times `scale`, or as they are; both float32 of the shape of a row."""

    def __init__(self, *how: Tensor) -> None:
        self.tensors: Sequence[Tensor] = how

    def __call__(self, x: Any, tensors: Sequence[Tensor]) -> Tensor:
        if not tensors:
            return x
        center, scale = tensors
        return (x - center) * scale
