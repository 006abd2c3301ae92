"""What methods that learn labels share: a label family, moved by :class:`fastmeta.MetaStep` before each model step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from fastmeta.losses import ClassLabels, InstanceLabels
from fastmeta.meta import MetaStep
from fastmeta.methods.base import Batch, Context, Method, Outcome


class LearnedLabels(Method):
    """Labels of one `family` over the training set; what the config says of them stands in its table [labels]."""

    uses_meta_batch: ClassVar[bool] = True
    learns_labels: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({"compile", "approx", "micro_batch"})
    family: ClassVar[type[InstanceLabels] | type[ClassLabels]]
    labels: InstanceLabels | ClassLabels

    @abstractmethod
    def make_labels(self, context: Context) -> InstanceLabels | ClassLabels:
        """The labels as they start."""

    def setup(self, context: Context) -> None:
        config = context.config
        self.model = context.model()
        self.labels = self.make_labels(context)
        self.meta_step = MetaStep(
            self.model,
            self.labels,
            context.optimizer(p for p in self.model.parameters() if p.requires_grad),
            label_lr=config.labels.label_lr,
            lookahead=config.labels.lookahead_choice,
            tangent=config.labels.tangent,
            unique_index=True,  # a pass over the training set meets no row twice
            compile=config.compile,
            approx=config.approx_choice,
            transform=context.transform,
            totals=context.totals,
            micro_batch=config.micro_batch,
        )
        self.meta_step.on_warning = self.warnings.append

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"labels": self.labels, "meta_step": self.meta_step}

    def step(self, batch: Batch) -> Outcome:
        assert batch.meta is not None
        r = self.meta_step((batch.x, batch.index), batch.meta)
        return Outcome(
            r.logits, r.train_loss, r.finite, r.meta_loss, r.entropy, r.label_grad_norm, r.skipped, counted=True
        )

    def explain(self) -> str:
        return self.meta_step.explain()

    @classmethod
    def default_label_lr(cls, lookahead_lr: float, batch_size: int, visits: int, num_classes: int) -> float:
        one = cls.family(torch.zeros(1, dtype=torch.int64), num_classes, 0.5)
        return one.default_label_lr(lookahead_lr, batch_size, visits)
