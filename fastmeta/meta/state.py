"""What a forward may move besides trained parameters, and passes that move a copy of it.

Buffers are the least of it. A momentum encoder moves parameters that require no gradient, a codebook too; a running
mean may be a plain attribute, a memory bank a list, a schedule a counter. A plain loop calls the model once per step,
a meta step several times. So every pass is given a :class:`State`, runs on it in the place of what the model has, and
leaves it as the model would have been left; the model itself stands as before. The step writes the state of its one
train forward into the model, or does not.

All that can be reached from the model's modules counts: the dicts of a module, and lists, dicts, sets, deques, NumPy's
arrays and objects with attributes in them. Each of these is a *holder*. While a pass runs, holders have other contents;
none is replaced, so that references between them hold.
"""

from __future__ import annotations

import copy
import sys
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Documented by torch as the way to see every operation ("Extending PyTorch"), although the module's name is private.
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.meta.draws import is_generator

Tensors = dict[str, Tensor]

#: Tensors that are no buffers are copied for each pass up to so many bytes, all together. Beyond, such as the weights
#: of a frozen backbone, a write is waited for instead: its operations then cost some microseconds more each.
COPIED_BYTES = 4 << 20

#: attributes that every module has: what is in them is torch's own, but for those that are looked at by name
_EVERY_MODULES = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: a walk that meets more things than this, such as a data set that hangs on the model, goes no deeper
_MOST = 100_000


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
    made = {name: t.detach() if _expanded(t) else t.detach().clone() for name, t in tensors.items()}
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


def _expanded(t: Tensor) -> bool:
    if t.layout != torch.strided or 0 not in t.stride():
        return False
    return any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))


def fits(target: Tensor, value: Tensor) -> bool:
    """Whether `value` can be written into `target`."""
    return same_form(target, value) and not _expanded(target) and not target.is_inference()


# ---------------------------------------------------------------------------------------------------------
# Holders
# ---------------------------------------------------------------------------------------------------------


def _read(holder: Any) -> Any:
    """A copy of the contents."""
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, np.ndarray):
        return holder.copy()
    return set(holder) if isinstance(holder, set) else list(holder)


def _put(holder: Any, contents: Any) -> None:
    if isinstance(holder, np.ndarray):
        holder[...] = contents
        return
    holder.clear()
    holder.extend(contents) if isinstance(holder, list | deque) else holder.update(contents)


def _stands(holder: Any, contents: Any) -> bool:
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
    return all(map(is_, holder, contents)) or all(map(_equal, holder, contents))


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) in _PLAIN and a == b


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
    return isinstance(a, _PLAIN) or type(a) is type(b)


def _is_object(value: Any) -> bool:
    """A user's object with attributes, such as one that keeps an average of the weights."""
    if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType):
        return False
    return type(getattr(value, "__dict__", None)) is dict and not _is_library(type(value).__module__)


@cache
def _is_library(module: str) -> bool:
    root = module.partition(".")[0]
    return root in ("torch", "numpy", "fastmeta") or (root in sys.stdlib_module_names and root != "types")


def _changed(value: Any, memo: dict[int, Tensor]) -> Any:
    """`value` with tensors exchanged: itself, those of a tuple, that of a weak reference."""
    if isinstance(value, Tensor):
        return memo.get(id(value), value)
    if isinstance(value, tuple):
        parts = [_changed(v, memo) for v in value]
        if all(map(is_, parts, value)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, weakref.ref):  # recurrent layers have them of their weights
        there = value()
        return weakref.ref(memo[id(there)]) if id(there) in memo else value
    return value


def _all_changed(contents: Any, memo: dict[int, Tensor]) -> Any:
    if isinstance(contents, dict):
        return {key: _changed(v, memo) for key, v in contents.items()}
    if isinstance(contents, list):
        return [_changed(v, memo) for v in contents]
    return {_changed(v, memo) for v in contents} if isinstance(contents, set) else contents


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from _tensors_in(v)
    elif isinstance(value, weakref.ref):
        yield from _tensors_in(value())


