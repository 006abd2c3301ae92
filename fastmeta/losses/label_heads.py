"""The head of both label families: closed forms, and one fused kernel for the label step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.losses.head import Head, LabelMove, Move, Moved, Rate, Tensors
from fastmeta.losses.traced_loss import TracedHead, TracedLoss

if TYPE_CHECKING:
    from fastmeta.losses.labels import Labels


class LabelHead(Head):
    """Labels of one batch, where they lie."""

    separable = True

    def __init__(self, labels: Labels, index: Tensor, weight: Tensor | None) -> None:
        self.labels, self.index, self.weight = labels, index, weight
        self._undo: Callable[..., None] | None = None

    def loss(self, logits: Tensor, rows: slice | None = None) -> ops.LabelLoss:
        if rows is None:
            return self.labels.batch_loss(logits, self.index, self.weight)
        return self.labels.batch_loss(logits, self.index[rows], None if self.weight is None else self.weight[rows])

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        return {self.labels.parameter: self.labels.gradient(logits, u, self.index, scale, self.weight)}

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        return ops.row_dot(self.labels.batch_loss(logits, self.index).v, u)

    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        labels, index, weight, ranks = self.labels, self.index, self.weight, move.ranks
        assert move.label_lr is not None
        (grad,) = self.gradient(logits, u, scale / ranks.size).values()
        norm = labels.norm_of(grad, ranks)
        if ranks.size == 1:
            self._undo = labels.undo(index)
            # where this is not finite, a label step of length zero: its loss is then that of the labels that stay
            step = labels.step_(
                logits,
                u,
                index,
                scale=finite.to(torch.float64) * scale,
                label_lr=move.label_lr,
                weight=weight,
                unique=move.unique,
            )
        else:
            self._undo = labels.undo(ranks.gather(index))
            alignment = self.alignment(logits, u)
            labels.move_together(index, torch.where(finite, grad, 0), move.label_lr, ranks)
            step = ops.LabelStep(*labels.batch_loss(logits, index, weight), alignment)
        return Moved(*step, step.skipped, norm, finite)

    def undo(self, keep: Tensor | None = None) -> None:
        if self._undo is not None:
            self._undo(keep)


class TracedLabelHead(TracedHead):
    """Labels of one batch as tensors: the label parameter as the batch sees it, given classes, and a counter."""

    separable = True

    def __init__(self, labels: Labels, tensors: Sequence[Tensor], index: Tensor, weight: Tensor | None) -> None:
        self.labels, self.index, self.weight = labels, index, weight
        self.value, self.targets, *self.counter = tensors
        self._new = self.value

    def loss(self, logits: Tensor, rows: slice | None = None) -> ops.LabelLoss:
        return self.labels.loss_at(self.value, logits, self.targets, self.weight)

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        return {self.labels.parameter: self.labels.gradient_at(self.value, self.targets, u, scale, self.weight)}

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        return ops.row_dot(self.labels.loss_at(self.value, logits, self.targets, None).v, u)

    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        assert move.label_lr is not None
        (grad,) = self.gradient(logits, u, scale).values()
        if not isinstance(scale, Tensor):  # a fill: what as_tensor puts in a graph is a copy from the host
            scale = torch.full((), scale, dtype=torch.float64, device=logits.device)
        masked = torch.where(finite, scale.to(torch.float64), 0.0)
        numbers = LabelMove(masked, move.label_lr, self.weight, move.unique, next(iter(self.counter), None))
        self._new, step = self.labels.step_at(self.value, self.index, self.targets, logits, u, numbers)
        return Moved(*step, step.skipped, grad.float().square().sum().sqrt(), finite)

    def new(self, keep: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return [keep(self._new, self.value)]


class TracedLabels(TracedLoss):
    """Of a table the graph reads the rows of its batch, which are gathered before it and written after it."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def read(self, index: Tensor) -> list[Tensor]:
        return [self.labels.value(index), self.labels.given(index), *self.labels.counters()]

    def head(self, tensors: Sequence[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> TracedHead:
        return TracedLabelHead(self.labels, tensors, index, weight)

    def write(self, index: Tensor, new: Sequence[Tensor], finite: Tensor) -> None:
        self.labels.put(index, new[0])
        for counter in self.labels.counters():
            counter += finite

    def undo(self, index: Tensor) -> Callable[[], None]:
        return self.labels.undo(index)

    def state(self) -> list[Tensor]:
        return list(self.labels.buffers())
