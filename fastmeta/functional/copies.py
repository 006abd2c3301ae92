"""Copies of what a pass may move, and writes into tensors of which no copy was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Documented by torch as the way to see every operation ("Extending PyTorch"), although the module's name is private.
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.functional.holders import alike

Tensors = dict[str, Tensor]


class State(Tensors):
    """Values of the tensors that a pass may move, by name, and the contents of holders that it has changed."""

    def __init__(self, tensors: Tensors, together: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(tensors)
        self.together = together  # names of tensors that overlap in memory
        #: id of a holder that was changed: it, and its contents as the model would know them
        self.contents: dict[int, tuple[Any, Any]] = {}
        self.new: Tensors = {}  # tensors that hang in `contents` and not in the model: what the model would have
        self.replaced: set[str] = set()  # given a new tensor, where others were written into
        #: whether a pass on it repeats another, which moved the same. It is not watched then: a watched operation
        #: takes 10 us more.
        self.repeats = False

    def clone(self) -> State:
        return self.like(copies(self, self.together))

    def again(self) -> State:
        """A copy for passes that will repeat the next one on this state."""
        other = self.clone()
        other.repeats = True
        return other

    def like(self, tensors: Tensors) -> State:
        """The same contents with other values."""
        other = State(tensors, self.together)
        other.repeats = self.repeats
        other.contents, other.new, other.replaced = dict(self.contents), dict(self.new), set(self.replaced)
        return other

    def differs(self, other: State) -> str:
        """The name of something that hangs in the contents of both and is not the same, but for plain values; or ""."""
        for name in self.new.keys() & other.new.keys():
            if not alike(self[name], other[name]):
                return name
        for which, (holder, contents) in self.contents.items():
            _, now = other.contents.get(which, (holder, contents))
            if not isinstance(contents, dict):
                if not alike(contents, now):
                    return f"a {type(holder).__name__}"
            elif changed := [k for k in contents.keys() | now.keys() if not alike(contents.get(k), now.get(k))]:
                return str(changed[0])
        return ""


def copies(tensors: Tensors, together: Iterable[Sequence[str]] = ()) -> Tensors:
    """Copies that overlap where the originals do; an expanded tensor, into which nobody can write, is none."""
    made = {name: t.detach() if expanded(t) else without_graph(t).clone() for name, t in tensors.items()}
    for names in together:
        there = [name for name in names if name in tensors and tensors[name].layout == torch.strided]
        storages = {tensors[name].untyped_storage()._cdata for name in there}
        if len(storages) == 1:
            storage = tensors[there[0]].untyped_storage().clone()
            for name in there:
                t = tensors[name].detach()
                made[name] = torch.empty(0, dtype=t.dtype, device=t.device).set_(
                    storage, t.storage_offset(), t.shape, t.stride()
                )
    return made


def without_graph(t: Tensor) -> Tensor:
    """`t` itself where it has none: a name for a tensor is an operation, and a step needs some hundred of them."""
    return t.detach() if t.requires_grad else t


def expanded(t: Tensor) -> bool:
    if t.layout != torch.strided or 0 not in t.stride():
        return False
    return any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))


def fits(target: Tensor, value: Tensor) -> bool:
    """Whether `value` can be written into `target`."""
    return same_form(target, value) and not expanded(target) and not target.is_inference()


@cache
def _written_arguments(function: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (k, a.name) for k, a in enumerate(function._schema.arguments) if a.alias_info and a.alias_info.is_write
    )


class Writes(TorchDispatchMode):
    """Inside, the first write into one of `watched` copies it before. It sees what goes through ``.data`` too."""

    def __init__(self, watched: Tensors, together: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self._watched, self._together = watched, together
        self._at: dict[int, list[str]] = {}
        for name, t in watched.items():
            if t.layout == torch.strided:
                self._at.setdefault(t.untyped_storage()._cdata, []).append(name)
        self.before: Tensors = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for place, name in _written_arguments(func):
            value = args[place] if place < len(args) else (kwargs or {}).get(name)
            for t in value if isinstance(value, list | tuple) else (value,):
                if isinstance(t, Tensor) and t.layout == torch.strided:
                    names = self._at.pop(t.untyped_storage()._cdata, None)
                    if names:
                        self.before.update(copies({k: self._watched[k] for k in names}, self._together))
        return func(*args, **(kwargs or {}))


def same_form(a: Tensor, b: Tensor) -> bool:
    """Shape, dtype, device and layout."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.layout == b.layout


def same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.layout != torch.strided or b.layout != torch.strided or a.dtype != b.dtype or a.device != b.device:
        return False
    place = a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.storage_offset() == b.storage_offset()
    return place and a.shape == b.shape and a.stride() == b.stride()
