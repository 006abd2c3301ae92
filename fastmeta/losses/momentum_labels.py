"""Instance labels whose steps have momentum, of the rows of the batch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta._numbers import as_real, shown
from fastmeta.losses.epoch_moves import EpochMove
from fastmeta.losses.head import Move, Tensors
from fastmeta.losses.instance_labels import InstanceLabels
from fastmeta.losses.labels import check_dtype
from fastmeta.losses.plain_steps import PlainSteps
from fastmeta.losses.table import DenseTable


class MomentumLabels(PlainSteps, InstanceLabels):
    """m_i <- mu m_i + dL_meta/dl_i, then l_i <- l_i - eta m_i, for the rows i of the batch; all others rest.

    A row's momentum waits for its next visit. In plain torch, in a dense table of float32 or float64, with another one
    of m beside it. What a batch sees of a row is (l_i, m_i), 2C numbers.

    Args:
        targets, num_classes, target_prob, dtype: as of :class:`fastmeta.InstanceLabels`.
        momentum: mu in [0, 1).
    """

    row_state = InstanceLabels.row_state | {"velocity"}
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

    def reach(self, n: int, rows: int | None = None) -> float:
        """All that a gradient moves in the end counts as its move."""
        return (1 - self.momentum) * super().reach(n, rows)

    def moved(self, value: Tensor, total: Tensor, label_lr: float | Tensor) -> Tensor:
        velocity = self.momentum * value[:, self.num_classes :] + total
        return torch.cat([self._logits(value) - label_lr * velocity, velocity], 1).to(value.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum:g}"
