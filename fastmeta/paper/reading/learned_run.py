"""A finished run that learned labels and kept their trajectory, as everything here reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.data import InputError
from fastmeta.report.figures import read_metrics
from fastmeta.training import TrainConfig
from fastmeta.training.rundir import METRICS, read, run_labels
from fastmeta.trajectory import Trajectory

#: rows at a time, so that of a trajectory no more is in memory
CHUNK = 8192


@dataclass(frozen=True)
class LearnedRun:
    """Labels over the training of one run: (N, C) at each epoch of `trajectory.epochs`, of which the first is 0."""

    path: Path
    trajectory: Trajectory
    given: np.ndarray  # (N,) int64
    true: np.ndarray | None  # (N,) int64, where they are known
    rows: np.ndarray  # (N,) int64, numbers in the data set
    class_names: tuple[str, ...]
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl, of the method's own stage
    config: TrainConfig  # resolved

    @property
    def epochs(self) -> list[int]:
        return list(self.trajectory.epochs)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def wrong(self) -> np.ndarray:
        """(N,) bool: rows whose given label is wrong. InputError where nobody knows."""
        if self.true is None:
            raise InputError(f"{self.path}: the right labels are not known, and what is asked for goes by them")
        return self.given != self.true

    def chunks(self, epoch: int, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (n,) of training rows and their labels (n, C) float64 at the end of `epoch`, chunk by chunk.

        Of all rows, or of the positions `rows`.
        """
        one = self.trajectory
        table = one.snapshot(epoch) if one.kind == "instance" else one.at(epoch)
        wanted = np.arange(len(self.given)) if rows is None else rows
        for begin in range(0, len(wanted), CHUNK):
            at = wanted[begin : begin + CHUNK]
            # a slice is read faster than the same rows by their numbers
            part = table[begin : begin + len(at)] if rows is None else table[at]
            yield at, np.asarray(part, np.float64)

    def label(self, epoch: int, row: int) -> np.ndarray:
        """(C,) float64: the label of the training row at the position `row`."""
        ((_, probs),) = self.chunks(epoch, np.array([row]))
        return np.asarray(probs[0])


def read_run(path: str | Path) -> LearnedRun:
    """The run at `path`.

    Raises:
        InputError: no finished run there, one without a trajectory, or a trajectory of other rows.
    """
    labels = run_labels(path, force=True)
    trajectory = Trajectory.read(labels.path)
    rows = np.asarray(trajectory.rows)
    if not np.array_equal(rows, labels.row):
        raise InputError(f"{labels.path}: its trajectory is of other rows than its labels.npz; run it again")
    if list(trajectory.class_names) != list(labels.class_names):
        raise InputError(f"{labels.path}: its trajectory has other classes than its labels.npz; run it again")
    return LearnedRun(
        labels.path,
        trajectory,
        labels.given,
        labels.true,
        labels.row,
        tuple(labels.class_names),
        read(labels.path / METRICS, read_metrics).get(labels.summary["method"], []),
        labels.config,
    )
