"""What is checked in Python before an operation is called, and numbers as it takes them: 0-dim tensors."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor


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


def number(x: float, name: str) -> Tensor:
    try:
        finite = math.isfinite(x)
    except OverflowError:  # an int beyond float64
        finite = False
    except TypeError:
        raise TypeError(f"{name} must be a number or a 0-dim tensor, got {x!r}") from None
    if not finite:
        raise ValueError(f"{name} must be finite, got {x}")
    return torch.scalar_tensor(x, dtype=torch.float64)


def scalar(x: float | Tensor, name: str, logits: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return number(x, name)
    if x.device.type != "cpu":
        check(logits, **{name: x})
    return x.detach()


def counter(seed: int | None, step: int | Tensor | None, logits: Tensor) -> Tensor | None:
    """`step` as a 0-dim tensor, for it and `seed` come together."""
    if (seed is None) != (step is None):
        raise ValueError(
            f"stochastic rounding needs seed and step, got {'step' if seed is None else 'seed'} alone; "
            "pass both, or neither to round to nearest"
        )
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    if isinstance(step, int):
        return torch.scalar_tensor(step, dtype=torch.int64)
    if step is not None and step.device.type != "cpu":
        check(logits, step=step)
    return step


def check_range(index: Tensor, name: str, sized: Tensor, dim: int, of: str) -> None:
    """On CUDA, where it waits for the device, only under FASTMETA_DEBUG=1; on the CPU the kernels look."""
    if not index.is_cuda or os.environ.get("FASTMETA_DEBUG") != "1" or index.numel() == 0:
        return
    limit = sized.shape[dim]
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit - 1}] for {limit} {of}, got {low} to {high}")
