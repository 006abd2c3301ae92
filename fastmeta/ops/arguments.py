"""What is checked in Python before an operation is called, and arguments as it takes them."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_real, as_whole, shown


def check(first: Tensor, on: str = "logits", /, **others: Tensor | None) -> None:
    """All are tensors on the device of the first, which is called `on`. Only a weight may be left out."""
    for name, t in ((on, first), *others.items()):
        if t is None and name == "weight":
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}; use torch.as_tensor({name})")
        # a mix of a CPU and a meta tensor would reach the shape functions and come back as meta tensors without a word
        if t.device != first.device:
            raise ValueError(f"{name} is on {t.device} but {on} on {first.device}; move one of them")


def finite(x: Any, name: str, kind: str = "a number") -> float:
    number = as_real(x)
    if number is None:
        raise TypeError(f"{name} must be {kind}, got {shown(x)}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {shown(x)}")
    return number


def number(x: Any, name: str) -> Tensor:
    return torch.scalar_tensor(finite(x, name, "a number or a 0-dim tensor"), dtype=torch.float64)


def scalar(x: float | Tensor, name: str, logits: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return number(x, name)
    if x.device.type != "cpu":
        check(logits, **{name: x})
    return x.detach()


def counter(seed: Any, step: Any, logits: Tensor) -> Tensor | None:
    """`step` as a 0-dim tensor, for it and `seed` come together."""
    if (seed is None) != (step is None):
        raise ValueError(
            f"stochastic rounding needs seed and step, got {'step' if seed is None else 'seed'} alone; "
            "pass both, or neither to round to nearest"
        )
    if step is None:
        return None
    if isinstance(step, Tensor):
        if step.device.type != "cpu":
            check(logits, step=step)
        return step
    count = as_whole(step)
    if count is None:
        raise TypeError(f"step must be a whole number or a 0-dim tensor, got {shown(step)}")
    if not -(2**63) <= count < 2**63:
        raise ValueError(f"step must lie in [-2^63, 2^63), got {shown(step)}")
    return torch.scalar_tensor(count, dtype=torch.int64)


def seed_of(seed: Any) -> int | None:
    if seed is None:
        return None
    whole = as_whole(seed)
    if whole is None or not 0 <= whole < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {shown(seed)}")
    return whole


def check_range(index: Tensor, name: str, sized: Tensor, dim: int, of: str) -> None:
    """On CUDA, where it waits for the device, only under FASTMETA_DEBUG=1; on the CPU the kernels look."""
    if not index.is_cuda or os.environ.get("FASTMETA_DEBUG") != "1" or index.numel() == 0:
        return
    limit = sized.shape[dim]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit - 1}] for {limit} {of}, got {low} to {high}")


def columns(x: Tensor) -> Tensor:
    """A matrix as the kernels take it, with adjacent columns; rows may have any stride."""
    try:
        return x if x.is_contiguous() or x.ndim != 2 or x.stride(1) == 1 else x.contiguous()  # the quick one first
    except RuntimeError:  # a layout without strides: the operation refuses it by name
        return x
