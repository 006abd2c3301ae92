"""What a model reads as Python, beside the tensors of a step: compared with what it was, or beyond comparing.

A graph holds what the model's Python said when it was traced. It may run on only while everything that was read then is
as it was: attributes, whatever they are made of, hooks, functions with their defaults, closures and globals, classes,
modules. :class:`Watch` walks from the modules through all of it, makes an *image* that compares by value, and *checks*
that compare by identity, in C, which is what every step pays for. Where a check fails, the image decides.

What has a state that cannot be seen (iterators, files, objects of C, clocks) raises :class:`Unwatchable`.
"""

from __future__ import annotations

import collections
import dis
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
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import repeat, zip_longest
from operator import call, eq, is_
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.meta.draws import is_generator

_MISSING: Any = type("missing", (), {})()
#: values that never change and compare by what they say
_PLAIN = {
    *(type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    *(Fraction, Decimal, date, time, timedelta, *PurePath.__subclasses__(), PurePath),
}
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
#: modules whose functions do what they did, whatever is assigned to
_TRUSTED = {*sys.stdlib_module_names, "torch", "numpy", "fastmeta", "functorch", "triton"}
#: functions that say another thing in every call, by module
_FICKLE = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"},
    "os": {"urandom", "getrandom", "times", "read", "popen"},
    "secrets": {"token_bytes", "token_hex", "randbits", "randbelow", "choice", "SystemRandom"},
    "random": {"SystemRandom"},
    "uuid": {"uuid1", "uuid4"},
    "datetime": {"now", "utcnow", "today"},
    "builtins": {"open", "input"},
}
#: what a module has for its parts, which are compared as a structure
_PARTS = {"_parameters", "_buffers", "_modules"}
#: methods that make an object or show it
_MAKERS = ("__init__", "__new__", "__post_init__", "__repr__", "__str__", "__reduce__", "__del__", "__init_subclass__")
#: tensors and arrays up to this many bytes are compared by content
_SMALL = 1 << 16
_MOST = 100_000


class Unwatchable(Exception):
    """Where the walk ended, and why."""


