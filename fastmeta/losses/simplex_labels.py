"""One learned label distribution per training sample, as a table of the probabilities themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.losses.epoch_moves import EpochMove
from fastmeta.losses.head import Move, Rate, Tensors
from fastmeta.losses.label_heads import TracedLabelHead, TracedLabels
from fastmeta.losses.labels import Movement, check_dtype, check_prob
from fastmeta.losses.plain_steps import PlainSteps
from fastmeta.losses.table import DenseTable
from fastmeta.losses.traced_loss import TracedHead, TracedLoss


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest distributions (n, C): max(x - t, 0) with the t of each row at which it sums to 1."""
    falling = rows.sort(1, descending=True).values
    over = falling.cumsum(1) - 1
    ranks = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    kept = (falling * ranks > over).sum(1, keepdim=True).clamp(min=1)
    return (rows - over.gather(1, kept - 1) / kept).clamp(min=0)


class SimplexLabels(PlainSteps):
    """One learned distribution per training sample: the probabilities p_i themselves, Eq. (7) as it is printed.

        dL_meta/dp_i = (lambda/n) (u_i - <q_i, u_i>)
        p_i          <- the nearest distribution to p_i - eta dL_meta/dp_i

    The gradient does not vanish at a hard label, as that of a softmax does, and p_i may be exactly 0 for a class. In
    plain torch, in a dense table. The given class starts at probability `target_prob`, the others share the rest.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        target_prob: p0 in [0, 1]; 1 is an exact one-hot start.
        dtype: of the table; float32, or float64 for logits of float64.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; target_prob outside [0, 1]; another dtype.
    """

    family = "simplex"
    parameter = "label_probs"
    row_state = frozenset({"targets", "label_probs"})
    default_step = 0.1
    _travel = 5.0
    label_probs: Tensor

    def __init__(
        self, targets: Tensor, num_classes: int, target_prob: float = 0.9, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(targets, num_classes)
        check_dtype(dtype, (torch.float32, torch.float64))
        p0 = check_prob(target_prob)
        self.register_buffer("label_probs", torch.empty(len(self), self.num_classes, dtype=dtype, device=self.device))
        self.restart_(p0)

    @classmethod
    def shapes(cls, size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {"targets": (size,), cls.parameter: (size, num_classes)}

    def restart_(self, target_prob: float) -> None:
        rest = (1 - target_prob) / (self.num_classes - 1)
        self.label_probs.fill_(rest).scatter_(1, self.targets.unsqueeze(1), target_prob)

    @property
    def _rows(self) -> DenseTable:
        return DenseTable(self.label_probs)

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all."""
        return self.label_probs if index is None else self._rows.take(index)

    def value(self, index: Tensor) -> Tensor:
        return self._rows.take(index)

    def put(self, index: Tensor, value: Tensor) -> None:
        self._rows.put_(index, value)

    def loss_of(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        return -(value * logits.log_softmax(-1)).sum(-1)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        return self.loss_at(self.value(index), logits, self.given(index), weight)

    def loss_at(self, value: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None) -> ops.LabelLoss:
        if value.dtype != logits.dtype:
            raise TypeError(
                f"label_probs must be {logits.dtype} for such logits, got {value.dtype}; call labels.to({logits.dtype})"
            )
        log_q = logits.log_softmax(-1)
        v = value.sum(-1, keepdim=True) * log_q.exp() - value
        entropy = torch.special.entr(value).sum(-1)
        return ops.LabelLoss(-(value * log_q).sum(-1), v if weight is None else v * weight.unsqueeze(1), entropy)

    def gradient(
        self, logits: Tensor, u: Tensor, index: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """d L_meta / d p (n, C), one row per entry of the batch: scale * weight * (u - <q, u>)."""
        return self.meta_gradient_at(self.value(index), self.given(index), logits, u, scale, weight)

    def meta_gradient_at(
        self,
        value: Tensor,
        targets: Tensor,
        logits: Tensor,
        u: Tensor,
        scale: float | Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        grad = (u - (logits.softmax(-1) * u).sum(-1, keepdim=True)) * scale
        return grad if weight is None else grad * weight.unsqueeze(1)

    def moved(self, value: Tensor, total: Tensor, label_lr: float | Tensor) -> Tensor:
        new = onto_simplex((value - label_lr * total).to(value.dtype))
        # a step of length zero leaves every bit
        return torch.where((total * label_lr == 0).all(1, keepdim=True), value, new)

    def reach(self, n: int, rows: int | None = None) -> float:
        return float(n) ** 0.5

    def traced(self, optimizer: torch.optim.Optimizer | None) -> TracedLoss:
        return TracedSimplexLabels(self)

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        raise ValueError(
            "SimplexLabels move in steps, and not at the end of an epoch; take MetaStep, or InstanceLabels"
        )

    def movement(self, target_prob: float) -> Movement:
        """A label changes when another class has come up by half of the lead that the given one had."""
        rest = (1 - target_prob) / (self.num_classes - 1)
        moved = float((self.label_probs.gather(1, self.targets[:, None]) - target_prob).abs().double().mean())
        return Movement(moved, max((target_prob - rest) / 2, 0.1), "probabilities of the given classes")


class TracedSimplexLabels(TracedLabels):
    """Rows of the batch, as of a table of logits."""

    def head(self, tensors: Sequence[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> TracedHead:
        return _TracedHead(self.labels, tensors, index, weight)


class _TracedHead(TracedLabelHead):
    labels: SimplexLabels

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        grad = self.labels.meta_gradient_at(self.value, self.targets, logits, u, scale, self.weight)
        return {self.labels.parameter: grad}
