"""Labels are mistaken within groups of classes, such as the 20 superclasses of CIFAR-100."""

from __future__ import annotations

from typing import Any

import numpy as np


def superclass(
    targets: np.ndarray,
    x: Any,
    num_classes: int,
    rate: float,
    generator: np.random.Generator,
    *,
    superclasses: np.ndarray,
) -> np.ndarray:
    """With probability `rate` a label becomes the next class of its superclass, the last the first: wrong at `rate`.

    This is the asymmetric noise of CIFAR-100 in Patrini et al. (2017). A class that is alone in its superclass keeps
    its labels.

    Args:
        superclasses: (C,) int64, of each class.
    """
    hit = generator.random(len(targets)) < rate
    after = np.arange(num_classes)
    for group in np.unique(superclasses):
        members = np.flatnonzero(superclasses == group)
        after[members] = np.roll(members, -1)
    return np.where(hit, after[targets], targets)
