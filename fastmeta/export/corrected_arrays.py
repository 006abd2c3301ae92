"""Learned labels in a copy of the npz file that they are of."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from fastmeta.data import InputError
from fastmeta.data.dataset import LABELS_BEFORE
from fastmeta.data.npz_file import NpzFile
from fastmeta.data.sources import is_pickle
from fastmeta.export.sample_views import check_same, load
from fastmeta.export.whole_file import write_whole
from fastmeta.training.rundir import RunLabels


def write_npz(labels: RunLabels, source: Path, to: Path) -> tuple[str, ...]:
    if is_pickle(source):
        raise InputError(
            f"{source} is a pickle, which labels are not written into; write its arrays anew as .npz and train on "
            "these, or take labels export, whose rows are numbered"
        )
    check_same(labels, load(labels.config), source)  # which refuses arrays that are none of labels
    name = labels.config.data.given
    with NpzFile(source) as file:
        given = file.read({name: file.declared(name)})[name]
        kept = LABELS_BEFORE in file
    learned = in_array(labels, given)

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

    write_whole(to, fill)
    if kept:
        return (f"{LABELS_BEFORE} was in {source} already, and stays as it was",)
    return (f"the labels as given are in {LABELS_BEFORE}",)


def in_array(labels: RunLabels, given: np.ndarray) -> np.ndarray:
    """`given` with the learned labels in their rows."""
    largest = int(labels.learned.max())
    kind = given.dtype if largest <= np.iinfo(given.dtype).max else np.dtype(np.int64)
    learned = given.reshape(-1).astype(kind)
    learned[labels.row] = labels.learned
    return learned.reshape(given.shape)
