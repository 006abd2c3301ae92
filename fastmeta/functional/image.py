"""Images of values: what a value is, by all that it holds; equal values have equal images."""

from __future__ import annotations

import collections
import contextvars
import enum
import functools
import logging
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch.distributed
from torch import Tensor, nn

from fastmeta.functional.checks import (
    MISSING,
    PLAIN_TYPES,
    SMALL,
    Checks,
    Same,
    TensorState,
    equal_plain,
    is_numpy_number,
    plain_key,
)
from fastmeta.functional.code_names import FICKLE, is_trusted
from fastmeta.functional.random_state import is_generator

#: of which only which one it is can matter
_SINGLE = (
    types.ModuleType,
    types.CodeType,
    re.Pattern,
    type(threading.Lock()),
    type(threading.RLock()),
    logging.Logger,
    types.UnionType,
    types.GenericAlias,
    *([torch.distributed.ProcessGroup] if torch.distributed.is_available() else []),
)
_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    type(vars(collections.namedtuple("_One", "field"))["field"]),
)
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)

_MOST = 100_000


class Unwatchable(Exception):
    """Where the walk ended, and why."""


class Slot(NamedTuple):
    """A number that something has under a name, and how it is assigned."""

    where: str
    value: Any
    assign: Callable[[Any], None]


