"""A share of the labels drawn anew: from all classes, or from all but the right one."""

from __future__ import annotations

from typing import Any

import numpy as np


def uniform(targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """With probability `rate` a label becomes a uniformly random class, which may be the one it had.

    So labels are wrong at a rate of rate * (C-1) / C on average.
    """
    hit = generator.random(len(targets)) < rate
    return np.where(hit, generator.integers(0, num_classes, len(targets)), targets)


def uniform_other(
    targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator
) -> np.ndarray:
    """With probability `rate` a label becomes one of the other classes, each as likely: wrong at `rate` on average."""
    hit = generator.random(len(targets)) < rate
    return np.where(hit, _another(targets, num_classes, generator), targets)


def uniform_exact(
    targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator
) -> np.ndarray:
    """Of N labels exactly round(rate * N), any of them, become one of the other classes, each as likely."""
    hit = generator.permutation(len(targets))[: round(rate * len(targets))]
    labels = targets.copy()
    labels[hit] = _another(targets[hit], num_classes, generator)
    return labels


def _another(targets: np.ndarray, num_classes: int, generator: np.random.Generator) -> np.ndarray:
    return (targets + generator.integers(1, num_classes, len(targets))) % num_classes
