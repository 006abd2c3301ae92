"""Where a data set comes from: the digits that scikit-learn carries, or a file of arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fastmeta.data.dataset import FIELDS, Dataset
from fastmeta.data.errors import InputError
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
    if spec == "digits":
        if (given, truth) != ("y_train", "y_true"):
            raise InputError("data.given and data.truth choose arrays of an npz file; the digits have none to choose")
        return digits(seed)
    if spec.startswith("npz:"):
        return read_npz(npz_path(spec), given=given, truth=truth)
    raise InputError(f"unknown dataset {spec!r}: expected digits or npz:PATH")


def npz_path(spec: str) -> Path:
    """PATH of ``npz:PATH``; a shell leaves the tilde behind a colon to us."""
    return Path(spec.removeprefix("npz:")).expanduser()


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
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; npz:PATH wants a file written by np.savez")
    sources = {**{field: field for field in FIELDS}, "y_train": given, "y_true": truth}
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds a single array; write a file of several with np.savez")
        with loaded as file:
            for field, key in (("given", given), ("truth", truth)):
                if key not in file.files and key not in ("y_train", "y_true"):
                    raise InputError(f"{path}: no array {key!r} for data.{field}, found {', '.join(file.files)}")
            arrays = {field: file[key] for field, key in sources.items() if key in file.files}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path} cannot be read as .npz ({reason[0]}); write it anew with np.savez") from error
    return Dataset.from_arrays(arrays, name=str(path))
