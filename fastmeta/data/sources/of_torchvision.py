"""``torchvision:NAME``: a classification set of uint8 images that torchvision knows, from files that are there.

Of these sets torchvision unpickles the files of CIFAR alone, and compares their MD5 first.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import reason, shown
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.idx_file import read_idx
from fastmeta.data.sources.image_files import ImageFiles, dataset_of_files
from fastmeta.data.sources.scheme import Choice

FORM = "torchvision:NAME"
HELP = "a set of small images such as FashionMNIST or CIFAR10, from the files in --data.root"
OPTIONS = frozenset({"root", "download", "image_size", "skip_corrupt"})
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
#: of image files, which its classes open one by one: how the class is asked for its parts, and the words for these
PICTURES: dict[str, tuple[str | None, str, str | None]] = {
    "EuroSAT": (None, "all", None),
    "GTSRB": ("split", "train", "test"),
    "Flowers102": ("split", "train", "test"),
    "DTD": ("split", "train", "test"),
    "OxfordIIITPet": ("split", "trainval", "test"),
    "FGVCAircraft": ("split", "trainval", "test"),
    "Food101": ("split", "train", "test"),
    "Country211": ("split", "train", "test"),
    "Imagenette": ("split", "train", "val"),
    "RenderedSST2": ("split", "train", "test"),
}


def read(argument: str, choice: Choice) -> Dataset:
    """Train and test parts; the labels are taken as published."""
    if argument not in IDX and argument not in OTHERS and argument not in PICTURES:
        raise InputError(
            "torchvision:NAME takes sets of uint8 images for classification: "
            f"{', '.join((*IDX, *PICTURES, *OTHERS))}, got {shown(argument)}; build another one in a factory of your "
            "own, and name that: package.module:factory"
        )
    choice.refuse_arrays(f"{argument} has none to choose")
    if argument in PICTURES:
        return _opened(argument, folder(choice.root), choice)
    if choice.image_size is not None or choice.skip_corrupt:
        name = "skip_corrupt" if choice.image_size is None else "image_size"
        raise InputError(f"data.{name} is about image files, and {argument} holds arrays; leave it out")
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


def _opened(argument: str, root: Path, choice: Choice) -> Dataset:
    """Of images that its classes open from files."""
    word, *parts = PICTURES[argument]
    found: dict[str, ImageFiles] = {}
    names: tuple[str, ...] | None = None
    for part, value in zip(("train", "test"), parts, strict=True):
        if value is None:
            continue
        choose = {} if word is None else {word: value}
        try:
            made = (_fetched if choice.download else _made_of)(argument, root, choose)
        except InputError:
            raise
        except Exception as error:  # of files that are absent or broken, of a network
            raise _absent(
                argument, str(root), f"those of torchvision.datasets.{argument}", f" ({reason(error)})"
            ) from error
        labels = np.zeros(len(made), np.int64)
        opening = [partial(_open, made, labels, i) for i in range(len(made))]
        found[part] = ImageFiles(opening, [f"image {i} of {value}" for i in range(len(made))], labels)
        names = _names(made).get("class_names", names)
    return replace(dataset_of_files(argument, found, names, choice), row_names=None)


def _open(made: Any, labels: np.ndarray, row: int) -> Any:
    """Image `row` of a class of torchvision, whose label is written down: most classes know it by opening alone."""
    picture, label = made[row]
    labels[row] = label
    return picture


def _made_of(argument: str, root: Path, choose: dict[str, Any]) -> Any:
    return _class(argument)(str(root), **choose)


def _names(made: Any) -> dict[str, Any]:
    names = getattr(made, "classes", None)
    return {} if names is None else {"class_names": list(map(str, names))}


def _fetched(argument: str, root: Path, choose: dict[str, Any]) -> Any:
    try:
        return _class(argument)(str(root), **choose, download=True)
    except Exception as error:  # of a network, of a disk
        raise InputError(f"torchvision:{argument} cannot be downloaded to {root}: {reason(error)}") from error


def _absent(argument: str, where: str, files: str, why: str = "") -> InputError:
    sums = _checksums(argument)
    return InputError(
        f"torchvision:{argument} finds no files in {where}: expected {files}"
        f"{f', MD5 {sums}' if sums else ''}; name their folder with --data.root, or have them downloaded with "
        f"--data.download{why}"
    )


def _checksums(argument: str) -> str:
    """``file sum`` of what is downloaded, as the class of torchvision has it; nothing where it tells none."""
    made = _class(argument)
    pairs: list[tuple[Any, Any]] = []
    if hasattr(made, "tgz_md5"):
        pairs.append((made.filename, made.tgz_md5))
    elif isinstance(getattr(made, "resources", None), list):
        pairs += [pair for pair in made.resources if len(pair) == 2]
    elif isinstance(getattr(made, "split_list", None), dict):
        pairs += [(entry[1], entry[2]) for part, entry in made.split_list.items() if part in ("train", "test")]
    return ", ".join(f"{name} {sum}" for name, sum in pairs)
