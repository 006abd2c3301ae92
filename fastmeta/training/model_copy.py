"""Copies of a module, for stages that each train their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fastmeta.data import InputError
from fastmeta.training.module_state import LOCKS, attributes, inside, one_line, words


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that shares nothing; InputError in one line that names what cannot be copied.

    Tensors that hang on a graph (the last weight of a hook, a kept activation) are copied without it, and locks are
    shared: copy.deepcopy refuses both, and what a stage computes does not depend on them.
    """
    memo: dict[int, Any] = {}
    met: set[int] = set()
    for module in model.modules():
        for _, value in (*attributes(module), *((("buffer", k), b) for k, b in module._buffers.items())):
            for found in _reachable(value, met):
                memo[id(found)] = found if isinstance(found, LOCKS) else _without_graph(found)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # a module of the user's may raise anything
        raise InputError(
            f"model {type(model).__name__} cannot be copied, and each stage of a run trains a copy: "
            f"{_culprit(model, memo)} refuses ({one_line(error)})"
        ) from error


def _without_graph(t: Tensor) -> Tensor:
    if nn.parameter.is_lazy(t):  # torch copies lazy parameters, but not lazy buffers
        return nn.parameter.UninitializedBuffer(t.requires_grad, t.device, t.dtype)  # type: ignore[arg-type]
    return t.detach().clone()


def _reachable(value: Any, met: set[int]) -> Iterator[Any]:
    """Tensors with a graph, lazy buffers, and locks."""
    if id(value) in met or len(met) > 100_000:
        return
    met.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf or isinstance(value, nn.parameter.UninitializedBuffer):
            yield value
    elif isinstance(value, LOCKS):
        yield value
    elif not isinstance(value, nn.Module) or id(value) not in met:
        for _, item in inside(value):
            yield from _reachable(item, met)


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    for name, module in model.named_modules():
        for key, value in attributes(module):
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                return words((name, key))
    return "it"
