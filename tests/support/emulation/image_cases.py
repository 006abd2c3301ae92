"""Launches of load_images: the kernel's bits are those of the plain-torch twin, in every geometry and alignment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmeta import reference
from tests.support.emulation.cases import BF16, F16, F32, F64, Case, Maker, acc
from tests.support.emulation.emulator import DTYPES, Call

# (height, width, channels): lines of 16-byte multiples and not, of less than a slot, of several chunks (1536 columns)
SHAPES = [(8, 8, 1), (5, 7, 3), (4, 32, 3), (9, 3, 4), (3, 512, 3), (1, 1, 1)]
AUGMENTATIONS: list[dict[str, Any]] = [
    {},
    {"padding": 2},
    {"padding": 2, "reflect": True},
    {"flip": True},
    {"padding": 1, "flip": True},
    {"padding": 2, "reflect": True, "flip": True},
]


def call_of(seed: int, shape: tuple[int, ...], dtype: torch.dtype, index: list[int], **options: Any) -> Call:
    make = Maker(seed, ("dense", "strided")[seed % 2])
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=make.generator)
    channels = shape[2]
    center = (255 * make.normal(channels).sigmoid()).to(acc(dtype))
    scale = (make.normal(channels).exp() / 60).to(acc(dtype))
    step = torch.tensor(options.pop("step", seed), dtype=torch.int64) if seed % 3 else options.pop("step", seed)
    return Call(
        "load_images", n=len(index), C=channels, N=6, height=shape[0], width=shape[1], images=images,
        index=make.index(index), center=center, scale=scale, seed=2**62 + seed, step=step,
        out=torch.full((len(index), *shape), -77.0, dtype=dtype), dtype=DTYPES[dtype], **options,
    )  # fmt: skip


def truth(call: Call) -> Tensor:
    """(n, height, width, channels)"""
    given = {k: call.fields[k] for k in ("padding", "reflect", "flip") if k in call.fields}
    names = ("images", "index", "center", "scale")
    return reference.load_images(
        *(call.tensors[k] for k in names), seed=call.fields["seed"], step=call.fields["step"],
        dtype=call.tensors["out"].dtype, **given,
    ).permute(0, 2, 3, 1)  # fmt: skip


def load_images() -> Iterator[Case]:
    seed = 0
    for shape in SHAPES:
        for options in AUGMENTATIONS:
            if options.get("padding", 0) >= min(shape[:2]):
                continue
            for dtype in (F32, (BF16, F16, F64)[seed % 3]):
                seed += 1
                call = call_of(seed, shape, dtype, [5, 0, 3, 3], **options)

                def check(out: dict, call: Call = call) -> None:
                    assert torch.equal(out["out"], truth(call))

                yield Case(f"{shape} {options} {dtype}", call, check)

    refused = call_of(1, (4, 5, 3), BF16, [2, 6, -1, 4, 2**62], padding=2, flip=True)

    def check_refused(out: dict) -> None:
        assert out["out"][[1, 2, 4]].isnan().all()
        good = call_of(1, (4, 5, 3), BF16, [2, 4], padding=2, flip=True)
        assert torch.equal(out["out"][[0, 3]], truth(good))

    yield Case("index out of range", refused, check_refused)
    yield Case("empty", call_of(1, (4, 5, 3), F32, [], padding=2), lambda out: None)
