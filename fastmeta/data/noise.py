"""Label noise on purpose, for measuring: ``none`` or ``KIND:RATE``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmeta._text import shown
from fastmeta.data.errors import InputError


def _uniform(targets: np.ndarray, num_classes: int, rate: float, generator: np.random.Generator) -> np.ndarray:
    """With probability `rate` a label becomes a uniformly random class, which may be the one it had.

    So labels are wrong at a rate of rate * (C-1) / C on average.
    """
    hit = generator.random(len(targets)) < rate
    return np.where(hit, generator.integers(0, num_classes, len(targets)), targets)


KINDS: dict[str, Callable[[np.ndarray, int, float, np.random.Generator], np.ndarray]] = {"uniform": _uniform}


def parse(spec: str) -> tuple[str, float]:
    """("uniform", 0.4) from "uniform:0.4", ("none", 0) from "none"; InputError for all else."""
    if spec == "none":
        return "none", 0.0
    kind, _, text = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if kind not in KINDS or not 0 <= rate <= 1:
        known = ", ".join(f"{k}:RATE" for k in KINDS)
        raise InputError(
            f"unknown noise {shown(spec)}: expected none or {known} with RATE in [0, 1], such as uniform:0.4"
        )
    return kind, rate


def corrupt(targets: np.ndarray, num_classes: int, spec: str, generator: np.random.Generator) -> np.ndarray:
    """Labels (N,) after the noise of `spec`; the input stays."""
    kind, rate = parse(spec)
    return targets.copy() if kind == "none" else KINDS[kind](targets, num_classes, rate, generator)
