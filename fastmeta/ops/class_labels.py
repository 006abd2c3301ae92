"""Class labels: the loss under one smoothing for each class, and its step."""

from __future__ import annotations

from torch import Tensor

from fastmeta.ops.arguments import check, check_range, columns, scalar
from fastmeta.ops.guard import guarded
from fastmeta.ops.results import ClassLabelStep, LabelLoss, LabelStep
from fastmeta.ops.shapes import Batch, fake, require

_class_loss = guarded("class_loss")
_class_label_step_ = guarded("class_label_step_")
_class_label_step = guarded("class_label_step")


def class_loss(logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None = None) -> LabelLoss:
    """Loss, v = w (q - p) and entropy with p_y = 1 - alpha_y, other classes alpha_y / (C - 1). Not differentiable.

    Args:
        logits: (n, C) T. alpha: (C,) acc(T). targets: (n,) int64 given classes. weight: (n,) acc(T).
    """
    check(logits, alpha=alpha, targets=targets, weight=weight)
    check_range(targets, "targets", logits, -1, "classes")
    return LabelLoss(*_class_loss(columns(logits), alpha, targets, weight))


def class_label_step_(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float | Tensor,
    label_lr: float | Tensor,
    weight: Tensor | None = None,
) -> LabelStep:
    """Move the class smoothing in place, and give the loss under the new one. Not differentiable.

        alpha_c <- clamp(alpha_c - label_lr * scale * sum_{i: y_i = c} w_i (mean_{k != c} u_ik - u_ic), 0, 1)

    Sums are taken in batch order (bitwise repeatable); classes that the batch does not hold stay as they are.

    Args:
        alpha: (C,) acc(T), contiguous, written. targets: (n,) int64. logits, u: (n, C).
        scale, label_lr, weight: as in :func:`instance_label_step_`.
    """
    check(logits, alpha=alpha, targets=targets, u=u, weight=weight)
    check_range(targets, "targets", logits, -1, "classes")
    scale, label_lr = scalar(scale, "scale", logits), scalar(label_lr, "label_lr", logits)
    return LabelStep(*_class_label_step_(alpha, targets, columns(logits), columns(u), scale, label_lr, weight))


def class_label_step(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float | Tensor,
    label_lr: float | Tensor,
    weight: Tensor | None = None,
) -> ClassLabelStep:
    """The functional twin of :func:`class_label_step_`: alpha in, new alpha out, nothing written."""
    check(logits, alpha=alpha, targets=targets, u=u, weight=weight)
    check_range(targets, "targets", logits, -1, "classes")
    scale, label_lr = scalar(scale, "scale", logits), scalar(label_lr, "label_lr", logits)
    return ClassLabelStep(*_class_label_step(alpha, targets, columns(logits), columns(u), scale, label_lr, weight))


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("class_loss")
def _(logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    b = Batch(logits)
    b.vector(alpha, "alpha", b.C)
    b.index(targets, "targets")
    b.weight(weight)
    return b.label_results()


@fake("class_label_step_")
def _(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, ...]:
    b = Batch(logits)
    b.vector(alpha, "alpha", b.C)
    require(alpha.stride(0) == 1, f"alpha is written in place and must be contiguous, got stride {alpha.stride(0)}")
    b.index(targets, "targets")
    b.step(u, scale, label_lr, weight)
    return *b.label_results(), b.values()


@fake("class_label_step")
def _(
    alpha: Tensor,
    targets: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: Tensor,
    label_lr: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, ...]:
    b = Batch(logits)
    b.vector(alpha, "alpha", b.C)
    b.index(targets, "targets")
    b.step(u, scale, label_lr, weight)
    return alpha.new_empty(alpha.shape), *b.label_results(), b.values()
