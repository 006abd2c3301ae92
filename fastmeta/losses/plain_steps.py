"""Label steps in plain torch, for families of one row per sample without a fused kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.precision import without_autocast
from fastmeta.losses.head import Collective, LabelMove
from fastmeta.losses.labels import Labels


class PlainSteps(Labels):
    """Rows move by :meth:`moved`; repeated rows of a batch move by the sum of their gradients."""

    @abstractmethod
    def moved(self, value: Tensor, total: Tensor, label_lr: float | Tensor) -> Tensor:
        """The rows `value` behind a step along their gradients `total` (n, C)."""

    def step_at(
        self, value: Tensor, index: Tensor, targets: Tensor, logits: Tensor, u: Tensor, step: LabelMove
    ) -> tuple[Tensor, ops.LabelStep]:
        alignment = ops.row_dot(self.loss_at(value, logits, targets, None).v, u)
        grad = self.meta_gradient_at(value, targets, logits, u, step.scale, step.weight)
        new = self.moved(value, self._summed(index, grad, step.unique), step.label_lr)
        return new, ops.LabelStep(*self.loss_at(new, logits, targets, step.weight), alignment)

    def meta_gradient_at(
        self,
        value: Tensor,
        targets: Tensor,
        logits: Tensor,
        u: Tensor,
        scale: float | Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """dL_meta/d row (n, C); some families ask the logits for it, too."""
        return self.gradient_at(value, targets, u, scale, weight)

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
        self.put(index, self.moved(self.value(index), self._summed(index, grad, unique=False), label_lr))

    def move_together(self, index: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> None:
        self.move_(ranks.gather(index), ranks.gather(grad), label_lr)

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step on the rows `index` writes; given a 0-d bool, where that is False."""
        before = self.value(index)

        def undo(keep: Tensor | None = None) -> None:
            self.put(index, before if keep is None else torch.where(keep, self.value(index), before))

        return undo

    @staticmethod
    def _summed(index: Tensor, grad: Tensor, unique: bool) -> Tensor:
        if unique:
            return grad
        with without_autocast():
            # the sum of a row's occurrences in each of them, by a product: float atomics differ from run to run
            return (index.unsqueeze(1) == index).to(grad.dtype) @ grad