class Images:
    """Makes images of values, and finds the functions, classes and modules that are left to look at.

    Args:
        strict: raise for what cannot be watched; else pass it by, and tensors and numbers with it.
        own: ids of tensors that a step reads anew every time.
        counters: (id of the holder, name) of what is passed by.
    """

    def __init__(self, strict: bool, own: Collection[int], counters: Collection[tuple[int, Any]]) -> None:
        self.strict, self.own, self.counters = strict, own, counters
        self.checks = Checks()
        self.slots: dict[tuple[int, Any], Slot] = {}
        self.generators: list[Any] = []
        self.tensors: list[Tensor] = []
        self.lists: list[tuple[Any, Any]] = []  # containers and copies of them
        self.todo: list[tuple[str, nn.Module]] = []  # modules that were met
        self.classes: dict[type, set[str]] = {}  # of the user's that were met: names that are done
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []

    def image(self, value: Any, where: str) -> Any:
        """What `value` is, by value; compares equal to that of an equal one."""
        kind = type(value)
        if kind in PLAIN_TYPES:
            return plain_key(value)
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        if len(self._seen) >= _MOST:
            return self.beyond(where, "there is too much to watch")
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if is_generator(value):
            self.generators.append(value)
            return Same(value)
        if isinstance(value, nn.Module):
            self.todo.append((where, value))
            return Same(value)
        if isinstance(value, (*_SINGLE, enum.Enum)):
            return Same(value)
        if isinstance(value, type):
            if not is_trusted(value.__module__):
                self.classes.setdefault(value, set())
            return Same(value)
        if is_numpy_number(value):
            return kind, value.dtype.str, value.tobytes()
        if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray):
            return self._array(value, where)
        if isinstance(value, property | classmethod | staticmethod | functools.cached_property):
            names = ("fget", "fset", "func", "__func__")
            return kind, *(self.image(getattr(value, name, None), where) for name in names)
        return self._callable(value, where) if callable(value) else self._holder(value, where)

    def beyond(self, where: str, why: str) -> Any:
        if self.strict:
            raise Unwatchable(f"{where}: {why}")
        return None

    def _tensor(self, t: Tensor) -> Any:
        if id(t) in self.own or not self.strict:
            return Same(t) if self.strict else None
        self.tensors.append(t)
        state = TensorState(t)
        self.checks.equal(lambda: state == state.now(), True)
        return state

    def _array(self, value: Any, where: str) -> Any:
        if value.dtype == object or value.nbytes > 16 * SMALL:
            return self.beyond(where, "a numpy array is too large to watch, or of objects; make it a buffer")
        if not self.strict:
            return None

        def look() -> Any:
            return value.shape, value.dtype.str, value.tobytes()

        self.checks.equal(look, look())
        return look()

    def _callable(self, value: Any, where: str) -> Any:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self.function(value, where)
        if isinstance(value, types.MethodType):
            return "method", self.image(value.__func__, where), self.image(value.__self__, where)
        if isinstance(value, functools.partial):
            inner = (value.func, value.args, value.keywords, vars(value))
            return "partial", *(self.image(part, where) for part in inner)
        if isinstance(value, weakref.ref) and kind is weakref.ref:
            there = value()
            self.checks.equal(lambda: value() is there, True)
            return "weakref", self.image(there, where)
        if hasattr(value, "__wrapped__") and kind.__module__ == "functools":  # a cache
            return self.image(value.__wrapped__, where)
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            if value.__name__ in FICKLE.get(str(value.__module__), ()):
                return self.beyond(where, f"{value.__name__} says another thing in every call")
            owner = value.__self__
            if owner is None or isinstance(owner, types.ModuleType | type):
                return Same(value)
            return value.__name__, self.image(owner, where)
        if kind.__module__.startswith(("builtins", "torch._C", "torch._ops", "numpy")):
            return Same(value)  # descriptors and operators
        return self._holder(value, where)

    def _holder(self, value: Any, where: str) -> Any:
        """Containers and objects: what they hold."""
        kind = type(value)
        if isinstance(value, types.CellType):
            return self._cell(value, where)
        if isinstance(value, contextvars.ContextVar):
            return self._context_variable(value, where)
        if isinstance(value, types.MappingProxyType):
            return kind, self.content(value, where)
        if isinstance(value, _DESCRIPTORS):
            return Same(value)
        if kind is object:
            return Same(value)
        base = next(c for c in kind.__mro__ if not c.__flags__ & 1 << 9 or c in (collections.OrderedDict,))
        if base in (int, float, complex, str, bytes):
            content: Any = base.__repr__(value)
        elif base in _CONTAINERS or base in (collections.OrderedDict, collections.defaultdict):
            content = self.content(value, where)
        elif base is types.SimpleNamespace or (base is object and not _hides_state(kind)):
            content = None
        else:
            return self.beyond(where, f"{name_of(kind)} has a state that cannot be watched")
        self.checks.typed(value)
        state = [content]
        if hasattr(value, "__dict__"):
            state.append(self.content(vars(value), where, attributes=True))
        for cls in kind.__mro__:
            names = vars(cls).get("__slots__", ())
            for name in [names] if isinstance(names, str) else names:
                member = vars(cls).get(name)  # a private one's name is mangled, and it is there under that
                if isinstance(member, types.MemberDescriptorType):
                    state.append(self._member(value, name, member, where))
            if not is_trusted(cls.__module__):
                self.classes.setdefault(cls, set())
        return Same(kind), *state

    def content(self, value: Any, where: str, attributes: bool = False) -> Any:
        if isinstance(value, Mapping):
            # past a class's own ways to read, which may make values as they are asked for
            own = dict.items(value) if isinstance(value, dict) else value.items()
            items = [(k, v) for k, v in own if (id(value), k) not in self.counters]
            self.checks.named(value, [k for k, _ in items])
            self.checks.size(value)
            if isinstance(value, dict):
                self.lists.append((value, dict(own)))
                assign: Any = value.__setitem__
            else:
                assign = None
            return [
                (
                    self.image(k, where),
                    self.child(value, k, v, f"{where}.{k}" if attributes else f"{where}[{k!r}]", assign),
                )
                for k, v in items
            ]
        if isinstance(value, set | frozenset):
            if not isinstance(value, frozenset):
                copy = set(value)
                self.checks.equal(lambda: value == copy, True)
            order = sorted(value, key=lambda k: repr(plain_key(k)) if type(k) in PLAIN_TYPES else str(id(k)))
            return [self.image(k, where) for k in order]
        if not isinstance(value, tuple):
            if not any((id(value), k) in self.counters for k in range(len(value))):
                self.checks.sequence(value)
            else:
                self._list_with_counters(value)
            self.lists.append((value, list(value)))
        assign = None if isinstance(value, tuple) else value.__setitem__
        return [self.child(value, k, v, f"{where}[{k}]", assign) for k, v in enumerate(value)]

    def _list_with_counters(self, value: Any) -> None:
        kept = [k for k in range(len(value)) if (id(value), k) not in self.counters]

        def look() -> Any:
            return len(value), [Same(value[k]) for k in kept if k < len(value)]

        self.checks.equal(look, look())

    def child(self, holder: Any, key: Any, value: Any, where: str, assign: Callable[[Any, Any], None] | None) -> Any:
        if (id(holder), key) in self.counters:
            return None
        if assign is not None and type(value) in (int, float):
            self.slots[id(holder), key] = Slot(where, value, functools.partial(assign, key))
        return self.image(value, where)

    def _member(self, value: Any, name: str, member: Any, where: str) -> Any:
        def look() -> Any:
            try:
                return member.__get__(value)
            except AttributeError:
                return MISSING

        now = look()
        if (id(value), name) not in self.counters:
            self.checks.equal(lambda: look() is now or equal_plain(look(), now), True)
        return self.child(value, name, now, f"{where}.{name}", lambda _, new: member.__set__(value, new))

    def _cell(self, cell: types.CellType, where: str) -> Any:
        def look() -> Any:
            try:
                return cell.cell_contents
            except ValueError:
                return MISSING

        now = look()
        if (id(cell), "") not in self.counters:
            self.checks.equal(lambda: look() is now or equal_plain(look(), now), True)

        def assign(_: Any, new: Any) -> None:
            cell.cell_contents = new

        return None if now is MISSING else self.child(cell, "", now, where, assign)

    def _context_variable(self, value: contextvars.ContextVar[Any], where: str) -> Any:
        """What it is in this context: it can be set, and not by name."""
        now = value.get(MISSING)
        self.checks.equal(lambda: value.get(MISSING) is now or equal_plain(value.get(MISSING), now), True)
        return Same(value), now is MISSING or self.image(now, where)

    def function(self, f: types.FunctionType, where: str) -> Any:
        """What a function is, by its code and by all that it reads."""
        raise NotImplementedError


def _hides_state(cls: type) -> bool:
    """Whether objects of a class without a builtin base have more in C than a __dict__ and __slots__."""
    words = sum(isinstance(v, types.MemberDescriptorType) for c in cls.__mro__ for v in vars(c).values())
    plain = any("__dict__" in vars(c) or "__slots__" in vars(c) for c in cls.__mro__[:-1])
    return not plain or cls.__basicsize__ > object.__basicsize__ + 8 * (words + 2)


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
