"""What the raw operations need besides their kernels: result shapes for tracing, and a guard below autograd.

The raw operations (``torch.ops.fastmeta.*``) have no derivative: their results are detached. A forward-AD tangent on
an argument would be dropped without a word, so a kernel at the ``Autograd`` dispatch key raises for one. Of the places
where it could stand this is the one that also sees a jvp of a grad, and duals inside or outside of ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmeta import _native

assert _native  # the schemas must be there before anything is registered for them

NAMES = (
    "soft_cross_entropy",
    "soft_cross_entropy_backward",
    "soft_cross_entropy_hvp",
    "soft_cross_entropy_label_grad",
    "instance_loss",
    "instance_label_step_",
    "instance_label_step",
    "class_loss",
    "class_label_step_",
    "class_label_step",
    "row_dot",
    "load_images",
    "lookahead_update",
)

#: those that stand inside of an autograd.Function, where gradients are not recorded
INSIDE = ("soft_cross_entropy", "soft_cross_entropy_backward")

_library = torch.library.Library("fastmeta", "IMPL")


def _tensors(args: tuple[Any, ...]) -> Iterator[Any]:
    for arg in args:
        yield from arg if isinstance(arg, list | tuple) else (arg,)


def _guard(name: str) -> None:
    op = getattr(torch.ops.fastmeta, name).default
    mutates, inside = name.endswith("_"), name in INSIDE

    def below(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = op(*args)
        if mutates:
            torch.autograd.graph.increment_version(args[0])
        return result

    def kernel(*args: Any) -> Any:
        # Dynamo, where it meets torch.func.grad, takes the `forward` of an autograd.Function for all of it
        if inside and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise RuntimeError(
                f"fastmeta::{name} has no derivative of its own and got an argument that requires one, which would be "
                "lost; call fastmeta.ops.soft_cross_entropy, and torch.func.grad or vjp of it outside of torch.compile"
            )
        # no tensor has a tangent outside of a dual level, which func.jvp opens too; looking for one costs 3 us each
        for arg in _tensors(args) if forward_ad._current_level >= 0 else ():
            if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg, level=0).tangent is not None:
                raise RuntimeError(
                    f"fastmeta::{name} has no forward-mode derivative and got an argument with a tangent, which would "
                    "be lost; keep it outside of dual_level and jvp, and pass tensor.detach()"
                )
        return below(*args)

    _library.impl(name, kernel, "Autograd")
    if mutates:  # in inference mode, where a graph made outside of it may still hold the tensor that is written
        _library.impl(name, below, "ADInplaceOrView")


for _name in NAMES:
    _guard(_name)


def columns(x: Tensor) -> Tensor:
    """A matrix as the kernels take it, with adjacent columns; rows may have any stride."""
    return x.contiguous() if x.ndim == 2 and x.stride(1) != 1 else x


# ---------------------------------------------------------------------------------------------------------
# Result shapes
# ---------------------------------------------------------------------------------------------------------


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of every sum and row statistic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _values(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[:1], dtype=acc_dtype(logits.dtype))


def _label_results(logits: Tensor, *, alignment: bool) -> tuple[Tensor, ...]:
    extra = (_values(logits),) if alignment else ()
    return _values(logits), _rows(logits), _values(logits), *extra


@torch.library.register_fake("fastmeta::soft_cross_entropy")
def _(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    return _values(logits), _values(logits)


@torch.library.register_fake("fastmeta::soft_cross_entropy_backward")
def _(
    logits: Tensor, probs: Tensor, lse: Tensor, grad: Tensor, need_logits: bool, need_probs: bool
) -> tuple[Tensor, Tensor]:
    n, num_classes = logits.shape
    return (
        logits.new_empty((n if need_logits else 0, num_classes)),
        probs.new_empty((n if need_probs else 0, num_classes)),
    )


@torch.library.register_fake("fastmeta::soft_cross_entropy_hvp")
def _(logits: Tensor, v: Tensor, probs: Tensor | None) -> Tensor:
    return _rows(v)


@torch.library.register_fake("fastmeta::soft_cross_entropy_label_grad")
def _(logits: Tensor, u: Tensor) -> Tensor:
    return _rows(u)


@torch.library.register_fake("fastmeta::instance_loss")
def _(logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    return _label_results(logits, alignment=False)


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
    return _label_results(logits, alignment=True)


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
    return _rows(label_rows), *_label_results(logits, alignment=True)


@torch.library.register_fake("fastmeta::class_loss")
def _(logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    return _label_results(logits, alignment=False)


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
    return _label_results(logits, alignment=True)


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
    return alpha.new_empty(alpha.shape), *_label_results(logits, alignment=True)


@torch.library.register_fake("fastmeta::row_dot")
def _(a: Tensor, b: Tensor) -> Tensor:
    return _values(a)


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
    _, height, width, channels = images.shape
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
    def like(p: Tensor) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
        return p.new_empty_strided(p.shape, p.stride()) if extent == p.numel() else p.new_empty(p.shape)

    return [like(p) for p in params]