class _Walk:
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
                if type(value) not in _PLAIN and key not in _EVERY_MODULES:
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
        elif type(value) not in _PLAIN and _is_object(value):
            self._holder(vars(value), path, vars(value).items())

    def _holder(self, holder: Any, path: str, items: Iterable[tuple[Any, Any]]) -> None:
        if self._first(holder):
            self.holders.append(holder)
            for key, v in list(items):
                if type(v) not in _PLAIN:
                    self.value(v, f"{path}[{key}]")


def _overlapping(tensors: Iterable[tuple[str, Tensor]]) -> list[list[str]]:
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


# ---------------------------------------------------------------------------------------------------------
# Writes into tensors of which no copy was made
# ---------------------------------------------------------------------------------------------------------


@cache
def _written_arguments(function: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (k, a.name) for k, a in enumerate(function._schema.arguments) if a.alias_info and a.alias_info.is_write
    )


class _Writes(TorchDispatchMode):
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


# ---------------------------------------------------------------------------------------------------------
# The state of one model
# ---------------------------------------------------------------------------------------------------------


class StateOf:
    """What `model` has that its forward may move, beside the parameters `trained` ({name: parameter}).

    Attributes:
        own: {name: tensor}, the model's own, of which every pass gets copies: buffers, and the others where they are
            small or have been seen to move.
        watched: {name: tensor}: the others. A pass sees them where they lie, and a write is seen.
        together: groups of names whose tensors overlap in memory.
        structure: grows when the names do not stay the same.
    """

    def __init__(self, model: nn.Module, trained: Tensors) -> None:
        self.model, self._trained = model, trained
        self._moving: list[Tensor] = []
        self.structure = 0
        self.own: Tensors = {}
        self.watched: Tensors = {}
        self.look()

    def __deepcopy__(self, memo: dict[int, Any]) -> StateOf:
        return StateOf(copy.deepcopy(self.model, memo), copy.deepcopy(self._trained, memo))

    def look(self) -> None:
        """Find everything anew."""
        walk = _Walk()
        walk.module(self.model, "")
        self._modules = walk.modules
        names = list(self.own), list(self.watched)
        trained = {id(p) for p in self._trained.values()}
        found = {id(t) for _, t, _ in walk.tensors}
        #: parameters that were trained and are the model's no more
        self.gone = [name for name, p in self._trained.items() if id(p) not in found]
        rest = {name: t for name, t, _ in walk.tensors if id(t) not in trained}
        self._kinds = {name: kind for name, t, kind in walk.tensors if name in rest}
        groups = _overlapping([*((("trained", name), p) for name, p in self._trained.items()), *rest.items()])  # type: ignore[list-item]
        bound = [group for group in groups if any(isinstance(name, tuple) for name in group)]
        for name in chain.from_iterable(bound):  # what lies in a trained parameter moves with it, and only with it
            rest.pop(name, None)
        self.together = [group for group in groups if group not in bound]
        size = sum(t.nbytes for name, t in rest.items() if self._kinds[name] != "buffer" and t.layout == torch.strided)
        few = size <= COPIED_BYTES
        self._moving = [t for t in self._moving if id(t) in found]
        moving = {id(t) for t in self._moving}
        self.own = {k: t for k, t in rest.items() if few or self._kinds[k] == "buffer" or id(t) in moving}
        self.watched = {name: t for name, t in rest.items() if name not in self.own}
        self._all = [(id(t), name) for name, t in chain(self._trained.items(), rest.items())]
        self._known = {id(t) for t in chain(self._trained.values(), rest.values())}
        # buffers hardly ever require one
        self._graded = [t for name, t in rest.items() if t.requires_grad or self._kinds[name] != "buffer"]
        self._holders = [(h, _read(h)) for h in walk.holders]
        self._places = [(h, key, h[key]) for h, key in walk.places if id(h[key]) in self._known]
        # what has to be exchanged while a pass runs
        self._slots: list[tuple[Any, Any, Tensor]] = []
        self._carriers: list[tuple[Any, Any, Any]] = []
        self._lists: list[tuple[Any, Any]] = []
        for h, contents in self._holders:
            if isinstance(h, dict):
                carriers = [(h, key, v) for key, v in contents.items() if self._carries(v)]
                self._slots += [entry for entry in carriers if isinstance(entry[2], Tensor)]
                self._carriers += [entry for entry in carriers if not isinstance(entry[2], Tensor)]
            elif not isinstance(h, np.ndarray) and any(map(self._carries, contents)):
                self._lists.append((h, contents))
        slots = Counter(id(h) for h, _, _ in self._slots)
        # of a holder that has nothing else the size tells
        full = [(h, c) for h, c in self._holders if not isinstance(h, np.ndarray) and slots[id(h)] == len(c)]
        self._sized, self._sizes = [h for h, _ in full], [len(c) for _, c in full]
        full_ids = set(map(id, self._sized))
        self._looked_at = [(h, c) for h, c in self._holders if id(h) not in full_ids]
        self._ties = Counter(id(v) for _, _, v in self._slots)
        others = chain((v for _, _, v in self._carriers), chain.from_iterable(c for _, c in self._lists))
        self._ties.update(id(t) for v in others for t in _tensors_in(v))
        self.structure += names != (list(self.own), list(self.watched))

    def _carries(self, value: Any) -> bool:
        return type(value) not in _PLAIN and any(id(t) in self._known for t in _tensors_in(value))

    def stands(self) -> bool:
        """Whether the model still has what was found last."""
        return all(h.get(key) is t for h, key, t in self._slots) and not self._altered()

    def state(self) -> State:
        """A copy of what the model has, for one pass to move."""
        if not self.stands():
            self.look()
        return State(copies(self.own, self.together), self.together)

    # -- one pass ----------------------------------------------------------------------------------------

    def run(self, params: Tensors, state: State, call: Callable[[], Any]) -> Any:
        """``call()`` while the model has `params` and `state`, which then has what was moved; the model stands."""
        there = self._begin(params, state, watch=not state.repeats)
        versions = {name: self.watched[name]._version for name in there.aliases} if state.repeats else {}
        try:
            with there.writes or nullcontext():
                out = call()
            for name, version in versions.items():
                if self.watched[name]._version != version:
                    raise RuntimeError(
                        f"the model has moved {name} in a forward, and not in the same forward before; "
                        "move it in both, or in none"
                    )
            self._collect(there)
        finally:
            self._end(there)
        if any(name in state for name in self.watched):
            self.look()
        return out

    @contextmanager
    def held(self, params: Tensors, state: State) -> Iterator[None]:
        """Inside, the model has `params` and `state`, which may be written into; then it stands."""
        there = self._begin(params, state, watch=False)
        try:
            yield
        finally:
            self._end(there)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """An error inside puts back what the model has in its dicts and containers."""
        if not self.stands():
            self.look()
        try:
            yield
        except BaseException:
            for holder, contents in self._holders:
                if not _stands(holder, contents):
                    _put(holder, contents)
            raise

    def _begin(self, params: Tensors, state: State, *, watch: bool) -> _Pass:
        """Give every holder what it has in a pass."""
        memo: dict[int, Tensor] = {}
        for which, name in self._all:
            if (value := params.get(name)) is not None or (value := state.get(name)) is not None:
                memo[which] = value
            elif name in self.own:  # seen to move since `state` was taken
                memo[which] = state[name] = copies({name: self.own[name]})[name]
        for name, t in state.new.items():
            memo[id(t)] = state[name]
        aliases = {name: t.detach() for name, t in self.watched.items() if id(t) not in memo}
        for name, alias in aliases.items():  # another tensor of the memory: ``p.data = ...`` leaves the model's alone
            memo[id(self.watched[name])] = alias
        for t in self._graded:
            if t.requires_grad and (value := memo.get(id(t))) is not None and value.is_leaf:
                value.requires_grad_()
        writes = _Writes({k: self.watched[k] for k in aliases}, self.together) if aliases and watch else None
        there = _Pass(state, memo, aliases, writes)
        for holder, key, t in self._places:
            holder[key] = memo.get(id(t), t)
        if state.contents:
            there.expected = {id(h): c for h, c in self._holders} | {k: c for k, (_, c) in state.contents.items()}
            there.slots = [entry for entry in self._slots if id(entry[0]) not in state.contents]
        else:
            there.slots = self._slots
        for holder, key, value in there.slots:
            holder[key] = memo.get(id(value), value)
        for holder, key, v in self._carriers:
            if id(holder) not in state.contents:
                holder[key] = given = _changed(v, memo)
                there.carriers.append((holder, key, v, given))
        for holder, contents in self._lists:
            if id(holder) not in state.contents:
                _put(holder, now := _all_changed(contents, memo))
                there.lists.append((holder, contents, now))
        for holder, contents in state.contents.values():
            _put(holder, now := _all_changed(contents, memo))
            if isinstance(holder, dict):
                for key, v in contents.items():
                    if isinstance(v, Tensor) and id(v) in memo:
                        there.slots.append((holder, key, v))
                    elif now[key] is not v:
                        there.carriers.append((holder, key, v, now[key]))
            elif not isinstance(holder, np.ndarray):
                there.lists.append((holder, contents, now))
        return there

    def _end(self, there: _Pass) -> None:
        """The model has its own again, whatever happened."""
        for holder, key, t in self._places:
            holder[key] = t
        for holder in self._resized():
            _put(holder, self._contents(holder))
        for holder, key, value in self._slots:
            holder[key] = value
        for holder, key, v, _ in there.carriers:
            holder[key] = v
        for holder, contents, _ in there.lists:
            _put(holder, contents)
        for holder, contents in there.state.contents.values():  # some are the model's, some hang in the state alone
            _put(holder, self._contents(holder, contents))
        for holder in self._altered():
            _put(holder, self._contents(holder))
        if there.writes is not None:
            for name, before in there.writes.before.items():
                self.watched[name].data = before

    def _contents(self, holder: Any, otherwise: Any = None) -> Any:
        """What was found last in a holder of the model's."""
        return next((contents for h, contents in self._holders if h is holder), otherwise)

    def _altered(self) -> list[Any]:
        """The model's holders that have not what was found last, but for tensors under their keys."""
        return [*(h for h, contents in self._looked_at if not _stands(h, contents)), *self._resized()]

    def _resized(self) -> list[Any]:
        if list(map(len, self._sized)) == self._sizes:
            return []
        return [h for h, size in zip(self._sized, self._sizes, strict=True) if len(h) != size]

    def _collect(self, there: _Pass) -> None:
        """Take what the pass has moved into its state."""
        state, memo, odd = there.state, there.memo, []
        for entry in there.slots:
            holder, key, value = entry
            if holder.get(key) is memo.get(id(value), value):
                holder[key] = value
            else:
                odd.append(entry)
        for holder, key, value, given in there.carriers:
            if holder.get(key) is given:
                holder[key] = value
        for holder, contents, given in there.lists:
            if len(holder) == len(given) and all(map(is_, holder, given)):
                _put(holder, contents)
        tensors = list(chain(self.own.items(), self.watched.items(), state.new.items()))
        others = self._take_replaced(there, odd, {id(t): name for name, t in tensors}) if odd else []
        for name, t in there.aliases.items():
            own = self.watched[name]
            if name in state or (there.writes is not None and name in there.writes.before) or not _same_memory(own, t):
                state.setdefault(name, t)
                self._moving.append(own)
        if not there.expected:
            altered = list({id(h): h for h in [*self._altered(), *others]}.values())
        else:
            pairs = chain(self._holders, list(state.contents.values()))
            unique = {id(h): h for h, _ in pairs}
            altered = [h for which, h in unique.items() if not _stands(h, there.expected[which])]
        for holder, contents in self._holders if altered else ():
            if isinstance(holder, dict) and any(holder is h for h in altered):  # a random state is kept elsewhere
                contents.update({k: v for k, v in holder.items() if is_generator(v)})
        if altered:
            back = {id(memo[id(t)]): t for t in chain(self._trained.values(), (t for _, t in tensors)) if id(t) in memo}
            for holder in altered:
                self._take_contents(holder, state, back)

    def _take_replaced(self, there: _Pass, odd: list[tuple[Any, Any, Tensor]], names: dict[int, str]) -> list[Any]:
        """What is under the keys of tensors now: new values of these, or other contents of the holders returned."""
        state, known = there.state, set(map(id, there.memo.values()))
        given_anew: dict[int, list[tuple[Any, Any, Any, Tensor]]] = {}
        for holder, key, value in odd:
            now = holder.get(key)
            if id(value) not in names:
                holder[key] = value  # a trained parameter was replaced
            elif isinstance(now, Tensor) and id(now) not in known:
                given_anew.setdefault(id(value), []).append((holder, key, value, now))
        for which, places in given_anew.items():
            name, now = names[which], places[0][3]
            # a plain attribute that is a result with its graph stays one; a tie that is torn makes two tensors
            result = now.grad_fn is not None and self._kinds.get(name, "attribute") == "attribute"
            if result or any(t is not now for *_, t in places) or len(places) < self._ties[which]:
                continue
            state[name] = now.detach()
            state.replaced.add(name)
            for holder, key, value, _ in places:
                holder[key] = value
        return [holder for holder, key, value in odd if holder.get(key) is not value]

    def _take_contents(self, holder: Any, state: State, back: dict[int, Tensor]) -> None:
        """The contents of a holder that was changed, and all that has come with them."""
        known = [*(h for h, _ in self._holders), *(h for h, _ in state.contents.values()), *back.values()]
        walk = _Walk([*known, *state.new.values(), *self._modules])
        state.contents[id(holder)] = holder, (contents := _all_changed(_read(holder), back))
        for key, value in contents.items() if isinstance(contents, dict) else enumerate(contents):
            walk.value(value, str(key))
        for other in walk.holders:
            state.contents[id(other)] = other, _all_changed(_read(other), back)
            _put(other, state.contents[id(other)][1])
        for name, t, _ in walk.tensors:
            name = f"{name} ({len(state.new)})"  # unlike any that the model has
            state.new[name] = state[name] = t

    # -- the model itself --------------------------------------------------------------------------------

    def in_place(self, state: State) -> tuple[list[Tensor], list[Tensor], Tensors]:
        """The model's tensors to write into, the values, and what has to take another's place, by name."""
        targets, values, others = [], [], {}
        for name, own in chain(self.own.items(), self.watched.items(), state.new.items()):
            value = state.get(name)
            if value is None or _same_memory(own, value):
                continue
            if fits(own, value) and not (name in state.replaced and self._kinds.get(name) == "attribute"):
                targets.append(own)
                values.append(value)
            else:
                others[name] = value
        return targets, values, others

    def caches(self, state: State) -> list[str] | None:
        """Names of tensors that a pass has made for the model to keep; None where it has moved values alone."""
        own = self.own | self.watched
        others = [name for name, t in own.items() if name in state and not same_form(t, state[name])]
        return [*others, *state.new] if others or state.contents else None

    def registers(self, state: State) -> str:
        """A buffer or parameter that a pass has made, dropped or given another form, or ""."""
        for name, t in (self.own | self.watched).items():
            if name in state and self._kinds[name] != "attribute" and not same_form(t, state[name]):
                return name
        for module in self._modules:
            for holder in (module._parameters, module._buffers):
                if id(holder) in state.contents:
                    now = state.contents[id(holder)][1]
                    return str(next((k for k in now if holder.get(k) is not now[k]), "a buffer that is gone"))
        return ""

    def counters(self, state: State) -> list[tuple[int, Any, Any]]:
        """Plain values that a pass has moved: where in ``state.contents``, the key, and what it is now."""
        moved = []
        for holder, contents in self._holders:
            if isinstance(holder, dict) and id(holder) in state.contents:
                now = state.contents[id(holder)][1]
                moved += [
                    (id(holder), k, v) for k, v in now.items() if type(v) in _PLAIN and not _equal(v, contents.get(k))
                ]
        return moved

    def note_moved(self, before: State, after: State) -> None:
        """Plain attributes that a pass has moved are state, and no settings."""
        for name, t in self.own.items():
            if self._kinds[name] == "attribute" and (name in after.replaced or not alike(before[name], after[name])):
                self._moving.append(t)

    def moving(self) -> list[Tensor]:
        """Buffers, parameters, and the plain attributes that were seen to move."""
        seen = {id(t) for t in self._moving}
        return [t for name, t in self.own.items() if self._kinds[name] != "attribute" or id(t) in seen]

    def count(self, state: State) -> None:
        """Let plain numbers be what they are in `state`; nothing is looked for anew."""
        for holder, contents in self._holders:
            _, now = state.contents.get(id(holder), (None, None))
            if isinstance(holder, dict) and now is not None:
                moved = {
                    k: v for k, v in now.items() if type(v) in (int, float) and type(contents.get(k)) in (int, float)
                }
                holder.update(moved)
                contents.update(moved)
            elif isinstance(holder, list) and now is not None and len(now) == len(contents):
                for k, v in enumerate(now):
                    if type(v) in (int, float) and type(contents[k]) in (int, float):
                        holder[k] = contents[k] = v

    def keep(self, state: State) -> None:
        """Give the model what a pass has made for it to keep: containers and plain tensors, but no plain values."""
        were = {id(h): contents for h, contents in self._holders}
        kept = state.clone()
        for which, (holder, contents) in state.contents.items():
            was = were.get(which, {})
            if isinstance(contents, dict):
                now = {k: was.get(k, v) if type(v) in _PLAIN else v for k, v in contents.items()}
                kept.contents[which] = holder, now
        own = self.own | self.watched
        self.settle(
            kept, {name: kept[name] for name, t in own.items() if name in kept and not same_form(t, kept[name])}
        )

    def settle(self, state: State, others: Tensors) -> None:
        """Give the model `others` and the contents that `state` has for its holders."""
        if not others and not state.contents:
            return
        were = {id(h): contents for h, contents in self._holders}
        for holder, contents in state.contents.values():
            was = were.get(id(holder))
            if isinstance(holder, dict) and was is not None:  # what somebody else has changed meanwhile stays
                for key in was.keys() - contents.keys():
                    holder.pop(key, None)
                holder.update({k: v for k, v in contents.items() if k not in was or was[k] is not v})
            else:
                _put(holder, contents)
        memo: dict[int, Tensor] = {}
        for name, own in chain(self.own.items(), self.watched.items(), state.new.items()):
            if name in others:
                value = others[name]
                whole = isinstance(own, nn.Parameter)
                memo[id(own)] = nn.Parameter(value.detach(), own.requires_grad) if whole else value.detach()
        if memo:
            for holder, key, t in self._places:
                holder[key] = memo.get(id(t), t)
            for holder in [*(h for h, _ in self._holders), *(h for h, _ in state.contents.values())]:
                contents = _read(holder)
                changed = _all_changed(contents, memo)
                if not _stands(holder, changed):
                    _put(holder, changed)
        self.look()


class _Pass:
    """What a pass was given: in dicts by key, in lists as a whole."""

    def __init__(self, state: State, memo: dict[int, Tensor], aliases: Tensors, writes: _Writes | None) -> None:
        self.state, self.memo, self.aliases, self.writes = state, memo, aliases, writes
        self.slots: list[tuple[Any, Any, Tensor]] = []  # holder, key, the model's tensor
        self.carriers: list[tuple[Any, Any, Any, Any]] = []  # holder, key, the model's value, the pass's
        self.lists: list[tuple[Any, Any, Any]] = []  # holder, the model's contents, the pass's
        self.expected: dict[int, Any] = {}  # contents by holder, where the state has some; else the model's


def same_form(a: Tensor, b: Tensor) -> bool:
    """Shape, dtype, device and layout."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.layout == b.layout


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.layout != torch.strided or b.layout != torch.strided or a.dtype != b.dtype or a.device != b.device:
        return False
    place = a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.storage_offset() == b.storage_offset()
    return place and a.shape == b.shape and a.stride() == b.stride()
