"""The random generators that a model can reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastmeta.functional.checks import MISSING, PLAIN_TYPES
from fastmeta.functional.image_walk import ImageWalk


class Generators:
    """Random generators that are found on modules, in what they hold, in hooks, closures and globals.

    Looked for again when something changed that could hold one.
    """

    def __init__(self) -> None:
        self._walk: ImageWalk | None = None

    def __call__(self, modules: Sequence[nn.Module], functions: Sequence[Any]) -> list[Any]:
        if self._walk is None or not self._walk.checks.hold(_both_dull):
            self._walk = walk = ImageWalk(False, (), {}, ())
            walk.run([("", m) for m in modules], [("", f) for f in functions])
        return self._walk.generators

    def __deepcopy__(self, memo: Any) -> Generators:
        return Generators()  # a copy of the model has generators of its own


def _dull(value: Any) -> bool:
    """Whether nothing hangs on `value`."""
    return type(value) in PLAIN_TYPES or value is MISSING or isinstance(value, Tensor) or hasattr(value, "tobytes")


def _both_dull(a: Any, b: Any) -> bool:
    return _dull(a) and _dull(b)
