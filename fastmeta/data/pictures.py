"""Image files, or images that others open: broken ones are named, sizes are brought to one if asked.

They are read into one array where that fits into memory, and one by one as they are needed where it does not. Each is
read once in either case, before a run begins: so broken ones are known, and so is what tells the images apart.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import printable, reason
from fastmeta.data.errors import InputError
from fastmeta.data.source import as_slice, digest_of

#: opens one image
Open = Callable[[], Any]
#: modes of PIL that have one channel of 8 bits, and those that have more bits than uint8
_GREY, _DEEP = ("1", "L", "LA"), ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_THREADS = 8
_NAMED = 3
#: images that lie in memory take at most one part in so many of what is free: splits copy them, twice
SHARE = 4


@dataclass(frozen=True)
class Known:
    """What was seen of each image when it was read."""

    digests: np.ndarray  # (N, 16) uint8, equal for equal images
    sums: np.ndarray  # (N, channels) int64, of the pixels
    squares: np.ndarray  # (N, channels) int64, of their squares

    def take(self, rows: Any) -> Known:
        return Known(self.digests[rows], self.sums[rows], self.squares[rows])

    def fingerprint(self, shape: tuple[int, ...], targets: np.ndarray) -> str:
        """Of images of this shape, (N, H, W, channels), whether they lie in memory or not."""
        return digest_of(shape, self.digests, targets)

    def join(self, other: Known) -> Known:
        mine, theirs = ((k.digests, k.sums, k.squares) for k in (self, other))
        return Known(*(np.concatenate(pair) for pair in zip(mine, theirs, strict=True)))


@dataclass(frozen=True)
class Pictures:
    """Images (N, height, width, channels) uint8 that are read when they are asked for: ``pictures[i]``."""

    name: str  # of the data set, for messages
    images: Sequence[Open]
    names: Sequence[str]
    height: int
    width: int
    grey: bool
    known: Known | None = None
    dtype: np.dtype = field(default=np.dtype(np.uint8), init=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.images), self.height, self.width, 1 if self.grey else 3

    @property
    def nbytes(self) -> int:
        """Of all in one array."""
        count, *one = self.shape
        return count * int(np.prod(one, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """As an array gives them: image number `rows`, or those of a slice, of numbers, or of a mask."""
        if isinstance(rows, int | np.integer):
            return self._sound(range(len(self))[rows])
        return self.rows(range(len(self))[rows] if isinstance(rows, slice) else np.arange(len(self))[rows].tolist())

    def _sound(self, row: int) -> np.ndarray:
        try:
            return self.read(row)
        except Exception as error:  # of a file that was sound when the run began
            raise InputError(
                f"{self.name}: {self.names[row]} cannot be read any more ({reason(error, 120)}); bring it back and "
                "resume the run"
            ) from error

    def read(self, row: int) -> np.ndarray:
        """Image `row`, (height, width, channels); whatever error a file gives."""
        from PIL import Image, ImageOps  # here and not at the top: most runs open no file of images

        mode = "L" if self.grey else "RGB"
        with _opened(self.images[row]) as image:
            image.load()  # which may change its mode, and its size
            pixels = image if image.mode == mode else image.convert(mode)
            if pixels.size != (self.width, self.height):
                pixels = ImageOps.fit(pixels, (self.width, self.height), Image.Resampling.BILINEAR)
            # what np.asarray does in the end, which asks the image for each of its attributes twice
            return np.frombuffer(pixels.tobytes(), np.uint8).reshape(self.shape[1:])

    def rows(self, rows: Iterable[int]) -> np.ndarray:
        """(n, height, width, channels)"""
        rows = list(rows)
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, on odd metadata
            for i, row in enumerate(rows):
                found[i] = self._sound(row)
        return found

    def take(self, rows: Any) -> Pictures:
        which = as_slice(rows)
        known = None if self.known is None else self.known.take(which)
        if isinstance(which, slice):
            return replace(self, images=self.images[which], names=self.names[which], known=known)
        kept = which.tolist()
        images, names = ([of[row] for row in kept] for of in (self.images, self.names))
        return replace(self, images=images, names=names, known=known)

    def seen(self) -> Known:
        """What was seen of each, once all have been read."""
        assert self.known is not None
        return self.known

    def fingerprint(self, targets: np.ndarray) -> str:
        return self.seen().fingerprint(self.shape, targets)

    def digests(self) -> Iterator[bytes]:
        return (row.tobytes() for row in self.seen().digests)

    def sums(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the pixels of the first `count` by channel, and of their squares, int64."""
        known = self.seen()
        return known.sums[:count].sum(0), known.squares[:count].sum(0)

    def join(self, other: Pictures) -> Pictures:
        known = None if self.known is None or other.known is None else self.known.join(other.known)
        return replace(self, images=[*self.images, *other.images], names=[*self.names, *other.names], known=known)


