"""One learned smoothing value per class."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.precision import without_autocast
from fastmeta.losses.epoch_moves import ClassMove, EpochMove
from fastmeta.losses.head import Collective, LabelMove, Move, Tensors
from fastmeta.losses.labels import Labels, Movement, check_dtype, check_prob


def class_gradient(
    targets: Tensor, num_classes: int, u: Tensor, scale: float | Tensor, weight: Tensor | None = None
) -> Tensor:
    """d L_meta / d alpha, (C,): scale * sum over the rows of class c of weight * (mean_{k != c} u_k - u_c)."""
    given = u.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)  # a row out of range has class -1 and no term
    term = (u.sum(-1) - given) / (num_classes - 1) - given
    if weight is not None:
        term = term * weight
    of_class = torch.arange(num_classes, device=u.device).unsqueeze(1) == targets
    with without_autocast():
        # a matrix product and not index_add_, whose float atomics differ from run to run on CUDA
        return scale * (of_class.to(u.dtype) @ term)


class ClassLabels(Labels):
    """One learned smoothing value per class: p_y = 1 - alpha_y, every other class alpha_y / (C-1).

    alpha starts at 1 - `target_prob` and is clamped to [0, 1] after each update; ``target_prob=1`` is the exact one-hot
    start of the paper's Algorithm 1. The gradient of alpha_c is (lambda/n) times the sum over the samples of class c of
    (mean of u over the other classes) - u_c.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        target_prob: p0 in [0, 1].
        dtype: of alpha; float32, or float64 for logits of float64.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; target_prob outside [0, 1]; another dtype.
    """

    family = "class"
    by_row = False
    parameter = "alpha"
    default_eta = 0.03
    default_step = 0.02
    _travel = 0.2
    alpha: Tensor

    def __init__(
        self, targets: Tensor, num_classes: int, target_prob: float = 0.9, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(targets, num_classes)
        check_dtype(dtype, (torch.float32, torch.float64))
        p0 = check_prob(target_prob)
        self.register_buffer("alpha", torch.full((self.num_classes,), 1 - p0, dtype=dtype, device=self.device))

    @classmethod
    def shapes(cls, size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {"targets": (size,), cls.parameter: (num_classes,)}

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all."""
        targets = self.targets if index is None else self.targets[index]
        a = self.alpha[targets].unsqueeze(1)
        others = (a / (self.num_classes - 1)).expand(-1, self.num_classes)
        return others.scatter(1, targets.unsqueeze(1), 1 - a)

    def restart_(self, target_prob: float) -> None:
        self.alpha.fill_(1 - target_prob)

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        return ClassMove(move, self)

    def value(self, index: Tensor) -> Tensor:
        return self.alpha

    def put(self, index: Tensor, value: Tensor) -> None:
        self.alpha.copy_(value)

    def loss_of(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        a = value[targets]
        log_q = logits.log_softmax(-1)
        given = log_q.gather(1, targets.unsqueeze(1)).squeeze(1)
        return -(1 - a) * given - a / (self.num_classes - 1) * (log_q.sum(-1) - given)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        return ops.class_loss(logits, self._alpha(logits), self.given(index), weight)

    def loss_at(self, value: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None) -> ops.LabelLoss:
        return ops.class_loss(logits, value, targets, weight)

    def gradient_at(
        self, value: Tensor, targets: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None
    ) -> Tensor:
        """d L_meta / d alpha (C,): see :func:`class_gradient`."""
        return class_gradient(targets, self.num_classes, u, scale, weight)

    def step_at(
        self, value: Tensor, index: Tensor, targets: Tensor, logits: Tensor, u: Tensor, step: LabelMove
    ) -> tuple[Tensor, ops.LabelStep]:
        new, *rest = ops.class_label_step(value, targets, logits, u, step.scale, step.label_lr, step.weight)
        return new, ops.LabelStep(*rest)

    def move_together(self, index: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> None:
        self.move_(ranks.sum(grad), label_lr)

    def moved_together(self, value: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> Tensor:
        return (value - ranks.sum(grad) * label_lr).clamp(0, 1).to(value.dtype)

    def reach(self, n: int, rows: int | None = None) -> float:
        """All steps of a pass over the training set together move every value by 1."""
        return math.sqrt(self.num_classes) * n / max(1, len(self) if rows is None else rows)

    def norm_of(self, grad: Tensor, ranks: Collective) -> Tensor:
        return ranks.sum(grad).norm()

    def movement(self, target_prob: float) -> Movement:
        moved = float((self.alpha - (1 - target_prob)).abs().double().mean())
        return Movement(moved, 0.1, "class smoothing values")

    def stuck(self, target_prob: float, rate_name: str = "labels.label_lr") -> tuple[str, str] | None:
        share = float(((self.alpha <= 0) | (self.alpha >= 1)).double().mean())
        if share > 0.5:
            ends = "0 (one-hot)" if float(self.alpha.mean()) < 0.5 else "1 (never the given class)"
            return "clamp", (
                f"{share:.0%} of the class smoothing values stand at the clamp, mostly {ends}: either the labels want "
                f"to be there, or {rate_name} is too large"
            )
        return None

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step writes; given a 0-d bool, where that is False."""
        before = self.alpha.clone()

        def undo(keep: Tensor | None = None) -> None:
            self.alpha.copy_(before if keep is None else torch.where(keep, self.alpha, before))

        return undo

    def move_(self, grad: Tensor, label_lr: float | Tensor) -> None:
        """Eq. (5) with a gradient (C,) that is already there, then the clamp to [0, 1]."""
        self.alpha.sub_(grad * label_lr).clamp_(0, 1)

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
        """Eq. (5) in place for the classes of the batch, clamped, and the loss under the new labels."""
        return ops.class_label_step_(self._alpha(logits), self.given(index), logits, u, scale, label_lr, weight)

    def _alpha(self, logits: Tensor) -> Tensor:
        wanted = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if self.alpha.dtype != wanted:
            raise TypeError(
                f"alpha must be {wanted} for logits of {logits.dtype}, got {self.alpha.dtype}; "
                f"build the labels with dtype={wanted}, or call labels.to({wanted})"
            )
        return self.alpha
