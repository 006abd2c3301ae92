"""What methods share whose training loss has parameters of its own that the meta-gradient moves in each step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from fastmeta.data.seeds import derived_seed
from fastmeta.losses import LearnableLoss
from fastmeta.meta import MetaStep, StepResult
from fastmeta.methods.base import Batch, Context, Method, Outcome


def adam(loss: LearnableLoss, lr: float, weight_decay: float = 0.0) -> torch.optim.Adam:
    """Of the loss's parameters; on CUDA its count of steps lies there too, so that no step waits to put it back."""
    params = list(loss.parameters())
    return torch.optim.Adam(params, lr=lr, weight_decay=weight_decay, capturable=params[0].is_cuda)


class LearnedLoss(Method):
    """A :class:`fastmeta.LearnableLoss`, an optimizer of its parameters, and one :class:`fastmeta.MetaStep`.

    It follows labels.lookahead and labels.tangent, which are about the step. What else the table [labels] says is
    refused: the method learns no table of labels.
    """

    uses_meta_batch = True
    supports: ClassVar[frozenset[str]] = frozenset({"compile", "approx", "micro_batch", "ranks"})
    #: whether :attr:`StepResult.train_loss` is what the trainer should show, so that steps count themselves
    counts_itself: ClassVar[bool] = True

    @abstractmethod
    def make_loss(self, context: Context) -> LearnableLoss:
        """The loss as it starts; the global generator is seeded by the run's seed."""

    def make_optimizer(self, loss: LearnableLoss) -> torch.optim.Optimizer | None:
        """Of the loss's parameters; None for a loss without."""
        return None

    def approximation(self, context: Context) -> str | None:
        """`approx` of the steps, as :class:`fastmeta.MetaStep` takes it."""
        choice: str | None = context.config.approx_choice
        return choice

    def setup(self, context: Context) -> None:
        config = context.config
        self.model = context.model()
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn on the host
            torch.manual_seed(derived_seed(config.seed, "learned-loss"))
            self.loss = self.make_loss(context).to(context.device)
        self.loss_optimizer = self.make_optimizer(self.loss)
        self.meta_step = MetaStep(
            self.model,
            self.loss,
            optimizer,
            loss_optimizer=self.loss_optimizer,
            lookahead=config.labels.lookahead_choice,
            tangent=config.labels.tangent,
            unique_index=True,  # a pass over the training set meets no row twice
            compile=config.compile,
            approx=self.approximation(context),
            watch_every=config.watch_choice,
            transform=context.transform,
            totals=context.totals if self.counts_itself else None,
            micro_batch=config.micro_batch,
            process_group=context.ranks.group,
            own_rows=True,
        )
        self.meta_step.on_warning = self.warnings.append

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        kept = {"loss": self.loss, "meta_step": self.meta_step}
        return kept if self.loss_optimizer is None else {**kept, "loss_optimizer": self.loss_optimizer}

    def step(self, batch: Batch) -> Outcome:
        assert batch.meta is not None
        return self.outcome(self.meta_step((batch.x, batch.index), batch.meta))

    def outcome(self, result: StepResult) -> Outcome:
        """What the trainer sees of a step."""
        r = result
        told = Outcome(r.logits, r.train_loss, r.finite, r.meta_loss, skipped=r.skipped, distance=r.distance)
        return told._replace(counted=self.counts_itself)

    def explain(self) -> str:
        return self.meta_step.explain()

    @classmethod
    def default_target_prob(cls, usual: float) -> float | None:
        return None

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        of_labels = config.labels
        for name, value, without in (
            ("target_prob", of_labels.target_prob, None),
            ("label_lr", of_labels.label_lr, None),
            ("label_step", of_labels.label_step, None),
            ("dtype", of_labels.dtype, "float32"),
        ):
            if value != without:
                raise ValueError(
                    f"labels.{name}={value} is about a table of labels, and method={config.method} learns none; leave "
                    "it out"
                )
