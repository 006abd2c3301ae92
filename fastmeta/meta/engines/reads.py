"""Which attributes of its modules a model reads in a forward, and whether a number that it moves decides anything.

So a graph is bound to what the model's Python looked at, and to nothing else: neither to the logger nor the last
activations that a module keeps.
"""

from __future__ import annotations

from abc import ABCMeta
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastmeta.functional.network import Network
from fastmeta.functional.watch import Unwatchable, Watch
from fastmeta.meta.engines.graph import Untraceable

HOST_DRAWS = "the model draws Python's or NumPy's random numbers, which a graph would have for good"
#: sets the class of an object whatever its class says
_set_class = object.__dict__["__class__"].__set__


@contextmanager
def reads_of(modules: Sequence[nn.Module]) -> Iterator[dict[int, set[str]]]:
    """Inside, what is read of each module is put down: {id of the module: names}.

    Each is an object of a subclass meanwhile. One whose class cannot be subclassed without side effects is not in the
    result: all of it counts as read.
    """
    log: dict[int, set[str]] = defaultdict(set)
    made: dict[type, type] = {}
    changed: list[tuple[nn.Module, type]] = []
    try:
        for m in modules:
            cls = type(m)
            if cls not in made and _can_be_subclassed(cls):
                made[cls] = _noting(cls, log)
            if cls in made:
                _set_class(m, made[cls])
                changed.append((m, cls))
        yield log
    finally:
        for m, cls in changed:
            _set_class(m, cls)


def _can_be_subclassed(cls: type) -> bool:
    return (
        type(cls) in (type, ABCMeta)
        and not hasattr(cls.__init_subclass__, "__func__")
        and not issubclass(cls, torch.jit.ScriptModule)
    )


def _noting(cls: type, log: dict[int, set[str]]) -> type:
    read: Any = cls.__getattribute__

    def get(self: Any, name: str) -> Any:
        log[id(self)].add(name)
        return read(self, name)

    def quiet(function: Any) -> Any:
        """nn.Module looks into its own __dict__, which says nothing of the model."""

        def method(self: Any, *args: Any) -> Any:
            before = "__dict__" in log[id(self)]
            try:
                return function(self, *args)
            finally:
                if not before:
                    log[id(self)].discard("__dict__")

        return method

    body: dict[str, Any] = {
        "__getattribute__": get,
        "__class__": property(lambda self: cls),
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    for name in ("__getattr__", "__setattr__", "__delattr__"):
        own = getattr(nn.Module, name)
        if getattr(cls, name) is own:
            body[name] = quiet(own)
    return type(cls)(cls.__name__, (cls,), body)


class Counter:
    """Stands for a number that a model moves: it can be added to and multiplied, and anything else is a use of it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # of isinstance
        return type(self.value)

    def _moved(self, other: Any) -> Any:
        return Counter(self.value) if type(other) in (int, float, Counter) else NotImplemented

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _moved

    def _use(self, *_: Any) -> Any:
        raise TypeError("a number that a model moves decides what it does")

    __bool__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _use
    __int__ = __float__ = __index__ = __str__ = __repr__ = __format__ = _use


class Reads:
    """What forwards have read of a model's modules and of `others`, modules whose tensors a step reads anew."""

    def __init__(self, network: Network, device: torch.device, others: Sequence[tuple[str, nn.Module]] = ()) -> None:
        self.network, self.device, self.others = network, device, others
        self.modules = [*network.model.named_modules(), *others]
        self.names: dict[int, set[str]] = {}  # by id of the module

    @contextmanager
    def noted(self) -> Iterator[None]:
        """For a forward; all begin with the same random numbers. Raises Untraceable for draws of Python or NumPy."""
        random = self.network.random_state(self.device)
        with random.replay(), reads_of([m for _, m in self.modules]) as read:
            yield
            if random.host_has_drawn():
                raise Untraceable(HOST_DRAWS)
        for key, names in read.items():
            self.names.setdefault(key, set()).update(names)


def settled(
    network: Network, functions: Sequence[tuple[str, Any]], run: Callable[[], Any], reads: Reads, *, looked: bool
) -> Watch:
    """Bring the model's Python to where it stands after a forward of these batches, and watch what it read on the way.

    `run` makes the forwards, of the model and of the other modules of `reads`; `looked` says that one is behind it, and
    in `reads`. A model that keeps what depends on their shape keeps it from here on. One that only counts its forwards
    goes on counting; its numbers are not watched, and stand as before.

    Raises:
        Untraceable: the model draws from generators of Python or NumPy, it has something that cannot be watched, or it
            moves something in every forward that it also reads.
    """
    modules, others = reads.modules, reads.others
    tensors = [*network.params.values(), *network.frozen().values(), *network.moving()]
    tensors += [t for _, m in others for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    own = {id(t) for t in tensors}
    before = {(id(vars(m)), k): v for _, m in modules for k, v in vars(m).items() if type(v) in (int, float)}

    def forward() -> None:
        with reads.noted():
            run()

    def watch(counters: Collection[tuple[int, Any]] = ()) -> Watch:
        try:
            return Watch(modules, functions, own, reads.names, counters)
        except Unwatchable as error:
            raise Untraceable(f"what the model reads cannot be watched: {error}") from None

    if not looked:
        forward()
    first = watch()
    forward()
    second = watch()
    was = {key: slot.value for key, slot in first.slots.items()}
    moved = {key: slot for key, slot in second.slots.items() if was.get(key, slot.value) != slot.value}
    if moved:
        for slot in moved.values():
            slot.assign(Counter(slot.value))
        try:
            with network.random_state(reads.device).replay():
                run()
        except Exception as error:
            names = ", ".join(slot.where for slot in moved.values())
            raise Untraceable(f"{names} moves in every forward, and decides what the model does") from error
        finally:
            for key, slot in moved.items():
                slot.assign(before.get(key, slot.value))
            second.put_back()
        first = watch(moved)
        forward()
        second = watch(moved)
        for key, slot in moved.items():
            slot.assign(before.get(key, slot.value))
    if where := first.difference(second):
        raise Untraceable(f"{where} is another after every forward, and the model reads it")
    return second
