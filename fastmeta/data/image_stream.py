"""Images that are read from their files as they are needed: the batches of `Images`, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.images import Transform, load_batch
from fastmeta.data.read_ahead import ReadAhead
from fastmeta.data.resident import crop_seed, transform_of
from fastmeta.data.source import Settings, Source, as_slice
from fastmeta.rng import below_range, host_bits


class Pixels(Protocol):
    """Images (N, H, W, channels) uint8 that are read when they are asked for; a function of their numbers alone."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def rows(self, rows: Any) -> np.ndarray:
        """(n, H, W, channels)"""

    def take(self, rows: np.ndarray) -> Any: ...
    def join(self, other: Any) -> Any: ...
    def sums(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the first `count` images, by channel, and of the squares: (channels,) int64."""

    def fingerprint(self, targets: np.ndarray) -> str: ...
    def digests(self) -> Iterator[bytes] | None: ...


class ImageStream(ReadAhead):
    """uint8 images (N, H, W, channels) in files. Workers crop and flip pixels; the step normalises them."""

    noun = "images"
    options = frozenset({"augment", "padding", "pad_mode", "mean", "std", "workers", "resident"})
    transform: Normalised

    def __init__(self, pixels: Pixels, targets: np.ndarray, class_names: tuple[str, ...] | None = None) -> None:
        self.pixels, self.targets, self.class_names = pixels, targets, class_names

    @property
    def x(self) -> Any:
        return self.pixels

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        height, width, channels = self.pixels.shape[1:]
        return channels, height, width

    def take(self, rows: np.ndarray) -> Source:
        return type(self)(self.pixels.take(rows), self.targets[as_slice(rows)], self.class_names)

    def join(self, other: Source) -> Source:
        if type(other) is not type(self):
            return super().join(other)
        targets = np.concatenate([self.targets, other.targets])
        return type(self)(self.pixels.join(other.pixels), targets, self.class_names)

    def fingerprint(self) -> str:
        return self.pixels.fingerprint(self.targets)

    def digests(self) -> Iterator[bytes] | None:
        return self.pixels.digests()

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        placed = type(self)(self.pixels, self.targets, self.class_names)
        placed.workers = settings.workers
        if isinstance(like, ImageStream):
            placed.transform = like.transform
            return placed
        transform = transform_of(settings, device, lambda **how: statistics(self.pixels, fit, device, **how))
        placed.transform = Normalised(transform, crop_seed(settings), settings.dtype, settings.memory_format)
        return placed

    def batch_of(self, rows: list[int], step: int | None) -> Tensor:
        batch, how = self.pixels.rows(rows), self.transform
        if step is not None and (how.transform.padding or how.transform.flip):
            batch = cropped(batch, rows, how.transform, how.seed, step)
        return self.pinned(torch.from_numpy(batch))

    def measured(self, batch: Any) -> Any:
        return load_batch(batch, torch.arange(len(batch), device=batch.device), self.transform.transform)


class Normalised:
    """A batch of pixels (n, H, W, channels) uint8 on the device -> network input: the rest of `Images`' transform."""

    def __init__(self, transform: Transform, seed: int, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.transform, self.seed, self.dtype, self.memory_format = transform, seed, dtype, memory_format

    @property
    def tensors(self) -> Sequence[Tensor]:
        return self.transform.center, self.transform.scale

    def __call__(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        center, scale = tensors
        how = replace(self.transform, center=center, scale=scale, padding=0, flip=False)
        batch = load_batch(x, torch.arange(len(x), device=x.device), how, dtype=self.dtype)
        return batch.contiguous(memory_format=self.memory_format)


def cropped(batch: np.ndarray, rows: Sequence[int], how: Transform, seed: int, step: int) -> np.ndarray:
    """Images (n, H, W, channels) uint8 after the crops and flips that `load_images` draws for these rows in `step`."""
    count, height, width, channels = batch.shape
    words, padding = host_bits(seed, step, np.asarray(rows, np.int64)), how.padding
    tops, lefts = (below_range(word, 2 * padding + 1) for word in words[:2])
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(batch, around, mode="reflect" if how.pad_mode == "reflect" else "constant")
    lines = padded.reshape(*padded.shape[:2], padded.shape[2] * channels)
    crops = np.lib.stride_tricks.sliding_window_view(lines, (height, width * channels), axis=(1, 2))
    made = crops[np.arange(count), tops, lefts * channels].reshape(batch.shape)
    if how.flip:
        mirrored = below_range(words[2], 2) == 1
        pixels = made.view(f"V{channels}")  # in one piece each: three times as fast
        pixels[mirrored] = pixels[mirrored, :, ::-1]
    return made


def statistics(pixels: Pixels, fit: int | None, device: torch.device, **how: Any) -> Transform:
    """Mean and deviation of the first `fit` images, as :meth:`Transform.of` has them of an array."""
    count, height, width, _ = pixels.shape
    sums, squares = (torch.from_numpy(v).double() for v in pixels.sums(fit))
    return Transform.of_sums(sums, squares, min(fit or count, count) * height * width, device, **how)
