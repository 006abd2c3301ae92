"""Activation checkpointing in a forward that runs on other weights than the model's own.

A checkpointed part is run again in the backward, when the model has its own weights back: the gradient at theta* would
be that of neither theta* nor theta, and the model's own running statistics would move. Nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import checkpoint


class _Runner(nn.Module):
    """Calls a function while `model` has other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return function(*args, **kwargs)


@contextmanager
def recomputed_on(model: nn.Module, state: dict[str, Tensor]) -> Iterator[None]:
    """Inside, parts that are checkpointed (without re-entering autograd) will run again on the weights `state`.

    Each on buffers as they are when it runs first, and leaves them so.
    """
    plain = checkpoint._checkpoint_without_reentrant_generator

    def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            start = {name: b.clone() for name, b in model.named_buffers(remove_duplicate=False)}

        def again(*a: Any, **k: Any) -> None:
            then = {**state, **{name: b.clone() for name, b in start.items()}}
            with recomputed_on(model, then):
                named = {f"model.{name}": t for name, t in then.items()}
                functional_call(_Runner(model), named, (function, a, k), tie_weights=False)

        return plain(again, *args, **kwargs)

    checkpoint._checkpoint_without_reentrant_generator = generator  # type: ignore[assignment]
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator = plain
