"""Which training rows are held out: as the clean set, as a fold of it, to validate on; by a seed that is theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmeta._text import printable
from fastmeta.data.errors import InputError
from fastmeta.data.seeds import numpy_generator


@dataclass(frozen=True)
class HoldOut:
    """What a config says of it. The clean set is a share or a number of rows, or one of `folds` parts; 0 is none."""

    seed: int = 0
    meta_fraction: float = 0.2
    meta_count: int | None = None
    balanced: bool | None = None  # as many rows of each class; None: with a count alone
    folds: int | None = None
    fold: int | None = None  # None: the first, which is 0
    val_fraction: float | None = None
    of_train: bool = False  # the training rows are the clean set too, and the one that is held out is left aside

    def __post_init__(self) -> None:
        """InputError for options that contradict each other."""
        if self.folds is None:
            if self.fold is not None:
                raise InputError(
                    f"data.fold={self.fold} is one of data.folds, which is not given; say how many there are"
                )
            return
        if not 0 <= (self.fold or 0) < self.folds:
            raise InputError(f"data.fold must lie in 0..{self.folds - 1} for data.folds={self.folds}, got {self.fold}")
        if self.meta_count is not None or self.balanced is not None:
            name = "meta_count" if self.meta_count is not None else "meta_balanced"
            raise InputError(f"data.{name} and data.folds both say which rows are the clean set; leave one of them out")

    @property
    def none(self) -> bool:
        """Whether no clean set is held out, as a method that uses none wants it."""
        return self.folds is None and (self.meta_fraction == 0 if self.meta_count is None else self.meta_count == 0)

    @property
    def asked(self) -> str | None:
        """The option that asks for a clean set of its own, which not every data set can have."""
        if self.folds is not None:
            return f"data.folds={self.folds}"
        return None if self.meta_count is None else f"data.meta_count={self.meta_count}"

    def clean_rows(self, targets: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Rows (sorted) of the clean set; none where no class has two rows. InputError where they cannot be had."""
        if self.folds is not None:
            return fold_rows(targets, self.folds, self.fold or 0, self.seed)
        if self.none:
            return np.empty(0, np.int64)
        balanced = self.meta_count is not None if self.balanced is None else self.balanced
        if self.meta_count is None and not balanced:
            return held_out(targets, self.meta_fraction, self.seed)
        count = round(self.meta_fraction * len(targets)) if self.meta_count is None else self.meta_count
        name = f"data.meta_count={count}" if self.meta_count is not None else f"data.meta_fraction={self.meta_fraction}"
        return counted(targets, count, balanced, names, name, self.seed)

    def validation_rows(self, targets: np.ndarray) -> np.ndarray:
        """Rows (sorted) to validate on, of those that the clean set has left."""
        if self.val_fraction is None:
            return np.empty(0, np.int64)
        return held_out(targets, self.val_fraction, self.seed, "validation")


def held_out(targets: np.ndarray, fraction: float, seed: int, stream: str = "hold-out") -> np.ndarray:
    """Rows (sorted) of a class-balanced hold-out: the rounded `fraction` of each class, at least one of two or more."""
    generator = numpy_generator(seed, stream)
    chosen = []
    for c in np.unique(targets):
        members = np.flatnonzero(targets == c)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def counted(
    targets: np.ndarray, count: int, balanced: bool, names: Sequence[str], option: str, seed: int
) -> np.ndarray:
    """`count` rows (sorted): as many of each class, but for one, or as many as its share; one stays in train.

    `option` says in messages who asks.
    """
    classes, sizes = np.unique(targets, return_counts=True)
    if count < len(classes):
        raise InputError(f"{option} is fewer than one row for each of {len(classes)} classes; take more")
    generator = numpy_generator(seed, "hold-out")
    if balanced:
        wanted = np.full(len(classes), count // len(classes))
        wanted[generator.permutation(len(classes))[: count % len(classes)]] += 1
    else:
        share = count * sizes / sizes.sum()
        wanted = np.maximum(share.astype(np.int64), 1)
        while missing := count - int(wanted.sum()):  # one by one, where the share lacks most or is exceeded most
            lack = share - wanted
            if missing > 0:
                wanted[lack.argmax()] += 1
            else:
                wanted[np.where(wanted > 1, lack, np.inf).argmin()] -= 1
    short = np.flatnonzero(wanted > sizes - 1)
    if len(short):
        c = short[0]
        way = ", or take a share of each class: --data.no-meta-balanced" if balanced else ""
        raise InputError(
            f"{option} asks for {wanted[c]} rows of class {printable(names[classes[c]], 40)}, which has {sizes[c]}, "
            f"and one stays in train; take fewer{way}"
        )
    chosen = [generator.permutation(np.flatnonzero(targets == c))[:n] for c, n in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate(chosen))


def fold_rows(targets: np.ndarray, folds: int, fold: int, seed: int) -> np.ndarray:
    """Rows (sorted) of one of `folds` parts, which share no row and have all of them; each has its part of each class.

    InputError where some part would be empty, or all of a class.
    """
    if folds > len(targets):
        raise InputError(f"data.folds={folds} is more than the {len(targets)} training rows; take fewer")
    generator = numpy_generator(seed, "folds")
    dealt = np.concatenate([generator.permutation(np.flatnonzero(targets == c)) for c in np.unique(targets)])
    return np.sort(dealt[fold::folds])
