"""The average of trajectories that were learned on folds of one data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastmeta.data import InputError
from fastmeta.trajectory.contents import (
    ABOUT,
    GIVEN,
    ROWS,
    SUMS,
    About,
    check_classes,
    digest,
    npy_bytes,
    snapshot_name,
    sums_bytes,
)
from fastmeta.trajectory.recorded import Trajectory


def average(parts: Sequence[Trajectory]) -> Iterator[tuple[str, bytes]]:
    """The files (name, content) of the trajectory folder that is the average of `parts`, one of each fold.

        p_i(epoch) = mean of p_i over the folds in which row i trained        instance labels, per epoch
        p_c(step)  = mean of p_c over all folds                               class labels, per step of an epoch

    of probabilities. The rows are those of any fold. Where folds have different numbers of steps in an epoch, which
    differ by one at most where folds do, each is taken at the share of the epoch that the fewest steps ask for. Sums
    are float64; a mean is rounded to float16 as each of its terms was, so that it is off by 2^-11 at most.

    Raises:
        InputError: before the first file, parts that do not belong together.
    """
    first = parts[0]
    _check_parts(parts)
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    places = [np.searchsorted(rows, part.rows) for part in parts]
    given = np.full(len(rows), -1, np.int64)
    for part, place in zip(parts, places, strict=True):
        known = given[place]
        if others := int(((known >= 0) & (known != part.given)).sum()):
            raise InputError(
                f"{others:,} given labels in {part.path} differ from those of the folds before it; learn it anew on "
                "the same labels"
            )
        given[place] = part.given
    fewest = min(parts, key=lambda part: part.about.steps).about
    about = replace(
        fewest,
        given=digest(given),
        fold=None,
        folds=len(parts),
        averaged=tuple(part.digest for part in parts),
    )
    sums: dict[str, str] = {}

    def file(name: str, content: bytes) -> tuple[str, bytes]:
        sums[name] = digest(content)
        return name, content

    yield file(ABOUT, about.to_bytes())
    yield file(ROWS, npy_bytes(rows))
    yield file(GIVEN, npy_bytes(given))
    for epoch in first.epochs:
        mean = (
            _of_instances(parts, places, len(rows), epoch)
            if first.kind == "instance"
            else _of_classes(parts, about, epoch)
        )
        yield file(snapshot_name(epoch), npy_bytes(mean))
    yield SUMS, sums_bytes(sums)


def steps_differ(parts: Sequence[Trajectory]) -> bool:
    """Whether epochs of the parts have different numbers of steps."""
    return len({(part.about.steps_per_epoch, part.about.steps) for part in parts}) > 1


def _of_instances(parts: Sequence[Trajectory], places: Sequence[np.ndarray], size: int, epoch: int) -> np.ndarray:
    total = np.zeros((size, len(parts[0].class_names)))
    count = np.zeros((size, 1))
    for part, place in zip(parts, places, strict=True):
        total[place] += part.snapshot(epoch)  # no row stands twice in a part
        count[place] += 1
    total /= count
    return total.astype(np.float16)


def _of_classes(parts: Sequence[Trajectory], about: About, epoch: int) -> np.ndarray:
    steps = about.shape(epoch, 0)[0]
    ends = np.arange(1, steps + 1)
    taken = []
    for part in parts:
        there = part.snapshot(epoch)
        taken.append(there[ends * len(there) // steps - 1].astype(np.float64))
    return np.mean(taken, 0).astype(np.float32)


def _check_parts(parts: Sequence[Trajectory]) -> None:
    first = parts[0]
    for part in parts:
        part.check_finished()
        check_classes(first.class_names, part.class_names, f"{part.path}, beside {first.path},")
        for name, here, there in (
            ("kind", first.kind, part.kind),
            ("data", first.about.data, part.about.data),
            ("epochs", first.about.epochs, part.about.epochs),
            ("every", first.about.every, part.about.every),
            ("moves", first.about.moves, part.about.moves),
            ("folds", first.about.folds, part.about.folds),
        ):
            if here != there:
                raise InputError(
                    f"{part.path} and {first.path} are no folds of one run: {name} is {there} and {here}; learn one of "
                    "them anew"
                )
    numbers = [part.about.fold for part in parts]
    if None not in numbers and len(set(numbers)) < len(numbers):
        raise InputError(f"of {len(parts)} folds two are the same one, by their numbers {numbers}; name each once")
