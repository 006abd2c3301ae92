"""What fake kernels are made of: result shapes for tensors without data, on the meta device or traced.

They check what the kernels check (csrc/ops), in the same words: all but values, addresses and shared memory. A call
that mixes CPU and meta tensors comes here too, and would otherwise return memory that nobody wrote.

Conditions go through ``torch._check``, which torch's guide to custom operations names: a size that is known only while
a graph runs (that of ``x[mask]``) is checked then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.ops.guard import acc_dtype

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the fake kernel of ``torch.ops.fastmeta.NAME``."""
    return torch.library.register_fake(f"fastmeta::{name}")


def require(condition: Any, text: str) -> None:
    torch._check(condition, lambda: text)


def text_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_device(t: Tensor, name: str, on: Tensor, on_name: str) -> None:
    require(t.device == on.device, f"{name} is on {t.device} but {on_name} on {on.device}; move one of them")


def check_scalar(t: Tensor, name: str, on: Tensor, on_name: str) -> None:
    require(
        t.ndim == 0 and t.dtype in (torch.float64, torch.float32),
        f"{name} must be a 0-dim float64 or float32 tensor, got shape {tuple(t.shape)} of {text_of(t.dtype)}",
    )
    if t.device.type != "cpu":  # a number of the host goes with tensors of any device
        check_device(t, name, on, on_name)


def check_counter(t: Tensor, on: Tensor, on_name: str) -> None:
    require(
        t.ndim == 0 and t.dtype == torch.int64,
        f"step must be a 0-dim int64 tensor, got shape {tuple(t.shape)} of {text_of(t.dtype)}",
    )
    if t.device.type != "cpu":
        check_device(t, "step", on, on_name)


def check_int64(t: Tensor, name: str) -> None:
    require(t.dtype == torch.int64, f"{name} must be int64, got {text_of(t.dtype)}; use {name}.long()")


def check_columns(t: Tensor, name: str) -> None:
    require(
        t.stride(1) == 1 or t.shape[1] == 1 or t.numel() == 0,
        f"{name} must have adjacent columns (stride 1), got strides {t.stride()}; use {name}.contiguous()",
    )


class Batch:
    """The logits of an operation: they set n, C, T, acc(T) and the device that everything else has to match."""

    def __init__(self, logits: Tensor, name: str = "logits", min_columns: int = 2) -> None:
        self.logits, self.name, self.type, self.acc = logits, name, logits.dtype, acc_dtype(logits.dtype)
        require(logits.ndim == 2, f"{name} must have two dimensions (n, C), got shape {tuple(logits.shape)}")
        self.n, self.C = logits.shape
        columns = "column" if min_columns == 1 else "columns (classes)"
        require(
            min_columns <= self.C,
            f"{name} must have at least {min_columns} {columns}, got shape {tuple(logits.shape)}",
        )
        require(
            self.type in FLOATING, f"{name} must be float64, float32, bfloat16 or float16, got {text_of(self.type)}"
        )
        check_columns(logits, name)

    # arguments ---------------------------------------------------------------------------------------------

    def direction(self, t: Tensor, name: str) -> None:
        self._matrix(t, name)
        self._type(t, name, t.dtype in (self.type, self.acc), label=False)

    def same(self, t: Tensor, name: str) -> None:
        self._matrix(t, name)
        require(t.dtype == self.type, f"{name} must be {text_of(self.type)} as {self.name}, got {text_of(t.dtype)}")

    def labels(self, t: Tensor, name: str, way_out: str) -> None:
        self._matrix(t, name, way_out)
        self._label_type(t, name)

    def table(self, t: Tensor, name: str, *, in_place: bool = False) -> None:
        require(
            t.ndim == 2 and t.shape[1] == self.C,
            f"{name} must have shape (N, {self.C}) to match {self.name}, got {tuple(t.shape)}; it is the table of all "
            "training samples, rows are picked by index",
        )
        self._device(t, name)
        check_columns(t, name)
        self._label_type(t, name)
        require(
            not in_place or t.stride(0) >= self.C or t.shape[0] <= 1,
            f"{name} is written in place and needs rows of its own, got strides {t.stride()}; pass a table that is not "
            "expanded or overlapping",
        )

    def vector(self, t: Tensor, name: str, length: Any) -> None:
        self._length(t, name, length)
        self._device(t, name)
        acc, given = text_of(self.acc), text_of(t.dtype)
        require(
            t.dtype == self.acc,
            f"{name} must be {acc} with {text_of(self.type)} {self.name}, got {given}; use {name}.to(torch.{acc})",
        )

    def weight(self, t: Tensor | None) -> None:
        if t is not None:
            self.vector(t, "weight", self.n)

    def index(self, t: Tensor, name: str) -> None:
        self._length(t, name, self.n)
        self._device(t, name)
        check_int64(t, name)

    def step(self, u: Tensor, scale: Tensor, label_lr: Tensor, weight: Tensor | None) -> None:
        """What every step of labels takes."""
        self.direction(u, "u")
        check_scalar(scale, "scale", self.logits, self.name)
        check_scalar(label_lr, "label_lr", self.logits, self.name)
        self.weight(weight)

    def rounding(self, seed: int | None, step: Tensor | None) -> None:
        require(
            (seed is None) == (step is None),
            f"stochastic rounding needs seed and step, got {'step' if seed is None else 'seed'} alone; pass both, or "
            "neither to round to nearest",
        )
        if step is not None:
            check_counter(step, self.logits, self.name)

    # results -----------------------------------------------------------------------------------------------

    def values(self) -> Tensor:
        return self.logits.new_empty((self.n,), dtype=self.acc)

    def rows(self, dtype: torch.dtype, n: Any = None) -> Tensor:
        return self.logits.new_empty((self.n if n is None else n, self.C), dtype=dtype)

    def label_results(self) -> tuple[Tensor, Tensor, Tensor]:
        """loss, v, entropy"""
        return self.values(), self.rows(self.type), self.values()

    # -------------------------------------------------------------------------------------------------------

    def _device(self, t: Tensor, name: str) -> None:
        check_device(t, name, self.logits, self.name)

    def _matrix(self, t: Tensor, name: str, way_out: str = "") -> None:
        text = f"{name} must have shape ({self.n}, {self.C}) to match {self.name}, got {tuple(t.shape)}{way_out}"
        require(t.ndim == 2, text)
        for size, expected in zip(t.shape, (self.n, self.C), strict=True):
            require(size == expected, text)
        self._device(t, name)
        check_columns(t, name)

    def _length(self, t: Tensor, name: str, length: Any) -> None:
        text = f"{name} must have shape ({length},) to match {self.name}, got {tuple(t.shape)}"
        require(t.ndim == 1, text)
        require(t.shape[0] == length, text)

    def _label_type(self, t: Tensor, name: str) -> None:
        narrow = t.dtype == torch.bfloat16 and self.acc == torch.float32
        self._type(t, name, t.dtype in (self.type, self.acc) or narrow, label=True)

    def _type(self, t: Tensor, name: str, fits: bool, *, label: bool) -> None:
        allowed = [text_of(self.acc)] + [text_of(self.type)] * (self.type != self.acc)
        if label and self.acc == torch.float32 and self.type != torch.bfloat16:
            allowed.append("bfloat16")
        require(
            fits,
            f"{name} must be {' or '.join(allowed)} with {text_of(self.type)} {self.name}, got {text_of(t.dtype)}; "
            f"use {name}.to(torch.{allowed[0]})",
        )
