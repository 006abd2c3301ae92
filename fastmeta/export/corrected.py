"""Learned labels written back into the form of the data that they are of."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.data.dataset import LABELS_BEFORE
from fastmeta.data.npz_file import NpzFile
from fastmeta.data.sources import parse
from fastmeta.training.rundir import RunLabels, run_labels, user_path


class Applied(NamedTuple):
    """What was written."""

    path: Path
    lines: tuple[str, ...]  # that the user should see


def apply(run: str | Path, to: str | Path, *, force: bool = False) -> Applied:
    """Write the data of the finished `run` anew to the file `to`, with the learned labels in place of the given ones.

    Of an npz file all arrays are as they were, but the one with the given labels, which stays as ``y_given``. Rows that
    the run did not train on, such as those of ``meta_index``, keep their labels.

    Args:
        to: a file that is not there yet.
        force: labels that canaries find worse than the given ones, too.

    Raises:
        InputError: the labels cannot be had, the data set is no file of the user's, is gone, or has other labels now.
    """
    labels, to = run_labels(run, force=force), user_path(to, "to")
    config, name = labels.config, parse(labels.config.dataset)
    if config.noise not in (None, "none") and not str(config.noise).startswith("file:"):
        raise InputError(
            f"{labels.path} was given labels with the noise {config.noise}, which the run added itself: the labels of "
            "the data set are better; take labels export"
        )
    if name.scheme not in WRITERS:
        raise InputError(
            f"labels are written back into {' and '.join(WRITERS)} files, and the data set of {labels.path} is "
            f"{config.dataset}; take labels export, and its column row"
        )
    source = Path(name.argument)
    if to.exists() and source.exists() and os.path.samefile(to, source):
        raise InputError(f"{to} is the data set itself, whose labels would be lost; name another file")
    if os.path.lexists(to):
        raise InputError(f"{to} is there already; name another file")
    lines = WRITERS[name.scheme](labels, source, to)
    changed = int((labels.learned != labels.given).sum())
    said = f"wrote {to}: {changed:,} of {len(labels):,} labels are other than the given ones"
    return Applied(to, (said, *lines))


def _npz(labels: RunLabels, source: Path, to: Path) -> tuple[str, ...]:
    name = labels.config.data.given
    with NpzFile(source) as file:
        if name not in file:
            raise InputError(f"{source} has no array {name} any more, found {file.names}")
        given = file.read({name: file.declared(name)})[name]
        kept = LABELS_BEFORE in file
    learned = corrected(labels, given, source)

    def fill(out: IO[bytes]) -> None:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
            for entry in old.infolist():
                made = zipfile.ZipInfo(entry.filename, entry.date_time)
                made.compress_type = entry.compress_type
                with new.open(made, "w", force_zip64=True) as content:
                    if entry.filename.removesuffix(".npy") == name:
                        np.lib.format.write_array(content, learned, allow_pickle=False)
                    else:  # byte by byte: nothing is unpickled
                        with old.open(entry) as before:
                            shutil.copyfileobj(before, content, 2**20)
            if not kept:
                with new.open(f"{LABELS_BEFORE}.npy", "w", force_zip64=True) as content:
                    np.lib.format.write_array(content, given, allow_pickle=False)

    whole(to, fill)
    if kept:
        return (f"{LABELS_BEFORE} was in {source} already, and stays as it was",)
    return (f"the labels as given are in {LABELS_BEFORE}",)


def corrected(labels: RunLabels, given: np.ndarray, source: Path) -> np.ndarray:
    """`given` with the learned labels in their rows. InputError where it is not what the run was given."""
    flat = given.reshape(-1)
    if given.dtype.kind not in "iu" or int(labels.row.max()) >= len(flat):
        raise InputError(f"{source} is not what the run was trained on: {len(flat):,} labels of {given.dtype}")
    if labels.config.noise in (None, "none"):
        other = np.flatnonzero(flat[labels.row] != labels.given)
        if len(other):
            row = int(labels.row[other[0]])
            raise InputError(
                f"{source} is not what the run was trained on: row {row} has label {shown(flat[row].item())}, the run "
                f"was given {labels.given[other[0]]}; run it again"
            )
    largest = int(labels.learned.max())
    learned = flat.astype(given.dtype if largest <= np.iinfo(given.dtype).max else np.int64)
    learned[labels.row] = labels.learned
    return learned.reshape(given.shape)


def whole(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """`path` is there with all that `fill` writes, or not at all. InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                fill(out)
                out.flush()
                os.fsync(out.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)  # as any other new file; mkstemp's is the owner's alone
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name another file") from error


#: writes the learned labels in the form of a scheme's file, by scheme
WRITERS: dict[str, Callable[[RunLabels, Path, Path], tuple[str, ...]]] = {"npz": _npz}
