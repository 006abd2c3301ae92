"""Batches from a device-resident set: which rows come next, and how uint8 images become network input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastmeta.data.seeds import torch_generator
from fastmeta.ops import acc_dtype, load_images


class EpochSampler:
    """Batch number `step` of an endless run through `size` rows, shuffled anew for each pass, without replacement.

    No row stands twice in a batch. A pass drops the partial last batch: shapes stay fixed, and each pass shuffles
    anew, so no row is left out for long. A set smaller than a batch is one batch. The order is a function of
    (seed, stream, pass).
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, stream: str, device: torch.device) -> None:
        self.size = size
        self.batch_size = min(batch_size, size)
        self.batches = size // self.batch_size
        self._key = (seed, stream)
        self._device = device
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Row numbers (batch_size,) int64 on the device."""
        number, position = divmod(step, self.batches)
        if number != self._pass:
            generator = torch_generator(self._device, *self._key, number)
            self._order = torch.randperm(self.size, generator=generator, device=self._device)
            self._pass = number
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True)
class Transform:
    """x -> (flip(crop(x)) - center) * scale, per channel of uint8 pixels; crop and flip in training alone."""

    center: Tensor  # (channels,) float32, the pixels' mean
    scale: Tensor  # (channels,) float32, one over their standard deviation
    padding: int = 0  # a random crop from the image padded by this many pixels
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False

    @classmethod
    def of(cls, images: Tensor, **augmentation: int | str | bool) -> Transform:
        """With the mean and standard deviation of `images`, uint8 (N, H, W, channels)."""
        # exact integer sums, so that the figures depend on neither device nor thread count
        count = images[..., 0].numel()
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(-1)]).cpu().double()
        level = torch.arange(256, dtype=torch.float64)
        center = (counts @ level) / count
        variance = (counts @ level.square()) / count - center.square()
        scale = variance.clamp(min=1).rsqrt()
        return cls(center.float().to(images.device), scale.float().to(images.device), **augmentation)  # type: ignore[arg-type]


def load_batch(
    images: Tensor,
    index: Tensor,
    transform: Transform,
    *,
    seed: int | None = None,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows `index` of `images`, uint8 (N, H, W, channels), as network input (n, channels, H, W), channels last.

    With a `seed` each image is cropped at a random offset from its padded self and flipped with probability one half,
    as `transform` says: a function of (seed, step, row), see :func:`fastmeta.ops.load_images`. Without one neither
    happens.
    """
    center, scale = (t.to(acc_dtype(dtype)) for t in (transform.center, transform.scale))
    if seed is None:
        return load_images(images, index, center, scale, dtype=dtype)
    return load_images(
        images,
        index,
        center,
        scale,
        padding=transform.padding,
        reflect=transform.pad_mode == "reflect",
        flip=transform.flip,
        seed=seed,
        step=step,
        dtype=dtype,
    )


@dataclass(frozen=True)
class TrainBatches:
    """(rows, step) -> augmented network input: the `transform` of a :class:`fastmeta.MetaStep`.

    A batch is then made inside the step, as part of its graph.
    """

    images: Tensor  # uint8 (N, H, W, channels)
    transform: Transform
    seed: int
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.transform.center, self.transform.scale

    def __call__(self, x: tuple[Tensor, Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """x: rows (n,) int64 and the step, a 0-d int64 tensor on the device."""
        (rows, step), (images, center, scale) = x, tensors
        transform = replace(self.transform, center=center, scale=scale)
        batch = load_batch(images, rows, transform, seed=self.seed, step=step, dtype=self.dtype)
        return batch.contiguous(memory_format=self.memory_format)
