"""Images that are read from their files as they are needed: the batches of `Images`, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta.data.images import Transform, load_batch
from fastmeta.data.pictures import Known, Pictures
from fastmeta.data.read_ahead import ReadAhead
from fastmeta.data.resident import crop_seed, fingerprint_of_images, transform_of
from fastmeta.data.source import Settings, Source, as_slice
from fastmeta.rng import below_range, random_bits


class ImageStream(ReadAhead):
    """uint8 images (N, H, W, channels) in files. Workers crop and flip pixels; the step normalises them."""

    noun = "images"
    options = frozenset({"augment", "padding", "pad_mode", "mean", "std", "workers", "resident"})
    transform: Normalised

    def __init__(self, pictures: Pictures, targets: np.ndarray, class_names: tuple[str, ...] | None = None) -> None:
        self.pictures, self.targets, self.class_names = pictures, targets, class_names

    @property
    def known(self) -> Known:
        assert self.pictures.known is not None
        return self.pictures.known

    @property
    def x(self) -> Pictures:
        return self.pictures

    @property
    def input_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        height, width, channels = self.pictures.shape[1:]
        return channels, height, width

    def take(self, rows: np.ndarray) -> Source:
        return ImageStream(self.pictures.take(rows), self.targets[as_slice(rows)], self.class_names)

    def join(self, other: Source) -> Source:
        if not isinstance(other, ImageStream):
            return super().join(other)
        both = self.pictures.join(other.pictures)
        return ImageStream(both, np.concatenate([self.targets, other.targets]), self.class_names)

    def fingerprint(self) -> str:
        return fingerprint_of_images(self.pictures.shape, self.known, self.targets)

    def digests(self) -> Iterator[bytes]:
        return (row.tobytes() for row in self.known.digests)

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        placed = ImageStream(self.pictures, self.targets, self.class_names)
        placed.workers = settings.workers
        if isinstance(like, ImageStream):
            placed.transform = like.transform
            return placed
        transform = transform_of(settings, device, lambda **how: statistics(self.pictures, fit, device, **how))
        placed.transform = Normalised(transform, crop_seed(settings), settings.dtype, settings.memory_format)
        return placed

    def batch_of(self, rows: list[int], step: int | None) -> Tensor:
        batch = torch.from_numpy(self.pictures.rows(rows))
        how = self.transform
        if step is not None and (how.transform.padding or how.transform.flip):
            batch = cropped(batch, torch.tensor(rows), how.transform, how.seed, step)
        # where there is a GPU, from pages that it copies by itself
        return batch.pin_memory() if not self.workers and torch.cuda.is_available() else batch

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


def cropped(batch: Tensor, rows: Tensor, how: Transform, seed: int, step: int) -> Tensor:
    """Images (n, H, W, channels) uint8 after the crops and flips that `load_images` draws for these rows in `step`."""
    from torchvision.transforms.v2 import functional as of_images  # here: most runs take no image from its file

    height, width = batch.shape[1:3]
    bits, padding = random_bits(seed, step, rows), how.padding
    tops, lefts = (below_range(bits[:, k], 2 * padding + 1) for k in (0, 1))
    mirrored = below_range(bits[:, 2], 2) == 1 if how.flip else torch.zeros(len(rows), dtype=torch.bool)
    images = batch.movedim(3, 1)
    if padding:
        mode = "reflect" if how.pad_mode == "reflect" else "constant"
        images = of_images.pad(images, [padding] * 4, padding_mode=mode)
    made = torch.empty_like(batch)
    for i, (top, left, mirror) in enumerate(zip(tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True)):
        crop = of_images.crop(images[i], top, left, height, width)
        made[i] = (of_images.horizontal_flip(crop) if mirror else crop).movedim(0, 2)
    return made


def statistics(pictures: Pictures, fit: int | None, device: torch.device, **how: Any) -> Transform:
    """Mean and deviation of the first `fit` images, as :meth:`Transform.of` has them of an array."""
    known, (_, height, width, _) = pictures.known, pictures.shape
    assert known is not None
    count = len(known.sums[:fit]) * height * width
    sums, squares = (torch.from_numpy(v[:fit].sum(0)).double() for v in (known.sums, known.squares))
    return Transform.of_sums(sums, squares, count, device, **how)
