"""The network that a config names."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta import models
from fastmeta.data import InputError
from fastmeta.functional.network import functional_module
from fastmeta.training.config import TrainConfig

#: before the class of a module that was given in Python
CUSTOM = "custom:"


def names_code(model: str | None) -> bool:
    """Whether a run's `model` stands for code that would have to be imported."""
    return model is not None and not model.startswith(CUSTOM) and models.names_code(model)


def build_model(config: TrainConfig, num_classes: int, image_shape: list[int] | tuple[int, ...]) -> nn.Module:
    """The network that a resolved config names, with fresh weights from torch's global generator."""
    assert config.model is not None
    if config.model.startswith(CUSTOM):
        raise InputError(f"this run trained a module of its own, {config.model}: pass it as model=")
    height, width, channels = image_shape
    try:
        return models.build(config.model, num_classes=num_classes, input_shape=(channels, height, width))
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


def kind_of(value: Any) -> str:
    """For messages about a value of a wrong type."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
