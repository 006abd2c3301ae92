"""``torchvision:NAME``: a classification set of uint8 images that torchvision knows, from files that are there.

Of these sets torchvision unpickles the files of CIFAR alone, and compares their MD5 first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import reason, shown
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.idx_file import read_idx
from fastmeta.data.sources.scheme import Choice

FORM = "torchvision:NAME"
HELP = "a set of small images such as FashionMNIST or CIFAR10, from the files in --data.root"
#: where files are without data.root
FOLDER = "data"

#: in files of the idx format, which are read here, packed or not: torchvision takes unpacked ones alone
IDX = ("MNIST", "FashionMNIST", "KMNIST")
#: file, dimensions, the array that it becomes
IDX_FILES = (
    ("train-images-idx3-ubyte", 3, "x_train"),
    ("train-labels-idx1-ubyte", 1, "y_train"),
    ("t10k-images-idx3-ubyte", 3, "x_test"),
    ("t10k-labels-idx1-ubyte", 1, "y_test"),
)
#: read by torchvision: how its class is asked for train and test, and what files it looks for
OTHERS: dict[str, tuple[str, str]] = {
    "CIFAR10": ("train", "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta"),
    "CIFAR100": ("train", "cifar-100-python/ with train, test and meta"),
    "SVHN": ("split", "train_32x32.mat and test_32x32.mat"),
    "STL10": ("split", "stl10_binary/ with train_X.bin, train_y.bin, unlabeled_X.bin, test_X.bin and test_y.bin"),
    "USPS": ("train", "usps.bz2 and usps.t.bz2"),
}


def read(argument: str, choice: Choice) -> Dataset:
    """Train and test parts; the labels are taken as published."""
    if argument not in IDX and argument not in OTHERS:
        raise InputError(
            f"torchvision:NAME takes sets of uint8 images with train and test parts: {', '.join((*IDX, *OTHERS))}, got "
            f"{shown(argument)}; build another one in a factory of your own, and name that: package.module:factory"
        )
    choice.refuse_arrays(f"{argument} has none to choose")
    arrays = (_idx if argument in IDX else _made)(argument, folder(choice.root), choice.download)
    return Dataset.from_arrays(arrays, name=argument)


def folder(root: str | None) -> Path:
    """Absolute, because a run directory must find the files again from any folder."""
    try:
        return Path(root or FOLDER).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # ~somebody who is not known here
        raise InputError(f"data.root: {reason(error)}; write the path out") from error


def _class(argument: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, argument)


def _idx(argument: str, root: Path, download: bool) -> dict[str, Any]:
    """From the first of the places where all files are: as torchvision lays them, or the folder itself."""
    places = (root / argument / "raw", root / argument, root / "raw", root)

    def found(place: Path) -> list[Path] | None:
        names = [next((p for p in (place / n, place / f"{n}.gz") if p.is_file()), None) for n, *_ in IDX_FILES]
        return [p for p in names if p is not None] if None not in names else None

    if download and not any(map(found, places)):
        _fetched(argument, root, {"train": True})
    files = next(filter(None, map(found, places)), None)
    if files is None:
        names = ", ".join(name for name, *_ in IDX_FILES)
        raise _absent(argument, f"{root} or {places[0]}", f"{names} (each may end in .gz)")
    arrays = {key: read_idx(file, n) for file, (_, n, key) in zip(files, IDX_FILES, strict=True)}
    return {**arrays, **{k: arrays[k].astype(np.int64) for k in ("y_train", "y_test")}, **_names(_class(argument))}


def _made(argument: str, root: Path, download: bool) -> dict[str, Any]:
    """By torchvision, of images that its classes hold in memory."""
    word, files = OTHERS[argument]
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        choose = {word: part if word == "split" else part == "train"}
        if download:
            made = _fetched(argument, root, choose)
        else:
            try:
                made = _class(argument)(str(root), **choose)
            except Exception as error:  # of files that are absent or broken
                raise _absent(argument, str(root), files, f" ({reason(error)})") from error
        x = np.asarray(made.data)
        if x.ndim == 4 and x.shape[1] == 3:  # SVHN and STL10
            x = x.transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = np.ascontiguousarray(x)
        arrays[f"y_{part}"] = np.asarray(made.targets if hasattr(made, "targets") else made.labels).astype(np.int64)
        arrays |= _names(made)
    return arrays


def _names(made: Any) -> dict[str, Any]:
    names = getattr(made, "classes", None)
    return {} if names is None else {"class_names": list(map(str, names))}


def _fetched(argument: str, root: Path, choose: dict[str, Any]) -> Any:
    try:
        return _class(argument)(str(root), **choose, download=True)
    except Exception as error:  # of a network, of a disk
        raise InputError(f"torchvision:{argument} cannot be downloaded to {root}: {reason(error)}") from error


def _absent(argument: str, where: str, files: str, why: str = "") -> InputError:
    return InputError(
        f"torchvision:{argument} finds no files in {where}: expected {files}; name their folder with --data.root, or "
        f"have them downloaded with --data.download{why}"
    )
