"""The network that a config names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastmeta import models
from fastmeta.data import InputError
from fastmeta.functional.network import functional_module
from fastmeta.training.config import CUSTOM, TrainConfig


def build_model(config: TrainConfig, num_classes: int, input_shape: Sequence[int] | None) -> nn.Module:
    """The network that a resolved config names, with fresh weights from torch's global generator.

    `input_shape` is of one sample as the network takes it; None where that is no tensor.
    """
    assert config.model is not None
    if config.model.startswith(CUSTOM):
        raise InputError(f"this run trained a module of its own, {config.model}: pass it as model=")
    if input_shape is None and ":" not in config.model:
        raise InputError(f"model {config.model} takes tensors, and the samples are none; name package.module:factory")
    shape = {} if input_shape is None else {"input_shape": input_shape}
    try:
        return models.build(config.model, num_classes=num_classes, **shape)
    except (ValueError, ImportError) as error:
        raise InputError(f"model: {error}") from error


def inner_module(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that can be trained inside what torch.compile returned, with a note; InputError for other wrappers."""
    try:
        inner = functional_module(model)
    except TypeError as error:
        raise InputError(str(error)) from error
    if inner is model:
        return model, ()
    return inner, (
        "model= is what torch.compile returned: the module inside is trained, copied and saved; to compile steps that "
        "learn labels take compile=full",
    )


def with_other_weights(model: nn.Module) -> nn.Module:
    """`model`, whose layers draw their initial weights anew; InputError where a parameter's layer cannot."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise InputError(
                f"the method wants a second model with other initial weights, and layer {name!r} of the model given as "
                "model= has no reset_parameters(); name the model as package.module:factory"
            )
        reset()
    return model


def kind_of(value: Any) -> str:
    """For messages about a value of a wrong type."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
