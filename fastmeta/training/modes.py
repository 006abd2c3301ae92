"""Train and eval mode of a module's parts: the caller's business, left as they were found.

A part that the caller has put in evaluation mode (a frozen BatchNorm, a dropout that is switched off) stays there while
the rest trains, so nothing here ever puts a whole model in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastmeta.functional.generators import Generators
from fastmeta.functional.random_state import RandomState


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, all of `model` is in evaluation mode; after, every part is in the mode that it had."""
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # through train(), which a module may override to do more than set a flag (fold an adapter into its weights),
        # from the outside in, because it reaches all parts inside; then the flags of those whose train() goes its way
        for m, training in before:
            if m.training != training:
                m.train(training)
        for m, training in before:
            if m.training != training:
                m.training = training


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
