"""What noise has done: how many labels of each class became which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmeta._text import printable

#: classes whose matrix is printed whole, and kept in a run's summary
MOST_PRINTED, MOST_KEPT = 10, 100
#: of a larger one, the commonest mistakes
_LISTED = 5
_NAME = 12


def confusion(true: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64: labels of class c that say k."""
    return np.bincount(true * num_classes + given, minlength=num_classes**2).reshape(num_classes, num_classes)


def shares(counts: np.ndarray) -> np.ndarray:
    """(C, C): the same as shares of each class, P(given k | true c); zeros for a class without a row."""
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def in_words(counts: np.ndarray, names: Sequence[str]) -> str:
    """Lines: the share of wrong labels, and the matrix in percent, or the commonest mistakes of many classes."""
    total, right = int(counts.sum()), int(np.trace(counts))
    first = f"{total - right:,} of {total:,} labels are wrong, {(total - right) / max(total, 1):.1%}"
    part = 100 * shares(counts)
    short = [printable(name, _NAME) for name in names]
    if len(counts) <= MOST_PRINTED:
        width = max(map(len, short))
        rows = [
            f"  {name:<{width}} " + "".join(f"{p:6.1f}" for p in row) for name, row in zip(short, part, strict=True)
        ]
        return "\n".join([f"{first}; of each class (row) as which (column, in the same order), in %:", *rows])
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most = [divmod(int(k), len(counts)) for k in np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]]
    told = [f"{short[c]} as {short[k]} {part[c, k]:.1f}%" for c, k in most if wrong[c, k]]
    return first + (f"; most of all {', '.join(told)}" if told else "")
