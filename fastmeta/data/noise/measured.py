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


def transition(true: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C): P(given label k | true class c) as it came out; zeros for a class without a row."""
    pairs = np.bincount(true * num_classes + given, minlength=num_classes**2).reshape(num_classes, num_classes)
    return pairs / np.maximum(pairs.sum(1, keepdims=True), 1)


def in_words(true: np.ndarray, given: np.ndarray, names: Sequence[str]) -> str:
    """Lines: the share of wrong labels, and the matrix in percent, or the commonest mistakes of many classes."""
    wrong = true != given
    first = f"{wrong.sum():,} of {len(true):,} labels are wrong, {wrong.mean():.1%}"
    if len(names) <= MOST_PRINTED:
        short = [printable(name, _NAME) for name in names]
        width = max(map(len, short))
        cells = ["".join(f"{100 * share:6.1f}" for share in row) for row in transition(true, given, len(names))]
        rows = [f"  {name:<{width}} {row}" for name, row in zip(short, cells, strict=True)]
        return "\n".join([f"{first}; of each class (row) as which (column, in the same order), in %:", *rows])
    pairs, counts = np.unique(true[wrong] * len(names) + given[wrong], return_counts=True)
    told = []
    for i in np.argsort(-counts, kind="stable")[:_LISTED]:
        c, k = divmod(int(pairs[i]), len(names))
        share = counts[i] / (true == c).sum()
        told.append(f"{printable(names[c], _NAME)} as {printable(names[k], _NAME)} {share:.1%}")
    return first + (f"; most of all {', '.join(told)}" if told else "")
