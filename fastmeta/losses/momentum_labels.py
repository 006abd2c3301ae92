"""Instance labels whose steps have momentum, of the rows of the batch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta._numbers import as_real, shown
from fastmeta.functional.precision import without_autocast
from fastmeta.losses.epoch_moves import EpochMove
from fastmeta.losses.head import Collective, LabelMove, Move, Tensors
from fastmeta.losses.instance_labels import InstanceLabels
from fastmeta.losses.labels import check_dtype
from fastmeta.losses.table import DenseTable


class MomentumLabels(InstanceLabels):
    """m_i <- mu m_i + dL_meta/dl_i, then l_i <- l_i - eta m_i, for the rows i of the batch; all others rest.

    A row's momentum waits for its next visit. In plain torch, in a dense table of float32 or float64, with another one
    of m beside it. What a batch sees of a row is (l_i, m_i), 2C numbers.

    Args:
        targets, num_classes, target_prob, dtype: as of :class:`fastmeta.InstanceLabels`.
        momentum: mu in [0, 1).
    """

    velocity: Tensor

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        target_prob: float = 0.9,
        *,
        momentum: float = 0.9,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_dtype(dtype, (torch.float32, torch.float64))
        super().__init__(targets, num_classes, target_prob, dtype=dtype, seed=None)
        mu = as_real(momentum)
        if mu is None or not 0 <= mu < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {shown(momentum)}")
        self.momentum = mu
        # not persistent: what is saved of a run's labels is the labels
        self.register_buffer("velocity", torch.zeros_like(self.label_logits), persistent=False)

    def _logits(self, value: Tensor) -> Tensor:
        return value[:, : self.num_classes].contiguous()

    def value(self, index: Tensor) -> Tensor:
        return torch.cat([self.rows(index), DenseTable(self.velocity).take(index)], 1)

    def put(self, index: Tensor, value: Tensor) -> None:
        self.write_(index, self._logits(value))
        DenseTable(self.velocity).put_(index, value[:, self.num_classes :])

    def seen_by(self, index: Tensor, x: Any) -> tuple[Tensors, Callable[[Tensors, Tensor], Tensor]]:
        _, loss = super().seen_by(index, x)
        return {self.parameter: self.rows(index)}, loss

    def restart_(self, target_prob: float) -> None:
        super().restart_(target_prob)
        self.velocity.zero_()

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        raise ValueError("MomentumLabels move in steps, and not at the end of an epoch; take InstanceLabels")

    def loss_of(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss_of(self._logits(value), logits, targets)

    def loss_at(self, value: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None) -> ops.LabelLoss:
        return super().loss_at(self._logits(value), logits, targets, weight)

    def gradient_at(
        self, value: Tensor, targets: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None
    ) -> Tensor:
        return super().gradient_at(self._logits(value), targets, u, scale, weight)

    def step_at(
        self, value: Tensor, index: Tensor, targets: Tensor, logits: Tensor, u: Tensor, step: LabelMove
    ) -> tuple[Tensor, ops.LabelStep]:
        alignment = ops.row_dot(self.loss_at(value, logits, targets, None).v, u)
        grad = self.gradient_at(value, targets, u, step.scale, step.weight)
        new = self._moved(value, index, grad, step.label_lr, step.unique)
        return new, ops.LabelStep(*self.loss_at(new, logits, targets, step.weight), alignment)

    def step_(
        self,
        logits: Tensor,
        u: Tensor,
        index: Tensor,
        *,
        scale: float | Tensor,
        label_lr: float | Tensor,
        weight: Tensor | None = None,
        unique: bool = False,
    ) -> ops.LabelStep:
        """The step in place for the rows of the batch, and the loss under the new labels."""
        move = LabelMove(scale, label_lr, weight, unique, None)
        new, step = self.step_at(self.value(index), index, self.given(index), logits, u, move)
        self.put(index, new)
        return step

    def move_(self, index: Tensor, grad: Tensor, label_lr: float | Tensor) -> None:
        """The step with a gradient (n, C) that is already there; repeated rows move by the sum."""
        self.put(index, self._moved(self.value(index), index, grad, label_lr, unique=False))

    def move_together(self, index: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> None:
        self.move_(ranks.gather(index), ranks.gather(grad), label_lr)

    def reach(self, n: int) -> float:
        """All that a gradient moves in the end counts as its move."""
        return (1 - self.momentum) * super().reach(n)

    def _moved(self, value: Tensor, index: Tensor, grad: Tensor, label_lr: float | Tensor, unique: bool) -> Tensor:
        with without_autocast():
            # the sum of a row's occurrences in each of them, by a product: float atomics differ from run to run
            total = grad if unique else (index.unsqueeze(1) == index).to(grad.dtype) @ grad
        velocity = self.momentum * value[:, self.num_classes :] + total
        return torch.cat([self._logits(value) - label_lr * velocity, velocity], 1).to(value.dtype)

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step on the rows `index` writes; given a 0-d bool, where that is False."""
        before = self.value(index)

        def undo(keep: Tensor | None = None) -> None:
            self.put(index, before if keep is None else torch.where(keep, self.value(index), before))

        return undo

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum:g}"
