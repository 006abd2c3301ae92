"""The seam between the trainer and the methods: a batch goes in, one optimizer step is taken, tensors come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastmeta.losses import ClassLabels, InstanceLabels
from fastmeta.meta import InputTransform, Totals


@dataclass(frozen=True)
class Batch:
    """One step's data on the device; the meta pair is None for methods that need none."""

    x: Any  # what the method's transform takes
    index: Tensor  # (n,) int64 rows of the method's training set, none twice
    meta: tuple[Any, Tensor] | None  # x, (m,) int64


class Outcome(NamedTuple):
    """Device tensors of one step; None where the method has no such thing."""

    logits: Tensor  # (n, C) at theta, before the step
    train_loss: Tensor  # 0-d
    finite: Tensor  # 0-d bool; False: a step that should not count, and with learned labels moved nothing
    meta_loss: Tensor | None = None  # 0-d
    entropy: Tensor | None = None  # (n,) of the labels
    label_grad_norm: Tensor | None = None  # 0-d
    skipped: Tensor | None = None  # 0-d, rows that the kernels left out


class StepSums(Totals, Protocol):
    """Sums over steps, of fixed and of learned labels alike."""

    def add(self, outcome: Outcome, targets: Tensor) -> None:
        """One step more; `targets` (n,) are the given labels of its batch."""
        ...


class Method(ABC):
    """Trains `model` on rows of a training set whose given labels are `targets`.

    Args:
        model, optimizer: on the device of `targets`; the optimizer's learning rate is the trainer's business.
        targets: (N,) int64 given labels.
        num_classes: C.
        transform: makes network input of a batch's x; with learned labels inside the step.
        sums: takes in the outcome of each step; with learned labels inside the step's graph, where it has one.
        options: what the config says about labels and their steps: target_prob, label_dtype, label_seed, label_lr,
            lookahead, tangent, compile, approx, micro_batch. A method takes what it needs.
    """

    #: does :meth:`step` want a meta batch?
    needs_meta: ClassVar[bool] = False
    #: the learned labels, None for methods with fixed ones
    labels: InstanceLabels | ClassLabels | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        targets: Tensor,
        num_classes: int,
        *,
        transform: InputTransform,
        sums: StepSums,
        **options: Any,
    ) -> None:
        self.model, self.optimizer, self.targets, self.num_classes = model, optimizer, targets, num_classes
        self.transform, self.sums = transform, sums
        self.warnings: list[str] = []  # of the steps so far, for the trainer to take away

    @abstractmethod
    def step(self, batch: Batch) -> Outcome:
        """One optimizer step, added to `sums`; nothing here waits for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values beside the tensors of `labels`, as JSON can hold them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (nothing to load by default)
        """Continue as the method that gave `state`."""

    def explain(self) -> str:
        """One or more lines for people: what this method does to the labels here."""
        return "labels: fixed as given"
