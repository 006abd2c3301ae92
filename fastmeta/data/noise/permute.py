"""Every class loses labels to one other class, by a random permutation."""

from __future__ import annotations

from typing import Any

import numpy as np


def permute(targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """With probability `rate` a label of class c becomes π(c): wrong at `rate`.

    π is one random permutation of the classes in which none stays where it is, drawn by the seed; each such permutation
    is as likely.
    """
    hit = generator.random(len(targets)) < rate
    classes = np.arange(num_classes)
    becomes = classes
    while (becomes == classes).any():  # e draws on average, whatever the number of classes
        becomes = generator.permutation(num_classes)
    return np.where(hit, becomes[targets], targets)