class Look(NamedTuple):
    """What the heads of images say: `pictures` are all of them, `broken` those that cannot be opened, and why."""

    pictures: Pictures
    broken: dict[int, str]


def look(name: str, images: Sequence[Open], names: Sequence[str], size: int | None, grey: bool | None = None) -> Look:
    """Open all images, and read none: grey where every one is (or `grey` says so) and RGB otherwise.

    Args:
        name: of the data set, for messages.
        names: of the images.
        size: side in pixels to which all are brought: the shorter side is scaled to it and the middle is cut out.

    Raises:
        InputError: images of several sizes without `size`, or of more bits than 8.
    """

    def form(i: int) -> tuple[str, tuple[int, int]] | str:
        try:
            with _opened(images[i]) as image:
                return image.mode, image.size
        except Exception as error:  # of PIL, of a file: any kind, for any bytes
            return reason(error, 120)

    broken: dict[int, str] = {}
    forms: dict[int, tuple[str, tuple[int, int]]] = {}
    for i, found in enumerate(_side_by_side(form, range(len(images)))):
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
    return Look(Pictures(name, images, names, height, width, grey), broken)


class Stack(NamedTuple):
    """What was read."""

    pictures: Pictures  # all but broken ones
    x: np.ndarray | None  # (N, height, width, channels) uint8, the same in memory
    rows: np.ndarray  # (N,) int64, which of the images these are
    note: str | None  # on broken ones that were left out


def read(looked: Look, skip: bool, resident: bool) -> Stack:
    """Read each image once: into one array where they are `resident`, else to see that they can be read.

    `skip` leaves out what cannot be read. InputError where that is not said, or no image is left.
    """
    every, broken = looked.pictures, dict(looked.broken)
    name, names, channels = every.name, every.names, every.shape[3]
    x = np.empty(every.shape, np.uint8) if resident else None
    digests = np.zeros((len(every), 16), np.uint8)
    sums, squares = (np.zeros((len(every), channels), np.int64) for _ in range(2))

    def one(i: int) -> str | None:
        try:
            pixels = every.read(i)
        except Exception as error:
            return reason(error, 120)
        if x is not None:
            x[i] = pixels
        digests[i] = np.frombuffer(digest(pixels), np.uint8)
        flat = pixels.reshape(-1, channels)
        sums[i] = flat.sum(0, dtype=np.int64)
        squares[i] = [int(np.dot(c, c)) for c in flat.T.astype(np.int64)]
        return None

    left = [i for i in range(len(every)) if i not in broken]
    for i, why in zip(left, _side_by_side(one, left), strict=True):
        if why is not None:
            broken[i] = why
    rows, note = np.arange(len(every)), None
    if broken:
        first = min(broken)
        count = f"{len(broken):,} of {len(every):,} images cannot be read"
        if not skip:
            raise InputError(
                f"{name}: {count}, the first is {names[first]} ({broken[first]}); replace them, or leave them out with "
                "--data.skip-corrupt"
            )
        rows = np.setdiff1d(rows, list(broken))
        if not len(rows):
            raise InputError(f"{name}: no image can be read, the first is {names[first]} ({broken[first]})")
        listed = ", ".join(printable(names[i], 80) for i in sorted(broken)[:_NAMED])
        note = f"{name}: {count} and are left out: {listed}{' …' if len(broken) > _NAMED else ''}"
        x = None if x is None else x[rows]
    known = Known(digests, sums, squares)
    return Stack(replace(every, known=known).take(rows) if broken else replace(every, known=known), x, rows, note)


def digest(pixels: np.ndarray) -> bytes:
    """Of one image; equal for equal ones of one shape."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def residence(name: str, wanted: str, pictures: Sequence[Pictures]) -> tuple[bool, str | None]:
    """Whether all of `pictures` are read into memory, and a line where that was the choice of this function.

    `wanted` is yes, no, or auto: where they take a quarter of what is free at most. InputError where they are wanted
    in memory and take more than half.
    """
    needed, free = sum(p.nbytes for p in pictures), free_memory()
    if wanted == "no":
        return False, None
    height, width = pictures[0].height, pictures[0].width
    what = f"{name}: {sum(map(len, pictures)):,} images of {width}×{height} pixels take {gibibytes(needed)}"
    if wanted == "yes" and free is not None and 2 * needed > free:
        raise InputError(
            f"{what} twice, and {gibibytes(free)} of memory are free; take smaller ones (--data.image-size), or have "
            "them read as they are needed (--data.resident no)"
        )
    if wanted == "yes" or free is None or SHARE * needed <= free:
        return True, None
    return False, (
        f"{what}, more than a quarter of the {gibibytes(free)} of memory that are free: they are read as they are "
        "needed; --data.workers N has N processes read ahead"
    )


def _side_by_side(function: Callable[[int], Any], rows: Iterable[int]) -> Iterable[Any]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on odd metadata and on large images
        yield from pool.map(function, rows)


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
