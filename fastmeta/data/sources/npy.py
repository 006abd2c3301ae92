"""``npy:DIR``: the arrays of an npz file as a file each, whose rows are read as they are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmeta._text import printable, shown
from fastmeta.data.arrays import class_numbers, texts
from fastmeta.data.dataset import FIELDS, LABELS_BEFORE, MOST_CLASSES, Dataset, check_forms
from fastmeta.data.errors import InputError
from fastmeta.data.npy_rows import NpyFile, NpyRows
from fastmeta.data.row_sources import FeatureRows, ImageRows
from fastmeta.data.source import Source
from fastmeta.data.sources.scheme import Choice, given_path

FORM = "npy:DIR"
HELP = """a folder of the same arrays, a file of np.save each: DIR/x_train.npy or DIR/train/x.npy, and so on; what does
not fit into memory is read as it is needed"""

PARTS = ("train", "meta", "test")
#: field -> its file in the folder of a part; every field may lie in the folder itself by its name, FIELD.npy
IN_PARTS = {
    "x_train": "train/x.npy",
    "y_train": "train/y.npy",
    "y_true": "train/y_true.npy",
    "meta_index": "train/meta_index.npy",
    "x_meta": "meta/x.npy",
    "y_meta": "meta/y.npy",
    "y_meta_given": "meta/y_given.npy",
    "x_test": "test/x.npy",
    "y_test": "test/y.npy",
}
#: the labels as given, where labels were corrected
BEFORE = (f"{LABELS_BEFORE}.npy", f"train/{LABELS_BEFORE}.npy")
_LAYOUT = "npy:DIR wants DIR/x_train.npy and DIR/y_train.npy, or DIR/train/x.npy and DIR/train/y.npy"
_LABELS = ("y_train", "y_true", "y_meta", "y_test", "y_meta_given", "meta_index")
_NAMED = 5


def read(argument: str, choice: Choice) -> Dataset:
    root = given_path(FORM, argument)
    try:
        return _read(root, choice)
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read ({error.strerror}); {_LAYOUT}") from error


def lasting(argument: str) -> str:
    return str(given_path(FORM, argument).resolve())


class NpyFolder(NamedTuple):
    """What lies where in the folder of a data set; paths below that folder."""

    places: dict[str, Path]  # field -> its array
    arrays: list[str]  # all .npy files

    @classmethod
    def of(cls, root: Path, given: str = "y_train", truth: str = "y_true") -> NpyFolder:
        """`given` and `truth` name the arrays of labels. InputError for a folder that is laid out otherwise."""
        if not root.is_dir():
            way = "; a file of several arrays is npz:PATH" if root.exists() else ""
            raise InputError(f"{root} {'is no folder' if root.exists() else 'does not exist'}; {_LAYOUT}{way}")
        arrays = _arrays(root)
        places: dict[str, Path] = {}
        for field in FIELDS:
            option, name = {"y_train": ("given", given), "y_true": ("truth", truth)}.get(field, ("", field))
            if Path(name).name != name or name in (".", ".."):
                raise InputError(f"data.{option} names a file of {root} without its .npy, got {shown(name)}")
            possible = [f"{name}.npy"]
            if field in IN_PARTS:
                possible.append(IN_PARTS[field] if name == field else f"train/{name}.npy")
            there = [place for place in possible if place in arrays]
            if len(there) > 1:
                raise InputError(f"{root} has {there[0]} and {there[1]}, which are the same array; keep one of them")
            if there:
                places[field] = Path(there[0])
            elif name != field:
                found = _listed(arrays)
                raise InputError(f"{root} has no {possible[0]} and no {possible[1]} for data.{option}; {found}")
        for field in ("x_train", "y_train"):
            if field not in places:
                raise InputError(f"{root} has no {field}.npy and no {IN_PARTS[field]}; {_LAYOUT}; {_listed(arrays)}")
        return cls(places, arrays)


def _read(root: Path, choice: Choice) -> Dataset:
    folder = NpyFolder.of(root, choice.given, choice.truth)
    files = {field: NpyFile(root / place) for field, place in folder.places.items()}
    forms = {field: file.declared for field, file in files.items()}
    names = forms.pop("class_names", None)
    forms.pop("superclasses", None)
    check_forms(str(root), forms, known=lambda: _listed(folder.arrays))
    if names is not None and (names.ndim != 1 or names.shape[0] > MOST_CLASSES):
        raise InputError(f"{root}: class_names must be one name per class (C,), got shape {names.shape}")
    class_names = None if names is None else texts(files["class_names"].whole(), f"{root}: class_names")
    numbers = {key: class_numbers(files[key].whole().reshape(-1), f"{root}: {key}") for key in _LABELS if key in files}

    def part(name: str) -> Source | None:
        if f"x_{name}" not in files:
            return None
        rows = NpyRows.of(files[f"x_{name}"])
        made = ImageRows if rows.dtype == np.uint8 else FeatureRows
        return made(rows, numbers[f"y_{name}"], class_names)

    train = part("train")
    assert train is not None
    data = Dataset.from_sources(
        str(root),
        train,
        part("meta"),
        part("test"),
        class_names=class_names,
        y_true=numbers.get("y_true"),
        meta_index=numbers.get("meta_index"),
        meta_given=numbers.get("y_meta_given"),
        superclasses=files["superclasses"].whole() if "superclasses" in files else None,
    )
    return replace(data, notes=tuple(_strays(root, folder)))


def _strays(root: Path, folder: NpyFolder) -> list[str]:
    """A line on arrays that are there and not used, if any."""
    used = {*map(str, folder.places.values()), *BEFORE}
    left = [name for name in folder.arrays if name not in used]
    if not left:
        return []
    some = ", ".join(printable(name, 60) for name in left[:_NAMED]) + (" …" if len(left) > _NAMED else "")
    way = "; data.val_fraction holds out a validation set" if any(n.startswith("val/") for n in left) else ""
    return [
        f"{root}: {some} {'is' if len(left) == 1 else 'are'} not used; a clean set is meta/x.npy and meta/y.npy, or "
        f"x_meta.npy and y_meta.npy, a test set likewise{way}"
    ]


def _arrays(root: Path) -> list[str]:
    """The .npy files of the folder and of those in it, below it."""
    folders = [root, *sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))]
    return [str(p.relative_to(root)) for f in folders for p in sorted(f.glob("*.npy")) if not p.name.startswith(".")]


def _listed(arrays: list[str]) -> str:
    names = ", ".join(printable(name, 40) for name in arrays[:20]) + (" …" if len(arrays) > 20 else "")
    return f"found {names or 'no .npy file at all'}"
