"""Labels learned by exact meta-gradients: one smoothing value per class, or one distribution per sample."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmeta.losses import ClassLabels, InstanceLabels
from fastmeta.meta import MetaStep
from fastmeta.methods.base import Batch, Method, Outcome


class LearnedLabels(Method):
    """Labels of one `family` over the training set, moved by :class:`fastmeta.MetaStep` before each model step."""

    needs_meta: ClassVar[bool] = True
    family: ClassVar[type[InstanceLabels] | type[ClassLabels]]
    labels: InstanceLabels | ClassLabels

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        targets: Tensor,
        num_classes: int,
        *,
        target_prob: float = 0.9,
        label_dtype: torch.dtype = torch.float32,
        label_seed: int = 0,
        label_lr: float | None = None,
        lookahead: Any = "sgd",
        tangent: Any = "auto",
        compile: Any = "off",
        approx: str | None = None,
        micro_batch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, targets, num_classes, **options)
        # class labels are C numbers: no memory to save
        table: dict[str, Any] = {"dtype": label_dtype, "seed": label_seed} if self.family is InstanceLabels else {}
        self.labels = self.family(targets, num_classes, target_prob, **table)
        self.meta_step = MetaStep(
            model,
            self.labels,
            optimizer,
            label_lr=label_lr,
            lookahead=lookahead,
            tangent=tangent,
            unique_index=True,  # a pass over the training set meets no row twice
            compile=compile,
            approx=approx,
            transform=self.transform,
            totals=self.sums,
            micro_batch=micro_batch,
        )
        self.meta_step.on_warning = self.warnings.append

    def step(self, batch: Batch) -> Outcome:
        assert batch.meta is not None
        r = self.meta_step((batch.x, batch.index), batch.meta)
        return Outcome(r.logits, r.train_loss, r.finite, r.meta_loss, r.entropy, r.label_grad_norm, r.skipped)

    def state_dict(self) -> dict[str, Any]:
        return self.meta_step.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.meta_step.load_state_dict(state)

    def explain(self) -> str:
        return self.meta_step.explain()


class ClassLabelMethod(LearnedLabels):
    """:class:`fastmeta.ClassLabels` moved by :class:`fastmeta.MetaStep`."""

    family = ClassLabels


class InstanceLabelMethod(LearnedLabels):
    """:class:`fastmeta.InstanceLabels` moved by :class:`fastmeta.MetaStep`."""

    family = InstanceLabels
