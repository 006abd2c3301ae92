"""Learned labels written back into the form of the data that they are of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastmeta.data import InputError
from fastmeta.data.sources import parse
from fastmeta.export.corrected_arrays import write_npz
from fastmeta.export.corrected_folders import write_folder
from fastmeta.export.corrected_npy import write_npy
from fastmeta.export.corrected_tables import write_csv, write_parquet
from fastmeta.training.rundir import RunLabels, run_labels, user_path


class Applied(NamedTuple):
    """What was written."""

    path: Path
    lines: tuple[str, ...]  # that the user should see


def apply(run: str | Path, to: str | Path, *, force: bool = False, copy: bool = False) -> Applied:
    """Write the data of the finished `run` anew to `to`, with the learned labels in place of the given ones.

    Of an npz file all arrays are as they were, but the one with the given labels, which stays as ``y_given``; of a
    folder of .npy files likewise. Of a table (csv, parquet) the cells of the label column change, in the words of the
    file. Of a folder of images each lies in the folder of its learned class, with its name. Rows that the run did not
    train on, such as those of ``meta_index``, keep their labels.

    Args:
        to: a file that is not there yet; of a folder, a folder.
        force: labels that canaries find worse than the given ones, too.
        copy: of a folder, copies in place of hard links.

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
    if name.scheme not in SCHEMES:
        raise InputError(
            f"labels are written back into data that are named {', '.join(f'{k}:PATH' for k in SCHEMES)}, and the data "
            f"set of {labels.path} is {config.dataset}; take labels export, whose rows are numbered"
        )
    if copy and name.scheme not in FOLDER_WRITERS:
        raise InputError(f"copy is about folders, and the data set is {config.dataset}; leave it out")
    source = Path(name.argument)
    # not Path.exists, which raises for names that are too long
    if os.path.exists(to) and os.path.exists(source) and os.path.samefile(to, source):
        raise InputError(f"{to} is the data set itself, whose labels would be lost; name another file")
    if os.path.lexists(to):
        raise InputError(f"{to} is there already; name another file")
    if name.scheme in FOLDER_WRITERS:
        lines = FOLDER_WRITERS[name.scheme](labels, source, to, copy)
    else:
        lines = WRITERS[name.scheme](labels, source, to)
    changed = int((labels.learned != labels.given).sum())
    said = f"wrote {to}: {changed:,} of {len(labels):,} labels are other than the given ones"
    return Applied(to, (said, *lines))


#: writes the learned labels in the form of a scheme's file, by scheme
WRITERS: dict[str, Callable[[RunLabels, Path, Path], tuple[str, ...]]] = {
    "npz": write_npz,
    "csv": write_csv,
    "parquet": write_parquet,
}
#: the same for folders; the last argument asks for copies in place of hard links
FOLDER_WRITERS: dict[str, Callable[[RunLabels, Path, Path, bool], tuple[str, ...]]] = {
    "npy": write_npy,
    "folder": write_folder,
}
SCHEMES = (*WRITERS, *FOLDER_WRITERS)
