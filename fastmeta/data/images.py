"""How uint8 images on the device become network input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastmeta.data.source import own
from fastmeta.ops import acc_dtype, load_images


@dataclass(frozen=True)
class Transform:
    """x -> (flip(crop(x)) - center) * scale, per channel of uint8 pixels; crop and flip in training alone."""

    center: Tensor  # (channels,) float32, the pixels' mean
    scale: Tensor  # (channels,) float32, one over their standard deviation
    padding: int = 0  # a random crop from the image padded by this many pixels
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False

    @classmethod
    def of(
        cls, images: Tensor, *, total: Callable[[Tensor], Tensor] = own, **augmentation: int | str | bool
    ) -> Transform:
        """With the mean and standard deviation of `images`, uint8 (N, H, W, channels)."""
        # exact integer sums, so that the figures depend on neither device nor thread count
        count = images[..., 0].numel()
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(-1)]).cpu().double()
        level = torch.arange(256, dtype=torch.float64)
        sums, squares = counts @ level, counts @ level.square()
        return cls.of_sums(sums, squares, count, images.device, total=total, **augmentation)

    @classmethod
    def of_sums(
        cls,
        sums: Tensor,
        squares: Tensor,
        count: int,
        device: torch.device,
        *,
        total: Callable[[Tensor], Tensor] = own,
        **augmentation: int | str | bool,
    ) -> Transform:
        """The same of sums (channels,) float64 of `count` pixels, and of their squares; `total` adds other ranks'."""
        sums, squares, counts = total(torch.stack([sums, squares, torch.full_like(sums, count)]))
        center = sums / counts
        variance = squares / counts - center.square()
        scale = variance.clamp(min=1).rsqrt()
        return cls(center.float().to(device), scale.float().to(device), **augmentation)  # type: ignore[arg-type]


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
        """x: rows (n,) int64 and the step, a 0-d int64 tensor on the device; None: as they are, in float32."""
        (rows, step), (images, center, scale) = x, tensors
        transform = replace(self.transform, center=center, scale=scale)
        if step is None:
            return load_batch(images, rows, transform)
        batch = load_batch(images, rows, transform, seed=self.seed, step=step, dtype=self.dtype)
        return batch.contiguous(memory_format=self.memory_format)
