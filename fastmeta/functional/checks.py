"""Comparisons of what a model reads with what it was: by identity, which every step pays for, and by value."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import repeat, zip_longest
from operator import call, eq, is_
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

MISSING: Any = type("missing", (), {})()
#: values that never change and compare by what they say
PLAIN_TYPES = {
    *(type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    *(Fraction, Decimal, date, time, timedelta, *PurePath.__subclasses__(), PurePath),
}

#: tensors and arrays up to this many bytes are compared by content
SMALL = 1 << 16


class Same:
    """Compares by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _get(mapping: Mapping[Any, Any]) -> Callable[[Any, Any], Any]:
    """A mapping's get by key and default. A dict's class may have a method of that name with other arguments."""
    return (
        partial(dict.get, mapping) if isinstance(mapping, dict) and type(mapping).get is not dict.get else mapping.get
    )


class Checks:
    """Comparisons by identity, quick to make in every step: each kind is one loop in C."""

    def __init__(self) -> None:
        #: what a mapping gives for a name, flat: 60 ns each
        self._get: list[Callable[[Any, Any], Any]] = []
        self._names: list[Any] = []
        self._values: list[Any] = []
        self._objects: list[Any] = []
        self._types: list[type] = []
        self._sized: list[Collection[Any]] = []
        self._sizes: list[int] = []
        self._lists: list[tuple[Sequence[Any], list[Any]]] = []
        self._other: list[tuple[Callable[[], Any], Any]] = []

    def named(self, mapping: Mapping[Any, Any], names: Collection[Any]) -> None:
        """What `mapping` has, or has not, under these names."""
        self._get += [_get(mapping)] * len(names)
        self._names += names
        self._values += [_get(mapping)(name, MISSING) for name in names]

    def typed(self, value: Any) -> None:
        """The class of an object, which can be assigned to."""
        self._objects.append(value)
        self._types.append(type(value))

    def whole(self, mapping: Mapping[Any, Any], but: Collection[Any] = ()) -> None:
        """All of a mapping, except what it has under some names."""
        self.named(mapping, [k for k in mapping if k not in but])
        self.size(mapping)

    def size(self, container: Collection[Any]) -> None:
        self._sized.append(container)
        self._sizes.append(len(container))

    def sequence(self, values: Sequence[Any]) -> None:
        if values:
            self._lists.append((values, list(values)))
        else:
            self.size(values)

    def equal(self, look: Callable[[], Any], value: Any) -> None:
        """What a function gives."""
        self._other.append((look, value))

    def hold(self, patch: Callable[[Any, Any], bool]) -> bool:
        """Whether all is as it was; `patch` says whether a new value will do for an old one, or for none."""
        now = map(call, self._get, self._names, repeat(MISSING))
        if not all(map(is_, now, self._values)):
            current = list(map(call, self._get, self._names, repeat(MISSING)))
            if not _patched(self._values, current, patch):
                return False
            self._values = current
        if not all(map(is_, map(type, self._objects), self._types)):
            return False
        if not all(map(eq, map(len, self._sized), self._sizes)):
            return False
        for values, before in self._lists:
            if len(values) != len(before) or not all(map(is_, values, before)):
                if not _patched(before, values, patch):
                    return False
                before[:] = values
        return all(look() == value for look, value in self._other)


def _patched(before: Sequence[Any], now: Sequence[Any], patch: Callable[[Any, Any], bool]) -> bool:
    return all(a is b or patch(a, b) for a, b in zip_longest(before, now, fillvalue=MISSING))


def equal_plain(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) in PLAIN_TYPES:
        return bool(plain_key(a) == plain_key(b))
    return is_numpy_number(a) and a.tobytes() == b.tobytes()


def is_numpy_number(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and value.dtype != object


def plain_key(value: Any) -> Any:
    kind = type(value)
    return (kind, repr(value)) if kind in (float, complex) else (kind, value)


class TensorState:
    """A tensor that is no input of the step: the same one, written to by nobody, or another of equal content."""

    def __init__(self, t: Tensor) -> None:
        self.tensor = t
        self.seen = self._look()
        small = t.layout == torch.strided and not t.is_cuda and t.numel() * t.element_size() <= SMALL
        self.content = t.detach().clone() if small and not t.is_meta else None

    def _look(self) -> Any:
        t = self.tensor
        version = 0 if t.is_inference() else t._version
        place = t.data_ptr() if t.layout == torch.strided and not t.is_meta else 0
        return version, place, t.shape, t.dtype, t.device, t.requires_grad

    def now(self) -> TensorState:
        new = object.__new__(TensorState)
        new.tensor, new.content = self.tensor, self.tensor.detach() if self.content is not None else None
        new.seen = new._look()
        return new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorState):
            return False
        same = self.tensor is other.tensor and self.seen == other.seen
        if same and self.content is None:
            return True
        if self.seen[2:] != other.seen[2:]:
            return False
        mine, its = (s.content if s.content is not None else s.tensor.detach() for s in (self, other))
        if not same and self.content is None and self._look() != self.seen:
            return False  # written to since: what it held is not known
        return bool(((mine == its) | ((mine != mine) & (its != its))).all())

    __hash__ = None  # type: ignore[assignment]


def hooks_of_all_modules() -> list[Any]:
    """Hooks that were registered for every module. Torch has no public name for them; tests/meta has a tripwire."""
    return [v for k, v in sorted(vars(torch.nn.modules.module).items()) if k.startswith("_global_") and "hooks" in k]
