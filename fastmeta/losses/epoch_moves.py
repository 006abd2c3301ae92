"""How losses move once an epoch: rows of the training set come in batch by batch, then there is one move, or none.

A batch brings logits z_i at theta, and changes dz_i of them along a path that lowers the clean loss. They stand where a
step has -lambda u_i, so that with v_i(phi) = d l_i / dz_i the meta-gradient, as a mean over the rows, is

    dL_meta/dphi = (1/N) d/dphi sum_i <v_i(phi), dz_i>          dz constant

Nothing is written before :meth:`EpochMove.finish`: a pass that is broken off leaves the loss as it was. Rows of a table
of one's own, which may not fit into memory, move as they come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.finite import all_finite
from fastmeta.functional.optimizers import step_along
from fastmeta.functional.random_state import RandomState
from fastmeta.losses.autograd_head import generators_of
from fastmeta.losses.head import Move, Rate, Tensors

if TYPE_CHECKING:
    from fastmeta.losses.class_labels import ClassLabels
    from fastmeta.losses.instance_labels import InstanceLabels
    from fastmeta.losses.learnable_loss import LearnableLoss

#: rows of a table that move at a time
_ROWS = 65536


class EpochMove(ABC):
    """The move of one loss at the end of one epoch, at the rate or by the optimizer of `move`."""

    def __init__(self, move: Move) -> None:
        self.move = move

    @property
    def eta(self) -> Rate:
        """Of a loss that moves itself."""
        assert self.move.label_lr is not None
        return self.move.label_lr

    @abstractmethod
    def add(self, index: Tensor, x: Any, logits: Tensor, change: Tensor, sound: Tensor) -> Tensor:
        """One batch: rows `index` (n,), network input, logits (n, C) at theta and their changes (n, C).

        Where `sound`, (n,) bool, is False logits and changes are zeros in the place of what is not finite: such a row
        moves nothing.
        Gives the alignment (n,): -<v_i, dz_i>, positive where the sample pulls with the clean set.
        """

    @abstractmethod
    def finish(self, rows: int) -> Tensor:
        """Move, by `rows` rows of all ranks together: 0-d bool, whether it was finite; if not, nothing has moved."""


class TableMove(EpochMove):
    """l_i <- l_i + eta dz_i: a step of mirror descent along dL_meta/dp_i in the probabilities, whatever they are.

    Where a row comes twice it moves by the sum. Beside the table it holds one of the changes, (N, C) in float32
    (float64 for float64).
    """

    def __init__(self, move: Move, labels: InstanceLabels) -> None:
        super().__init__(move)
        self.labels = labels
        self.sum = torch.zeros(len(labels), labels.num_classes, dtype=_wide(labels), device=labels.device)

    def add(self, index: Tensor, x: Any, logits: Tensor, change: Tensor, sound: Tensor) -> Tensor:
        self.sum.index_put_((index,), _centred(change).to(self.sum.dtype), accumulate=True)
        return ops.row_dot(self.labels.batch_loss(logits, index).v, -change)

    def finish(self, rows: int) -> Tensor:
        move, total = self.move, self.sum
        if not move.own_rows:
            total = move.ranks.sum(total)
        finite = move.ranks.all(all_finite([total]))
        if bool(finite):
            for part in torch.arange(len(total), device=total.device).split(_ROWS):
                self.labels.add_(part, self.eta * total[part])
            self.labels.count_step_()
        return finite


class PassingMove(EpochMove):
    """The same for a table of one's own, whose rows are read and written once, when they come."""

    def __init__(self, move: Move, labels: InstanceLabels) -> None:
        super().__init__(move)
        self.labels = labels
        if move.ranks.size > 1 and not move.own_rows:
            raise ValueError(
                f"rows of a {type(labels.table).__name__} move as they come, which ranks cannot do together; give each "
                "rank rows of its own and own_rows=True, or take a dense table, or no process_group"
            )

    def add(self, index: Tensor, x: Any, logits: Tensor, change: Tensor, sound: Tensor) -> Tensor:
        alignment = ops.row_dot(self.labels.batch_loss(logits, index).v, -change)
        rows, places = index.unique(return_inverse=True)
        total = torch.zeros(len(rows), change.shape[1], dtype=_wide(self.labels), device=change.device)
        total.index_put_((places,), _centred(change).to(total.dtype), accumulate=True)
        self.labels.add_(rows, self.eta * total)
        return alignment

    def finish(self, rows: int) -> Tensor:
        self.labels.count_step_()
        return torch.ones((), dtype=torch.bool)


def _wide(labels: InstanceLabels) -> torch.dtype:
    return torch.float64 if labels.dtype == torch.float64 else torch.float32


def _centred(change: Tensor) -> Tensor:
    """Less its mean: a row's sum then stays what it was, so that nothing drifts, and softmax does not see it."""
    return change - change.mean(1, keepdim=True)


class ClassMove(EpochMove):
    """alpha_c <- alpha_c + eta mean_{i: y_i = c} (mean_{k != c} dz_ik - dz_ic), clamped to [0, 1].

    It is the step along dL_meta/dalpha_c with a mean over the rows of the class in the place of that over all rows: eta
    depends neither on N nor on how large a class is.
    """

    def __init__(self, move: Move, labels: ClassLabels) -> None:
        super().__init__(move)
        self.labels = labels
        self.sums = torch.zeros(2, labels.num_classes, dtype=torch.float64, device=labels.device)  # of terms, of rows

    def add(self, index: Tensor, x: Any, logits: Tensor, change: Tensor, sound: Tensor) -> Tensor:
        labels, targets = self.labels, self.labels.given(index)
        self.sums[0] += labels.gradient_at(labels.alpha, targets, change, 1.0, None)
        of_class = torch.arange(labels.num_classes, device=targets.device).unsqueeze(1) == targets
        self.sums[1] += (of_class & sound).sum(1)
        return ops.row_dot(labels.batch_loss(logits, index).v, -change)

    def finish(self, rows: int) -> Tensor:
        terms, counts = self.move.ranks.sum(self.sums)
        finite = all_finite([terms])
        if bool(finite):
            self.labels.move_((terms / counts.clamp(min=1)).to(self.labels.alpha.dtype), -self.eta)
        return finite


class AutogradMove(EpochMove):
    """Any loss: one step of its optimizer along the mean over all rows, by autograd through the loss alone."""

    def __init__(self, move: Move, loss: LearnableLoss, learned: Tensors) -> None:
        super().__init__(move)
        self.loss, self.learned = loss, learned
        self.sum: Tensors = {}

    def add(self, index: Tensor, x: Any, logits: Tensor, change: Tensor, sound: Tensor) -> Tensor:
        head = self.loss.head(index, x, None, self.learned)
        random = RandomState(logits.device, generators_of(self.loss))
        try:
            head.loss(logits)
            for name, g in head.gradient(logits, -change, 1.0).items():
                self.sum[name] = self.sum[name] + g if name in self.sum else g
            return head.alignment(logits, -change)
        finally:  # what its forward moves or draws is the business of training steps
            head.undo()
            random.restore()

    def finish(self, rows: int) -> Tensor:
        ranks, optimizer = self.move.ranks, self.move.optimizer
        assert optimizer is not None
        sums = self.sum
        if ranks.size > 1:  # a rank without rows takes part, too
            sums = {name: ranks.sum(self.sum.get(name, torch.zeros_like(p))) for name, p in self.learned.items()}
        grads = {name: g / max(rows, 1) for name, g in sums.items()}
        finite = all_finite(grads.values())
        if bool(finite):
            step_along(optimizer, self.learned, grads)
        return finite
