"""State of the parts of a stage, whatever they are: models, optimizers, labels, and what a method names of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.losses import LabelTable
from fastmeta.training.encoding import Decoder, Encoder, Unsaved
from fastmeta.training.module_state import ModuleState, Watch, load_state, one_line


class Part:
    """One object that has a state: a module with all that its forward keeps, or anything with a state_dict."""

    def __init__(self, name: str, value: Any) -> None:
        if not isinstance(value, nn.Module):
            for needed in ("state_dict", "load_state_dict"):
                if not callable(getattr(value, needed, None)):
                    raise InputError(f"{name} cannot be saved: it has no {needed}(), got {shown(value)}")
        self.name, self.value = name, value
        self.watch = Watch(value) if isinstance(value, nn.Module) else None

    @property
    def unsaved(self) -> list[str]:
        """Of the last :meth:`save`, in words: what has moved and cannot be saved."""
        return [] if self.watch is None else self.watch.unsaved

    def save(self) -> tuple[dict[str, Tensor], Any]:
        """Tensors by name, and the rest as JSON holds it. InputError for a state that holds neither."""
        if self.watch is not None:
            try:
                module = self.watch.state()
            except ValueError as error:
                raise InputError(f"{self.name} cannot be saved: {error}") from error
            tensors = {f"state.{k}": v for k, v in module.state.items()}
            return tensors | {f"beside.{k}": v for k, v in module.beside.items()}, module.values
        encoder = Encoder()
        try:
            form = encoder(self.value.state_dict())
        except Unsaved as error:
            raise InputError(
                f"{self.name} cannot be saved: its state_dict holds something {error}; it may hold tensors, arrays, "
                "numbers, texts, random generators, and lists and dicts of these"
            ) from error
        return encoder.tensors, form

    def by_row(self, values: Any) -> frozenset[str]:
        """Names of the tensors beside `values`, of :meth:`save`, that have a row for each training sample.

        So says the attribute `row_state` of the object, or of a module inside of it: names of its state_dict, or of
        buffers beside that; of dicts in dicts with dots between their keys.
        """
        if self.watch is None:
            rows = _row_state(self.value)
            return frozenset(number for place, number in _tensors_of(values) if place in rows)
        modules = self.value.named_modules()
        own = {f"{path}.{name}" if path else name for path, module in modules for name in _row_state(module)}
        found = {f"state.{name}" for name in own}
        for (path, *inner), form in values.get("moved", []):
            place = f"{path}.{inner[0][1]}" if path else inner[0][1]
            if len(inner) == 1 and place in own:
                found |= {f"beside.{number}" for name, number in _tensors_of(form) if name == ""}
        return frozenset(found)

    @property
    def of_few(self) -> str | None:
        """What keeps rows in a way of its own, which as many ranks as wrote it can read alone; None for nothing."""
        modules = self.value.modules() if self.watch is not None else ()
        tables = (m for m in modules if isinstance(m, LabelTable) and not m.row_state)
        return next((f"a {type(table).__name__} of {self.name}" for table in tables), None)

    def load(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Go on where one of the same make gave `tensors` and `values`."""
        if self.watch is not None:
            state, beside = (_under(prefix, tensors) for prefix in ("state.", "beside."))
            load_state(self.value, ModuleState(state, beside, values))
            return
        state = Decoder(tensors)(values)
        try:
            self.value.load_state_dict(state)
        except Exception as error:  # of a class of the user's
            raise ValueError(f"{self.name} does not take its state: {one_line(error)}") from error
        if isinstance(self.value, torch.optim.Optimizer):
            _restore_forms(self.value, state)


def _restore_forms(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Tensors of an optimizer in the dtype that they had and the layout of their parameters: torch goes by neither."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, saved in state["state"].items():
        p = params[number]
        for key, value in saved.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.ndim:
                optimizer.state[p][key] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _row_state(value: Any) -> frozenset[str]:
    return frozenset(getattr(value, "row_state", ()))


def _tensors_of(form: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and number of each tensor of an encoded value that dicts lead to."""
    if isinstance(form, dict):
        ((kind, content),) = form.items()
        if kind == "tensor":
            yield place, content[0]
        elif kind in ("dict", "ordered"):
            for key, inner in content:
                yield from _tensors_of(inner, f"{place}.{key}" if place else str(key))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Parts:
    """All parts of a stage by name, each object once."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._parts: dict[str, Part] = {}
        met: set[int] = set()
        for name, value in values.items():
            if id(value) not in met:
                met.add(id(value))
                self._parts[name] = Part(name, value)

    @property
    def unsaved(self) -> list[str]:
        return [place for part in self._parts.values() for place in part.unsaved]

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, part in self._parts.items():
            found, values[name] = part.save()
            tensors |= {f"{name}/{k}": v for k, v in found.items()}
        return tensors, values

    @property
    def of_few(self) -> str | None:
        return next(filter(None, (part.of_few for part in self._parts.values())), None)

    def by_row(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Names of those tensors of :meth:`save` that have a row for each training sample."""
        every = ((name, part.by_row(values[name])) for name, part in self._parts.items())
        return frozenset(f"{name}/{k}" for name, found in every for k in found)

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """ValueError where the parts are others than those that were saved."""
        if values.keys() != self._parts.keys():
            raise ValueError(f"it holds the state of {', '.join(values)}, expected {', '.join(self._parts)}")
        for name, part in self._parts.items():
            part.load(_under(f"{name}/", tensors), values[name])
