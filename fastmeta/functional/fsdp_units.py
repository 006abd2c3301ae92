"""What ``torch.distributed.fsdp.fully_shard`` has made of a model: units that gather their parameters for a forward.

A parameter is a DTensor then, of which each rank holds a shard. A unit (a module on which fully_shard was called) puts
gathered tensors in the place of its parameters before its forward, and the shards back after it; the root leaves its
own gathered until the backward. A gathered tensor stays as it is while shards change, so whoever writes into shards
calls :meth:`Units.reshard` before and after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Tensors = dict[str, Tensor]


def is_dtensor(t: Any) -> bool:
    """Whether `t` lies on several devices; nothing is imported for the answer."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(t, tensor.DTensor)


def is_unit(module: nn.Module) -> bool:
    """Whether fully_shard was called on this module; nothing is imported for the answer."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_sharded(model: nn.Module) -> bool:
    """Whether fully_shard was called on any part of `model`."""
    return "torch.distributed.fsdp" in sys.modules and any(map(is_unit, model.modules()))


def first_fsdp1(model: nn.Module) -> str | None:
    """The name of a part under FullyShardedDataParallel, FSDP2's forerunner, or None."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return None
    return next((name for name, m in model.named_modules() if isinstance(m, fsdp.FullyShardedDataParallel)), None)


def local(t: Tensor) -> Tensor:
    """This rank's part, detached: the tensor itself where it is none of several devices."""
    t = t.detach()
    return t.to_local() if is_dtensor(t) else t  # type: ignore[attr-defined]


def like_shard(value: Tensor, p: Tensor) -> Tensor:
    """A DTensor of this rank's part `value`, which lies as the parameter `p` does."""
    if not is_dtensor(p) or is_dtensor(value):
        return value
    kind = sys.modules["torch.distributed.tensor"].DTensor
    made: Tensor = kind.from_local(
        value,
        p.device_mesh,  # type: ignore[attr-defined]
        p.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=p.shape,
        stride=p.stride(),
    )
    return made


class Place(NamedTuple):
    """Where a parameter stands: in ``module._parameters[key]``, gathered by `unit`."""

    module: nn.Module
    key: str
    unit: nn.Module
    name: str  # of the parameter
    parameter: Tensor  # sharded

    @property
    def gathered(self) -> bool:
        return self.module._parameters[self.key] is not self.parameter


class Units:
    """The units of `model`, whose parameters must not be gathered now: see :func:`reshard`."""

    def __init__(self, model: nn.Module) -> None:
        self.units: list[Any] = [m for m in model.modules() if is_unit(m)]
        self.parameters: Tensors = {name: p for name, p in model.named_parameters() if is_dtensor(p)}
        names = {id(p): name for name, p in self.parameters.items()}
        self.places = [
            Place(module, key, unit, names[id(p)], p)
            for module, unit in _owned(model)
            for key, p in module._parameters.items()
            if unit is not None and p is not None and is_dtensor(p)
        ]

    def reshard(self) -> None:
        """Every unit holds its shards alone."""
        for unit in self.units:
            unit.reshard()

    @contextmanager
    def shards_in_place(self) -> Iterator[None]:
        """Inside, shards stand where a unit has left gathered tensors; after, what it has left."""
        put_back = []
        for place in self.places:
            if place.gathered:
                now = place.module._parameters[place.key]
                put_back.append(_exchange(place.module, place.key, now, place.parameter))
        try:
            yield
        finally:
            run(put_back)

    def drop_gathered_grads(self) -> None:
        """Of a backward that an error has stopped: FSDP would add them to those of the next."""
        for place in self.places:
            now = place.module._parameters[place.key]
            if place.gathered and now is not None:
                now.grad = None

    def recover(self) -> None:
        """After an error in a pass: no unit goes on with what it has gathered, and shards stand in their places.

        ``reshard`` alone leaves a root that was stopped in its forward as it is.
        """
        root = self.units[0]
        if hasattr(root, "reset_iter_state"):  # torch 2.14
            with suppress(AttributeError):  # before a first forward there are no streams that it could wait for
                root.reset_iter_state()
        root.state_dict()  # whose hooks put shards in the place of what is gathered
        self.reshard()

    @contextmanager
    def duals(self, tangents: Tensors) -> Iterator[list[torch.dtype]]:
        """Inside, each unit computes on dual numbers: its gathered parameters, and `tangents` (shards, by name).

        Yields the dtypes that it gathers in. A unit's tangents are gathered for its forward alone.
        """
        dtypes: list[torch.dtype] = []
        undo: dict[int, list[Callable[[], None]]] = {}
        places: dict[int, list[Place]] = {}
        for place in self.places:
            if place.name in tangents:
                places.setdefault(id(place.unit), []).append(place)

        def before(unit: nn.Module, _: Any) -> None:
            made: dict[str, Tensor] = {}
            for module, key, _unit, name, p in places[id(unit)]:
                now = module._parameters[key]
                assert now is not None
                if name not in made:
                    tangent = like_shard(tangents[name], p).full_tensor()  # type: ignore[attr-defined]
                    made[name] = forward_ad.make_dual(now.detach(), tangent.to(now.dtype))
                    dtypes.append(now.dtype)
                undo.setdefault(id(unit), []).append(_exchange(module, key, now, made[name]))

        def after(unit: nn.Module, *_: Any) -> None:
            run(undo.pop(id(unit), []))

        handles: list[Any] = []
        try:
            for unit in self.units:
                if id(unit) in places:
                    # FSDP's own hooks gather before this one and free after the other
                    handles.append(unit.register_forward_pre_hook(before))
                    handles.append(unit.register_forward_hook(after, prepend=True))
            yield dtypes
        finally:
            for handle in handles:
                handle.remove()
            for unit in self.units:
                after(unit)


def reshard(model: nn.Module) -> None:
    """Every unit of `model` holds its shards alone."""
    for module in model.modules():
        if is_unit(module):
            module.reshard()  # type: ignore[operator]


def _owned(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Every module once, with the unit that gathers its parameters: the closest above."""
    seen, todo = set[int](), list[tuple[nn.Module, nn.Module | None]]([(model, None)])
    while todo:
        module, unit = todo.pop()
        if id(module) not in seen:
            seen.add(id(module))
            unit = module if is_unit(module) else unit
            yield module, unit
            todo += [(child, unit) for child in module.children()]


def run(functions: list[Callable[[], None]]) -> None:
    """The last first."""
    for function in reversed(functions):
        function()


def _exchange(module: nn.Module, key: str, now: Any, other: Any) -> Callable[[], None]:
    """Put `other` in the place of `now`; what puts it back."""
    holder: Any = module._parameters
    holder[key] = other
    return lambda: holder.__setitem__(key, now)
