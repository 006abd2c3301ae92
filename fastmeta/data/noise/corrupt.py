"""Labels after noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmeta._text import reason
from fastmeta._trust import Untrusted, load_object
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.label_file import read_labels
from fastmeta.data.noise.registry import GROUPED, KINDS, parse


def noisy(data: Dataset, rows: np.ndarray, spec: str, generator: np.random.Generator) -> np.ndarray:
    """Labels of the training rows `rows` after the noise of `spec`.

    A file holds labels of all training rows, of which these are taken.
    """
    noise = parse(spec)
    if noise.path is not None:
        return read_labels(noise.path, noise.key).fitted(data)[rows]
    every = len(rows) == len(data.train)
    x = data.train.x if every else data.train.take(rows).x
    return corrupt(data.train.targets[rows], x, data.num_classes, spec, generator, data.superclasses)


def corrupt(
    targets: np.ndarray,
    x: Any,
    num_classes: int,
    spec: str,
    generator: np.random.Generator,
    superclasses: np.ndarray | None = None,
) -> np.ndarray:
    """Labels (N,) after the noise of `spec`; the input stays. `x` are the samples, in the order of `targets`.

    Raises:
        InputError: superclass noise without `superclasses`, a file, or a function of the user's that fails.
    """
    noise = parse(spec)
    if noise.kind == "none":
        return targets.copy()
    if noise.kind in GROUPED:
        if superclasses is None:
            raise InputError(
                f"noise {spec} needs superclasses, which are known of CIFAR-100 alone; give them as data.superclasses, "
                'a JSON file such as {"animals": ["cat", "dog"], "things": ["car", "cup"]}, or an array superclasses '
                "(C,) beside the data"
            )
        return GROUPED[noise.kind](targets, x, num_classes, noise.rate, generator, superclasses=superclasses)
    if noise.path is not None:
        raise InputError(f"noise {spec} is a file of labels of a whole training set")
    if not noise.names_code:
        return KINDS[noise.kind](targets, x, num_classes, noise.rate, generator)
    try:
        function = load_object(Untrusted(noise.kind) if isinstance(spec, Untrusted) else noise.kind)
    except ValueError as error:
        raise InputError(f"noise: {error}") from error
    try:
        labels = np.asarray(function(targets.copy(), x, num_classes, noise.rate, generator))
    except Exception as error:  # of a function of the user's
        raise InputError(
            f"noise {noise.kind} is called as function(targets, x, num_classes, rate, generator) and failed: "
            f"{reason(error)}"
        ) from error
    if labels.shape != targets.shape or labels.dtype.kind not in "iu":
        raise InputError(
            f"noise {noise.kind} must return class numbers {targets.shape} of an integer dtype, got {labels.dtype} of "
            f"shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"noise {noise.kind} must return classes in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)
