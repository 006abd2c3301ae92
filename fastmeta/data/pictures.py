"""Image files, or images that others open, as one array: broken ones are named, sizes are brought to one if asked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import printable, reason
from fastmeta.data.errors import InputError

#: opens one image
Open = Callable[[], Any]
#: modes of PIL that have one channel of 8 bits, and those that have more bits than uint8
_GREY, _DEEP = ("1", "L", "LA"), ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_THREADS = 8
_NAMED = 3


class Stack(NamedTuple):
    """What was read."""

    x: np.ndarray  # (N, height, width, channels) uint8
    rows: np.ndarray  # (N,) int64, which of the images these are: all but broken ones
    note: str | None  # on broken ones that were left out


def stack(
    name: str, images: Sequence[Open], names: Sequence[str], size: int | None, skip: bool, grey: bool | None = None
) -> Stack:
    """All images in one array, grey where every one is (or `grey` says so) and RGB otherwise.

    Args:
        name: of the data set, for messages.
        names: of the images.
        size: side in pixels to which all are brought: the shorter side is scaled to it and the middle is cut out.
        skip: leave images out that cannot be read.

    Raises:
        InputError: images that cannot be read, of several sizes without `size`, of more bits than 8, or beyond memory.
    """

    from PIL import Image, ImageOps  # here and not at the top: most runs open no file of images

    def form(i: int) -> tuple[str, tuple[int, int]] | str:
        try:
            with _opened(images[i]) as image:
                return image.mode, image.size
        except Exception as error:  # of PIL, of a file: any kind, for any bytes
            return reason(error, 120)

    broken: dict[int, str] = {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on odd metadata and on large images
        forms: dict[int, tuple[str, tuple[int, int]]] = {}
        for i, found in enumerate(pool.map(form, range(len(images)), chunksize=64)):
            if isinstance(found, str):
                broken[i] = found
            else:
                forms[i] = found
        deep = next((i for i, (mode, _) in forms.items() if mode in _DEEP), None)
        if deep is not None:
            raise InputError(
                f"{name}: {names[deep]} has pixels of more than 8 bits (mode {forms[deep][0]}); convert such images, "
                "or pass them as float features"
            )
        if grey is None:
            grey = bool(forms) and all(mode in _GREY for mode, _ in forms.values())
        width, height = (size, size) if size is not None else _one_size(name, names, forms)
        x = _room(name, (len(images), height, width, 1 if grey else 3))

        def read(i: int) -> str | None:
            try:
                with _opened(images[i]) as image:
                    pixels = image.convert("L" if grey else "RGB")
                if pixels.size != (width, height):
                    pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BILINEAR)
                x[i] = np.asarray(pixels).reshape(x.shape[1:])
            except Exception as error:
                return reason(error, 120)
            return None

        left = list(forms)
        for i, why in zip(left, pool.map(read, left, chunksize=16), strict=True):
            if why is not None:
                broken[i] = why
    if not broken:
        return Stack(x, np.arange(len(images)), None)
    first = min(broken)
    count = f"{len(broken):,} of {len(images):,} images cannot be read"
    if not skip:
        raise InputError(
            f"{name}: {count}, the first is {names[first]} ({broken[first]}); replace them, or leave them out with "
            "--data.skip-corrupt"
        )
    rows = np.setdiff1d(np.arange(len(images)), list(broken))
    if not len(rows):
        raise InputError(f"{name}: no image can be read, the first is {names[first]} ({broken[first]})")
    listed = ", ".join(printable(names[i], 80) for i in sorted(broken)[:_NAMED])
    note = f"{name}: {count} and are left out: {listed}{' …' if len(broken) > _NAMED else ''}"
    return Stack(x[rows], rows, note)


def _opened(opening: Open) -> Any:
    made = opening()
    if not hasattr(made, "convert"):
        raise TypeError(f"it is {type(made).__name__}, no image of PIL")
    return made


def _one_size(name: str, names: Sequence[str], forms: dict[int, tuple[str, tuple[int, int]]]) -> tuple[int, int]:
    if not forms:
        return 1, 1
    first = min(forms)
    for i, (_, size) in forms.items():
        if size != forms[first][1]:
            a, b = (f"{names[k]} has {forms[k][1][0]}×{forms[k][1][1]}" for k in (first, i))
            raise InputError(
                f"{name}: images are of several sizes, {a} pixels and {b}; bring them to one with --data.image-size"
            )
    return forms[first][1]


def _room(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of that shape. InputError where it is more than half of what is free."""
    needed, free = int(np.prod(shape, dtype=np.int64)), free_memory()
    if free is not None and 2 * needed > free:
        raise InputError(
            f"{name}: {shape[0]:,} images of {shape[2]}×{shape[1]} pixels take {gibibytes(needed)} twice, and "
            f"{gibibytes(free)} of memory are free; take smaller ones (--data.image-size), or a map-style data set of "
            "your own, which is read as it is needed"
        )
    return np.empty(shape, np.uint8)
