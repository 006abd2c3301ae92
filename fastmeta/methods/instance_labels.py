"""One learned distribution per training sample."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fastmeta.data.seeds import derived_seed
from fastmeta.losses import InstanceLabels, LabelTable, MomentumLabels, SimplexLabels
from fastmeta.methods.base import Context
from fastmeta.methods.kept import rows_of
from fastmeta.methods.label_store import table_of
from fastmeta.methods.learned import LearnedLabels

#: probability of the given class in a table that no start was asked for, which the first estimate replaces
_UNTIL_ESTIMATED = 0.9


class InstanceLabelMethod(LearnedLabels):
    """:class:`fastmeta.InstanceLabels` moved by :class:`fastmeta.MetaStep`."""

    family = InstanceLabels
    supports = LearnedLabels.supports | {"ema", "mixup", "optim.warmup", "labels.store"}
    default_update = "posterior"
    #: where the label logits lie; None: in a dense tensor
    table: ClassVar[type[LabelTable] | None] = None

    def make_labels(self, context: Context) -> InstanceLabels | SimplexLabels:
        config = context.config
        if config.labels.parametrisation == "simplex":
            return SimplexLabels(context.targets, context.num_classes, config.labels.target_prob)
        if momentum := config.labels.label_momentum:
            return MomentumLabels(context.targets, context.num_classes, config.labels.target_prob, momentum=momentum)
        return InstanceLabels(
            context.targets,
            context.num_classes,
            _UNTIL_ESTIMATED if config.labels.target_prob is None else config.labels.target_prob,
            dtype=getattr(torch, config.labels.dtype),
            seed=derived_seed(config.seed, "label-rounding"),
            first_row=rows_of(context).first,
            table=self.table or table_of(context),
        )

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        if config.mixup is not None and config.label_update == "exact":
            raise ValueError(
                f"mixup={config.mixup:g} is about plain steps, and labels.update=exact takes others; take "
                "labels.update=posterior or epoch"
            )
        target_prob, simplex = config.labels.target_prob, config.labels.parametrisation == "simplex"
        if momentum := config.labels.label_momentum:
            option = f"labels.label_momentum={momentum:g}"
            if simplex:
                raise ValueError(f"{option} is about logits, and labels.parametrisation=simplex has none; leave it out")
        else:
            option = "labels.parametrisation=simplex" if simplex else ""
        if option and config.labels.dtype != "float32":
            raise ValueError(f"labels.dtype={config.labels.dtype} does not go with {option}, which is in float32")
        store = config.labels.store
        if store not in ("auto", "device") and (option or cls.table is not None):
            why = f"{option} keeps labels in a dense tensor"
            if not option:
                why = f"method={config.method} brings a table of its own"
            raise ValueError(f"{why}, and labels.store={store} asks for another one; leave one of them out")
        if option and cls.table is not None:
            raise ValueError(
                f"{option} keeps labels in a dense tensor, and method={config.method} in a {cls.table.__name__}; leave "
                "it out"
            )
        if cls.table is not None and config.labels.lookahead_steps > 1:
            raise ValueError(
                f"labels.lookahead_steps={config.labels.lookahead_steps} keeps labels in a dense tensor, and "
                f"method={config.method} in a {cls.table.__name__}; leave it out"
            )
        if target_prob in (0, 1) and not (simplex and target_prob == 1):
            raise ValueError(
                f"labels.target_prob must lie strictly between 0 and 1 for instance_labels, got {target_prob}: no "
                "gradient leads back from an infinite logit; take 0.9"
            )
        if num_classes is not None and target_prob is not None and target_prob <= 1 / num_classes:
            raise ValueError(
                f"labels.target_prob must be above 1/C = {1 / num_classes:g}, got {target_prob}: the given class "
                "would not lead at the start"
            )
