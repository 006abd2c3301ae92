"""Whether trajectories repeat over runs that differ by their seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from fastmeta.paper.reading.learned_run import LearnedRun
from fastmeta.paper.reading.over_classes import ClassCurves, correlation


def curves_repeat(curves: Sequence[ClassCurves]) -> dict[str, list[float]]:
    """Correlation of the target probabilities (E, C) of each pair of seeds.

    `curves`: as they are, where the course that all classes have in common speaks loudest. `classes`: each class less
    the mean of all at that epoch, so that only what sets classes apart counts.
    """
    found: dict[str, list[float]] = {"curves": [], "classes": []}
    for a, b in combinations((one.target_prob for one in curves), 2):
        for name, (x, y) in {
            "curves": (a, b),
            "classes": (a - np.nanmean(a, 1, keepdims=True), b - np.nanmean(b, 1, keepdims=True)),
        }.items():
            if (value := correlation(x.ravel(), y.ravel())) is not None:
                found[name].append(value)
    return found


def mean_target_probs(run: LearnedRun) -> np.ndarray:
    """(N,): of each training row, the probability of its given class, mean over the snapshots behind the start."""
    epochs, total = run.epochs[1:] or run.epochs, np.zeros(len(run.given))
    for epoch in epochs:
        for at, probs in run.chunks(epoch):
            total[at] += np.take_along_axis(probs, run.given[at][:, None], 1)[:, 0]
    return total / len(epochs)


def rows_repeat(runs: Sequence[LearnedRun]) -> list[float]:
    """Correlation over training rows of their mean target probability, of each pair of runs.

    Of the rows that both trained on with the same given label; a pair with fewer than three is left out.
    """
    means = [mean_target_probs(run) for run in runs]
    found = []
    for (a, x), (b, y) in combinations(zip(runs, means, strict=True), 2):
        _, i, j = np.intersect1d(a.rows, b.rows, return_indices=True)
        same = a.given[i] == b.given[j]
        if (value := correlation(x[i[same]], y[j[same]])) is not None:
            found.append(value)
    return found
