"""The walk from the modules of a model through all that their Python reads, which makes an image of each value."""

from __future__ import annotations

import functools
import os
import sys
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastmeta.functional.checks import PLAIN_TYPES, Same, hooks_of_all_modules
from fastmeta.functional.code_names import FICKLE, is_trusted, names_in
from fastmeta.functional.image import Images, name_of

#: what a module has for its parts, which are compared as a structure
_PARTS = {"_parameters", "_buffers", "_modules"}
#: methods that make an object or show it
_MAKERS = ("__init__", "__new__", "__post_init__", "__repr__", "__str__", "__reduce__", "__del__", "__init_subclass__")


class ImageWalk(Images):
    """One walk over everything that can be reached.

    Args:
        reads: for the id of a module, names of its attributes that matter; all where it is not there.
        strict, own, counters: see :class:`~fastmeta.functional.image.Images`.
    """

    def __init__(
        self, strict: bool, own: Collection[int], reads: Mapping[int, set[str]], counters: Collection[tuple[int, Any]]
    ) -> None:
        super().__init__(strict, own, counters)
        self.reads = reads
        self.parts: list[tuple[str, Any]] = []  # images, by where they belong
        self._done: dict[type, set[str]] = {}  # classes of others: names that are done
        self._attributes: set[str] = set()  # that functions on the way read, of whatever

    def run(self, modules: Iterable[tuple[str, nn.Module]], functions: Iterable[tuple[str, Any]]) -> None:
        for name, module in modules:
            self.image(module, f"model.{name}" if name else "model")
        for name, function in functions:
            self.parts.append((name, self.image(function, name)))
        self.parts.append(("hooks of all modules", self.image(hooks_of_all_modules(), "hooks of all modules")))
        more = True
        while more:  # what is read somewhere may matter elsewhere
            while self.todo:
                self._module(*self.todo.pop(0))
            more = any([self._class(cls) for cls in list(self.classes)]) or bool(self.todo)

    def function(self, f: types.FunctionType, where: str) -> Any:
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
                image.append(self.child(around, name, around[name], at, around.__setitem__))
        for name in read.globals:
            if name.startswith("import ") and (module := sys.modules.get(name[7:])) is not None:
                image.append(self._imported(module, read.attributes, f"{where} reads {name[7:]}"))
            elif name in FICKLE["builtins"] and name not in around:
                self.beyond(where, f"{name} says another thing in every call")
        return image

    def _imported(self, module: types.ModuleType, attributes: Collection[str], where: str) -> Any:
        """A module that a function names: what it has under names that the function reads."""
        name = module.__name__
        if fickle := FICKLE.get(name, set()) & set(attributes):
            self.beyond(where, f"{name}.{min(fickle)} says another thing in every call")
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
            else self.child(around, n, around[n], f"{where}.{n}", around.__setitem__)
            for n in names
        ]
        return [Same(module), *inside]

    def _class(self, cls: type) -> bool:
        """A class whose methods may run, or whose attributes may be read, by names that are read somewhere.

        Whether there was something new.
        """
        done, around = self.classes[cls], vars(cls)
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
            where = f"{name_of(cls)}.{n}"
            if n in around:
                value = around[n]
                if trusted:
                    self.parts.append((where, Same(value)))
                else:
                    held = self.child(cls, n, value, where, functools.partial(setattr, cls))
                    self.parts.append((where, held))

    def _module(self, where: str, m: nn.Module) -> None:
        state = vars(m)
        self.checks.typed(m)
        self.parts.append((where, Same(type(m))))
        if isinstance(m, torch.jit.ScriptModule):
            self.beyond(where, "a script's attributes cannot be watched")
            return
        parameters, buffers, modules = (state.get(part, {}) for part in ("_parameters", "_buffers", "_modules"))
        for part in (parameters, modules):
            self.checks.whole(part)
            held = [(n, None if v is None else self.image(v, f"{where}.{n}")) for n, v in part.items()]
            self.parts.append((f"parts of {where}", held))
        self.checks.size(buffers)
        self.parts.append((f"buffers of {where}", [(n, b is None) for n, b in buffers.items()]))
        if not all(b is None or id(b) in self.own for b in buffers.values()) and id(m) not in self.reads:
            self.parts.append((f"buffers of {where}", self.content(buffers, where)))
        names = self.reads.get(id(m))
        if names is None or "__dict__" in names:
            names = {*(names or ()), *state, "forward"}
            self.checks.size(state)
        names = {*names, "training"}
        wanted = sorted(n for n in names if n not in _PARTS and (id(state), n) not in self.counters)
        self.checks.named(state, wanted)
        for n in wanted:
            if n in state:
                held = self.child(state, n, state[n], f"{where}.{n}", state.__setitem__)
                self.parts.append((f"{where}.{n}", held))
        for cls in type(m).__mro__[:-1]:
            done = (self._done if is_trusted(cls.__module__) else self.classes).setdefault(cls, set())
            fresh = [n for n in sorted(names) if n not in done]
            done.update(fresh)
            self._named(cls, fresh)
