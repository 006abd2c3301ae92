"""A share of the labels drawn anew from all classes."""

from __future__ import annotations

from typing import Any

import numpy as np


def uniform(targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """With probability `rate` a label becomes a uniformly random class, which may be the one it had.

    So labels are wrong at a rate of rate * (C-1) / C on average.
    """
    hit = generator.random(len(targets)) < rate
    return np.where(hit, generator.integers(0, num_classes, len(targets)), targets)
