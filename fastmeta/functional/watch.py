"""What a model reads as Python, beside the tensors of a step: compared with what it was, or beyond comparing.

A graph holds what the model's Python said when it was traced. It may run on only while everything that was read then is
as it was: attributes, whatever they are made of, hooks, functions with their defaults, closures and globals, classes,
modules. :class:`Watch` walks from the modules through all of it, makes an *image* that compares by value, and *checks*
that compare by identity, in C, which is what every step pays for. Where a check fails, the image decides.

What has a state that cannot be seen (iterators, files, objects of C, clocks) raises :class:`Unwatchable`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import is_
from typing import Any

from torch import Tensor, nn

from fastmeta.functional.checks import Checks, equal_plain
from fastmeta.functional.image import Slot, Unwatchable
from fastmeta.functional.image_walk import ImageWalk

__all__ = ["Structure", "Unwatchable", "Watch"]


class Structure:
    """Of which modules and parameters a model is made, as at the first question."""

    def __init__(self) -> None:
        self._checks: Checks | None = None

    def stands(self, modules: Sequence[nn.Module]) -> bool:
        if self._checks is None:
            self._checks = Checks()
            for m in modules:
                self._checks.whole(m._parameters)
                self._checks.whole(m._modules)
                self._checks.size(m._buffers)
        return self._checks.hold(lambda before, now: False)

    def __deepcopy__(self, memo: Any) -> Structure:
        return Structure()


class Watch:
    """The model as it is now; :meth:`holds` tells whether it still is.

    Args:
        modules: with their names.
        functions: more that is called, with names.
        own, reads, counters: see :class:`ImageWalk`.

    Raises:
        Unwatchable: there is something of which that cannot be told.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        functions: Sequence[tuple[str, Any]],
        own: Collection[int],
        reads: Mapping[int, set[str]],
        counters: Collection[tuple[int, Any]] = (),
    ) -> None:
        self._roots = modules, functions
        self._known = own, reads, counters
        self._walk = self._walked()

    def _walked(self) -> ImageWalk:
        walk = ImageWalk(True, *self._known)
        walk.run(*self._roots)
        return walk

    @property
    def slots(self) -> dict[tuple[int, Any], Slot]:
        """Numbers that could be counters."""
        return self._walk.slots

    def holds(self) -> bool:
        if self._walk.checks.hold(equal_plain):
            return True
        try:
            now = self._walked()
        except Unwatchable:
            return False
        if now.parts != self._walk.parts:
            return False
        self._walk = now
        return True

    def difference(self, other: Watch) -> str:
        """Where two differ, or ""."""
        for (where, mine), (_, its) in zip(self._walk.parts, other._walk.parts, strict=False):
            if mine != its:
                return where
        return "" if len(self._walk.parts) == len(other._walk.parts) else "what the model is made of"

    def has(self, t: Tensor) -> bool:
        """Whether a tensor that no step reads anew is among what is watched."""
        address = t.untyped_storage().data_ptr()
        return any(s.untyped_storage().data_ptr() == address for s in self._walk.tensors)

    def put_back(self) -> None:
        """Give lists and dicts the content that they had."""
        for container, content in self._walk.lists:
            if isinstance(container, dict):
                if len(container) != len(content) or not all(map(is_, container.values(), content.values())):
                    container.clear()
                    container.update(content)
            elif len(container) != len(content) or not all(map(is_, container, content)):
                container.clear()
                container.extend(content)
