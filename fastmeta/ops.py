"""The fused operations. Each has its twin in plain torch, of the same name, in :mod:`fastmeta.reference`.

Symbols: z logits (n, C), q = softmax(z), p label distributions (n, C), l label logits, u logit tangent (n, C), w row
weights (n,). T is the dtype of the logits: float64, float32, bfloat16 or float16; acc(T) is float64 for float64 and
float32 for the others. All sums are taken in acc(T). Directions (``u``, ``v``) may be T or acc(T); label distributions
and label logits T, acc(T) or, unless acc(T) is float64, bfloat16; row weights and alpha are acc(T).

:func:`soft_cross_entropy` is differentiable. **The others are not: their results carry no graph**, and a forward-AD
tangent on any argument raises, for it would be lost.

Matrices may have any row stride (also 0, an expanded row). Columns must be adjacent: other inputs are copied, a table
that is written in place raises, as does one that shares memory with another argument. ``scale`` and ``label_lr`` are
floats, or 0-dim tensors; ones on the GPU are read there, so that a captured graph follows a schedule.

*Skipped* rows: a batch row that holds a NaN or an infinity (in logits, u or weight), or points at a label row that
does so before or after its step, has NaN for loss, v, entropy and alignment, and leaves its label row as it is; other
rows are unaffected. ``skipped`` counts them where it is asked for: a counter in the kernels would cost a launch. On
CUDA an index or target out of range is skipped too (FASTMETA_DEBUG=1 checks it at once, with a synchronisation); on the
CPU it raises.

Every wrong argument raises RuntimeError, or ValueError or TypeError where it is seen in Python: it names the argument,
what was expected, what came, and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta import _fakes
from fastmeta._arguments import check, check_range, counter, finite, number, scalar, seed_of
from fastmeta._dispatch import columns
from fastmeta._native import build_info
from fastmeta._soft_cross_entropy import SoftCrossEntropy

__all__ = [
    "ClassLabelStep",
    "InstanceLabelStep",
    "LabelLoss",
    "LabelStep",
    "build_info",
    "class_label_step",
    "class_label_step_",
    "class_loss",
    "instance_label_step",
    "instance_label_step_",
    "instance_loss",
    "lookahead_update",
    "row_dot",
    "soft_cross_entropy",
    "soft_cross_entropy_hvp",
    "soft_cross_entropy_label_grad",
]

assert _fakes  # registers itself
_raw = torch.ops.fastmeta


def _skipped(loss: Tensor) -> Tensor:
    return loss.isnan().sum(dtype=torch.int32)


class LabelLoss(NamedTuple):
    """The training loss of a batch under its labels."""

    loss: Tensor  # (n,) acc(T): -sum_k p_k log q_k, unweighted
    v: Tensor  # (n, C) T: weight * (q - p) = d(weight * loss)/dz
    entropy: Tensor  # (n,) acc(T): -sum_k p_k log p_k

    @property
    def skipped(self) -> Tensor:  # () int32: rows that were skipped
        return _skipped(self.loss)


class LabelStep(NamedTuple):
    """The same under the labels after their step, and how well the old ones agreed with the meta gradient."""

    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor  # (n,) acc(T): <q - p_old, u> = <grad_theta L_i, g>

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)


class InstanceLabelStep(NamedTuple):
    """:class:`LabelStep` of a functional twin: the new label rows (n, C) come first."""

    new_rows: Tensor
    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)


class ClassLabelStep(NamedTuple):
    """:class:`LabelStep` of a functional twin: the new alpha (C,) comes first."""

    new_alpha: Tensor
    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)


# ---------------------------------------------------------------------------------------------------------
# Soft cross-entropy
# ---------------------------------------------------------------------------------------------------------


def soft_cross_entropy(logits: Tensor, probs: Tensor, *, reduction: str = "mean") -> Tensor:
    """L_i = -sum_k p_ik log q_ik; then ``"mean"`` or ``"sum"`` over the n rows, or ``"none"``.

    Differentiable in both arguments to any order: first and second derivatives are fused kernels, higher ones plain
    torch. Rows of `probs` need not sum to one:

        dL_i/dz_i = s_i q_i - p_i,  dL_i/dp_i = lse_i - z_i,  s_i = sum_k p_ik

    Args:
        logits: (n, C) T, C >= 2.
        probs: (n, C) T, acc(T) or bfloat16.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        () or (n,) in acc(T). The mean of an empty batch is NaN, as in torch. A row whose logits hold a NaN or an
        infinity has loss NaN.

    Raises:
        ValueError: an unknown reduction; tensors on different devices.
        RuntimeError: a wrong shape or dtype; a forward-AD tangent on an argument; torch.func.grad or vjp of it inside
            of torch.compile, which would leave its backward out.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
    check(logits, probs=probs)
    loss: Tensor = SoftCrossEntropy.apply(columns(logits), columns(probs))[0]
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def soft_cross_entropy_hvp(logits: Tensor, v: Tensor, probs: Tensor | None = None) -> Tensor:
    """The logit-space Hessian-vector product s_i q_i (v_i - <q_i, v_i>), s_i = sum_k p_ik (1 without `probs`).

    At label logits it is the gradient of a table of instance labels (Eq. 7). Not differentiable.

    Args:
        logits: (n, C) T. v: (n, C) T or acc(T). probs: (n, C) T, acc(T) or bfloat16, or None.

    Returns:
        (n, C) in the dtype of `v`.
    """
    check(logits, v=v)
    if probs is not None:
        check(logits, probs=probs)
        probs = columns(probs)
    return _raw.soft_cross_entropy_hvp(columns(logits), columns(v), probs)


