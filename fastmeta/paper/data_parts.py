"""The images of a scale: which file has them, and the part of them that scale cpu trains on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import reason
from fastmeta.data import InputError
from fastmeta.paper.scale import DIGITS, NOISY_DIGITS, PARTS, Scale
from fastmeta.paper.wanted import Wanted
from fastmeta.training.rundir import read, write_atomically

#: classes of an npz file -> the data set that it holds
_CLASSES = {10: "cifar10", 100: "cifar100"}
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def named_data(paths: Iterable[str]) -> dict[str, Path]:
    """By cifar10 and cifar100: npz files of all their images, told apart by their classes.

    Raises:
        InputError: a file that cannot be read, or holds other arrays.
    """
    found: dict[str, Path] = {}
    for name in paths:
        path = Path(name).expanduser()
        classes = len(np.unique(_of_file(path, ("y_train",))["y_train"]))
        if classes not in _CLASSES:
            raise InputError(f"{path} has {classes} classes, and the paper's data have 10 or 100")
        if _CLASSES[classes] in found:
            raise InputError(f"{path} and {found[_CLASSES[classes]]} both hold {_CLASSES[classes]}; leave one out")
        found[_CLASSES[classes]] = path
    return found


def make_parts(scale: Scale, runs: Iterable[Wanted]) -> dict[str, str]:
    """Write the files of scales cpu and smoke that `runs` want and that are not there; a digest by data set.

    The first images of each class, in the order of the data set, so that it depends on no seed.

    Raises:
        InputError: nobody says where the images are, or they are not those that the folder began with.
    """
    wanted = {one.config.dataset for one in runs}
    for dataset in ("cifar10", "cifar100"):
        if dataset in wanted:  # read by torchvision, run by run: better told now
            _of_torchvision(dataset, scale.root or "data", ("test",))
    digests = {}
    for dataset, counts in PARTS.items():
        path = scale.part(dataset)
        if f"npz:{path}" in wanted:
            if not os.path.isfile(path):
                part = _part(_all(scale, dataset), counts)
                write_atomically(path, _npz(_noisy(part) if dataset == NOISY_DIGITS else part))
            digests[dataset] = read(path, lambda p: _digest(_arrays(p, _ARRAYS)))
    return digests


def _all(scale: Scale, dataset: str) -> dict[str, Any]:
    if dataset in (DIGITS, NOISY_DIGITS):
        return _digits()
    if dataset in scale.data:
        return _of_file(scale.data[dataset], (*_ARRAYS, "class_names"))
    root = scale.root
    if root is None:
        raise InputError(
            f"scale {scale.name} trains on images of {dataset}: name their npz file with --data, or torchvision's "
            "folder with --data-root"
        )
    return _of_torchvision(dataset, root)


def _digits() -> dict[str, Any]:
    """scikit-learn's, in its order: the second half of each class is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, y = (bunch.images * 15).astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    first = np.concatenate([np.flatnonzero(y == c)[: (y == c).sum() * 2 // 3] for c in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), first)
    parts = {"train": np.sort(first), "test": rest}
    arrays = {f"{k}_{name}": v[rows] for name, rows in parts.items() for k, v in (("x", images), ("y", y))}
    return {**arrays, "class_names": np.asarray([str(c) for c in range(10)])}


def _of_torchvision(dataset: str, root: str, parts: tuple[str, ...] = ("train", "test")) -> dict[str, Any]:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    arrays: dict[str, Any] = {}
    for part in parts:
        try:
            found = kind(root, train=part == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"the folder {root} holds no {dataset} of torchvision; name its folder with --data-root, or an npz "
                "file with --data"
            ) from error
        arrays |= {f"x_{part}": found.data, f"y_{part}": np.asarray(found.targets)}
        arrays["class_names"] = np.asarray(found.classes)
    return arrays


def _part(whole: Mapping[str, Any], counts: tuple[int, int]) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for name, count in zip(("train", "test"), counts, strict=True):
        y = whole[f"y_{name}"]
        classes = np.unique(y)
        rows = np.sort(np.concatenate([np.flatnonzero(y == c)[: count // len(classes)] for c in classes]))
        part |= {f"x_{name}": whole[f"x_{name}"][rows], f"y_{name}": y[rows].astype(np.int64)}
    return part | {"class_names": whole["class_names"]}


def _noisy(part: dict[str, Any]) -> dict[str, Any]:
    """Half of the training labels drawn anew, any class; the right ones stay beside them."""
    rng, y = np.random.default_rng(0), part["y_train"]
    drawn = np.where(rng.random(len(y)) < 0.5, rng.integers(0, 10, len(y)), y)
    return {**part, "y_train": drawn, "y_true": y}


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _of_file(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Of a file of the user's. InputError for one that has not these arrays."""
    try:
        return _arrays(path, names)
    except Exception as error:  # whatever numpy says of bytes of anybody's
        told = (error.strerror if isinstance(error, OSError) else None) or reason(error)
        raise InputError(f"--data {path} cannot be read: {told}; it wants an npz file of all images") from error


def _arrays(path: Path, names: Iterable[str]) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise ValueError(f"it has no array {missing[0]}; it should have {', '.join(_ARRAYS)}")
        return {name: file[name] for name in names}


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in _ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def rows_of(dataset: str) -> tuple[int, int, tuple[int, ...]]:
    """Training rows, classes and the shape of an image of a config's data set, without looking at a file."""
    name = Path(dataset.removeprefix("npz:")).name
    if DIGITS in name:
        return PARTS[DIGITS][0], 10, (1, 8, 8)
    part = next((counts[0] for known, counts in PARTS.items() if name == f"{known}-{counts[0]}.npz"), 50_000)
    return part, 100 if "100" in name.partition("-")[0] else 10, (3, 32, 32)
