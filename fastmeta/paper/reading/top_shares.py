"""How often the true class is among the k likeliest of a training label, over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmeta.paper.reading.learned_run import LearnedRun


def in_top(probs: np.ndarray, classes: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: probability that the class is among the k likeliest where ties are broken at random.

    With g classes above the class's own probability, and e as probable as it (itself among them), its rank is uniform
    on g, ..., g + e - 1, so it is

        min(max((k - g) / e, 0), 1)

    Args:
        probs: (n, C) probabilities, or any scores.
        classes: (n,) int64.
        k: at least 1.
    """
    own = np.take_along_axis(probs, classes[:, None], 1)
    above = (probs > own).sum(1)
    equal = (probs == own).sum(1)
    return np.clip((k - above) / equal, 0.0, 1.0)


@dataclass(frozen=True)
class Correctness:
    """Shares 0..1 at each epoch, by k: how often the true class is among the k likeliest."""

    epochs: Sequence[int]
    of_all: Mapping[int, np.ndarray]  # (E,) of all training rows
    of_wrong: Mapping[int, np.ndarray]  # (E,) of those whose given label is wrong; NaN where none is
    #: of a wrong label that is right by luck alone: the given class leads, and the others follow in any order
    chance: Mapping[int, float]
    wrong_share: float  # of given labels


def correctness(run: LearnedRun, ks: Sequence[int] = (1, 5)) -> Correctness:
    """Of `run`, at each snapshot of its trajectory. InputError where the true classes are not known."""
    wrong, classes = run.wrong, run.num_classes
    assert run.true is not None
    all_right = {k: np.zeros(len(run.epochs)) for k in ks}
    wrong_right = {k: np.zeros(len(run.epochs)) for k in ks}
    for number, epoch in enumerate(run.epochs):
        for at, probs in run.chunks(epoch):
            for k in ks:
                found = in_top(probs, run.true[at], k)
                all_right[k][number] += found.sum()
                wrong_right[k][number] += found[wrong[at]].sum()
    count = int(wrong.sum())
    return Correctness(
        run.epochs,
        {k: v / len(wrong) for k, v in all_right.items()},
        {k: v / count if count else np.full(len(v), np.nan) for k, v in wrong_right.items()},
        {k: min((k - 1) / (classes - 1), 1.0) for k in ks},
        count / len(wrong),
    )


def mean_probs(run: LearnedRun, epoch: int, rows: np.ndarray, classes: np.ndarray) -> float:
    """Mean probability that the labels of the positions `rows` give to their `classes[rows]` at the end of `epoch`."""
    total = 0.0
    for at, probs in run.chunks(epoch, rows):
        total += float(np.take_along_axis(probs, classes[at][:, None], 1).sum())
    return total / len(rows)
