"""Target probability and meta accuracy of each class over training, and how they go together.

The target probability of a class is the mean over its training rows of the probability of the given class. Meta
accuracy is that on the clean rows which tuned the labels, so it is optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmeta.data import InputError
from fastmeta.paper.reading.learned_run import LearnedRun


@dataclass(frozen=True)
class ClassCurves:
    """NaN where a class has no rows."""

    class_names: tuple[str, ...]
    epochs: np.ndarray  # (E,) of snapshots
    target_prob: np.ndarray  # (E, C)
    accuracy_epochs: np.ndarray  # (A,)
    accuracy: np.ndarray  # (A, C)

    @property
    def alpha(self) -> np.ndarray:
        """(E,): 1 - target probability, mean over classes."""
        return 1 - np.nanmean(self.target_prob, 1)

    @property
    def mean_target_prob(self) -> np.ndarray:
        """(C,): over training, by the trapezoidal rule."""
        return over_training(self.epochs, self.target_prob)

    @property
    def mean_accuracy(self) -> np.ndarray:
        """(C,): over training, by the trapezoidal rule."""
        return over_training(self.accuracy_epochs, self.accuracy)


def class_curves(run: LearnedRun) -> ClassCurves:
    """Of `run`. InputError where its metrics have no meta accuracy by class."""
    sums = np.zeros((len(run.epochs), run.num_classes))
    counts = np.bincount(run.given, minlength=run.num_classes)
    of_classes = run.trajectory.kind == "class"  # whose rows are alike: no table of all is needed
    for number, epoch in enumerate(run.epochs):
        if of_classes:
            sums[number] = counts * run.trajectory.snapshot(epoch)[-1].astype(np.float64)
        for at, probs in () if of_classes else run.chunks(epoch):
            given = run.given[at]
            own = np.take_along_axis(probs, given[:, None], 1)[:, 0]
            sums[number] += np.bincount(given, own, run.num_classes)
    told = [line for line in run.lines if line.get("meta_accuracy_by_class") is not None]
    if not told:
        raise InputError(
            f"{run.path}: metrics.jsonl has no meta_accuracy_by_class; train it with --trajectory-every again"
        )
    by_class = np.array([line["meta_accuracy_by_class"] for line in told], np.float64)  # None becomes NaN
    with np.errstate(invalid="ignore"):
        target_prob = sums / np.where(counts, counts, np.nan)
    return ClassCurves(
        run.class_names, np.array(run.epochs), target_prob, np.array([line["epoch"] for line in told]), by_class
    )


def mean_curves(parts: Sequence[ClassCurves]) -> ClassCurves:
    """Mean of curves over the same epochs, such as of the folds of a seed; a class that one of them lacks is of the
    others.
    """
    first = parts[0]
    for other in parts[1:]:
        same = (
            other.class_names == first.class_names
            and np.array_equal(other.epochs, first.epochs)
            and np.array_equal(other.accuracy_epochs, first.accuracy_epochs)
        )
        if not same:
            raise InputError("curves of runs with other classes or epochs have no mean; give runs of one setting")
    return ClassCurves(
        first.class_names,
        first.epochs,
        _mean([part.target_prob for part in parts]),
        first.accuracy_epochs,
        _mean([part.accuracy for part in parts]),
    )


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    stack = np.stack(arrays)
    there = ~np.isnan(stack)
    count = there.sum(0)
    return np.where(there, stack, 0).sum(0) / np.where(count, count, np.nan)


def over_training(epochs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(C,): mean over training of values (E, C) at `epochs` (E,), by the trapezoidal rule."""
    if len(epochs) == 1:
        return np.asarray(values[0])
    steps = np.diff(epochs)
    return np.asarray(steps @ (values[1:] + values[:-1]) / 2 / steps.sum())


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's, of the pairs of which both are there; None of fewer than three, or where one side is constant."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 3:
        return None
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    # of rounding errors alone nothing is told
    tiny = 1e-12 * len(x)
    return None if size <= tiny else float(x @ y) / size


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's, with the mean rank for ties; None as :func:`correlation`."""
    there = np.isfinite(x) & np.isfinite(y)
    return correlation(_ranks(x[there]), _ranks(y[there]))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place])


@dataclass(frozen=True)
class Smoothing:
    """Alpha, 1 - target probability, mean over classes."""

    start: float
    early: float  # mean over the first quarter of training
    late: float  # mean over the last quarter
    last: float


def smoothing(curves: ClassCurves) -> Smoothing:
    """Means by the trapezoidal rule over the snapshots within each quarter, over two at least."""
    alpha, epochs = curves.alpha, curves.epochs
    begin, end = epochs[0], epochs[-1]
    early = epochs <= max(begin + (end - begin) / 4, epochs[min(1, len(epochs) - 1)])
    late = epochs >= min(end - (end - begin) / 4, epochs[max(-2, -len(epochs))])
    first, last = (float(over_training(epochs[part], alpha[part, None])[0]) for part in (early, late))
    return Smoothing(float(alpha[0]), first, last, float(alpha[-1]))


def smoothing_follows_difficulty(curves: ClassCurves) -> dict[str, float | None]:
    """Over classes, the correlation of mean target probability and mean meta accuracy, both over training.

    Positive: harder classes are smoothed more.
    """
    target_prob, accuracy = curves.mean_target_prob, curves.mean_accuracy
    return {"pearson": correlation(target_prob, accuracy), "spearman": rank_correlation(target_prob, accuracy)}


def easiest_middle_hardest(curves: ClassCurves) -> list[int]:
    """Three classes by their mean meta accuracy, the easiest first; fewer where there are fewer."""
    accuracy = curves.mean_accuracy
    order = [int(c) for c in np.argsort(-accuracy, kind="stable") if np.isfinite(accuracy[c])]
    if len(order) <= 3:
        return order
    return [order[0], order[len(order) // 2], order[-1]]
