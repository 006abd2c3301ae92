"""Batches of images from a device-resident uint8 set, in one kernel: gather, random crop, flip, normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.ops.arguments import check, check_range
from fastmeta.ops.guard import acc_dtype, guarded
from fastmeta.ops.shapes import FLOATING, check_counter, check_device, check_int64, fake, require, text_of

_load_images = guarded("load_images")


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
    return _load_images(images, index, center, scale, padding, reflect, flip, seed, step, dtype)


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("load_images")
def _(
    images: Tensor,
    index: Tensor,
    center: Tensor,
    scale: Tensor,
    padding: int,
    reflect: bool,
    flip: bool,
    seed: int,
    step: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    require(
        images.dtype == torch.uint8 and images.ndim == 4,
        "images must be uint8 (N, height, width, channels), "
        f"got {text_of(images.dtype)} of shape {tuple(images.shape)}",
    )
    _, height, width, channels = images.shape
    require(
        height > 0 and width > 0 and channels > 0, f"images must have a pixel each, got shape {tuple(images.shape)}"
    )
    require(
        images.is_contiguous(),
        f"images must be contiguous, got strides {images.stride()}; use images.contiguous()",
    )
    require(index.ndim == 1, f"index must have shape (n,), got {tuple(index.shape)}")
    check_device(index, "index", images, "images")
    check_int64(index, "index")
    require(dtype in FLOATING, f"dtype must be float64, float32, bfloat16 or float16, got {text_of(dtype)}")
    acc = acc_dtype(dtype)
    for name, t in (("center", center), ("scale", scale)):
        require(
            t.ndim == 1 and t.shape[0] == channels and t.dtype == acc,
            f"{name} must be {text_of(acc)} of shape ({channels},) for {text_of(dtype)} images of {channels} channels, "
            f"got {text_of(t.dtype)} of shape {tuple(t.shape)}",
        )
        require(t.is_contiguous(), f"{name} must be contiguous, got stride {t.stride(0)}")
        check_device(t, name, images, "images")
    side = min(height, width)
    require(
        0 <= padding < side,
        f"padding must lie in [0, {side - 1}] for images of {height} x {width} pixels, got {padding}",
    )
    check_counter(step, images, "images")
    size, strides = (
        (index.shape[0], channels, height, width),
        (height * width * channels, 1, width * channels, channels),
    )
    return images.new_empty_strided(size, strides, dtype=dtype)
