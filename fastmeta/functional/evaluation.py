"""Evaluation mode of a module's parts, and back: modes are the caller's business, left as they were found.

A part that the caller has put in evaluation mode (a frozen BatchNorm, a dropout that is switched off) stays there while
the rest trains, so nothing here ever puts a whole model in training mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # what all of torch's BatchNorm layers have in common

#: rows of a batch whose statistics BatchNorm may take: fewer say too little
LEAST_ROWS = 8


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
def batch_statistics(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these BatchNorm layers normalise by the batch."""
    standing = [m for m in layers if not m.training]
    for m in standing:
        m.training = True
    try:
        yield
    finally:
        for m in standing:
            m.training = False


def training_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers of `model` that are in training mode, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}


@contextmanager
def recurrent_backward(model: nn.Module, device: torch.device) -> Iterator[None]:
    """For a backward in evaluation mode: cuDNN has none of recurrent layers there, so these train, without dropout."""
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)] if device.type == "cuda" else []
    dropouts = [m.dropout for m in layers]
    for m in layers:
        m.training, m.dropout = True, 0.0
    try:
        yield
    finally:
        for m, dropout in zip(layers, dropouts, strict=True):
            m.training, m.dropout = False, dropout
