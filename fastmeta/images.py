"""Batches of images from a device-resident uint8 set, in one kernel: gather, random crop, flip, normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta._arguments import check, check_range

_raw = torch.ops.fastmeta


def load_images(
    images: Tensor,
    index: Tensor,
    center: Tensor,
    scale: Tensor,
    *,
    padding: int = 0,
    reflect: bool = False,
    flip: bool = False,
    seed: int = 0,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of `images` as network input, out_icyx = (pixel - center_c) * scale_c. Not differentiable.

    With `padding` and `flip` image i is cropped at a random shift of -padding .. padding in each direction from its
    padded self, then mirrored left to right with probability one half. The draws are a function of (seed, step,
    index_i) alone, equal on all devices. The twin in plain torch, :func:`fastmeta.reference.load_images`, gives the
    same bits.

    Args:
        images: (N, height, width, channels) uint8, contiguous.
        index: (n,) int64 rows of the set. Out of range raises on the CPU and gives an image of NaN on CUDA.
        center: (channels,) acc(dtype), 255 mean for the mean of pixel / 255.
        scale: (channels,) acc(dtype), 1 / (255 std).
        padding: less than height and width; 0 crops nothing.
        reflect: pad by mirrored pixels, the edge itself not repeated; otherwise by pixels of value 0.
        flip: mirror at random.
        seed: of all draws, 64 bits.
        step: an int, or a 0-dim int64 tensor; one on the GPU is read there, so that a captured graph follows it.
        dtype: of the result: float64, float32, bfloat16 or float16. acc(float64) = float64, else float32.

    Returns:
        (n, channels, height, width), channels last in memory.

    Raises:
        ValueError: tensors on different devices.
        RuntimeError: a wrong shape, dtype, padding or index, named.
    """
    if not isinstance(step, Tensor):
        step = torch.scalar_tensor(step, dtype=torch.int64)
    check(images, "images", index=index, center=center, scale=scale)
    if step.device.type != "cpu":
        check(images, "images", step=step)
    check_range(index, "index", images, 0, "images")
    return _raw.load_images(images, index, center, scale, padding, reflect, flip, seed, step, dtype)
