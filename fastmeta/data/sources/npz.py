"""``npz:PATH``: a file of arrays, images or features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fastmeta._text import shown
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
    """Read the arrays of `dataset.FIELDS` from an .npz file; nothing in it is unpickled."""
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
