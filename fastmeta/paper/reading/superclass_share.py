"""Which other classes a label holds likely: its top three beside the given one, and whether they are of one superclass.

All goes by a float16 trajectory: probabilities below 6e-8 are zero there, and equal. Equal ones are counted by their
expectation under random tie-breaking, so what was lost goes towards chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastmeta.paper.reading.learned_run import LearnedRun

#: classes beside the given one that are looked at
TOP = 3


def others_in_top(probs: np.ndarray, given: np.ndarray, k: int = TOP) -> np.ndarray:
    """(n, C): probability that a class is among the k likeliest but the given one; rows sum to k.

    With t the k-th largest probability of the others, g of them above it and e equal to it, it is 1 for those above,
    (k - g) / e for those equal.

    Args:
        probs: (n, C).
        given: (n,) int64.
        k: from 1 to C - 1.
    """
    others = probs.copy()
    np.put_along_axis(others, given[:, None], -np.inf, 1)
    least = -np.partition(-others, k - 1, axis=1)[:, k - 1 : k]
    above, equal = others > least, others == least
    share = (k - above.sum(1)) / equal.sum(1)
    return above + equal * share[:, None]


def share_in_superclass(probs: np.ndarray, given: np.ndarray, superclass: np.ndarray, k: int = TOP) -> np.ndarray:
    """(n,) float64: expected share of the k likeliest others that are of the given class's superclass (C,)."""
    kin = superclass[:, None] == superclass
    return np.asarray((others_in_top(probs, given, k) * kin[given]).sum(1) / k)


def chance(superclass: np.ndarray) -> np.ndarray:
    """(C,): share of a class's others that are of its superclass."""
    return ((superclass[:, None] == superclass).sum(1) - 1) / (len(superclass) - 1)


@dataclass(frozen=True)
class Kinship:
    """Share of the likeliest others that are of the same superclass, at one epoch."""

    epoch: int
    of_rows: float  # mean over classes of the mean over their rows
    of_rows_error: float  # its standard error, over classes: rows of one class are not independent
    of_classes: float  # of the mean distribution of each class, mean over classes
    of_classes_error: float
    chance: float


def kinship(run: LearnedRun, superclass: np.ndarray, epoch: int | None = None, k: int = TOP) -> Kinship:
    """Of `run` at the snapshot `epoch`, by default the last, with the superclasses (C,) of its classes."""
    epoch = run.epochs[-1] if epoch is None else epoch
    classes = run.num_classes
    shares, mean = np.zeros(classes), np.zeros((classes, classes))
    for at, probs in run.chunks(epoch):
        given = run.given[at]
        shares += np.bincount(given, share_in_superclass(probs, given, superclass, k), classes)
        np.add.at(mean, given, probs)
    counts = np.bincount(run.given, minlength=classes)
    there = np.flatnonzero(counts)
    of_rows = shares[there] / counts[there]
    of_classes = share_in_superclass(mean[there] / counts[there, None], there, superclass, k)
    return Kinship(
        epoch,
        float(of_rows.mean()),
        _error(of_rows),
        float(of_classes.mean()),
        _error(of_classes),
        float(chance(superclass)[there].mean()),
    )


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def likeliest_others(probs: np.ndarray, given: int, k: int = TOP) -> list[tuple[int, float]]:
    """(class, probability) of the k likeliest but the given one, of one label (C,); ties in the order of classes."""
    order = [int(c) for c in np.argsort(-probs, kind="stable") if c != given]
    return [(c, float(probs[c])) for c in order[:k]]


def most_moved(run: LearnedRun, classes: Sequence[int], epoch: int, each: int = 1) -> list[int]:
    """Positions of training rows: of each class, the `each` whose labels hold one other class likeliest at `epoch`."""
    best: dict[int, list[tuple[float, int]]] = {c: [] for c in classes}
    for at, probs in run.chunks(epoch):
        given = run.given[at]
        np.put_along_axis(probs, given[:, None], -1.0, 1)
        top = probs.max(1)
        for c in classes:
            own = np.flatnonzero(given == c)
            order = own[np.argsort(-top[own], kind="stable")][:each]
            best[c] = sorted([*best[c], *((-float(top[i]), int(at[i])) for i in order)])[:each]
    return [row for c in classes for _, row in best[c]]
