"""The files of a trajectory.

about.json        what it is of: see :class:`About`
rows.npy          (N,) int64, the row of each label in the data set, as `index` of labels.npz
given.npy         (N,) int64, the given labels
epoch-00000.npy   the start; then one file for each snapshot. Instance labels: (N, C) float16 probabilities, which are
                  off by 2^-12 at most. Class labels: (steps of that epoch, C) float32, the probability of the given
                  class behind each step; the start is one row
sums.json         digest of each of these, written behind each of them

The same labels give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fastmeta.data import InputError

FOLDER, ABOUT, SUMS, ROWS, GIVEN = "trajectory", "about.json", "sums.json", "rows.npy", "given.npy"
_SNAPSHOT = re.compile(r"epoch-([0-9]{5,9})\.npy")
#: of `About.format`
_FORMAT = 1


@dataclass(frozen=True)
class About:
    """What stands in about.json."""

    kind: Literal["instance", "class"]
    every: int  # epochs from one snapshot of instance labels to the next; the last epoch has one too
    epochs: int
    steps_per_epoch: int
    steps: int  # of the whole run, whose last epoch may be cut short
    moves: Literal["steps", "epochs"]  # whether labels move in steps, or between epochs
    class_names: tuple[str, ...]
    data: str  # hash of the training samples with their labels before any noise
    given: str  # hash of given.npy
    fold: int | None = None
    folds: int | None = None
    averaged: tuple[str, ...] = ()  # of an average over folds: the digests of their sums.json
    format: int = _FORMAT

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def of(cls, values: Any) -> About:
        """ValueError for anything but what :meth:`to_bytes` has written."""
        if not isinstance(values, Mapping):
            raise ValueError("it is no table of values")
        if values.get("format") != _FORMAT:
            raise ValueError(f"it has format {str(values.get('format'))[:20]}, this fastmeta reads {_FORMAT}")
        known = cls.__dataclass_fields__
        if values.keys() != known.keys():
            raise ValueError(f"its values are not {', '.join(known)}")
        values = dict(values)
        for name in ("class_names", "averaged"):
            if not (isinstance(values[name], list) and all(isinstance(v, str) for v in values[name])):
                raise ValueError(f"{name} must be a list of texts")
            values[name] = tuple(values[name])
        for name in ("every", "epochs", "steps_per_epoch", "steps"):
            if type(values[name]) is not int or not 1 <= values[name] < 2**40:
                raise ValueError(f"{name} must be a whole number from 1 on")
        for name in ("fold", "folds"):
            if values[name] is not None and (type(values[name]) is not int or values[name] < 0):
                raise ValueError(f"{name} must be a whole number or null")
        if values["kind"] not in ("instance", "class") or values["moves"] not in ("steps", "epochs"):
            raise ValueError("kind must be instance or class, and moves steps or epochs")
        if not all(isinstance(values[name], str) for name in ("data", "given")):
            raise ValueError("data and given must be texts")
        made = cls(**values)
        if not made.steps_of(made.epochs - 1) < made.steps <= made.steps_of(made.epochs):
            raise ValueError(f"{made.steps} steps are not those of {made.epochs} epochs of {made.steps_per_epoch}")
        return made

    def steps_of(self, epoch: int) -> int:
        """Steps taken when `epoch` ends."""
        return min(epoch * self.steps_per_epoch, self.steps) if epoch < self.epochs else self.steps

    def has(self, epoch: int) -> bool:
        """Whether a snapshot is taken at the end of this epoch; 0 is the start."""
        return self.kind == "class" or epoch % self.every == 0 or epoch == self.epochs

    def shape(self, epoch: int, rows: int) -> tuple[int, int]:
        """Of the file of a snapshot of `rows` labels."""
        if self.kind == "instance":
            return rows, len(self.class_names)
        steps = 1 if epoch == 0 else self.steps_of(epoch) - self.steps_of(epoch - 1)
        return steps, len(self.class_names)


def snapshot_name(epoch: int) -> str:
    return f"epoch-{epoch:05d}.npy"


def epoch_of(name: str) -> int | None:
    """Of the file of a snapshot; None of another file."""
    found = _SNAPSHOT.fullmatch(name)
    return None if found is None else int(found[1])


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def digest(content: Any) -> str:
    """Of bytes, or of the bytes of an array."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sums_bytes(sums: Mapping[str, str]) -> bytes:
    return (json.dumps(dict(sorted(sums.items())), indent=2) + "\n").encode()


def check_classes(ours: tuple[str, ...], theirs: tuple[str, ...], what: str) -> None:
    """InputError unless the classes `theirs` of `what` are `ours`, in the same order."""
    if ours == theirs:
        return
    if sorted(ours) == sorted(theirs):
        at = next(c for c, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise InputError(
            f"{what} has the classes in another order: class {at} is {theirs[at]!r} there and {ours[at]!r} here; "
            "number them alike, or learn the labels anew"
        )
    raise InputError(
        f"{what} is of other classes: {len(theirs):,} there and {len(ours):,} here, {_few(theirs)} and {_few(ours)}; "
        "name one of the same data"
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(name[:20] for name in names[:3]) + (" …" if len(names) > 3 else "")
