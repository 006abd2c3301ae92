"""Schemes by name, and the one parser of what names a data set."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fastmeta._text import printable, reason, shown
from fastmeta._trust import load_object
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.given import as_dataset
from fastmeta.data.sources import csv_table, digits, image_folder, npy, npz, of_torchvision, parquet
from fastmeta.data.sources.scheme import Choice
from fastmeta.data.superclasses import read_superclasses

#: a module per scheme: FORM as it is written, HELP, read(argument, choice) -> Dataset, and maybe OPTIONS, what it
#: follows of a choice, lasting(argument), and folder(root) where files lie in a folder
SCHEMES: dict[str, ModuleType] = {
    "digits": digits,
    "npz": npz,
    "npy": npy,
    "csv": csv_table,
    "parquet": parquet,
    "folder": image_folder,
    "torchvision": of_torchvision,
}
#: names of their own that some have
SHORT = {"cifar10": "torchvision:CIFAR10", "cifar100": "torchvision:CIFAR100"}
#: of data that were given in Python
CUSTOM = "custom"
_CODE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


class Name(NamedTuple):
    """What a text stands for."""

    scheme: str  # of `SCHEMES`, "custom" for data of the caller's own, or "" for code
    argument: str

    @property
    def names_code(self) -> bool:
        return not self.scheme

    @property
    def short(self) -> str:
        """For a folder's name and a table's head."""
        if self.names_code:
            return self.argument.rpartition(":")[2]
        return Path(self.argument).stem or self.scheme


def forms() -> str:
    """For messages and help: digits, npz:PATH, torchvision:NAME or package.module:factory."""
    return f"{', '.join([*(module.FORM for module in SCHEMES.values()), *SHORT])} or package.module:factory"


def parse(spec: str) -> Name:
    """The parts of what names a data set. InputError for what names none; nothing is read or imported."""
    if not isinstance(spec, str):
        raise InputError(f"a data set is named by a text, {forms()}, got {shown(spec)}")
    scheme, colon, argument = SHORT.get(spec, spec).partition(":")
    known = SCHEMES.get(scheme)
    if (known is not None and bool(colon) == (":" in known.FORM) and bool(argument) == bool(colon)) or (
        scheme == CUSTOM and argument
    ):
        return Name(scheme, argument)
    if known is None and _CODE.fullmatch(spec):
        return Name("", spec)
    kind = next((k for k in ("npz", "csv", "parquet") if spec.endswith(f".{k}")), None)
    hint = f"; did you mean {kind}:{printable(spec, 80)}?" if kind else ""
    raise InputError(f"dataset must be {forms()}, got {shown(spec)}{hint}")


def lasting(spec: str) -> str:
    """`spec` as a run directory keeps it: it finds the same data from any folder."""
    name = parse(spec)
    resolve = getattr(SCHEMES.get(name.scheme), "lasting", None)
    return spec if resolve is None else f"{name.scheme}:{resolve(name.argument)}"


def is_path(spec: str) -> bool:
    """Whether a data set is named by where its file or folder lies. InputError for what names none."""
    return hasattr(SCHEMES.get(parse(spec).scheme), "lasting")


def lasting_path(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def lasting_root(spec: str, root: str | None) -> str | None:
    """The folder of a scheme's files in the same way; None of a scheme that has none."""
    name = parse(spec)
    folder = getattr(SCHEMES.get(name.scheme), "folder", None)
    return root if folder is None else str(folder(root))


def load_dataset(
    spec: str,
    *,
    seed: int = 0,
    given: str = "y_train",
    truth: str = "y_true",
    root: str | None = None,
    download: bool = False,
    superclasses: str | None = None,
    label_column: str | None = None,
    truth_column: str | None = None,
    split_column: str | None = None,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    resident: str = "auto",
) -> Dataset:
    """The data set that `spec` names, of a scheme or of ``package.module:factory``, which is called without arguments.

    `seed` chooses the split of the digits. `given` and `truth` name the arrays of a file that hold the labels to train
    on and the right ones; the second may be absent. `root` is the folder of a torchvision set's files, by default
    ``data``; what is not there is fetched with `download` alone. `superclasses` is a JSON file that says which classes
    belong together. `label_column`, `truth_column` and `split_column` name columns of a table; image files are brought
    to `image_size` pixels, and with `skip_corrupt` those that cannot be read are left out; `resident` (auto, yes or no)
    says whether they are read into memory, or as they are needed.

    Raises:
        InputError: an unknown spec, a file that is missing or broken, arrays that do not fit each other, or a factory
            that cannot be imported or fails.
    """
    choice = Choice(
        seed,
        given,
        truth,
        root,
        download,
        label_column,
        truth_column,
        split_column,
        image_size,
        skip_corrupt,
        resident,
    )
    data = _loaded(spec, choice)
    return data if superclasses is None else with_superclasses(data, superclasses)


def with_superclasses(data: Dataset, path: str) -> Dataset:
    return replace(data, superclasses=read_superclasses(Path(path).expanduser(), data.class_names))


def _loaded(spec: str, choice: Choice) -> Dataset:
    name = parse(spec)
    choice.refuse_others(spec, getattr(SCHEMES.get(name.scheme), "OPTIONS", frozenset()))
    if name.scheme in ("csv", "parquet", "folder"):
        choice.refuse_arrays(f"{spec} is none")
    if name.scheme in SCHEMES:
        return SCHEMES[name.scheme].read(name.argument, choice)
    if not name.names_code:
        raise InputError(f"{spec} are data of the caller's own: pass them as data= to fastmeta.train")
    try:
        factory = load_object(spec)
    except ValueError as error:
        raise InputError(f"dataset: {error}") from error
    choice.refuse_arrays(f"{spec} is none")
    try:
        made = factory()
    except InputError:
        raise
    except Exception as error:  # of the user's
        raise InputError(f"dataset {spec} is called as factory() and failed: {reason(error)}") from error
    return as_dataset(made, name.short)
