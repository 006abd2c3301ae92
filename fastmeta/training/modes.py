"""A look at a model in the middle of a run, which may not change the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastmeta.functional.evaluation import evaluation
from fastmeta.functional.generators import Generators
from fastmeta.functional.random_state import RandomState


@contextmanager
def looked_at(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, `model` is in evaluation mode, for a look at a moment that goes by the clock: it may not change the run.

    Afterwards generators, buffers and attributes are as before, but for what stands inside of lists and objects.
    """
    modules = list(model.modules())
    random = RandomState(device, Generators()(modules, []))
    held = [(d, dict(d)) for m in modules for d in (vars(m), m._buffers)]
    values = [(b, b.clone()) for b in model.buffers()]
    with evaluation(model):
        try:
            yield
        finally:
            random.restore()
            for now, before in held:
                now.clear()
                now.update(before)
            for b, value in values:
                if not torch.equal(b, value):
                    b.copy_(value)
            model.eval()


def wholly_in_eval(model: nn.Module) -> bool:
    """Whether no part of `model` is in training mode: nearly always a model.eval() that nobody has taken back."""
    return not any(m.training for m in model.modules())