class _Same:
    """Compares by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class Slot(NamedTuple):
    """A number that something has under a name, and how it is assigned."""

    where: str
    value: Any
    assign: Callable[[Any], None]


class _Checks:
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
        self._get += [mapping.get] * len(names)
        self._names += names
        self._values += [mapping.get(name, _MISSING) for name in names]

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
        now = map(call, self._get, self._names, repeat(_MISSING))
        if not all(map(is_, now, self._values)):
            current = list(map(call, self._get, self._names, repeat(_MISSING)))
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
    return all(a is b or patch(a, b) for a, b in zip_longest(before, now, fillvalue=_MISSING))


def _equal_plain(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) in _PLAIN:
        return bool(_plain(a) == _plain(b))
    return _is_numpy_number(a) and a.tobytes() == b.tobytes()


def _is_numpy_number(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and value.dtype != object


def _plain(value: Any) -> Any:
    kind = type(value)
    return (kind, repr(value)) if kind in (float, complex) else (kind, value)


class _Code(NamedTuple):
    """Names that a function and the functions inside it read."""

    globals: frozenset[str]
    attributes: frozenset[str]


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> _Code:
    found, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(step.argval)
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")):
            attributes.add(step.argval)
        elif isinstance(step.argval, str) and step.opname == "LOAD_CONST":
            attributes.add(step.argval)  # of getattr
        elif step.opname == "IMPORT_NAME":
            found.add(f"import {step.argval}")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            deeper = _names(inner)
            found |= deeper.globals
            attributes |= deeper.attributes
    return _Code(frozenset(found), frozenset(attributes))


def _trusted(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _TRUSTED


class _Walk:
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
        self.checks = _Checks()
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
        if kind in _PLAIN:
            return _plain(value)
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
            return _Same(value)
        if isinstance(value, nn.Module):
            self._todo.append((where, value))
            return _Same(value)
        if isinstance(value, (*_SINGLE, enum.Enum)):
            return _Same(value)
        if isinstance(value, type):
            if not _trusted(value.__module__):
                self._classes.setdefault(value, set())
            return _Same(value)
        if _is_numpy_number(value):
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
            return _Same(t) if self.strict else None
        self.tensors.append(t)
        state = _TensorState(t)
        self.checks.equal(lambda: state == state.now(), True)
        return state

    def _array(self, value: Any, where: str) -> Any:
        if value.dtype == object or value.nbytes > 16 * _SMALL:
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
            if value.__name__ in _FICKLE.get(str(value.__module__), ()):
                return self._beyond(where, f"{value.__name__} says another thing in every call")
            owner = value.__self__
            if owner is None or isinstance(owner, types.ModuleType | type):
                return _Same(value)
            return value.__name__, self.image(owner, where)
        if kind.__module__.startswith(("builtins", "torch._C", "torch._ops", "numpy")):
            return _Same(value)  # descriptors and operators
        return self._holder(value, where)

    def _holder(self, value: Any, where: str) -> Any:
        """Containers and objects: what they hold."""
        kind = type(value)
        if isinstance(value, types.CellType):
            return self._cell(value, where)
        if isinstance(value, types.MappingProxyType):
            return kind, self._content(value, where)
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            return _Same(value)
        if kind is object:
            return _Same(value)
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
            if not _trusted(cls.__module__):
                self._classes.setdefault(cls, set())
        return _Same(kind), *state

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
            order = sorted(value, key=lambda k: repr(_plain(k)) if type(k) in _PLAIN else str(id(k)))
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
            return len(value), [_Same(value[k]) for k in kept if k < len(value)]

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
                return _MISSING

        now = look()
        if (id(value), name) not in self.counters:
            self.checks.equal(lambda: look() is now or _equal_plain(look(), now), True)
        return self._child(value, name, now, f"{where}.{name}", lambda _, new: member.__set__(value, new))

    def _cell(self, cell: types.CellType, where: str) -> Any:
        def look() -> Any:
            try:
                return cell.cell_contents
            except ValueError:
                return _MISSING

        now = look()
        if (id(cell), "") not in self.counters:
            self.checks.equal(lambda: look() is now or _equal_plain(look(), now), True)

        def assign(_: Any, new: Any) -> None:
            cell.cell_contents = new

        return None if now is _MISSING else self._child(cell, "", now, where, assign)

    # -- functions, classes, modules ---------------------------------------------------------------------

    def _function(self, f: types.FunctionType, where: str) -> Any:
        code, defaults, named = f.__code__, f.__defaults__, f.__kwdefaults__
        self.checks.equal(lambda: f.__code__ is code and f.__defaults__ is defaults and f.__kwdefaults__ is named, True)
        where = f"{where} ({f.__qualname__})" if len(where) < 200 else where
        image: list[Any] = [_Same(code), self.image(defaults, where), self.image(named, where)]
        for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
            image.append(self.image(cell, f"{where} closes over {name}"))
        if _trusted(f.__globals__.get("__name__")):
            return image
        if vars(f):
            image.append(self.image(vars(f), where))
        read = _names(code)
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
            elif name in _FICKLE["builtins"] and name not in around:
                self._beyond(where, f"{name} says another thing in every call")
        return image

    def _imported(self, module: types.ModuleType, attributes: Collection[str], where: str) -> Any:
        """A module that a function names: what it has under names that the function reads."""
        name = module.__name__
        if fickle := _FICKLE.get(name, set()) & set(attributes):
            self._beyond(where, f"{name}.{min(fickle)} says another thing in every call")
        if name == "os" and {"environ", "getenv"} & set(attributes):
            self.checks.equal(lambda: dict(os.environ), dict(os.environ))
            return dict(os.environ)
        if _trusted(name):
            return _Same(module)
        around = vars(module)
        names = sorted(n for n in attributes if n in around and (id(around), n) not in self.counters)
        self.checks.named(around, names)
        inside = [
            self._imported(around[n], attributes, f"{where}.{n}")
            if isinstance(around[n], types.ModuleType) and around[n] is not module and len(where) < 200
            else self._child(around, n, around[n], f"{where}.{n}", around.__setitem__)
            for n in names
        ]
        return [_Same(module), *inside]

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
        return type(value) in _PLAIN

    def _named(self, cls: type, names: Sequence[str]) -> None:
        """What a class has, or has not, under `names`."""
        around = vars(cls)
        names = [n for n in names if (id(cls), n) not in self.counters]
        self.checks.named(around, list(names))
        trusted = _trusted(cls.__module__)
        for n in names:
            where = f"{_name(cls)}.{n}"
            if n in around:
                value = around[n]
                if trusted:
                    self.parts.append((where, _Same(value)))
                else:
                    held = self._child(cls, n, value, where, functools.partial(setattr, cls))
                    self.parts.append((where, held))

    def _module(self, where: str, m: nn.Module) -> None:
        state = vars(m)
        self.checks.typed(m)
        self.parts.append((where, _Same(type(m))))
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
            done = (self._done if _trusted(cls.__module__) else self._classes).setdefault(cls, set())
            fresh = [n for n in sorted(names) if n not in done]
            done.update(fresh)
            self._named(cls, fresh)


class _TensorState:
    """A tensor that is no input of the step: the same one, written to by nobody, or another of equal content."""

    def __init__(self, t: Tensor) -> None:
        self.tensor = t
        self.seen = self._look()
        small = t.layout == torch.strided and not t.is_cuda and t.numel() * t.element_size() <= _SMALL
        self.content = t.detach().clone() if small and not t.is_meta else None

    def _look(self) -> Any:
        t = self.tensor
        version = 0 if t.is_inference() else t._version
        place = t.data_ptr() if t.layout == torch.strided and not t.is_meta else 0
        return version, place, t.shape, t.dtype, t.device, t.requires_grad

    def now(self) -> _TensorState:
        new = object.__new__(_TensorState)
        new.tensor, new.content = self.tensor, self.tensor.detach() if self.content is not None else None
        new.seen = new._look()
        return new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorState):
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


class Structure:
    """Of which modules and parameters a model is made, as at the first question."""

    def __init__(self) -> None:
        self._checks: _Checks | None = None

    def stands(self, modules: Sequence[nn.Module]) -> bool:
        if self._checks is None:
            self._checks = _Checks()
            for m in modules:
                self._checks.whole(m._parameters)
                self._checks.whole(m._modules)
                self._checks.size(m._buffers)
        return self._checks.hold(lambda before, now: False)

    def __deepcopy__(self, memo: Any) -> Structure:
        return Structure()


class Generators:
    """Random generators that are found on modules, in what they hold, in hooks, closures and globals.

    Looked for again when something changed that could hold one.
    """

    def __init__(self) -> None:
        self._walk: _Walk | None = None

    def __call__(self, modules: Sequence[nn.Module], functions: Sequence[Any]) -> list[Any]:
        if self._walk is None or not self._walk.checks.hold(_both_dull):
            self._walk = walk = _Walk(False, (), {}, ())
            walk.run([("", m) for m in modules], [("", f) for f in functions])
        return self._walk.generators

    def __deepcopy__(self, memo: Any) -> Generators:
        return Generators()  # a copy of the model has generators of its own


def _dull(value: Any) -> bool:
    """Whether nothing hangs on `value`."""
    return type(value) in _PLAIN or value is _MISSING or isinstance(value, Tensor) or hasattr(value, "tobytes")


def _both_dull(a: Any, b: Any) -> bool:
    return _dull(a) and _dull(b)


class Watch:
    """The model as it is now; :meth:`holds` tells whether it still is.

    Args:
        modules: with their names.
        functions: more that is called, with names.
        own, reads, counters: see :class:`_Walk`.

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

    def _walked(self) -> _Walk:
        walk = _Walk(True, *self._known)
        walk.run(*self._roots)
        return walk

    @property
    def slots(self) -> dict[tuple[int, Any], Slot]:
        """Numbers that could be counters."""
        return self._walk.slots

    def holds(self) -> bool:
        if self._walk.checks.hold(_equal_plain):
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
