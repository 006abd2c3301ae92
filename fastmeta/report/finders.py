"""How well wrong labels are found: by the learned labels, and by cleanlab on the same data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmeta.data import InputError
from fastmeta.report.wrong_labels import precision_recall

#: rows that somebody may look at first
LOOKED_AT = (10, 30, 100, 300, 1000, 3000, 10000)
#: numbers of a sample for logistic regression; beyond, so many principal components
_MOST_NUMBERS, _COMPONENTS = 256, 128
_FOLDS = 5


@dataclass(frozen=True)
class Finder:
    """What somebody finds who looks at rows by falling `score`."""

    name: str
    score: np.ndarray  # (N,)
    average_precision: float
    precision: np.ndarray  # of the rows with at least each score, highest first
    recall: np.ndarray
    at: dict[int, float]  # share of wrong labels among so many rows


def finder(name: str, score: np.ndarray, wrong: np.ndarray) -> Finder:
    """Of the rows (N,) that are `wrong`."""
    precision, recall = precision_recall(wrong, score)
    order = np.argsort(-score, kind="stable")
    found = np.cumsum(wrong[order])
    at = {k: float(found[k - 1] / k) for k in LOOKED_AT if k <= len(wrong)}
    return Finder(name, score, float(np.sum(np.diff(recall, prepend=0.0) * precision)), precision, recall, at)


def cleanlab_scores(x: Any, given: np.ndarray, seed: int) -> np.ndarray:
    """(N,) one less cleanlab's label quality, by five-fold predictions of logistic regression on `x` (N, ...).

    Samples of more than 256 numbers are taken as 128 principal components.

    Raises:
        ImportError: cleanlab is not installed.
        InputError: samples that are no numbers, or a class of one sample.
    """
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise ImportError(f"a comparison with cleanlab needs it: pip install 'fastmeta[report]' ({error})") from error
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = np.asarray(x)
    if rows.dtype.kind not in "iuf":
        raise InputError("cleanlab is run on logistic regression, which needs numbers, and the samples are none")
    pixels = rows.dtype == np.uint8
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    deviation = np.full(rows.shape[1], 255.0) if pixels else rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    if rows.shape[1] > _MOST_NUMBERS:
        rows = PCA(min(_COMPONENTS, len(rows)), random_state=0).fit_transform(rows)
        rows /= rows.std() or 1.0
    classes, numbers, counts = np.unique(given, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise InputError("cleanlab's predictions are cross-validated, and a class has one sample alone")
    folds = StratifiedKFold(int(min(_FOLDS, counts.min())), shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the solver might go on for longer
        model = LogisticRegression(max_iter=300)
        probs = cross_val_predict(model, rows, numbers, cv=folds, method="predict_proba")
    assert probs.shape[1] == len(classes)
    return 1 - np.asarray(get_label_quality_scores(numbers, probs))
