"""Half of the classes lose labels to one wrong class each."""

from __future__ import annotations

from typing import Any

import numpy as np


def classwise(targets: np.ndarray, x: Any, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """With probability `rate` a label of class 0, 2, 4, … becomes the class after it: 0 to 1, 2 to 3, and so on.

    Labels of the odd classes stay, and so do those of the last class where the number of classes is odd. A hit label is
    always wrong; with C even classes of one size, labels are wrong at a rate of rate / 2.
    """
    hit = generator.random(len(targets)) < rate
    loses = (targets % 2 == 0) & (targets + 1 < num_classes)
    return np.where(hit & loses, targets + 1, targets)
