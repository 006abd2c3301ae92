"""Train, meta and test parts of a data set: the clean set leaves the training set, noise falls on what remains."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fastmeta._text import printable
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.noise import corrupt, parse
from fastmeta.data.seeds import numpy_generator

#: characters of a class name in a note
NAME_LENGTH = 40


@dataclass(frozen=True)
class Part:
    """Rows of one part. `row` numbers them in the data set's own arrays; `y_true` is None where nobody knows."""

    x: np.ndarray  # (N, H, W, channels) uint8
    y: np.ndarray  # (N,) int64, given
    row: np.ndarray  # (N,) int64
    y_true: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Splits:
    """What a run trains and measures on; `notes` are lines that the user should see."""

    train: Part
    meta: Part
    test: Part | None
    num_classes: int
    class_names: tuple[str, ...]
    noise: str
    noise_rate: float | None  # share of wrong given labels in train, None where nobody knows
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Changes when any image or label of any part does: a resumed run must see the data that it began with."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.meta, self.test):
            for array in () if part is None else (part.x, part.y, part.row):
                digest.update(repr((array.shape, str(array.dtype))).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def split(data: Dataset, *, noise: str = "none", meta_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Take the clean set out of train, or hold out a class-balanced `meta_fraction` of train, then corrupt the rest.

    Raises:
        InputError: an image of the meta set that also stands in train, a part that ends up empty, an unknown noise.
    """
    parse(noise)
    rows = np.arange(len(data.y_train))
    notes: list[str] = []
    if data.x_meta is not None and data.y_meta is not None:
        _check_overlap(data)
        train_rows = rows
        meta = Part(data.x_meta, data.y_meta, np.arange(len(data.y_meta)))
    else:
        if data.meta_index is not None:
            meta_rows = data.meta_index
        else:
            meta_rows = held_out(data.y_train, meta_fraction, seed)
            if not len(meta_rows):
                raise InputError(
                    f"{data.name}: no clean set can be held out, because no class has two images; bring x_meta and "
                    "y_meta, or more images"
                )
            notes.append(
                f"{data.name} has no clean set (x_meta, y_meta or meta_index): {len(meta_rows):,} training rows, "
                f"{meta_fraction:.0%} of each class, are held out as one, and their labels are trusted as they are"
            )
        train_rows = np.setdiff1d(rows, meta_rows)
        meta = Part(data.x_train[meta_rows], data.y_train[meta_rows], meta_rows)
    if not len(train_rows):
        raise InputError(f"{data.name}: no training row is left beside the clean set; name fewer rows in meta_index")

    before = data.y_train[train_rows]
    given = corrupt(before, data.num_classes, noise, numpy_generator(seed, "noise"))
    # labels that we corrupt ourselves were right as far as anybody knows
    y_true = data.y_true[train_rows] if data.y_true is not None else before if noise != "none" else None
    if len(np.unique(given)) < 2:
        raise InputError(f"{data.name}: one class only is left to train on, class {given[0]}; check the labels")
    present = set(np.unique(before).tolist())
    empty = [data.class_names[c] for c in range(data.num_classes) if c not in present]
    if empty:
        notes.append(
            f"train has no image of {len(empty)} of {data.num_classes} classes: {_some(empty)}; the network has an "
            "output for each all the same: is that how the labels are numbered?"
        )
    absent = [data.class_names[c] for c in sorted(present - set(meta.y.tolist()))]
    if absent:
        notes.append(
            f"the clean set has no image of {len(absent)} class(es): {_some(absent)}; it learns from the others"
        )
    test = None if data.x_test is None or data.y_test is None else _test(data.x_test, data.y_test)
    if test is not None:
        seen = _digests(data.x_train) | _digests(meta.x)
        known = sum(digest in seen for digest in map(_digest, test.x))
        if known:
            notes.append(
                f"{known:,} of {len(test):,} test images stand in train or the clean set too: test figures flatter"
            )
    return Splits(
        train=Part(data.x_train[train_rows], given, train_rows, y_true),
        meta=meta,
        test=test,
        num_classes=data.num_classes,
        class_names=data.class_names,
        noise=noise,
        noise_rate=None if y_true is None else float((given != y_true).mean()),
        notes=tuple(notes),
    )


def held_out(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows (sorted) of a class-balanced hold-out: the rounded `fraction` of each class, at least one of two or more."""
    generator = numpy_generator(seed, "hold-out")
    chosen = []
    for c in np.unique(targets):
        members = np.flatnonzero(targets == c)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def _some(names: list[str]) -> str:
    return ", ".join(printable(name, NAME_LENGTH) for name in names[:5]) + (" …" if len(names) > 5 else "")


def _test(x: np.ndarray, y: np.ndarray) -> Part:
    return Part(x, y, np.arange(len(y)))


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _digests(images: np.ndarray) -> set[bytes]:
    return set(map(_digest, images))


def _check_overlap(data: Dataset) -> None:
    assert data.x_meta is not None
    seen = _digests(data.x_meta)
    shared = [row for row, image in enumerate(data.x_train) if _digest(image) in seen]
    if shared:
        raise InputError(
            f"{data.name}: the clean set and train share {len(shared)} image(s), the first at row {shared[0]} of "
            "x_train; a leak would flatter every result: drop these rows, or name them with meta_index"
        )
