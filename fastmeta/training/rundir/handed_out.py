"""The labels that a finished run hands out, from its directory: its network is not loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._text import printable
from fastmeta.data import InputError
from fastmeta.data.npz_file import NpzFile
from fastmeta.training.config import TrainConfig
from fastmeta.training.rundir.files import is_sealed, read, user_path
from fastmeta.training.rundir.layout import CONFIG, SUMMARY, begun_directory, resume_command
from fastmeta.training.rundir.summary import read_summary

LABELS = "labels.npz"
_CLASSES = ("given", "learned", "true", "withheld")
#: what files of labels that were fixed, and of older runs, do not have
QUALITY = "label_quality"
_NUMBERS = ("given_probability", "probability", "entropy")


@dataclass(frozen=True)
class RunLabels:
    """Of each training row, by its number in the data set, in rising order."""

    path: Path  #: the run directory
    summary: Mapping[str, Any]
    config: TrainConfig  #: resolved
    row: np.ndarray  #: (N,) int64, number in the data set
    given: np.ndarray  #: (N,) int64 class
    learned: np.ndarray  #: (N,) int64 class
    quality: np.ndarray  #: (N,) in 0..1, how far the given label may be believed: label_quality of the file
    probability: np.ndarray | None  #: (N,) of the learned class; None of labels that were withheld
    entropy: np.ndarray  #: (N,) nats
    true: np.ndarray | None  #: (N,) int64 class, where it is known

    @property
    def class_names(self) -> list[str]:
        names: list[str] = self.summary["class_names"]
        return names

    def __len__(self) -> int:
        return len(self.row)

    def suspicious(self, most: int | None = None) -> np.ndarray:
        """Positions, those that have changed before those that stay, the given label of least quality first."""
        order = np.lexsort((self.quality, self.learned == self.given))
        return order[:most]

    def take(self, positions: np.ndarray) -> RunLabels:
        """These rows alone."""
        names = ("row", "given", "learned", "quality", "probability", "entropy", "true")
        columns: dict[str, Any] = {name: getattr(self, name) for name in names}
        columns = {k: None if v is None else v[positions] for k, v in columns.items()}
        return replace(self, **columns)


def run_labels(path: str | Path, *, force: bool = False) -> RunLabels:
    """The labels of the finished run at `path`, which may be anybody's: its files are read as data.

    Args:
        force: hand out labels that canaries find worse than the given ones, too.

    Raises:
        InputError: no run directory, a run that is not finished, a file that is gone, damaged or of another run, or
            labels that are withheld.
    """
    path = begun_directory(user_path(path, "path"))
    if not os.path.isfile(path / SUMMARY):
        raise InputError(f"{path} is not finished: go on with {resume_command(path)}")
    config, summary = TrainConfig.read(path / CONFIG), read(path / SUMMARY, read_summary)
    if summary.get("labels_withheld") and not force:
        told = summary.get("canaries") or {}
        shares = [told.get(key) for key in ("right_before", "right_after")]
        by = f": {shares[0]:.1%} right as given, {shares[1]:.1%} as learned" if None not in shares else ""
        raise InputError(
            f"the labels of {path} are withheld, because canaries find them worse than the given ones{by}; "
            "--force (force=True) hands them out all the same"
        )
    file = path / LABELS
    table = read(file, partial(_columns, size=summary["train_size"], classes=summary["num_classes"]))
    if (seal := summary.get("files", {}).get(LABELS)) and not read(file, partial(is_sealed, seal=seal)):
        raise InputError(f"{file} has changed since the run wrote it; run it again")
    withheld = table.get("withheld")
    order = np.argsort(table["index"], kind="stable")
    return RunLabels(
        path,
        summary,
        config,
        row=table["index"],
        given=table["given"],
        learned=table["learned"] if withheld is None else withheld,
        quality=table[_quality(table)].astype(np.float64).clip(0, 1),
        # of labels that are withheld, the file has that of the given class
        probability=table["probability"].astype(np.float64).clip(0, 1) if withheld is None else None,
        entropy=table["entropy"].astype(np.float64),
        true=table.get("true"),
    ).take(order)


def _quality(table: Mapping[str, np.ndarray]) -> str:
    return QUALITY if QUALITY in table else "given_probability"


def _columns(path: Path, size: int, classes: int) -> dict[str, np.ndarray]:
    with NpzFile(path) as file:
        there = [name for name in (*_CLASSES, QUALITY) if name in file or name in ("given", "learned")]
        names = ["index", *_NUMBERS, *there]
        missing = [name for name in names if name not in file]
        if missing:
            raise ValueError(f"array {missing[0]} is missing, found {printable(file.names)}")
        table = file.read({name: file.declared(name) for name in names})
    for name, column in table.items():
        wanted = "iu" if name in ("index", *_CLASSES) else "f"
        if column.shape != (size,) or column.dtype.kind not in wanted:
            raise ValueError(f"{name} is {column.dtype} of shape {column.shape}, expected {size:,} numbers")
    for name in _CLASSES:
        if name in table and not 0 <= int(table[name].min()) <= int(table[name].max()) < classes:
            raise ValueError(f"{name} holds classes outside 0..{classes - 1}")
    if not np.isfinite(table[_quality(table)]).all():
        raise ValueError(f"{_quality(table)} holds numbers that are not finite")
    return {k: v.astype(np.int64) if v.dtype.kind in "iu" else v for k, v in table.items()}
