"""Holders: what a model keeps values in. Their contents are read, put back and compared; a walk finds all of them.

All that can be reached from the model's modules counts: the dicts of a module, and lists, dicts, sets, deques, NumPy's
arrays and objects with attributes in them. Each of these is a *holder*. While a pass runs, holders have other contents;
none is replaced, so that references between them hold.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]

#: attributes that every module has: what is in them is torch's own, but for those that are looked at by name
_EVERY_MODULES = frozenset(vars(nn.Module()))
PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: a walk that meets more things than this, such as a data set that hangs on the model, goes no deeper
_MOST = 100_000


def read_holder(holder: Any) -> Any:
    """A copy of the contents."""
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, np.ndarray):
        return holder.copy()
    return set(holder) if isinstance(holder, set) else list(holder)


def put_holder(holder: Any, contents: Any) -> None:
    if isinstance(holder, np.ndarray):
        holder[...] = contents
        return
    holder.clear()
    holder.extend(contents) if isinstance(holder, list | deque) else holder.update(contents)


def holder_stands(holder: Any, contents: Any) -> bool:
    """Whether the holder still has these contents, the same objects; numbers and texts need only be equal."""
    if isinstance(holder, np.ndarray):
        return holder.shape == contents.shape and holder.tobytes() == contents.tobytes()
    if len(holder) != len(contents):
        return False
    if isinstance(holder, set):
        return all(v in contents for v in holder)
    if isinstance(holder, dict):
        if not all(map(is_, holder, contents)):
            return False
        holder, contents = holder.values(), contents.values()
    return all(map(is_, holder, contents)) or all(map(plain_equal, holder, contents))


def plain_equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(plain_equal, a, b))
    return type(a) in PLAIN and a == b


def alike(a: Any, b: Any) -> bool:
    """Whether two values hold the same tensors, as far as arithmetic gives the same ones twice."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        return torch.allclose(a.detach(), b.detach(), rtol=1e-4, atol=1e-6, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple | deque) and isinstance(b, list | tuple | deque):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, set) and isinstance(b, set):
        return len(a) == len(b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool((a == b).all())
    return isinstance(a, PLAIN) or type(a) is type(b)


def _is_object(value: Any) -> bool:
    """A user's object with attributes, such as one that keeps an average of the weights."""
    if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType):
        return False
    return type(getattr(value, "__dict__", None)) is dict and not _is_library(type(value).__module__)


@cache
def _is_library(module: str) -> bool:
    root = module.partition(".")[0]
    return root in ("torch", "numpy", "fastmeta") or (root in sys.stdlib_module_names and root != "types")


def exchanged(value: Any, memo: dict[int, Tensor]) -> Any:
    """`value` with tensors exchanged: itself, those of a tuple, that of a weak reference."""
    if isinstance(value, Tensor):
        return memo.get(id(value), value)
    if isinstance(value, tuple):
        parts = [exchanged(v, memo) for v in value]
        if all(map(is_, parts, value)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, weakref.ref):  # recurrent layers have them of their weights
        there = value()
        return weakref.ref(memo[id(there)]) if id(there) in memo else value
    return value


def all_exchanged(contents: Any, memo: dict[int, Tensor]) -> Any:
    if isinstance(contents, dict):
        return {key: exchanged(v, memo) for key, v in contents.items()}
    if isinstance(contents, list):
        return [exchanged(v, memo) for v in contents]
    return {exchanged(v, memo) for v in contents} if isinstance(contents, set) else contents


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, weakref.ref):
        yield from tensors_in(value())


class HolderWalk:
    """Holders and tensors that are reached from a module, each once, with a name."""

    def __init__(self, known: Iterable[Any] = ()) -> None:
        self._seen = {id(v) for v in known}
        self._alive: list[Any] = []  # so that no id is given out twice
        self.modules: list[nn.Module] = []
        self.holders: list[Any] = []
        self.tensors: list[tuple[str, Tensor, str]] = []  # name, tensor, kind
        self.places: list[tuple[Any, str]] = []  # in scripts, whose dicts can only be written by key

    def _first(self, value: Any) -> bool:
        if id(value) in self._seen or len(self._seen) > _MOST:
            return False
        self._seen.add(id(value))
        self._alive.append(value)
        return True

    def module(self, module: nn.Module, path: str) -> None:
        if not self._first(module):
            return
        self.modules.append(module)
        dot = f"{path}." if path else ""
        script = isinstance(module, torch.jit.ScriptModule)
        # past the module's own ways: somebody may note what is read of it
        attributes = {} if script else object.__getattribute__(module, "__dict__")
        parameters, buffers, children = (
            getattr(module, key) if script else attributes[key] for key in ("_parameters", "_buffers", "_modules")
        )
        for holder, kind in ((parameters, "parameter"), (buffers, "buffer")):
            if script:
                self.places += [(holder, key) for key, _ in holder.items()]
            else:
                self.holders.append(holder)
            for key, t in holder.items():
                if t is not None and self._first(t):
                    self.tensors.append((f"{dot}{key}", t, kind))
        if not script:
            self.holders += [attributes, children, attributes["_non_persistent_buffers_set"]]
            for key, value in list(attributes.items()):
                if type(value) not in PLAIN and key not in _EVERY_MODULES:
                    self.value(value, f"{dot}{key}")
        for key, child in children.items():
            if child is not None:
                self.module(child, f"{dot}{key}")

    def value(self, value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            # a result with its graph is made anew, never written into
            if (value.is_leaf or not value.requires_grad) and self._first(value):
                self.tensors.append((path, value, "parameter" if isinstance(value, nn.Parameter) else "attribute"))
        elif isinstance(value, nn.Module):
            self.module(value, path)
        elif isinstance(value, tuple):
            for k, v in enumerate(value):
                self.value(v, f"{path}[{k}]")
        elif isinstance(value, dict):
            self._holder(value, path, value.items())
        elif isinstance(value, list | deque | set):
            self._holder(value, path, enumerate(value))
        elif isinstance(value, np.ndarray):
            if not value.dtype.hasobject and value.flags.writeable and self._first(value):
                self.holders.append(value)
        elif type(value) not in PLAIN and _is_object(value):
            self._holder(vars(value), path, vars(value).items())

    def _holder(self, holder: Any, path: str, items: Iterable[tuple[Any, Any]]) -> None:
        if self._first(holder):
            self.holders.append(holder)
            for key, v in list(items):
                if type(v) not in PLAIN:
                    self.value(v, f"{path}[{key}]")


def overlapping(tensors: Iterable[tuple[str, Tensor]]) -> list[list[str]]:
    """Names of tensors that share memory, in groups of two and more."""
    at: dict[int, list[tuple[str, Tensor]]] = {}
    for name, t in tensors:
        if t.layout == torch.strided:
            at.setdefault(t.untyped_storage()._cdata, []).append((name, t))
    groups: list[list[str]] = []
    for there in at.values():
        if len(there) > 1:
            end, group = 0, list[str]()
            for first, last, name in sorted((*_span(t), name) for name, t in there):
                if first >= end:
                    groups.append(group := [])
                group.append(name)
                end = max(end, last)
    return [group for group in groups if len(group) > 1]


def _span(t: Tensor) -> tuple[int, int]:
    """First and last byte in its storage."""
    first = int(t.storage_offset())
    length = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    return first * t.itemsize, (first + int(length)) * t.itemsize
