"""Samples that lie on the device as one tensor: uint8 images behind their kernel, and float features of any shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.from_host import FromHost
from fastmeta.data.images import TrainBatches, Transform
from fastmeta.data.pictures import Known
from fastmeta.data.seeds import derived_seed
from fastmeta.data.source import Settings, Source, as_slice, digest_of
from fastmeta.data.statistics import of_features, pieces


class _Arrays(Source):
    """`x`, (N, ...) on the host, and `table`, the same on the device once it is placed."""

    rows_on_host = False

    def __init__(self, x: np.ndarray, targets: np.ndarray, class_names: tuple[str, ...] | None = None) -> None:
        self._x, self.targets, self.class_names = x, targets, class_names
        self.table: Tensor | None = None

    @property
    def x(self) -> np.ndarray:
        return self._x

    def take(self, rows: np.ndarray) -> Source:
        which = as_slice(rows)
        return type(self)(self._x[which], self.targets[which], self.class_names)

    def join(self, other: Source) -> Source:
        if type(other) is not type(self):
            return super().join(other)
        x, y = np.concatenate([self._x, other.x]), np.concatenate([self.targets, other.targets])
        return type(self)(x, y, self.class_names)

    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        return rows, step

    def fingerprint(self) -> str:
        return digest_of(self._x, self.targets)

    def digests(self) -> Iterator[bytes]:
        return (hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=16).digest() for x in self._x)

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        like = like.inner if isinstance(like, FromHost) else like
        if settings.resident:
            return self._placed(settings, device, fit, like)
        return FromHost(self._placed(settings, torch.device("cpu"), fit, like))

    def _placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None) -> Source:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        return 0 if self.table is None else self.table.numel() * self.table.element_size()

    @property
    def bytes_to_place(self) -> int:
        return self._x.nbytes


class Images(_Arrays):
    """uint8 images (N, H, W, channels): crop, flip and normalisation in one kernel, inside of the step.

    `known` is what was seen of images when they were read from files.
    """

    noun = "images"
    options = frozenset({"augment", "padding", "pad_mode", "mean", "std", "resident"})
    transform: TrainBatches

    def __init__(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        class_names: tuple[str, ...] | None = None,
        known: Known | None = None,
    ) -> None:
        super().__init__(x, targets, class_names)
        self.known = known
        if known is not None:
            self.options = self.options | {"workers"}

    def take(self, rows: np.ndarray) -> Source:
        which = as_slice(rows)
        known = None if self.known is None else self.known.take(which)
        return Images(self._x[which], self.targets[which], self.class_names, known)

    def join(self, other: Source) -> Source:
        joined = super().join(other)
        if isinstance(other, Images) and self.known is not None and other.known is not None:
            assert isinstance(joined, Images)
            joined.known = self.known.join(other.known)
        return joined

    def fingerprint(self) -> str:
        if self.known is None:
            return super().fingerprint()
        return self.known.fingerprint(self._x.shape, self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        height, width, channels = self._x.shape[1:]
        return channels, height, width

    def _placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None) -> Source:
        placed = Images(self._x, self.targets, self.class_names, self.known)
        placed.table = table = torch.from_numpy(np.ascontiguousarray(self._x)).to(device)
        if isinstance(like, Images):
            how = like.transform.transform
            transform = replace(how, center=how.center.to(device), scale=how.scale.to(device))
        else:
            transform = transform_of(settings, device, lambda **how: Transform.of(table[:fit], **how))
        placed.transform = TrainBatches(
            table,
            transform,
            crop_seed(settings),
            dtype=settings.dtype,
            memory_format=settings.memory_format,
        )
        return placed


def transform_of(settings: Settings, device: torch.device, measured: Callable[..., Transform]) -> Transform:
    """With the augmentation that `settings` ask for, and their mean and deviation, or those that are `measured`."""
    how: dict[str, Any] = {
        "padding": settings.padding if settings.augment != "none" else 0,
        "pad_mode": settings.pad_mode,
        "flip": settings.augment == "crop_flip",
    }
    if not settings.mean:
        return measured(total=settings.total, **how)
    center, std = (255 * torch.tensor(v, dtype=torch.float64) for v in (settings.mean, settings.std))
    return Transform(center.float().to(device), std.reciprocal().float().to(device), **how)


def crop_seed(settings: Settings) -> int:
    return derived_seed(settings.seed, "crops")


class Features(_Arrays):
    """float32 samples (N, ...) of any shape, each number standardised by its mean and deviation over the train rows."""

    options = frozenset({"standardise", "resident"})
    transform: _Rows

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._x.shape[1:]

    def _placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None) -> Source:
        placed = Features(self._x, self.targets, self.class_names)
        table = torch.from_numpy(np.ascontiguousarray(self._x)).to(device)
        if isinstance(like, Features):
            placed.center, placed.scale = (None if v is None else v.to(device) for v in (like.center, like.scale))
        elif settings.standardise:
            rows = self._x[:fit]
            placed.center, placed.scale = (v.to(device) for v in of_features(pieces(rows), settings.total))
        else:
            placed.center = placed.scale = None
        if placed.center is not None and placed.scale is not None:
            table = (table - placed.center) * placed.scale
        placed.table, placed.transform = table, _Rows(table)
        return placed

    center: Tensor | None = None
    scale: Tensor | None = None


class _Rows:
    """Rows of a table, gathered inside of the step."""

    def __init__(self, table: Tensor) -> None:
        self.tensors: Sequence[Tensor] = (table,)

    def __call__(self, x: Any, tensors: Sequence[Tensor]) -> Tensor:
        rows, _ = x
        return tensors[0].index_select(0, rows)
