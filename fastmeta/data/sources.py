"""Where a data set comes from: the digits that scikit-learn carries, or a file of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmeta._text import shown
from fastmeta.data.dataset import FIELDS, MOST_CLASSES, Dataset, check_forms
from fastmeta.data.errors import InputError
from fastmeta.data.npz import NpzFile
from fastmeta.data.seeds import numpy_generator

DIGITS_TEST = 397
DIGITS_META_PER_CLASS = 3


def load_dataset(spec: str, *, seed: int = 0, given: str = "y_train", truth: str = "y_true") -> Dataset:
    """The data set that `spec` names: ``digits`` or ``npz:PATH``.

    `seed` chooses the split of the digits. `given` and `truth` name the arrays of a file that hold the labels to train
    on and the right ones; the second may be absent.

    Raises:
        InputError: an unknown spec, a file that is missing or broken, or arrays that do not fit each other.
    """
    if not isinstance(spec, str):
        raise InputError(f"a data set is named by a text, digits or npz:PATH, got {shown(spec)}")
    if spec == "digits":
        if (given, truth) != ("y_train", "y_true"):
            raise InputError("data.given and data.truth choose arrays of an npz file; the digits have none to choose")
        return digits(seed)
    if spec.startswith("npz:"):
        return read_npz(npz_path(spec), given=given, truth=truth)
    raise InputError(f"unknown dataset {shown(spec)}: expected digits or npz:PATH")


def npz_path(spec: str) -> Path:
    """PATH of ``npz:PATH``; a shell leaves the tilde behind a colon to us."""
    try:
        return Path(spec.removeprefix("npz:")).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise InputError(f"{spec}: {error}; write the path out") from error


def digits(seed: int = 0) -> Dataset:
    """1,797 handwritten digits, 8x8 grey: 397 test, 30 clean meta (3 per class), 1,370 train, split by `seed`.

    The images are those of the UCI optical recognition set in scikit-learn, 17 grey levels, here spread over 0..240.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)[..., None]
    targets = bunch.target.astype(np.int64)
    order = numpy_generator(seed, "digits").permutation(len(targets))
    test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
    # positions in `rest`, which becomes x_train
    meta = np.concatenate([np.flatnonzero(targets[rest] == c)[:DIGITS_META_PER_CLASS] for c in range(10)])
    return Dataset.from_arrays(
        {
            "x_train": images[rest],
            "y_train": targets[rest],
            "y_true": targets[rest],
            "meta_index": meta,
            "x_test": images[test],
            "y_test": targets[test],
        },
        name="digits",
    )


def read_npz(path: Path, *, given: str = "y_train", truth: str = "y_true") -> Dataset:
    """Read the arrays of `dataset.FIELDS` from an .npz file; nothing in it is unpickled."""
    sources = {**{field: field for field in FIELDS}, "y_train": given, "y_true": truth}
    with NpzFile(path) as file:
        for field, key in (("given", given), ("truth", truth)):
            if key not in file and key not in ("y_train", "y_true"):
                raise InputError(f"{path}: no array {shown(key)} for data.{field}, found {file.names}")
        declared = {key: file.declared(key) for key in dict.fromkeys(sources.values()) if key in file}
        # what does not fit is said before anything is unpacked
        forms = {field: declared[key] for field, key in sources.items() if key in declared}
        names = forms.pop("class_names", None)
        check_forms(str(path), forms, known=lambda: file.names)
        if names is not None and (names.ndim != 1 or names.shape[0] > MOST_CLASSES):
            raise InputError(f"{path}: class_names must be one name per class (C,), got shape {names.shape}")
        arrays = file.read(declared)
    return Dataset.from_arrays({field: arrays[key] for field, key in sources.items() if key in arrays}, name=str(path))
