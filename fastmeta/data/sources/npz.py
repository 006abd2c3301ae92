"""``npz:PATH``: a file of arrays, images or features."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmeta._text import reason, shown
from fastmeta._trust import check_pickle
from fastmeta.data.dataset import FIELDS, MOST_CLASSES, Dataset, check_forms, strays
from fastmeta.data.errors import InputError
from fastmeta.data.npz_file import NpzFile
from fastmeta.data.sources.scheme import Choice, given_path

FORM = "npz:PATH"
HELP = """a file with x_train and y_train, optional are x_meta and y_meta, or meta_index; y_meta_given; x_test and
y_test; y_true; class_names; superclasses. A uint8 x_train (N, height, width, channels) is images, a float one (N, ...)
features"""


def read(argument: str, choice: Choice) -> Dataset:
    return read_npz(given_path(FORM, argument), given=choice.given, truth=choice.truth)


def lasting(argument: str) -> str:
    """Absolute, because a run directory must find the file again from any folder."""
    return str(given_path(FORM, argument).resolve())


def read_npz(path: Path, *, given: str = "y_train", truth: str = "y_true") -> Dataset:
    """Read the arrays of `dataset.FIELDS` from an .npz file; nothing is unpickled unless pickles are trusted."""
    if is_pickle(path):
        return _unpickled(path, given, truth)
    sources = {**{field: field for field in FIELDS}, "y_train": given, "y_true": truth}
    with NpzFile(path) as file:
        for field, key in (("given", given), ("truth", truth)):
            if key not in file and key not in ("y_train", "y_true"):
                raise InputError(f"{path}: no array {shown(key)} for data.{field}, found {file.names}")
        if "superclasses" not in file:  # by the name that copies of CIFAR-100 give them
            sources["superclasses"] = "fine_to_coarse"
        declared = {key: file.declared(key) for key in dict.fromkeys(sources.values()) if key in file}
        # what does not fit is said before anything is unpacked
        forms = {field: declared[key] for field, key in sources.items() if key in declared}
        names = forms.pop("class_names", None)
        forms.pop("superclasses", None)
        check_forms(str(path), forms, known=lambda: file.names)
        if names is not None and (names.ndim != 1 or names.shape[0] > MOST_CLASSES):
            raise InputError(f"{path}: class_names must be one name per class (C,), got shape {names.shape}")
        arrays = file.read(declared)
        unused = strays(file, taken=(given, truth))
    found = {field: arrays[key] for field, key in sources.items() if key in arrays}
    return replace(Dataset.from_arrays(found, name=str(path)), unused=unused)


def is_pickle(path: Path) -> bool:
    """Of protocol 2 and later, by its first byte; what cannot be read is told by whoever reads it."""
    try:
        if not path.is_file():  # a FIFO would never open
            return False
        with path.open("rb") as file:
            return file.read(1) == b"\x80"
    except OSError:
        return False


def _unpickled(path: Path, given: str, truth: str) -> Dataset:
    """A mapping of arrays that is a pickle, where these are trusted."""
    try:
        check_pickle("is a pickle")
        with path.open("rb") as file:
            content = pickle.load(file)
    except ValueError as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from error
    except Exception as error:  # of any code
        raise InputError(f"{path} cannot be unpickled ({reason(error)})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds {type(content).__name__}, no mapping of arrays")
    renamed: dict[Any, Any] = {given: "y_train", truth: "y_true"}
    return Dataset.from_arrays({renamed.get(k, k): v for k, v in dict(content).items()}, name=str(path))
