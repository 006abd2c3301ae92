"""A training batch of CIFAR's shape from uint8 images, beside what one writes in plain torch: outputs first, then time.

Bytes that it cannot avoid: the pixels read, the batch written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from fastmeta.bench.ops_catalog import DTYPES
from fastmeta.bench.ops_row import IMAGES, OpsConfig, OpsRow, Prepared, WrongResult, deviations, slots_needed, timed
from fastmeta.measure import Body
from fastmeta.ops import acc_dtype, load_images
from fastmeta.rng import below_range, random_bits

SET, BATCH, SIDE, CHANNELS, PADDING = 50_000, 256, 32, 3, 4


def by_indexing(
    images: Tensor, center: Tensor, scale: Tensor, dtype: torch.dtype, index: Tensor, step: Tensor
) -> Tensor:
    """The same crops of zero-padded images by advanced indexing, without a loop over the batch."""
    bits = random_bits(0, step, index)
    offset = [below_range(bits[:, k], 2 * PADDING + 1) - PADDING for k in (0, 1)]
    at = torch.arange(SIDE, device=images.device)
    mirrored = (below_range(bits[:, 2], 2) == 1).unsqueeze(1)
    y_at, x_at = at + offset[0].unsqueeze(1), torch.where(mirrored, at.flip(0), at) + offset[1].unsqueeze(1)
    inside = ((y_at >= 0) & (y_at < SIDE))[:, :, None] & ((x_at >= 0) & (x_at < SIDE))[:, None, :]
    y_at, x_at = y_at.clamp(0, SIDE - 1), x_at.clamp(0, SIDE - 1)
    x = images[index[:, None, None], y_at[:, :, None], x_at[:, None, :]] * inside[..., None]
    return ((x.to(center.dtype) - center) * scale).to(dtype).permute(0, 3, 1, 2)


def measure(dtype: str, config: OpsConfig, copy: float) -> OpsRow:
    """A row of the table: n counts images, C the elements of one."""
    device, kind = torch.device(config.device), DTYPES[dtype]
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randint(256, (SET, SIDE, SIDE, CHANNELS), dtype=torch.uint8, device=device, generator=generator)
    center, scale = (torch.full((CHANNELS,), v, dtype=acc_dtype(kind), device=device) for v in (120.0, 1 / 64))
    moved = BATCH * SIDE * SIDE * CHANNELS * (1 + kind.itemsize)
    order = torch.randperm(SET, device=device, generator=generator)
    slots = [
        (order[k * BATCH : (k + 1) * BATCH], torch.full((), k, device=device))
        for k in range(slots_needed(moved, device))
    ]

    def fused(index: Tensor, step: Tensor) -> Tensor:
        return load_images(images, index, center, scale, padding=PADDING, flip=True, step=step, dtype=kind)

    variants: dict[str, Any] = {"fused": fused, "eager": partial(by_indexing, images, center, scale, kind)}
    if config.compile:
        torch._dynamo.reset()
        variants["compiled"] = torch.compile(variants["eager"], dynamic=False, fullgraph=True)
    truth = reference.load_images(
        images, slots[0][0], center, scale, padding=PADDING, flip=True, step=slots[0][1], dtype=kind
    )
    errors = {k: deviations([f(*slots[0])], [truth.double()])[0] for k, f in variants.items()}
    if errors["fused"]:
        raise WrongResult(f"load_images in {dtype} is off by {errors['fused']:.2e}, wanted 0; not timed")
    bodies: dict[str, list[Body]] = {k: [partial(f, *slot) for slot in slots] for k, f in variants.items()}
    case = Prepared(bodies, errors, moved)
    return timed(case, IMAGES, BATCH, SIDE * SIDE * CHANNELS, dtype, config=config, copy=copy)
