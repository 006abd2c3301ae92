"""Where a run computes, and how."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.precision import float32_products
from fastmeta.training.config import TrainConfig


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """auto is CUDA where there is one. InputError for a device that is not there.

    Of several ranks of a machine each has a device of its own, which is then torch's current one.
    """
    if ranks.size > 1:
        return _own_device(name, ranks)
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name in ("cpu", "cpu:0"):
        return torch.device("cpu")
    form = re.fullmatch("cuda(?::([0-9]{1,9}))?", name)
    if form is None:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {shown(name)}")
    index = int(form[1] or 0)  # and not torch's, which has 8 bits for it: 256 is 0 there
    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(f"device {name} is not there: torch sees {count} CUDA device(s); take cpu or auto")
    return torch.device("cuda", index)


def _own_device(name: str, ranks: Ranks) -> torch.device:
    if name in ("cpu", "cpu:0") or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise InputError(
            f"device {name} is one for all {ranks.size} ranks, each of which has its own; leave it out, or take cuda "
            "or cpu (CUDA_VISIBLE_DEVICES says which there are)"
        )
    index, count = ranks.local or 0, torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"LOCAL_RANK is {index}, and torch sees {count} CUDA device(s) on this machine; start {count} processes "
            "on it at most, or take device=cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels-last is how images lie, and what tensor cores want; oneDNN prefers the plain order."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


@contextmanager
def arithmetic(config: TrainConfig, ranks: Ranks = ALONE) -> Iterator[None]:
    """The config's float32 products, and cuDNN's repeatable algorithms, without which resumed runs would differ."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with float32_products(pick_device(config.device, ranks), tf32=config.precision == "tf32"):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` where it trains, in the format that is fast there."""
    return model.to(device=device, memory_format=memory_format(device))  # type: ignore[call-overload]


def environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a run depend on beside its config and its data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
