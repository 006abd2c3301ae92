"""The walk from the modules of a model through all that their Python reads, which makes an image of each value."""

from __future__ import annotations

import collections
import enum
import functools
import logging
import os
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
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
from fastmeta.functional.code_names import FICKLE, is_trusted, names_in
from fastmeta.functional.random_state import is_generator

#: of which only which one it is can matter
_SINGLE = (
    types.ModuleType,
    types.CodeType,
    re.Pattern,
    type(threading.Lock()),
    type(threading.RLock()),
    logging.Logger,
)
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)

#: what a module has for its parts, which are compared as a structure
_PARTS = {"_parameters", "_buffers", "_modules"}
#: methods that make an object or show it
_MAKERS = ("__init__", "__new__", "__post_init__", "__repr__", "__str__", "__reduce__", "__del__", "__init_subclass__")

_MOST = 100_000


class Unwatchable(Exception):
    """Where the walk ended, and why."""


class Slot(NamedTuple):
    """A number that something has under a name, and how it is assigned."""

    where: str
    value: Any
    assign: Callable[[Any], None]


class ImageWalk:
    """One walk over everything that can be reached.

    Args:
        strict: raise for what cannot be watched; else pass it by, and tensors and numbers with it.
        own: ids of tensors that a step reads anew every time.
        reads: for the id of a module, names of its attributes that matter; all where it is not there.
        counters: (id of the holder, name) of what is passed by.
    """

    def __init__(
        self, strict: bool, own: Collection[int], reads: Mapping[int, set[str]], counters: Collection[tuple[int, Any]]
    ) -> None:
        self.strict, self.own, self.reads, self.counters = strict, own, reads, counters
        self.checks = Checks()
        self.parts: list[tuple[str, Any]] = []  # images, by where they belong
        self.slots: dict[tuple[int, Any], Slot] = {}
        self.generators: list[Any] = []
        self.tensors: list[Tensor] = []
        self.lists: list[tuple[Any, Any]] = []  # containers and copies of them
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []
        self._todo: list[tuple[str, nn.Module]] = []
        self._classes: dict[type, set[str]] = {}  # of the user's: names that are done
        self._done: dict[type, set[str]] = {}  # of others
        self._attributes: set[str] = set()  # that functions on the way read, of whatever

    def run(self, modules: Iterable[tuple[str, nn.Module]], functions: Iterable[tuple[str, Any]]) -> None:
        for name, module in modules:
            self.image(module, f"model.{name}" if name else "model")
        for name, function in functions:
            self.parts.append((name, self.image(function, name)))
        self.parts.append(("hooks of all modules", self.image(_hooks_of_all_modules(), "hooks of all modules")))
        more = True
        while more:  # what is read somewhere may matter elsewhere
            while self._todo:
                self._module(*self._todo.pop(0))
            more = any([self._class(cls) for cls in list(self._classes)]) or bool(self._todo)

    # -- values ------------------------------------------------------------------------------------------

    def image(self, value: Any, where: str) -> Any:
        """What `value` is, by value; compares equal to that of an equal one."""
        kind = type(value)
        if kind in PLAIN_TYPES:
            return plain_key(value)
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        if len(self._seen) >= _MOST:
            return self._beyond(where, "there is too much to watch")
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if is_generator(value):
            self.generators.append(value)
            return Same(value)
        if isinstance(value, nn.Module):
            self._todo.append((where, value))
            return Same(value)
        if isinstance(value, (*_SINGLE, enum.Enum)):
            return Same(value)
        if isinstance(value, type):
            if not is_trusted(value.__module__):
                self._classes.setdefault(value, set())
            return Same(value)
        if is_numpy_number(value):
            return kind, value.dtype.str, value.tobytes()
        if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray):
            return self._array(value, where)
        if isinstance(value, property | classmethod | staticmethod | functools.cached_property):
            names = ("fget", "fset", "func", "__func__")
            return kind, *(self.image(getattr(value, name, None), where) for name in names)
        return self._callable(value, where) if callable(value) else self._holder(value, where)

    def _beyond(self, where: str, why: str) -> Any:
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
            return self._beyond(where, "a numpy array is too large to watch, or of objects; make it a buffer")
        if not self.strict:
            return None

        def look() -> Any:
            return value.shape, value.dtype.str, value.tobytes()

        self.checks.equal(look, look())
        return look()

    def _callable(self, value: Any, where: str) -> Any:
        kind = type(value)
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
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
                return self._beyond(where, f"{value.__name__} says another thing in every call")
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
        if isinstance(value, types.MappingProxyType):
            return kind, self._content(value, where)
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            return Same(value)
        if kind is object:
            return Same(value)
        base = next(c for c in kind.__mro__ if not c.__flags__ & 1 << 9 or c in (collections.OrderedDict,))
        if base in (int, float, complex, str, bytes):
            content: Any = base.__repr__(value)
        elif base in _CONTAINERS or base in (collections.OrderedDict, collections.defaultdict):
            content = self._content(value, where)
        elif base is types.SimpleNamespace or (base is object and not _hides_state(kind)):
            content = None
        else:
            return self._beyond(where, f"{_name(kind)} has a state that cannot be watched")
        self.checks.typed(value)
        state = [content]
        if hasattr(value, "__dict__"):
            state.append(self._content(vars(value), where, attributes=True))
        for cls in kind.__mro__:
            names = vars(cls).get("__slots__", ())
            for name in [names] if isinstance(names, str) else names:
                member = vars(cls).get(name)  # a private one's name is mangled, and it is there under that
                if isinstance(member, types.MemberDescriptorType):
                    state.append(self._member(value, name, member, where))
            if not is_trusted(cls.__module__):
                self._classes.setdefault(cls, set())
        return Same(kind), *state

    def _content(self, value: Any, where: str, attributes: bool = False) -> Any:
        if isinstance(value, Mapping):
            keys = [k for k in value if (id(value), k) not in self.counters]
            self.checks.named(value, keys)
            self.checks.size(value)
            if isinstance(value, dict):
                self.lists.append((value, dict(value)))
                assign: Any = value.__setitem__
            else:
                assign = None
            return [
                (
                    self.image(k, where),
                    self._child(value, k, value[k], f"{where}.{k}" if attributes else f"{where}[{k!r}]", assign),
                )
                for k in keys
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
        return [self._child(value, k, v, f"{where}[{k}]", assign) for k, v in enumerate(value)]

    def _list_with_counters(self, value: Any) -> None:
        kept = [k for k in range(len(value)) if (id(value), k) not in self.counters]

        def look() -> Any:
            return len(value), [Same(value[k]) for k in kept if k < len(value)]

        self.checks.equal(look, look())

    def _child(self, holder: Any, key: Any, value: Any, where: str, assign: Callable[[Any, Any], None] | None) -> Any:
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
        return self._child(value, name, now, f"{where}.{name}", lambda _, new: member.__set__(value, new))

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

        return None if now is MISSING else self._child(cell, "", now, where, assign)

    # -- functions, classes, modules ---------------------------------------------------------------------

    def _function(self, f: types.FunctionType, where: str) -> Any:
        code, defaults, named = f.__code__, f.__defaults__, f.__kwdefaults__
        self.checks.equal(lambda: f.__code__ is code and f.__defaults__ is defaults and f.__kwdefaults__ is named, True)
        where = f"{where} ({f.__qualname__})" if len(where) < 200 else where
        image: list[Any] = [Same(code), self.image(defaults, where), self.image(named, where)]
        for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
            image.append(self.image(cell, f"{where} closes over {name}"))
        if is_trusted(f.__globals__.get("__name__")):
            return image
        if vars(f):
            image.append(self.image(vars(f), where))
        read = names_in(code)
        self._attributes |= read.attributes
        around = f.__globals__
        names = sorted(n for n in read.globals if n in around and (id(around), n) not in self.counters)
        self.checks.named(around, names)
        for name in names:
            at = f"{where} reads {name}"
            if isinstance(around[name], types.ModuleType):
                image.append(self._imported(around[name], read.attributes, at))
            else:
                image.append(self._child(around, name, around[name], at, around.__setitem__))
        for name in read.globals:
            if name.startswith("import ") and (module := sys.modules.get(name[7:])) is not None:
                image.append(self._imported(module, read.attributes, f"{where} reads {name[7:]}"))
            elif name in FICKLE["builtins"] and name not in around:
                self._beyond(where, f"{name} says another thing in every call")
        return image

    def _imported(self, module: types.ModuleType, attributes: Collection[str], where: str) -> Any:
        """A module that a function names: what it has under names that the function reads."""
        name = module.__name__
        if fickle := FICKLE.get(name, set()) & set(attributes):
            self._beyond(where, f"{name}.{min(fickle)} says another thing in every call")
        if name == "os" and {"environ", "getenv"} & set(attributes):
            self.checks.equal(lambda: dict(os.environ), dict(os.environ))
            return dict(os.environ)
        if is_trusted(name):
            return Same(module)
        around = vars(module)
        names = sorted(n for n in attributes if n in around and (id(around), n) not in self.counters)
        self.checks.named(around, names)
        inside = [
            self._imported(around[n], attributes, f"{where}.{n}")
            if isinstance(around[n], types.ModuleType) and around[n] is not module and len(where) < 200
            else self._child(around, n, around[n], f"{where}.{n}", around.__setitem__)
            for n in names
        ]
        return [Same(module), *inside]

    def _class(self, cls: type) -> bool:
        """A class whose methods may run, or whose attributes may be read, by names that are read somewhere.

        Whether there was something new.
        """
        done, around = self._classes[cls], vars(cls)
        inherited = {n for base in cls.__mro__[1:-1] for n in vars(base)} & self._attributes
        names = sorted({n for n in around if self._matters(cls, n)}.union(inherited) - done)
        done.update(names)
        self._named(cls, names)
        return bool(names)

    def _matters(self, cls: type, name: str) -> bool:
        value = vars(cls)[name]
        if name in self._attributes or issubclass(cls, torch.autograd.Function):
            return name not in ("__dict__", "__weakref__")
        if name.startswith("__"):  # of operators, calls, iteration
            return isinstance(value, types.FunctionType) and not issubclass(cls, nn.Module) and name not in _MAKERS
        return type(value) in PLAIN_TYPES

    def _named(self, cls: type, names: Sequence[str]) -> None:
        """What a class has, or has not, under `names`."""
        around = vars(cls)
        names = [n for n in names if (id(cls), n) not in self.counters]
        self.checks.named(around, list(names))
        trusted = is_trusted(cls.__module__)
        for n in names:
            where = f"{_name(cls)}.{n}"
            if n in around:
                value = around[n]
                if trusted:
                    self.parts.append((where, Same(value)))
                else:
                    held = self._child(cls, n, value, where, functools.partial(setattr, cls))
                    self.parts.append((where, held))

    def _module(self, where: str, m: nn.Module) -> None:
        state = vars(m)
        self.checks.typed(m)
        self.parts.append((where, Same(type(m))))
        if isinstance(m, torch.jit.ScriptModule):
            self._beyond(where, "a script's attributes cannot be watched")
            return
        parameters, buffers, modules = (state.get(part, {}) for part in ("_parameters", "_buffers", "_modules"))
        for part in (parameters, modules):
            self.checks.whole(part)
            held = [(n, None if v is None else self.image(v, f"{where}.{n}")) for n, v in part.items()]
            self.parts.append((f"parts of {where}", held))
        self.checks.size(buffers)
        self.parts.append((f"buffers of {where}", [(n, b is None) for n, b in buffers.items()]))
        if not all(b is None or id(b) in self.own for b in buffers.values()) and id(m) not in self.reads:
            self.parts.append((f"buffers of {where}", self._content(buffers, where)))
        names = self.reads.get(id(m))
        if names is None or "__dict__" in names:
            names = {*(names or ()), *state, "forward"}
            self.checks.size(state)
        names = {*names, "training"}
        wanted = sorted(n for n in names if n not in _PARTS and (id(state), n) not in self.counters)
        self.checks.named(state, wanted)
        for n in wanted:
            if n in state:
                held = self._child(state, n, state[n], f"{where}.{n}", state.__setitem__)
                self.parts.append((f"{where}.{n}", held))
        for cls in type(m).__mro__[:-1]:
            done = (self._done if is_trusted(cls.__module__) else self._classes).setdefault(cls, set())
            fresh = [n for n in sorted(names) if n not in done]
            done.update(fresh)
            self._named(cls, fresh)


def _hides_state(cls: type) -> bool:
    """Whether objects of a class without a builtin base have more in C than a __dict__ and __slots__."""
    words = sum(isinstance(v, types.MemberDescriptorType) for c in cls.__mro__ for v in vars(c).values())
    plain = any("__dict__" in vars(c) or "__slots__" in vars(c) for c in cls.__mro__[:-1])
    return not plain or cls.__basicsize__ > object.__basicsize__ + 8 * (words + 2)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def _hooks_of_all_modules() -> list[Any]:
    """Hooks that were registered for every module. Torch has no public name for them; tests/meta has a tripwire."""
    return [v for k, v in sorted(vars(torch.nn.modules.module).items()) if k.startswith("_global_") and "hooks" in k]