def soft_cross_entropy_label_grad(logits: Tensor, u: Tensor) -> Tensor:
    """u_i - <q_i, u_i>: (n / lambda) dL_meta/dp_i, the label-gradient term of any label family. Not differentiable.

    Args:
        logits: (n, C) T. u: (n, C) T or acc(T).

    Returns:
        (n, C) in the dtype of `u`.
    """
    check(logits, u=u)
    return _raw.soft_cross_entropy_label_grad(columns(logits), columns(u))


# ---------------------------------------------------------------------------------------------------------
# Instance labels
# ---------------------------------------------------------------------------------------------------------


def instance_loss(logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None = None) -> LabelLoss:
    """Loss, v = w (q - p) and entropy with p_i = softmax(l_index_i), gathered inside the kernel. Not differentiable.

    Args:
        logits: (n, C) T. label_logits: (N, C) table. index: (n,) int64 rows of the table. weight: (n,) acc(T).
    """
    check(logits, label_logits=label_logits, index=index, weight=weight)
    check_range(index, "index", label_logits, 0, "rows of label_logits")
    return LabelLoss(*_raw.instance_loss(columns(logits), columns(label_logits), index, weight))


def instance_label_step_(
    label_logits: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float | Tensor,
    label_lr: float | Tensor,
    weight: Tensor | None = None,
    *,
    unique: bool = False,
    seed: int | None = None,
    step: int | Tensor | None = None,
) -> LabelStep:
    """Move the label rows of a batch in place and give the loss under the new ones, in one kernel. Not differentiable.

        l_r <- l_r - label_lr * scale * sum_{i: index_i = r} w_i p_r (u_i - <p_r, u_i>)          Eqs. (5), (7)

    Args:
        label_logits: (N, C) table, written.
        index: (n,) int64 rows of the table. A row that stands there more than once moves by the sum, in batch order.
        logits, u: (n, C).
        scale: lambda / n, finite.
        label_lr: eta, finite.
        weight: (n,) acc(T) if the training loss is sum_i w_i L_i / n.
        unique: promise that no index repeats, for the one-pass kernel. A broken promise is a data race.
        seed, step: where the table is bfloat16, round its new rows stochastically: to one of the two neighbours, by
            chance such that the mean is the unrounded value. The chance is a function of (seed, step, index_i, column),
            whatever else the batch holds. `step` is an int or a 0-dim int64 tensor, read on the device. Without them,
            and in tables of other dtypes, to nearest: steps below half the distance of two numbers are then lost.
    """
    seed, step = seed_of(seed), counter(seed, step, logits)
    check(logits, label_logits=label_logits, index=index, u=u, weight=weight)
    check_range(index, "index", label_logits, 0, "rows of label_logits")
    scale, label_lr = scalar(scale, "scale", logits), scalar(label_lr, "label_lr", logits)
    return LabelStep(
        *_raw.instance_label_step_(
            label_logits, index, columns(logits), columns(u), scale, label_lr, weight, unique, seed, step
        )
    )


