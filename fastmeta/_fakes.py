"""Result shapes of the raw operations for tensors without data: on the meta device, or traced.

They check what the kernels check (csrc/op_args.h, image_args.h, lookahead_op.h), in the same words: all but values,
addresses and shared memory. A call that mixes CPU and meta tensors comes here too, and would otherwise return memory
that nobody wrote.

Conditions go through ``torch._check``, which torch's guide to custom operations names: a size that is known only while
a graph runs (that of ``x[mask]``) is checked then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta._dispatch import acc_dtype

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SOFT = "; pass soft labels"


def _check(condition: Any, text: str) -> None:
    torch._check(condition, lambda: text)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_device(t: Tensor, name: str, on: Tensor, on_name: str) -> None:
    _check(t.device == on.device, f"{name} is on {t.device} but {on_name} on {on.device}; move one of them")


def _check_scalar(t: Tensor, name: str, on: Tensor, on_name: str) -> None:
    _check(
        t.ndim == 0 and t.dtype in (torch.float64, torch.float32),
        f"{name} must be a 0-dim float64 or float32 tensor, got shape {tuple(t.shape)} of {_text(t.dtype)}",
    )
    if t.device.type != "cpu":  # a number of the host goes with tensors of any device
        _check_device(t, name, on, on_name)


def _check_counter(t: Tensor, on: Tensor, on_name: str) -> None:
    _check(
        t.ndim == 0 and t.dtype == torch.int64,
        f"step must be a 0-dim int64 tensor, got shape {tuple(t.shape)} of {_text(t.dtype)}",
    )
    if t.device.type != "cpu":
        _check_device(t, "step", on, on_name)


def _check_int64(t: Tensor, name: str) -> None:
    _check(t.dtype == torch.int64, f"{name} must be int64, got {_text(t.dtype)}; use {name}.long()")


def _check_columns(t: Tensor, name: str) -> None:
    _check(
        t.stride(1) == 1 or t.shape[1] == 1 or t.numel() == 0,
        f"{name} must have adjacent columns (stride 1), got strides {t.stride()}; use {name}.contiguous()",
    )


class _Batch:
    """The logits of an operation: they set n, C, T, acc(T) and the device that everything else has to match."""

    def __init__(self, logits: Tensor, name: str = "logits", min_columns: int = 2) -> None:
        self.logits, self.name, self.type, self.acc = logits, name, logits.dtype, acc_dtype(logits.dtype)
        _check(logits.ndim == 2, f"{name} must have two dimensions (n, C), got shape {tuple(logits.shape)}")
        self.n, self.C = logits.shape
        columns = "column" if min_columns == 1 else "columns (classes)"
        _check(
            min_columns <= self.C,
            f"{name} must have at least {min_columns} {columns}, got shape {tuple(logits.shape)}",
        )
        _check(self.type in _FLOATING, f"{name} must be float64, float32, bfloat16 or float16, got {_text(self.type)}")
        _check_columns(logits, name)

    # arguments ---------------------------------------------------------------------------------------------

    def direction(self, t: Tensor, name: str) -> None:
        self._matrix(t, name)
        self._type(t, name, t.dtype in (self.type, self.acc), label=False)

    def same(self, t: Tensor, name: str) -> None:
        self._matrix(t, name)
        _check(t.dtype == self.type, f"{name} must be {_text(self.type)} as {self.name}, got {_text(t.dtype)}")

    def labels(self, t: Tensor, name: str, way_out: str) -> None:
        self._matrix(t, name, way_out)
        self._label_type(t, name)

    def table(self, t: Tensor, name: str, *, in_place: bool = False) -> None:
        _check(
            t.ndim == 2 and t.shape[1] == self.C,
            f"{name} must have shape (N, {self.C}) to match {self.name}, got {tuple(t.shape)}; it is the table of all "
            "training samples, rows are picked by index",
        )
        self._device(t, name)
        _check_columns(t, name)
        self._label_type(t, name)
        _check(
            not in_place or t.stride(0) >= self.C or t.shape[0] <= 1,
            f"{name} is written in place and needs rows of its own, got strides {t.stride()}; pass a table that is not "
            "expanded or overlapping",
        )

    def vector(self, t: Tensor, name: str, length: Any) -> None:
        self._length(t, name, length)
        self._device(t, name)
        acc, given = _text(self.acc), _text(t.dtype)
        _check(
            t.dtype == self.acc,
            f"{name} must be {acc} with {_text(self.type)} {self.name}, got {given}; use {name}.to(torch.{acc})",
        )

    def weight(self, t: Tensor | None) -> None:
        if t is not None:
            self.vector(t, "weight", self.n)

    def index(self, t: Tensor, name: str) -> None:
        self._length(t, name, self.n)
        self._device(t, name)
        _check_int64(t, name)

    def step(self, u: Tensor, scale: Tensor, label_lr: Tensor, weight: Tensor | None) -> None:
        """What every step of labels takes."""
        self.direction(u, "u")
        _check_scalar(scale, "scale", self.logits, self.name)
        _check_scalar(label_lr, "label_lr", self.logits, self.name)
        self.weight(weight)

    def rounding(self, seed: int | None, step: Tensor | None) -> None:
        _check(
            (seed is None) == (step is None),
            f"stochastic rounding needs seed and step, got {'step' if seed is None else 'seed'} alone; pass both, or "
            "neither to round to nearest",
        )
        if step is not None:
            _check_counter(step, self.logits, self.name)

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
        _check_device(t, name, self.logits, self.name)

    def _matrix(self, t: Tensor, name: str, way_out: str = "") -> None:
        text = f"{name} must have shape ({self.n}, {self.C}) to match {self.name}, got {tuple(t.shape)}{way_out}"
        _check(t.ndim == 2, text)
        for size, expected in zip(t.shape, (self.n, self.C), strict=True):
            _check(size == expected, text)
        self._device(t, name)
        _check_columns(t, name)

    def _length(self, t: Tensor, name: str, length: Any) -> None:
        text = f"{name} must have shape ({length},) to match {self.name}, got {tuple(t.shape)}"
        _check(t.ndim == 1, text)
        _check(t.shape[0] == length, text)

    def _label_type(self, t: Tensor, name: str) -> None:
        narrow = t.dtype == torch.bfloat16 and self.acc == torch.float32
        self._type(t, name, t.dtype in (self.type, self.acc) or narrow, label=True)

    def _type(self, t: Tensor, name: str, fits: bool, *, label: bool) -> None:
        allowed = [_text(self.acc)] + [_text(self.type)] * (self.type != self.acc)
        if label and self.acc == torch.float32 and self.type != torch.bfloat16:
            allowed.append("bfloat16")
        _check(
            fits,
            f"{name} must be {' or '.join(allowed)} with {_text(self.type)} {self.name}, got {_text(t.dtype)}",
        )


# ---------------------------------------------------------------------------------------------------------
# Operations, in the order of csrc/ops.cpp
# ---------------------------------------------------------------------------------------------------------


@torch.library.register_fake("fastmeta::soft_cross_entropy")
def _(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    b = _Batch(logits)
    b.labels(probs, "probs", _SOFT)
    return b.values(), b.values()


@torch.library.register_fake("fastmeta::soft_cross_entropy_backward")
def _(
    logits: Tensor, probs: Tensor, lse: Tensor, grad: Tensor, need_logits: bool, need_probs: bool
) -> tuple[Tensor, Tensor]:
    b = _Batch(logits)
    b.labels(probs, "probs", _SOFT)
    b.vector(lse, "lse", b.n)
    b.vector(grad, "grad", b.n)
    return b.rows(b.type, None if need_logits else 0), b.rows(probs.dtype, None if need_probs else 0)


@torch.library.register_fake("fastmeta::soft_cross_entropy_hvp")
def _(logits: Tensor, v: Tensor, probs: Tensor | None) -> Tensor:
    b = _Batch(logits)
    b.direction(v, "v")
    if probs is not None:
        b.labels(probs, "probs", _SOFT)
    return b.rows(v.dtype)


@torch.library.register_fake("fastmeta::soft_cross_entropy_label_grad")
def _(logits: Tensor, u: Tensor) -> Tensor:
    b = _Batch(logits)
    b.direction(u, "u")
    return b.rows(u.dtype)


@torch.library.register_fake("fastmeta::instance_loss")
def _(logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.table(label_logits, "label_logits")
    b.index(index, "index")
    b.weight(weight)
    return b.label_results()


@torch.library.register_fake("fastmeta::instance_label_step_")
def _(
    label_logits: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
    unique: bool,
    seed: int | None = None,
    step: Tensor | None = None,
) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.rounding(seed, step)
    b.table(label_logits, "label_logits", in_place=True)
    b.index(index, "index")
    b.step(u, scale, label_lr, weight)
    return *b.label_results(), b.values()


@torch.library.register_fake("fastmeta::instance_label_step")
def _(
    label_rows: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
    unique: bool,
    seed: int | None = None,
    step: Tensor | None = None,
) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.rounding(seed, step)
    b.labels(label_rows, "label_rows", "; one row per batch row, label_logits[index]")
    b.index(index, "index")
    b.step(u, scale, label_lr, weight)
    return b.rows(label_rows.dtype), *b.label_results(), b.values()


@torch.library.register_fake("fastmeta::class_loss")
def _(logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.vector(alpha, "alpha", b.C)
    b.index(targets, "targets")
    b.weight(weight)
    return b.label_results()


@torch.library.register_fake("fastmeta::class_label_step_")
def _(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.vector(alpha, "alpha", b.C)
    _check(alpha.stride(0) == 1, f"alpha is written in place and must be contiguous, got stride {alpha.stride(0)}")
    b.index(targets, "targets")
    b.step(u, scale, label_lr, weight)
    return *b.label_results(), b.values()


@torch.library.register_fake("fastmeta::class_label_step")
def _(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, ...]:
    b = _Batch(logits)
    b.vector(alpha, "alpha", b.C)
    b.index(targets, "targets")
    b.step(u, scale, label_lr, weight)
    return alpha.new_empty(alpha.shape), *b.label_results(), b.values()


@torch.library.register_fake("fastmeta::row_dot")
def _(a: Tensor, b: Tensor) -> Tensor:
    batch = _Batch(a, "a", 1)
    batch.same(b, "b")
    return batch.values()


@torch.library.register_fake("fastmeta::load_images")
def _(
    images: Tensor,
    index: Tensor,
    center: Tensor,
    scale: Tensor,
    padding: int,
    reflect: bool,
    flip: bool,
    seed: int,
    step: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    _check(
        images.dtype == torch.uint8 and images.ndim == 4,
        f"images must be uint8 (N, height, width, channels), got {_text(images.dtype)} of shape {tuple(images.shape)}",
    )
    _, height, width, channels = images.shape
    _check(height > 0 and width > 0 and channels > 0, f"images must have a pixel each, got shape {tuple(images.shape)}")
    _check(
        images.is_contiguous(),
        f"images must be contiguous, got strides {images.stride()}; use images.contiguous()",
    )
    _check(index.ndim == 1, f"index must have shape (n,), got {tuple(index.shape)}")
    _check_device(index, "index", images, "images")
    _check_int64(index, "index")
    _check(dtype in _FLOATING, f"dtype must be float64, float32, bfloat16 or float16, got {_text(dtype)}")
    acc = acc_dtype(dtype)
    for name, t in (("center", center), ("scale", scale)):
        _check(
            t.ndim == 1 and t.shape[0] == channels and t.dtype == acc,
            f"{name} must be {_text(acc)} of shape ({channels},) for {_text(dtype)} images of {channels} channels, got "
            f"{_text(t.dtype)} of shape {tuple(t.shape)}",
        )
        _check(t.is_contiguous(), f"{name} must be contiguous, got stride {t.stride(0)}")
        _check_device(t, name, images, "images")
    side = min(height, width)
    _check(
        0 <= padding < side,
        f"padding must lie in [0, {side - 1}] for images of {height} x {width} pixels, got {padding}",
    )
    _check_counter(step, images, "images")
    size, strides = (
        (index.shape[0], channels, height, width),
        (height * width * channels, 1, width * channels, channels),
    )
    return images.new_empty_strided(size, strides, dtype=dtype)


@torch.library.register_fake("fastmeta::lookahead_update")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    lr: Tensor,
    gain: float,
    carry: float,
    weight_decay: float,
) -> list[Tensor]:
    count = len(params)
    _check(len(grads) == count, f"grads must hold one gradient per parameter, {count}, got {len(grads)}")
    _check(
        len(buffers) == (0 if carry == 0 else count),
        f"buffers must hold {'none with carry = 0' if carry == 0 else 'one momentum per parameter'}, got "
        f"{len(buffers)} for {count} parameters",
    )
    if not params:
        return []
    first = params[0]
    _check(first.dtype in _FLOATING, f"params must be float64, float32, bfloat16 or float16, got {_text(first.dtype)}")
    _check_scalar(lr, "lr", first, "params[0]")
    results = []
    for k, p in enumerate(params):
        _check(
            p.dtype == first.dtype,
            f"params must have one dtype, got {_text(first.dtype)} and {_text(p.dtype)}; call once for each dtype",
        )
        _check_device(p, f"params[{k}]", first, "params[0]")
        for name, operands in (("grads", grads), ("buffers", buffers)):
            if operands:
                _check_operand(operands[k], f"{name}[{k}]", p, f"params[{k}]")
        extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
        flat = p.numel() == 0 or extent == p.numel()
        results.append(p.new_empty_strided(p.shape, p.stride()) if flat else p.new_empty(p.shape))
    return results


def _check_operand(t: Tensor, name: str, param: Tensor, on: str) -> None:
    text = f"{name} must have the shape of {on}, {tuple(param.shape)}, got {tuple(t.shape)}"
    _check(t.ndim == param.ndim, text)
    for size, expected in zip(t.shape, param.shape, strict=True):
        _check(size == expected, text)
    _check(t.dtype == param.dtype, f"{name} must be {_text(param.dtype)} as {on}, got {_text(t.dtype)}")
    _check_device(t, name, param, on)
