"""One weight for each row of a batch, made anew in every step from how the row pulls with the clean set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastmeta import ops
from fastmeta.functional.finite import both
from fastmeta.losses.epoch_moves import EpochMove
from fastmeta.losses.head import Head, Move, Moved, Rate, Tensors
from fastmeta.losses.labels import check_targets
from fastmeta.losses.learnable_loss import LearnableLoss
from fastmeta.losses.traced_loss import TracedHead, TracedLoss
from fastmeta.ops import LabelLoss


class BatchWeights(LearnableLoss):
    """l_i = n w_i CE(z_i, y_i), whose weights are 0 when a step begins and are chosen in that step:

        dL_meta/dw_i = -lambda <q_i - y_i, u_i>                 at w = 0, where theta* = theta
        w_i          = max(-dL_meta/dw_i, 0) / sum_j max(-dL_meta/dw_j, 0)

    The mean loss of the batch is then sum_i w_i CE_i. Where no row pulls with the clean set all weights are 0: the
    optimizer's step is along a gradient of zero, so that momentum and weight decay alone move the model. The weights do
    not depend on lambda, and a step has no rate of its own. Ren, Zeng, Yang, Urtasun, *Learning to Reweight Examples
    for Robust Deep Learning*, 2018, Algorithm 1.

    One step is that of any learnable loss. The unrolled step of the paper is not built: the inner products of all rows
    come from the one tangent u = J g. `StepResult.alignment` holds them, so that
    ``result.alignment.clamp(min=0)``, over its sum, are the weights of the batch.

    A weight lives for one step. So ``approx="delayed"`` and ``"every:k"``, which train on the loss of before, and
    :class:`fastmeta.EpochLookahead` raise. Over ranks the sum is over the rows of all of them.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.

    Raises:
        ValueError: targets of a wrong shape, dtype or range.
    """

    moves_itself = True
    for_one_step = True
    num_classes: int
    targets: Tensor
    start: Tensor

    def __init__(self, targets: Tensor, num_classes: int) -> None:
        super().__init__()
        targets, self.num_classes = check_targets(targets, num_classes)
        self.register_buffer("targets", targets)
        # of the dtype of the weights, which follows loss.to(torch.float64)
        self.register_buffer("start", torch.zeros((), device=targets.device), persistent=False)

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """The loss (n,) when a step begins: zeros."""
        values, loss = self.seen_by(index, x)
        return loss(values, logits)

    def default_label_lr(self, lr: float, batch_size: int, visits: int = 100) -> float:
        """1: the weights are divided by their sum, so that no rate has an influence."""
        return 1.0

    def learned(self) -> Tensors:
        return {"weight": self.start.expand(len(self.targets))}

    def seen_by(self, index: Tensor, x: Any) -> tuple[Tensors, Callable[[Tensors, Tensor], Tensor]]:
        targets, n = self.given(index), len(index)

        def loss(values: Tensors, logits: Tensor) -> Tensor:
            return n * values["weight"] * cross_entropy(logits, targets, reduction="none")

        return {"weight": self.start.expand(n)}, loss

    def head(self, index: Tensor, x: Any, weight: Tensor | None, learned: Tensors | None = None) -> Head:
        return BatchWeightsHead(self.given(index), self.num_classes, weight)

    def traced(self, optimizer: torch.optim.Optimizer | None) -> TracedLoss:
        return TracedBatchWeights(self)

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        raise ValueError(
            "BatchWeights makes its weights anew in each step and has none to move at the end of an epoch; take "
            "MetaStep, or WeightingNet"
        )


class BatchWeightsHead(TracedHead):
    """The weights of one batch. Nothing of it outlives the step."""

    separable = True

    def __init__(self, targets: Tensor, num_classes: int, weight: Tensor | None) -> None:
        self.targets, self.num_classes, self.weight = targets, num_classes, weight

    def _terms(self, logits: Tensor, weight: Tensor | None, rows: slice | None = None) -> LabelLoss:
        """Cross-entropy with the given classes, and weight * (q - y): class labels without smoothing, one kernel."""
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        alpha = torch.zeros(self.num_classes, dtype=wide, device=logits.device)
        weight = None if weight is None else weight.to(wide)
        return ops.class_loss(logits, alpha, self.targets if rows is None else self.targets[rows], weight)

    def loss(self, logits: Tensor, rows: slice | None = None) -> LabelLoss:
        terms = self._terms(logits, None, rows)
        return LabelLoss(terms.loss * 0, terms.v * 0, torch.full_like(terms.loss, torch.nan))

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        """dL_meta/dw_i = -scale n weight_i <q_i - y_i, u_i>."""
        pull = self.alignment(logits, u)
        return {"weight": pull * (-scale * len(pull)) * (1.0 if self.weight is None else self.weight)}

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        return ops.row_dot(self._terms(logits, None).v, u)

    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        ranks, own = move.ranks, 1.0 if self.weight is None else self.weight
        alignment = self.alignment(logits, u)
        squares = (alignment * own * scale * len(alignment)).square().sum()
        norm = (squares if ranks.size == 1 else ranks.sum(squares)).sqrt()
        pull = (alignment * own).clamp(min=0)
        total = pull.sum() if ranks.size == 1 else ranks.sum(pull.sum())
        # rows times weights: the mean over the rows of all ranks is then the weighted sum
        weight = pull * (len(pull) * ranks.size) / torch.where(total > 0, total, 1.0)
        terms = self._terms(logits, weight * own)
        entropy = torch.full_like(terms.loss, torch.nan)
        finite = both(finite, [total.isfinite()])
        return Moved(terms.loss * weight, terms.v, entropy, alignment, terms.skipped, norm, finite)

    def undo(self, keep: Tensor | None = None) -> None:
        """Nothing was written."""

    def new(self, keep: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return []


class TracedBatchWeights(TracedLoss):
    """The graph reads the given classes of its batch and writes nothing of the loss."""

    def __init__(self, loss: BatchWeights) -> None:
        self.of = loss

    def read(self, index: Tensor) -> list[Tensor]:
        return [self.of.given(index)]

    def head(self, tensors: Sequence[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> TracedHead:
        (targets,) = tensors
        return BatchWeightsHead(targets, self.of.num_classes, weight)

    def write(self, index: Tensor, new: Sequence[Tensor], finite: Tensor) -> None:
        """There is nothing to write."""

    def undo(self, index: Tensor) -> Callable[[], None]:
        return lambda: None

    def state(self) -> list[Tensor]:
        return [self.of.targets]
