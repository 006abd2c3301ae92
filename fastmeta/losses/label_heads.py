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
        scale = scale / ranks.size  # the batch is that of all ranks
        (grad,) = self.gradient(logits, u, scale).values()
        norm = labels.norm_of(grad, ranks)
        label_lr = move.rate(norm)
        if ranks.size == 1 or (move.own_rows and labels.by_row):
            # where this is not finite, a label step of length zero: its loss is then that of the labels that stay
            if finite.is_cuda:
                masked: Rate = finite.to(torch.float64) * scale
            else:
                masked = scale if bool(finite) else 0.0
            step = self._step(logits, u, masked, label_lr, move.unique)
        else:
            self._undo = labels.undo(ranks.gather(index) if labels.by_row else index)
            alignment = self.alignment(logits, u)
            labels.move_together(index, torch.where(finite, grad, 0), label_lr, ranks)
            step = ops.LabelStep(*labels.batch_loss(logits, index, weight), alignment)
        return Moved(*step, step.skipped, norm, finite)

    def _step(self, logits: Tensor, u: Tensor, scale: Rate, label_lr: Rate, unique: bool) -> ops.LabelStep:
        self._undo = self.labels.undo(self.index)
        return self.labels.step_(
            logits, u, self.index, scale=scale, label_lr=label_lr, weight=self.weight, unique=unique
        )

    def undo(self, keep: Tensor | None = None) -> None:
        if self._undo is not None:
            self._undo(keep)


class FetchedHead(LabelHead):
    """Labels of one batch whose rows lie elsewhere: they are fetched once, and written once where they move."""

    def __init__(self, labels: Labels, index: Tensor, weight: Tensor | None) -> None:
        super().__init__(labels, index, weight)
        self.value, self.targets = labels.value(index), labels.given(index)

    def loss(self, logits: Tensor, rows: slice | None = None) -> ops.LabelLoss:
        rows = slice(None) if rows is None else rows
        weight = None if self.weight is None else self.weight[rows]
        return self.labels.loss_at(self.value[rows], logits, self.targets[rows], weight)

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        return {self.labels.parameter: self.labels.gradient_at(self.value, self.targets, u, scale, self.weight)}

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        return ops.row_dot(self.labels.loss_at(self.value, logits, self.targets, None).v, u)

    def _step(self, logits: Tensor, u: Tensor, scale: Rate, label_lr: Rate, unique: bool) -> ops.LabelStep:
        labels, index, counters = self.labels, self.index, self.labels.counters()
        before = [t.clone() for t in counters]
        move = LabelMove(scale, label_lr, self.weight, unique, next(iter(counters), None))
        old_rows = self.value
        new, step = labels.step_at(old_rows, index, self.targets, logits, u, move)

        # it must not hold the head, which holds it: rows would stay until somebody collects garbage
        def undo(keep: Tensor | None = None) -> None:
            labels.put(index, old_rows if keep is None else torch.where(keep, new, old_rows))
            for t, old in zip(counters, before, strict=True):
                t.copy_(old if keep is None else torch.where(keep, t, old))

        self._undo = undo
        labels.put(index, new)
        for t in counters:
            t += 1
        return step


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
        labels, ranks = self.labels, move.ranks
        scale = scale / ranks.size
        (grad,) = self.gradient(logits, u, scale).values()
        wide = grad if grad.dtype == torch.float64 else grad.float()
        norm = wide.square().sum().sqrt() if ranks.size == 1 else labels.norm_of(wide, ranks)
        if ranks.size > 1 and not labels.by_row:
            alignment = self.alignment(logits, u)
            self._new = labels.moved_together(self.value, torch.where(finite, grad, 0), move.rate(norm), ranks)
            after = labels.loss_at(self._new, logits, self.targets, self.weight)
            return Moved(*after, alignment, after.skipped, norm, finite)
        if not isinstance(scale, Tensor):  # a fill: what as_tensor puts in a graph is a copy from the host
            scale = torch.full((), scale, dtype=torch.float64, device=logits.device)
        masked = torch.where(finite, scale.to(torch.float64), 0.0)
        numbers = LabelMove(masked, move.rate(norm), self.weight, move.unique, next(iter(self.counter), None))
        self._new, step = self.labels.step_at(self.value, self.index, self.targets, logits, u, numbers)
        return Moved(*step, step.skipped, norm, finite)

    def new(self, keep: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return [keep(self._new, self.value)]


class TracedLabels(TracedLoss):
    """Of a table the graph reads the rows of its batch, which are gathered before it and written after it."""

    def __init__(self, labels: Labels, outside: str = "") -> None:
        self.labels, self.outside = labels, outside

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
