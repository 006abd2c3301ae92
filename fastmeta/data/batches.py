"""Batches from a device-resident set: which rows come next, and how uint8 images become network input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmeta.data.seeds import torch_generator


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
    """x -> (flip(crop(x)) / 255 - mean) / std, per channel; crop and flip in training alone."""

    mean: Tensor  # (channels,) of x / 255
    std: Tensor  # (channels,)
    padding: int = 0  # a random crop from the image padded by this many pixels
    pad_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False

    @classmethod
    def of(cls, images: Tensor, **augmentation: int | str | bool) -> Transform:
        """With the mean and standard deviation of `images`, uint8 (N, H, W, channels)."""
        # exact integer sums, so that the figures depend on neither device nor thread count
        count = images[..., 0].numel()
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(-1)]).cpu().double()
        level = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts @ level) / count
        variance = (counts @ level.square()) / count - mean.square()
        std = variance.clamp(min=(1 / 255) ** 2).sqrt()
        return cls(mean.float().to(images.device), std.float().to(images.device), **augmentation)  # type: ignore[arg-type]

    @property
    def random(self) -> bool:
        return self.padding > 0 or self.flip


def load_batch(images: Tensor, index: Tensor, transform: Transform, generator: torch.Generator | None = None) -> Tensor:
    """Rows `index` of `images`, uint8 (N, H, W, channels), as float32 network input (n, channels, H, W).

    With a `generator` (on the images' device) each image is cropped at a random offset from its padded self and
    flipped with probability one half, as `transform` says; without one neither happens. The memory is channels-last,
    which is how the images lie.
    """
    if generator is None or not transform.random:
        x = images[index].float()
    else:
        n, (height, width) = len(index), images.shape[1:3]
        device, pad = images.device, transform.padding
        offset = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device)
        y_at = torch.arange(height, device=device) + offset[0]  # (n, H) source rows, -pad .. H-1+pad
        x_at = torch.arange(width, device=device) + offset[1]
        if transform.flip:
            flipped = torch.rand(n, 1, generator=generator, device=device) < 0.5
            x_at = torch.where(flipped, x_at.flip(1), x_at)
        inside = ((y_at >= 0) & (y_at < height))[:, :, None] & ((x_at >= 0) & (x_at < width))[:, None, :]
        y_at, x_at = _reflect(y_at, height), _reflect(x_at, width)
        x = images[index[:, None, None], y_at[:, :, None], x_at[:, None, :]].float()
        if pad and transform.pad_mode == "zero":
            x = x * inside[..., None]
    x = (x / 255 - transform.mean) / transform.std
    return x.permute(0, 3, 1, 2)


def _reflect(at: Tensor, size: int) -> Tensor:
    """... 2 1 | 0 1 2 ... size-1 | size-2 ...: the edge pixel itself is not repeated."""
    return (size - 1) - ((size - 1) - at.abs()).abs()