def instance_label_step(
    label_rows: Tensor,
    index: Tensor,
    logits: Tensor,
    u: Tensor,
    scale: float | Tensor,
    label_lr: float | Tensor,
    weight: Tensor | None = None,
    *,
    unique: bool = False,
    seed: int | None = None,
    step: int | Tensor | None = None,
) -> InstanceLabelStep:
    """The functional twin of :func:`instance_label_step_`: gathered rows in, new rows out, nothing written.

    `label_rows` (n, C) are ``label_logits[index]``. Batch rows of equal index are the same sample: each comes back with
    the one new row, so that writing them back in any order gives the same table.
    """
    seed, step = seed_of(seed), counter(seed, step, logits)
    check(logits, label_rows=label_rows, index=index, u=u, weight=weight)
    scale, label_lr = scalar(scale, "scale", logits), scalar(label_lr, "label_lr", logits)
    return InstanceLabelStep(
        *_raw.instance_label_step(
            columns(label_rows), index, columns(logits), columns(u), scale, label_lr, weight, unique, seed, step
        )
    )


# ---------------------------------------------------------------------------------------------------------
# Class labels
# ---------------------------------------------------------------------------------------------------------


def class_loss(logits: Tensor, alpha: Tensor, targets: Tensor, weight: Tensor | None = None) -> LabelLoss:
    """Loss, v = w (q - p) and entropy with p_y = 1 - alpha_y, other classes alpha_y / (C - 1). Not differentiable.

    Args:
        logits: (n, C) T. alpha: (C,) acc(T). targets: (n,) int64 given classes. weight: (n,) acc(T).
    """
    check(logits, alpha=alpha, targets=targets, weight=weight)
    check_range(targets, "targets", logits, -1, "classes")
    return LabelLoss(*_raw.class_loss(columns(logits), alpha, targets, weight))


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
    return LabelStep(*_raw.class_label_step_(alpha, targets, columns(logits), columns(u), scale, label_lr, weight))


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
    return ClassLabelStep(*_raw.class_label_step(alpha, targets, columns(logits), columns(u), scale, label_lr, weight))


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i>: (n, C), (n, C) of one dtype T to (n,) in acc(T). Not differentiable."""
    check(a, "a", b=b)
    return _raw.row_dot(columns(a), columns(b))


# ---------------------------------------------------------------------------------------------------------
# Look-ahead
# ---------------------------------------------------------------------------------------------------------


def lookahead_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    gain: float = 1.0,
    carry: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """theta* of many parameters in one pass, on CUDA in one launch; nothing is written. Not differentiable.

        theta*_k = theta_k - lr (gain (G_k + weight_decay theta_k) + carry b_k)

    A step of torch.optim.SGD with momentum mu and no dampening, from a momentum buffer b, is gain 1 and carry mu; with
    Nesterov gain 1 + mu and carry mu^2. With lr = 0 theta* is theta, also where G holds a NaN or an infinity.

    Args:
        params: any shapes, one dtype T, one device.
        grads: one per parameter, of its shape, in T.
        buffers: likewise, or empty where `carry` is 0.
        lr: finite, or a 0-dim tensor; one on the GPU is read there, so that a captured graph follows a schedule.
        gain, carry, weight_decay: floats.

    Returns:
        theta*, one tensor per parameter, in its strides; contiguous where its elements leave gaps in memory.

    Operands whose strides equal their parameter's are walked as flat memory. Others are copied into its layout first,
    by torch: a gradient in channels_last of a weight that is not costs a pass. A launch takes up to 740 parameters,
    the table of which travels in the kernel's arguments (a captured graph needs no memory of the host); more take one
    launch for each 740.
    """
    for name, tensors in (("params", params), ("grads", grads), ("buffers", buffers)):
        for k, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}[{k}] must be a tensor, got {type(t).__name__}; use zeros where there is none")
            if t.device != params[0].device:
                raise ValueError(f"{name}[{k}] is on {t.device} but params on {params[0].device}; move one of them")
    rate = lr.detach() if isinstance(lr, Tensor) else number(lr, "lr")
    gain, carry, weight_decay = finite(gain, "gain"), finite(carry, "carry"), finite(weight_decay, "weight_decay")
    return _raw.lookahead_update(params, grads, buffers, rate, gain, carry, weight_decay)
