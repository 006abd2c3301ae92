"""Entropy of the labels over training: of those that were put right, of those that stay wrong, of clean ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmeta.paper.reading.learned_run import LearnedRun

CORRECTED, UNCORRECTED, CLEAN = GROUPS = ("corrected", "uncorrected", "clean")


@dataclass(frozen=True)
class Entropies:
    """Mean entropy in nats at each epoch, of each of `GROUPS` that has rows."""

    epochs: Sequence[int]
    mean: Mapping[str, np.ndarray]  # (E,)
    rows: Mapping[str, int]
    most: float  # log C


def entropy(probs: np.ndarray) -> np.ndarray:
    """(n,) in nats, of distributions (n, C)."""
    return -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(1)


def leading(probs: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(n,) int64: the likeliest class, and the given one where none leads alone, as :func:`fastmeta.losses.read_out`
    has it.
    """
    top = probs.max(1, keepdims=True)
    return np.where((probs == top).sum(1) > 1, given, probs.argmax(1))


def groups(run: LearnedRun) -> dict[str, np.ndarray]:
    """(N,) bool by group: given labels that are wrong and right at the end; that are wrong and not right at the end;
    that are right. A label at the end is the likeliest class of the last snapshot.
    """
    wrong = run.wrong
    assert run.true is not None
    right = np.zeros(len(wrong), bool)
    for at, probs in run.chunks(run.epochs[-1]):
        right[at] = leading(probs, run.given[at]) == run.true[at]
    return {CORRECTED: wrong & right, UNCORRECTED: wrong & ~right, CLEAN: ~wrong}


def entropies(run: LearnedRun) -> Entropies:
    """Of `run`, at each snapshot of its trajectory. InputError where the true classes are not known."""
    members = {name: rows for name, rows in groups(run).items() if rows.any()}
    sums = {name: np.zeros(len(run.epochs)) for name in members}
    for number, epoch in enumerate(run.epochs):
        for at, probs in run.chunks(epoch):
            found = entropy(probs)
            for name, rows in members.items():
                sums[name][number] += found[rows[at]].sum()
    counts = {name: int(rows.sum()) for name, rows in members.items()}
    return Entropies(
        run.epochs, {name: sums[name] / counts[name] for name in members}, counts, float(np.log(run.num_classes))
    )
