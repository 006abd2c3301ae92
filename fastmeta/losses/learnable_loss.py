"""Training losses with parameters of their own, which the meta-gradient moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.losses.autograd_head import AutogradHead
from fastmeta.losses.autograd_traced import TracedAutograd
from fastmeta.losses.epoch_moves import AutogradMove, EpochMove
from fastmeta.losses.head import Head, Move, Tensors
from fastmeta.losses.traced_loss import TracedLoss


class LearnableLoss(nn.Module):
    """The training loss of each sample, with parameters phi of its own that are learned by the meta-gradient.

        theta*        = theta - (lambda/n) sum_i grad_theta l_i(theta, phi)
        dL_meta/dphi  = -(lambda/n) d/dphi sum_i <v_i(phi), u_i>,     v_i = d(sum_j l_j)/dz_i,  u_i = J_i g

    A subclass writes :meth:`forward` and registers its parameters as any module does. It holds what it needs of the
    training set, such as the given labels, as buffers, and picks by `index`::

        class SampleWeights(fastmeta.LearnableLoss):
            def __init__(self, targets):
                super().__init__()
                self.register_buffer("targets", targets)
                self.weight = torch.nn.Parameter(torch.ones(len(targets)))

            def forward(self, logits, index, x=None):
                loss = torch.nn.functional.cross_entropy(logits, self.targets[index], reduction="none")
                return self.weight[index] * loss

    Conditions:
        v exists and is differentiable in phi: the loss is differentiable in `logits`, and its derivative in phi. The
        step raises where no parameter has an influence on v.
        theta enters through `logits` alone: the loss calls no part of the model and shares no parameter with it.
        The loss detaches what is to be constant itself, such as losses that are the input of a weighting net.
        Both calls of a step see the same random numbers and begin with the same buffers; what a forward does to
        buffers counts once. Plain attributes must not move.
        The loss runs outside of autocast, on float32 logits (float64 of a float64 model).

    Attributes:
        targets: where a tensor (N,) of this name is there, indices are checked against N, and it is what
            ``totals`` see as the given labels.
        num_classes: C, where the loss says it: logits and y_meta are checked against it.
    """

    #: whether the loss moves its parameters itself, at a rate `label_lr`, and needs no optimizer
    moves_itself: ClassVar[bool] = False
    #: whether its parameters are made anew in each step, at no rate, and nothing of them is there before or after
    for_one_step: ClassVar[bool] = False
    #: the rate of its move at the end of an epoch, where it moves itself: see :class:`fastmeta.EpochLookahead`
    default_eta: ClassVar[float] = 0.0
    #: how far a visit moves what moves itself, by default: see :mod:`fastmeta.meta.label_rate`
    default_step: ClassVar[float] = 0.0
    #: names in its state_dict whose first dimension counts the rows of the training set
    row_state: ClassVar[frozenset[str]] = frozenset({"targets"})
    num_classes: int | None = None

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Loss of each sample (n,), unweighted.

        Args:
            logits: (n, C) of the batch, at theta.
            index: (n,) int64 rows of the training set.
            x: the network input of the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(logits, index, x=None) -> (n,)")

    # What the engine asks. A loss of a user's need not look further.

    @property
    def device(self) -> torch.device | None:
        """Where the loss lives; None for one without tensors."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), None)

    def row_count(self) -> int | None:
        """N, where the loss knows it."""
        targets = getattr(self, "targets", None)
        return targets.shape[0] if isinstance(targets, Tensor) and targets.ndim == 1 else None

    def given(self, index: Tensor) -> Tensor:
        """Given classes (n,) of the rows `index`; -1 where the loss has none."""
        targets = getattr(self, "targets", None)
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
            return torch.full_like(index, -1)
        inside = (index >= 0) & (index < len(targets))
        # an index out of range must not reach torch's gather on CUDA, which would kill the context
        return torch.where(inside, targets[index.clamp(0, len(targets) - 1)], -1)

    def copy_for(self, index: Tensor) -> LearnableLoss:
        """A copy that shares nothing, for batches of the rows `index` alone."""
        return copy.deepcopy(self)

    def title(self) -> str:
        """What a step says of the loss."""
        return f"loss:       {type(self).__name__}"

    def default_label_lr(self, lr: float, batch_size: int, visits: int = 100) -> float:
        """A rate for a loss that moves itself, at look-ahead rate `lr` and `batch_size` rows."""
        raise NotImplementedError(f"{type(self).__name__} has no rate of its own")

    def reach(self, n: int, rows: int | None = None) -> float:
        """Norm of a move by 1 of all that `n` rows see, of a loss that moves itself; `rows` are in the training set in
        all, where this loss holds a part of them."""
        raise NotImplementedError(f"{type(self).__name__} has no move of its own")

    def learned(self) -> Tensors:
        """The parameters that the meta-gradient can move, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def seen_by(self, index: Tensor, x: Any) -> tuple[Tensors, Callable[[Tensors, Tensor], Tensor]]:
        """The parameters as a batch sees them, and the loss (n,) as a function of these and of logits."""
        constant = {name: b.detach().clone() for name, b in self.named_buffers()}

        def loss(values: Tensors, logits: Tensor) -> Tensor:
            held = {name: b.clone() for name, b in constant.items()}
            result: Tensor = functional_call(self, (values, held), (logits, index, x))
            return result

        return self.learned(), loss

    def head(self, index: Tensor, x: Any, weight: Tensor | None, learned: Tensors | None = None) -> Head:
        """The loss on one batch; `learned` are the parameters to move, by name, all if None."""
        return AutogradHead(self, self.learned() if learned is None else learned, index, x, weight)

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        """Its move at the end of an epoch; `learned` are the parameters to move, by name, all if None."""
        return AutogradMove(move, self, self.learned() if learned is None else learned)

    def traced(self, optimizer: torch.optim.Optimizer | None) -> TracedLoss:
        """The loss as a pure function of tensors, for a graph that moves it as `optimizer` would."""
        return TracedAutograd(self, optimizer)
