"""A trajectory from its folder, which may be anybody's: checked as it is read."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta.data import InputError
from fastmeta.trajectory.contents import ABOUT, FOLDER, GIVEN, ROWS, SUMS, About, digest, epoch_of, snapshot_name

#: bytes of a JSON file, at most
_MOST_TEXT = 2**26
_DTYPES: dict[str, np.dtype[Any]] = {"instance": np.dtype(np.float16), "class": np.dtype(np.float32)}


class Trajectory:
    """The labels of N training rows in C classes over a run, or the average of several.

    Attributes:
        path: the folder with about.json.
        kind: "instance" or "class".
        epochs: of which there is a snapshot, from 0, the start; of a run that is not finished those so far.
        rows: (N,) int64, rows in the data set. given: (N,) int64, given labels.
        class_names: C names.
        about: what else about.json says. digest: of all files.
    """

    def __init__(self, path: Path, about: About, sums: dict[str, str], own_digest: str) -> None:
        self.path, self.about, self.digest, self._sums = path, about, own_digest, sums
        self.kind, self.class_names = about.kind, about.class_names
        self.epochs = sorted(e for e in map(epoch_of, sums) if e is not None)

    @classmethod
    def read(cls, path: str | Path) -> Trajectory:
        """Of a run directory, or the folder itself.

        Raises:
            InputError: there is none, it is damaged, or it is of another format. A snapshot is looked at when it is
                asked for.
        """
        path = Path(path).expanduser()
        if (path / FOLDER / ABOUT).is_file():
            path = path / FOLDER
        elif not (path / ABOUT).is_file():
            raise InputError(
                f"{path} has no trajectory of labels: there is no {FOLDER}/{ABOUT} in it; name a run that was trained "
                "with --trajectory-every, or the folder labels of --folds"
            )
        if not (path / SUMS).is_file():
            raise InputError(f"{path} is no whole trajectory: it has no {SUMS}; go on with what was writing it")
        try:
            content = _read_text(path / SUMS)
            sums = json.loads(content)
            if not isinstance(sums, dict) or not all(isinstance(v, str) for v in sums.values()):
                raise ValueError("it is no table of digests")
            text = _read_text(path / ABOUT)
            if digest(text) != sums.get(ABOUT):
                raise ValueError(f"{ABOUT} and its digest in {SUMS} differ")
            about = About.of(json.loads(text))
            found = cls(path, about, sums, digest(content))
            missing = [e for e in range(max(found.epochs, default=0) + 1) if about.has(e) and e not in found.epochs]
            if missing or not all(name in sums for name in (ROWS, GIVEN)) or max(found.epochs) > about.epochs:
                raise ValueError(f"{SUMS} lacks {snapshot_name(missing[0]) if missing else f'{ROWS} or {GIVEN}'}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"the trajectory in {path} is damaged ({error}); {_WAY}") from error
        return found

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def finished(self) -> bool:
        return bool(self.epochs) and self.epochs[-1] == self.about.epochs

    def check_finished(self) -> None:
        """InputError where its run has not ended."""
        if not self.finished:
            raise InputError(
                f"the trajectory in {self.path} ends behind epoch {self.epochs[-1]} of {self.about.epochs}; finish its "
                "run first"
            )

    @cached_property
    def rows(self) -> np.ndarray:
        return self._vector(ROWS)

    @cached_property
    def given(self) -> np.ndarray:
        given = self._vector(GIVEN)
        if len(given) != len(self.rows) or digest(given) != self.about.given:
            raise InputError(f"{self.path / GIVEN} and {ROWS} beside it do not belong together; {_WAY}")
        if len(given) and not 0 <= given.min() <= given.max() < len(self.class_names):
            raise InputError(f"{self.path / GIVEN} names a class that is not among {len(self.class_names)}; {_WAY}")
        return given

    def on(self, rows: np.ndarray, given: np.ndarray) -> Trajectory:
        """The same for the rows `rows` (n,) of the data set, in this order, whose given labels are `given` (n,).

        Raises:
            InputError: it has not all of them, or other given labels.
        """
        order = np.argsort(self.rows, kind="stable")
        at = np.searchsorted(self.rows, rows, sorter=order).clip(max=max(0, len(order) - 1))
        places = order[at] if len(order) else np.zeros(len(rows), np.int64)
        there = self.rows[places] == rows if len(order) else np.zeros(len(rows), bool)
        if missing := int((~there).sum()):
            raise InputError(
                f"the trajectory in {self.path} has labels of {len(self.rows):,} rows, and not of {missing:,} of the "
                f"{len(rows):,} that are trained on, the first row {rows[~there][0]} of the data set; train on those "
                "that it has (--data.folds, --data.meta-fraction as there), or learn labels of all by --folds"
            )
        if others := int((self.given[places] != given).sum()):
            raise InputError(
                f"the trajectory in {self.path} belongs to other given labels: {others:,} of {len(rows):,} differ; it "
                "needs the same noise and seed"
            )
        found = Trajectory(self.path, self.about, self._sums, self.digest)
        vars(found).update(rows=np.asarray(rows), given=np.asarray(given), _places=places, _size=len(self.rows))
        return found

    def snapshot(self, epoch: int) -> np.ndarray:
        """The file of one of :attr:`epochs`, memory-mapped: (N, C) float16, or (steps, C) float32 of class labels.

        Raises:
            InputError: there is none of this epoch, or its file is gone or damaged.
        """
        if epoch not in self.epochs:
            raise InputError(
                f"the trajectory in {self.path} has no snapshot of epoch {epoch}; it has those of "
                f"{self.epochs[0]} to {self.epochs[-1]}, every {self.about.every}"
            )
        if epoch not in self._mapped:
            shape = self.about.shape(epoch, self._size if self.kind == "instance" else 0)
            array = self._array(snapshot_name(epoch), _DTYPES[self.kind], shape)
            if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1).all()):
                raise InputError(f"{self.path / snapshot_name(epoch)} holds what is no probability; {_WAY}")
            self._mapped[epoch] = array
        return self._mapped[epoch]

    def at(self, where: int | float | Fraction) -> np.ndarray:
        """Probabilities (N, C) float32: an int is an epoch, whose end is meant; else a share of the run in [0, 1].

        Instance labels between two snapshots are their mean, weighted by the steps to each. Class labels are those
        behind the last step before, for the given labels.
        """
        if self.kind == "instance":
            return self._mixed(self._position(where))
        target = self._class_row(where)[self.given][:, None]
        others = np.broadcast_to((1 - target) / (len(self.class_names) - 1), (len(target), len(self.class_names)))
        probs = np.array(others, np.float32)
        np.put_along_axis(probs, self.given[:, None], target, 1)
        return probs

    def class_probs(self) -> np.ndarray:
        """(steps, C) float32: of class labels, the probability of the given class behind each step so far."""
        if self.kind != "class":
            raise InputError(f"the trajectory in {self.path} is of instance labels, which have no value per class")
        parts = [self.snapshot(e) for e in self.epochs if e]
        return np.concatenate(parts) if parts else np.empty((0, len(self.class_names)), np.float32)

    # -- reading --------------------------------------------------------------------------------------------

    @cached_property
    def _mapped(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _size(self) -> int:
        """Rows of the files."""
        return len(self.rows)

    @cached_property
    def _places(self) -> slice | np.ndarray:
        """Of the rows in the files."""
        return slice(None)

    def _position(self, where: int | float | Fraction) -> Fraction:
        """In steps."""
        if isinstance(where, int | np.integer):
            if not 0 <= where <= self.about.epochs:
                raise InputError(f"epoch must lie in 0..{self.about.epochs}, got {where}")
            return Fraction(self.about.steps_of(int(where)))
        share = where if isinstance(where, Fraction) else Fraction(float(where)).limit_denominator(10**9)
        if not 0 <= share <= 1:
            raise InputError(f"the share of a run must lie in [0, 1], got {float(where):g}; an epoch is an int")
        return share * self.about.steps

    def _mixed(self, position: Fraction) -> np.ndarray:
        ends = [self.about.steps_of(e) for e in self.epochs]
        if position > ends[-1]:
            self.check_finished()
        last = bisect_right(ends, position) - 1
        before = self.snapshot(self.epochs[last])[self._places].astype(np.float32)
        if ends[last] == position:
            return before
        share = float((position - ends[last]) / (ends[last + 1] - ends[last]))
        return before + np.float32(share) * (self.snapshot(self.epochs[last + 1])[self._places] - before)

    def _class_row(self, where: int | float | Fraction) -> np.ndarray:
        step = int(self._position(where))
        if step == 0:
            return np.asarray(self.snapshot(0)[0])
        epoch = -(-step // self.about.steps_per_epoch)
        if epoch > self.epochs[-1]:
            self.check_finished()
        return np.asarray(self.snapshot(epoch)[step - 1 - self.about.steps_of(epoch - 1)])

    def _vector(self, name: str) -> np.ndarray:
        found = np.array(self._array(name, np.dtype(np.int64), None))
        if found.ndim != 1:
            raise InputError(f"{self.path / name} has shape {found.shape}, expected (N,); {_WAY}")
        return found

    def _array(self, name: str, dtype: np.dtype, shape: tuple[int, ...] | None) -> np.ndarray:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{path} is gone, which {SUMS} beside it names; {_WAY}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if digest(_whole(path)) != self._sums[name]:
                raise ValueError(f"it and its digest in {SUMS} differ")
            if array.dtype != dtype or (shape is not None and array.shape != shape):
                raise ValueError(f"it is {array.dtype} of shape {array.shape}, expected {dtype} of {shape}")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged ({error}); {_WAY}") from error
        return array


_WAY = "bring it back, or train its run anew"


def _whole(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r")


def _read_text(path: Path) -> bytes:
    if os.path.getsize(path) > _MOST_TEXT:
        raise ValueError(f"{path.name} has more than {_MOST_TEXT:,} bytes")
    return path.read_bytes()
