"""Kinds of noise by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmeta._text import reason, shown
from fastmeta._trust import Untrusted, load_object
from fastmeta.data.errors import InputError
from fastmeta.data.noise.classwise import classwise
from fastmeta.data.noise.instance import instance
from fastmeta.data.noise.pair import pair
from fastmeta.data.noise.uniform import uniform

#: (targets (N,) int64, x (N, ...), num_classes, rate, generator) -> labels (N,); a function of these alone
Kind = Callable[[np.ndarray, Any, int, float, np.random.Generator], np.ndarray]

#: every kind of this package by its name
KINDS: dict[str, Kind] = {"uniform": uniform, "class": classwise, "pair": pair, "instance": instance}
_CODE = re.compile(r"([^\W\d][\w.]*:[^\W\d][\w.]*)(?::([^:]+))?")


class Noise(NamedTuple):
    """What a text stands for."""

    kind: str  # of `KINDS`, none, or package.module:function
    rate: float

    @property
    def names_code(self) -> bool:
        return ":" in self.kind


def parse(spec: str) -> Noise:
    """("uniform", 0.4) of "uniform:0.4", ("none", 0) of "none", ("mine:flip", 0.3) of "mine:flip:0.3".

    A function of the user's may come without a rate, and is called with rate 1. Nothing is imported here.

    Raises:
        InputError: anything else.
    """
    if not isinstance(spec, str):
        raise _unknown(spec)
    if spec == "none":
        return Noise("none", 0.0)
    kind, _, text = spec.partition(":")
    if kind not in KINDS:
        code = _CODE.fullmatch(spec)
        if code is None:
            raise _unknown(spec)
        kind, text = type(spec)(code[1]), code[2] or "1"  # a name of a file's stays one
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise _unknown(spec)
    return Noise(kind, rate)


def _unknown(spec: Any) -> InputError:
    known = ", ".join(f"{k}:RATE" for k in KINDS)
    return InputError(
        f"unknown noise {shown(spec)}: expected none, {known} or package.module:function:RATE with RATE in [0, 1], "
        "such as uniform:0.4"
    )


def corrupt(targets: np.ndarray, x: Any, num_classes: int, spec: str, generator: np.random.Generator) -> np.ndarray:
    """Labels (N,) after the noise of `spec`; the input stays. `x` are the samples, in the order of `targets`."""
    noise = parse(spec)
    if noise.kind == "none":
        return targets.copy()
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
