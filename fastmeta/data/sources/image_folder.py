"""``folder:PATH``: image files in a folder per class, in train/, test/ and meta/, or all of them to train on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmeta._text import printable
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.sources.image_files import ImageFiles, dataset_of_files
from fastmeta.data.sources.scheme import Choice, given_path

FORM = "folder:PATH"
HELP = "image files in a folder for each class, below train/, and test/ and meta/ where there are any"
OPTIONS = frozenset({"image_size", "skip_corrupt"})

PARTS = ("train", "meta", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
#: of images that PIL opens with other packages alone
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".raw", ".dng", ".npy")
_LAYOUT = "folder:PATH wants PATH/train/CLASS/IMAGE, and PATH/test and PATH/meta alike, or PATH/CLASS/IMAGE"


def read(argument: str, choice: Choice) -> Dataset:
    root = given_path(FORM, argument)
    try:
        return _read(root, choice)
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read ({error.strerror}); {_LAYOUT}") from error


def lasting(argument: str) -> str:
    return str(given_path(FORM, argument).resolve())


class ImageTree(NamedTuple):
    """What lies where in the folder of a data set; paths below that folder."""

    train: Path
    classes: list[Path]  # folders of classes in all parts, with images or without
    images: dict[str, list[str]]  # by part

    @classmethod
    def of(cls, root: Path) -> ImageTree:
        """InputError for a folder that is laid out otherwise."""
        places, classes = _layout(root)
        return cls(
            places["train"].relative_to(root),
            [(place / name).relative_to(root) for place in places.values() for name in _folders(place)],
            {part: [str(p.relative_to(root)) for p in _listed(place, classes)[0]] for part, place in places.items()},
        )


def _layout(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each part, and the classes of train. InputError for what is laid out otherwise."""
    if not root.is_dir():
        raise InputError(f"{root} {'is no folder' if root.exists() else 'does not exist'}; {_LAYOUT}")
    there = [part for part in PARTS if (root / part).is_dir()]
    if there and "train" not in there:
        raise InputError(f"{root} has {there[0]}/ and no train/; {_LAYOUT}")
    places = {part: root / part for part in there} or {"train": root}
    classes = _folders(places["train"])
    if len(classes) < 2:
        got = f"one class only ({classes[0]})" if classes else "no folder"
        raise InputError(f"{places['train']} holds {got}; {_LAYOUT}, and labels can be learned from two classes on")
    return places, classes


def _read(root: Path, choice: Choice) -> Dataset:
    from PIL import Image

    places, classes = _layout(root)
    notes, found = [], dict[str, ImageFiles]()
    if root not in places.values() and (others := [n for n in _folders(root) if n not in PARTS]):
        notes.append(
            f"{root}: {', '.join(printable(n, 40) for n in others[:5])} beside train/ "
            f"{'is' if len(others) == 1 else 'are'} not used; parts are train/, meta/ and test/"
        )
    for part, place in places.items():
        if strange := [n for n in _folders(place) if n not in classes]:
            raise InputError(
                f"{place} has a class {printable(strange[0], 40)!r} that train has not: "
                f"{', '.join(printable(n, 40) for n in classes[:8])}{' …' if len(classes) > 8 else ''}; all parts need "
                "the same classes"
            )
        paths, labels = _listed(place, classes)
        if not paths:
            raise InputError(f"{place} holds no image ({', '.join(SUFFIXES)}); {_LAYOUT}")
        if left := _left_out(root, place, classes):
            notes.append(left)
        names = [str(path.relative_to(root)) for path in paths]
        found[part] = ImageFiles([partial(Image.open, path) for path in paths], names, np.array(labels, np.int64))
    data = dataset_of_files(str(root), found, tuple(classes), choice)
    return replace(data, notes=(*notes, *data.notes))


def _folders(place: Path) -> list[str]:
    """By name, and without hidden ones, as torchvision's ImageFolder numbers classes."""
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _listed(place: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The image files below the folders of the classes in `place`, and the class numbers of these."""
    paths, labels = [], []
    for number, name in enumerate(classes):
        if not (place / name).is_dir():
            continue
        found = sorted(p for p in (place / name).rglob("*") if _is_image(p))
        paths += found
        labels += [number] * len(found)
    return paths, labels


def _is_image(path: Path) -> bool:
    """By its name. A link to nothing is one, which cannot be read."""
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def _left_out(root: Path, place: Path, classes: list[str]) -> str | None:
    """A line on files that look like samples and are none: of other kinds, or in no folder of a class."""
    others = Counter(
        path.suffix.lower()
        for name in classes
        for path in (place / name).rglob("*")
        if path.suffix.lower() in UNREAD and path.is_file()
    )
    loose = sum(1 for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    told = [f"{count:,} of {suffix}" for suffix, count in sorted(others.items())]
    told += [f"{loose:,} that lie in no folder of a class"] if loose else []
    if not told:
        return None
    return (
        f"{root}: image files in {place.name}/ are left out, {', '.join(told)}; convert or move them if they are meant"
    )
