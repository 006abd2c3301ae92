"""Classifiers of other packages by name, without weights: ``torchvision:resnet50``, ``timm:convnext_tiny``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

#: (channels, height, width) that most of them are made for
INPUT_SHAPE = (3, 224, 224)


def zoo_of(name: str) -> str | None:
    """The prefix of a name of another package's model, or None."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in ZOOS else None


def build_from_zoo(name: str, num_classes: int, input_shape: Sequence[int] | None = None) -> nn.Module:
    """The model ``ZOO:NAME``. Raises ValueError for an unknown name, ImportError without the package.

    timm's models are made for `input_shape`, as far as they can be; torchvision's stay as they are.
    """
    zoo, _, own = name.partition(":")
    return ZOOS[zoo](own, num_classes, input_shape)


def input_shape_from_zoo(name: str) -> tuple[int, ...]:
    """What the model is made for; without its package, or where it does not say, that of most."""
    if zoo_of(name) == "timm":
        try:
            with torch.device("meta"):
                config = cast(Any, build_from_zoo(name, 2)).default_cfg
            return tuple(int(size) for size in config["input_size"])
        except Exception:  # told in words where the model is built
            pass
    return INPUT_SHAPE


def _torchvision(name: str, num_classes: int, input_shape: Sequence[int] | None) -> nn.Module:
    try:
        # here and not above: the wheel from PyPI does not import under a CPU-only torch
        import torchvision.models as zoo
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"torchvision:{name} needs a torchvision that matches this torch: {error}") from error
    _check_name("torchvision", name, zoo.list_models(module=zoo), ["resnet18", "resnet50", "vit_b_16"])
    return cast(nn.Module, zoo.get_model(name, weights=None, num_classes=num_classes))


def _timm(name: str, num_classes: int, input_shape: Sequence[int] | None) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"timm:{name} needs timm, pip install timm: {error}") from error
    if not timm.is_model(name):  # which takes names with the tag of a training, too
        _check_name("timm", name, timm.list_models(), ["resnet18", "convnext_tiny", "vit_small_patch16_224"])
    options: dict[str, Any] = {"pretrained": False, "num_classes": num_classes}
    if input_shape is None or len(input_shape) != 3:
        return cast(nn.Module, timm.create_model(name, **options))
    options["in_chans"] = input_shape[0]
    try:  # transformers have a fixed size and take it; convolutional networks have no such argument
        return cast(nn.Module, timm.create_model(name, **options, img_size=tuple(input_shape[1:])))
    except TypeError:
        return cast(nn.Module, timm.create_model(name, **options))


def _check_name(zoo: str, name: str, known: Sequence[str], examples: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5) or examples
        raise ValueError(
            f"unknown model '{zoo}:{name}': expected one of its {len(known)} classifiers, such as {', '.join(close)}"
        )


#: prefix -> what builds NAME
ZOOS: dict[str, Callable[[str, int, Sequence[int] | None], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}
