"""Instance labels: the loss under the rows of a table, and the step of these rows."""

from __future__ import annotations

from torch import Tensor

from fastmeta.ops.arguments import check, check_range, columns, counter, scalar, seed_of
from fastmeta.ops.guard import guarded
from fastmeta.ops.results import InstanceLabelStep, LabelLoss, LabelStep
from fastmeta.ops.shapes import Batch, fake

_instance_loss = guarded("instance_loss")
_instance_label_step_ = guarded("instance_label_step_")
_instance_label_step = guarded("instance_label_step")


def instance_loss(logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None = None) -> LabelLoss:
    """Loss, v = w (q - p) and entropy with p_i = softmax(l_index_i), gathered inside the kernel. Not differentiable.

    Args:
        logits: (n, C) T. label_logits: (N, C) table. index: (n,) int64 rows of the table. weight: (n,) acc(T).
    """
    check(logits, label_logits=label_logits, index=index, weight=weight)
    check_range(index, "index", label_logits, 0, "rows of label_logits")
    return LabelLoss(*_instance_loss(columns(logits), columns(label_logits), index, weight))


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
        *_instance_label_step_(
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
        *_instance_label_step(
            columns(label_rows), index, columns(logits), columns(u), scale, label_lr, weight, unique, seed, step
        )
    )


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("instance_loss")
def _(logits: Tensor, label_logits: Tensor, index: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    b = Batch(logits)
    b.table(label_logits, "label_logits")
    b.index(index, "index")
    b.weight(weight)
    return b.label_results()


@fake("instance_label_step_")
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
    b = Batch(logits)
    b.rounding(seed, step)
    b.table(label_logits, "label_logits", in_place=True)
    b.index(index, "index")
    b.step(u, scale, label_lr, weight)
    return *b.label_results(), b.values()


@fake("instance_label_step")
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
    b = Batch(logits)
    b.rounding(seed, step)
    b.labels(label_rows, "label_rows", "; one row per batch row, label_logits[index]")
    b.index(index, "index")
    b.step(u, scale, label_lr, weight)
    return b.rows(label_rows.dtype), *b.label_results(), b.values()
