"""Networks by name: ``build("resnet18", num_classes=10)``. All are plain torch modules that return logits (n, C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from fastmeta._memory import check_room
from fastmeta._numbers import as_whole
from fastmeta._text import reason, shown
from fastmeta._trust import load_object
from fastmeta.models.plain import alexnet, mlp, small_conv, vgg16_bn
from fastmeta.models.resnet import resnet18, resnet20, resnet32
from fastmeta.models.vit import vit_tiny
from fastmeta.models.wide_resnet import wrn28_10
from fastmeta.models.zoos import build_from_zoo, input_shape_from_zoo, zoo_of

__all__ = [
    "NAMES",
    "OTHERS",
    "alexnet",
    "build",
    "default_input_shape",
    "load_object",
    "mlp",
    "names_code",
    "resnet18",
    "resnet20",
    "resnet32",
    "small_conv",
    "vgg16_bn",
    "vit_tiny",
    "wrn28_10",
    "zoo_of",
]


@dataclass(frozen=True)
class _Convolutional:
    factory: Callable[[int, int], nn.Module]  # (num_classes, in_channels)
    min_side: int  # the smallest image that its strides and pools leave a pixel of


_CONVOLUTIONAL = {
    "resnet18": _Convolutional(resnet18, 1),
    "resnet20": _Convolutional(resnet20, 1),
    "resnet32": _Convolutional(resnet32, 1),
    "vgg16_bn": _Convolutional(vgg16_bn, 32),
    "alexnet": _Convolutional(alexnet, 29),
    "wrn28_10": _Convolutional(wrn28_10, 1),
    "small_conv": _Convolutional(small_conv, 2),
}
# (channels, height, width) that a network is made for, where it is not a CIFAR image
_INPUT_SHAPES = {"small_conv": (1, 8, 8), "mlp": (1, 28, 28)}
#: sizes and class numbers that torch can count
MOST = 2**31 - 1
#: classes, or numbers of one input, up to which the weights of any network here fit into any memory
_ORDINARY = 65536
NAMES: tuple[str, ...] = (*_CONVOLUTIONAL, "vit_tiny", "mlp")
#: what a name may be else, in words
OTHERS = "torchvision:NAME, timm:NAME or package.module:factory"
#: of this package: what they run is no stranger's code
_OWN_FACTORIES = (
    "fastmeta.models.digits:digits_conv",
    "fastmeta.models.narrow:narrow_resnet",
    "fastmeta.models.narrow:narrow_plain",
    "fastmeta.models.narrow:narrow_alexnet",
)


def build(name: str, *, num_classes: int, input_shape: Sequence[int] = (3, 32, 32)) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: one of `NAMES`; ``torchvision:NAME`` or ``timm:NAME`` for any classifier of theirs, without weights; or
            ``package.module:factory`` for your own, called as ``factory(num_classes=C)``.
        num_classes: C, the width of the logits; at least 2.
        input_shape: (channels, height, width) of one sample; any shape for ``mlp``. Torchvision's networks keep
            the input shape that they were written for, timm's take it where they can, factories are not told it.

    Raises:
        ValueError: unknown name, C < 2, a shape that the network cannot take, weights that do not fit into memory, a
            factory that is not there or fails.
        ImportError: ``torchvision:NAME`` or ``timm:NAME`` without a package that works.
    """
    if not isinstance(name, str):
        raise ValueError(f"name must be a text, got {shown(name)}")
    count = as_whole(num_classes)
    if count is None:
        raise ValueError(f"num_classes must be a whole number, got {shown(num_classes)}")
    if not 2 <= count <= MOST:
        raise ValueError(f"num_classes must be {'at least 2' if count < 2 else 'below 2^31'}, got {shown(count)}")
    shape = _sizes(input_shape)
    if max(count, math.prod(shape)) > _ORDINARY:
        _check_memory(name, count, shape)
    try:
        return _build(name, count, shape)
    except (RuntimeError, MemoryError) as error:  # of an allocation
        raise ValueError(f"model {shown(name)} of {count:,} classes cannot be made: {reason(error, 200)}") from error


def _sizes(input_shape: Any) -> tuple[int, ...]:
    try:
        sizes = [as_whole(size) for size in input_shape]
    except TypeError:
        sizes = []
    if not sizes or any(size is None or size < 1 for size in sizes):
        raise ValueError(f"input_shape must be positive sizes without the batch, got {shown(input_shape)}")
    if any(size is not None and size > MOST for size in sizes):
        raise ValueError(f"input_shape must have sizes below 2^31, got {shown(input_shape)}")
    return tuple(cast(list[int], sizes))


def _check_memory(name: str, num_classes: int, input_shape: tuple[int, ...]) -> None:
    """ValueError where the weights are more than memory has room for: a system may grant them, and kill who uses them.

    A factory of the user's that cannot be called without computing anything is not judged.
    """
    try:
        with torch.device("meta"):
            model = _build(name, num_classes, input_shape)
    except (RuntimeError, NotImplementedError, TypeError):
        return
    needed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    check_room(needed, f"the weights of {shown(name)} for {num_classes:,} classes and inputs {input_shape}")


def _build(name: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    if zoo_of(name) is not None:
        return build_from_zoo(name, num_classes, input_shape)
    if ":" in name:
        return _from_factory(name, num_classes)
    if name == "mlp":
        return mlp(num_classes, math.prod(input_shape))
    if name == "vit_tiny":
        if len(input_shape) != 3 or any(side % 4 for side in input_shape[1:]):
            raise ValueError(
                "model 'vit_tiny' takes (channels, height, width) with sides that are multiples of 4, "
                f"got {input_shape}"
            )
        return vit_tiny(num_classes, input_shape[0], (input_shape[1], input_shape[2]))
    if name not in _CONVOLUTIONAL:
        raise ValueError(f"unknown model {shown(name)}: expected one of {', '.join(NAMES)}, {OTHERS}")
    spec = _CONVOLUTIONAL[name]
    if len(input_shape) != 3 or min(input_shape[1:]) < spec.min_side:
        raise ValueError(
            f"model {name!r} takes (channels, height, width) of at least {spec.min_side} pixels a side, "
            f"got {input_shape}; small images: small_conv, other data: mlp"
        )
    return spec.factory(num_classes, input_shape[0])


def default_input_shape(name: str) -> tuple[int, ...]:
    """The shape of one sample that a network by this name is usually given."""
    return _INPUT_SHAPES.get(name, (3, 32, 32)) if zoo_of(name) is None else input_shape_from_zoo(name)


def names_code(name: str) -> bool:
    """Whether `build` would import a module for this name that belongs neither to fastmeta nor to a zoo."""
    return ":" in name and zoo_of(name) is None and name not in _OWN_FACTORIES


def _from_factory(spec: str, num_classes: int) -> nn.Module:
    factory = load_object(str(spec) if spec in _OWN_FACTORIES else spec)
    try:
        model = factory(num_classes=num_classes)
    except (Exception, SystemExit) as error:  # of the user's
        raise ValueError(
            f"{spec!r} is called as factory(num_classes={num_classes}) and failed: {reason(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model
