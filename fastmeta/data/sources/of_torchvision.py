"""``torchvision:NAME``: a classification set of uint8 images that torchvision knows, from files that are there.

torchvision checks the MD5 of what it unpickles, such as the files of CIFAR-10, before it does so.
"""

from __future__ import annotations

import gzip
import inspect
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import reason, shown
from fastmeta.data.arrays import as_array
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.sources.scheme import Choice

FORM = "torchvision:NAME"
HELP = """a set of small images such as FashionMNIST or CIFAR10, from the files in --data.root (./data)"""
#: where files are without data.root
FOLDER = "data"

#: sets in files of the idx format, which are read here, packed or not: torchvision takes unpacked ones alone
_IDX = ("MNIST", "FashionMNIST", "KMNIST")
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
#: deflate makes at most 1,032 bytes of one
_MOST_RATIO = 1032


def read(argument: str, choice: Choice) -> Dataset:
    """Train and test parts of ``torchvision.datasets.NAME``; the labels are taken as published."""
    choice.refuse_arrays(f"{argument} has none to choose")
    kind = _kind(argument)
    root = folder(choice.root)
    if argument in _IDX:
        found = _idx_folder(root, argument)
        if found is None and choice.download:
            _made(kind, argument, root, download=True)
            found = _idx_folder(root, argument)
        if found is None:
            raise InputError(_absent(argument, root, f"{', '.join(_IDX_FILES)} (each may end in .gz)"))
        x_train, y_train, x_test, y_test = (_read_idx(_packed(found / name) or found / name) for name in _IDX_FILES)
        arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
        names = getattr(kind, "classes", None)
    else:
        train, test = _made(kind, argument, root, download=choice.download)
        arrays = {}
        for part, made in (("train", train), ("test", test)):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = _arrays(argument, made)
        names = getattr(train, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        arrays["class_names"] = np.array(names)
    return Dataset.from_arrays(arrays, name=argument)


def folder(root: str | None) -> Path:
    """Absolute, because a run directory must find the files again from any folder."""
    try:
        return Path(root or FOLDER).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # ~somebody who is not known here
        raise InputError(f"data.root: {reason(error)}; write the path out") from error


def _kind(argument: str) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, argument, None) if argument in datasets.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
        raise InputError(
            f"torchvision has no data set {shown(argument)}; sets of small images are FashionMNIST, MNIST, KMNIST, "
            "CIFAR10, CIFAR100, SVHN, STL10 and USPS"
        )
    return kind


def _absent(argument: str, root: Path, files: str) -> str:
    return (
        f"torchvision:{argument}: its files are not in {root} (or {Path(argument) / 'raw'} there): expected {files}; "
        "name their folder with --data.root, or have them downloaded there with --data.download"
        if argument in _IDX
        else f"torchvision:{argument}: its files are not in {root}: expected {files}; name the folder that holds them "
        "with --data.root, or have them downloaded there with --data.download"
    )


# ---- by torchvision ----


def _made(kind: Any, argument: str, root: Path, *, download: bool) -> tuple[Any, Any]:
    takes = inspect.signature(kind).parameters
    needed = [n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n != "root"]
    if not ("root" in takes and not needed and ("train" in takes or "split" in takes)):
        raise InputError(
            f"torchvision:{argument} is no set with train and test parts that a folder alone names; build it in a "
            "factory of your own and name that: package.module:factory"
        )
    by = [{"train": True}, {"train": False}] if "train" in takes else [{"split": "train"}, {"split": "test"}]
    extra = {"download": download} if "download" in takes else {}
    try:
        train, test = (kind(str(root), **part, **extra) for part in by)
    except Exception as error:  # of files that are absent or broken, of a network
        if download:
            raise InputError(f"torchvision:{argument} cannot be downloaded to {root}: {reason(error)}") from error
        raise InputError(f"{_absent(argument, root, _files(kind))} ({reason(error)})") from error
    return train, test


def _files(kind: Any) -> str:
    """What torchvision looks for, as far as a class tells."""
    inside = getattr(kind, "base_folder", None)
    lists = [getattr(kind, name, None) or [] for name in ("train_list", "test_list")]
    names = [str(row[0]) for rows in lists for row in rows]
    splits = getattr(kind, "split_list", None)
    if not names and isinstance(splits, dict):
        # (address, file or its md5, ...): the file is the part that ends like one
        names = [Path(str(row[0])).name for name, row in splits.items() if name in ("train", "test")]
    text = ", ".join(dict.fromkeys(names)) or "those of torchvision's documentation"
    return f"{text} in {inside}/" if isinstance(inside, str) and names else text


def _arrays(argument: str, made: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W[, channels]) and labels (N,) that a set holds in memory."""
    x = getattr(made, "data", None)
    y = next((v for n in ("targets", "labels") if (v := getattr(made, n, None)) is not None), None)
    images = None if x is None else as_array(x, f"torchvision:{argument}: data")
    if images is None or y is None or images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"torchvision:{argument} holds no uint8 images of one size in memory; give it a transform in a factory of "
            "your own, which streams it, and name that: package.module:factory"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), as_array(y, f"torchvision:{argument}: labels")


# ---- idx files ----


def _packed(path: Path) -> Path | None:
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.is_file() and packed.is_file() else None


def _idx_folder(root: Path, argument: str) -> Path | None:
    """The first that has all files: as torchvision lays them, or the folder itself."""
    for place in (root / argument / "raw", root / argument, root / "raw", root):
        if all((place / name).is_file() or _packed(place / name) for name in _IDX_FILES):
            return place
    return None


def _read_idx(path: Path) -> np.ndarray:
    """A uint8 array of as many dimensions as the name says; labels are of int64."""
    dimensions = 3 if "idx3" in path.name else 1
    head = 4 + 4 * dimensions
    packed = path.suffix == ".gz"
    try:
        size = path.stat().st_size
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(head)
            if len(header) < head or header[:4] != bytes((0, 0, 8, dimensions)):
                raise InputError(f"{path} is no idx file of bytes in {dimensions} dimension(s); get it anew")
            shape = tuple(int(v) for v in np.frombuffer(header, ">u4", offset=4))
            count = math.prod(shape)
            if count > size * (_MOST_RATIO if packed else 1):
                raise InputError(f"{path} declares {count:,} bytes and has fewer: it was cut; get it anew")
            data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); get it anew") from error
    if len(data) != count:
        state = "fewer: it was cut" if len(data) < count else "more"
        raise InputError(f"{path} declares {count:,} bytes and has {state}; get it anew")
    array = np.frombuffer(bytearray(data), np.uint8).reshape(shape)  # of bytes it could not be written to
    return array if dimensions == 3 else array.astype(np.int64)
