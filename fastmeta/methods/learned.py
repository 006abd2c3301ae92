"""What methods that learn labels share: a label family, and when it moves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from fastmeta.losses import ClassLabels, InstanceLabels, SimplexLabels
from fastmeta.methods.base import Batch, Context, Method, Outcome, Samples
from fastmeta.methods.label_updates import UPDATES


def check_lookahead_steps(config: Any) -> None:
    """ValueError for what does not go with a look-ahead of several steps."""
    steps = config.labels.lookahead_steps
    if steps == 1:
        return
    for name, value, fits, way_out in (
        ("compile", config.compile, ("off",), "leave it at off"),
        ("approx", config.approx, ("none",), "leave it at none"),
        ("micro_batch", config.micro_batch, (None,), "leave it out"),
        ("ema", config.ema, (None,), "leave it out"),
        ("labels.lookahead", config.labels.lookahead, (None, "sgd"), "leave it at sgd, or give a rate"),
        ("labels.tangent", config.labels.tangent, ("auto", "reverse"), "leave it at auto"),
        ("labels.store", config.labels.store, ("auto", "device"), "leave it at device"),
    ):
        rate = name == "labels.lookahead" and config.labels.lookahead_rate is not None
        if value not in fits and not rate:
            raise ValueError(
                f"labels.lookahead_steps={steps} does not go with {name}={value}; {way_out}, or leave "
                "labels.lookahead_steps at 1"
            )


class LearnedLabels(Method):
    """Labels of one `family` over the training set; what the config says of them stands in its table [labels]."""

    uses_meta_batch = True
    learns_labels: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset(
        {"compile", "approx", "micro_batch", "labels.update", "labels.canaries", "trajectory_every", "ranks"}
    )
    family: ClassVar[type[InstanceLabels] | type[ClassLabels]]
    labels: InstanceLabels | ClassLabels | SimplexLabels

    @abstractmethod
    def make_labels(self, context: Context) -> InstanceLabels | ClassLabels | SimplexLabels:
        """The labels as they start."""

    def setup(self, context: Context) -> None:
        self.model = context.model()
        self.labels = self.make_labels(context)
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        kind = UPDATES[context.config.labels.update]
        self.updates = kind(context, self.model, self.labels, optimizer, self.warnings)
        self.uses_meta_batch = self.updates.uses_meta_batch

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"labels": self.labels, **self.updates.stateful()}

    def step(self, batch: Batch) -> Outcome:
        return self.updates.step(batch)

    @property
    def steps_together(self) -> int:
        return self.updates.steps_together

    def several_steps(self, batches: Sequence[Batch]) -> Outcome:
        return self.updates.several_steps(batches)

    def skip_warm_up(self) -> None:
        self.updates.skip_warm_up()

    def end_epoch(self, samples: Samples) -> None:
        self.updates.end_epoch(samples)

    def hold_labels(self) -> None:
        self.updates.hold()
        self.uses_meta_batch = self.updates.uses_meta_batch

    def figures(self) -> Mapping[str, Any]:
        return self.updates.figures()

    def explain(self) -> str:
        return self.updates.explain()

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        if config.label_update == "exact":
            check_lookahead_steps(config)
            return
        for name, value, without in (("compile", config.compile, "off"), ("approx", config.approx, "none")):
            if value != without:
                raise ValueError(
                    f"{name}={value} is about meta steps, and labels.update={config.labels.update} takes plain "
                    f"ones; leave it at {without}, or take labels.update=exact"
                )

    @classmethod
    def default_label_lr(cls, lookahead_lr: float, batch_size: int, visits: int, num_classes: int) -> float:
        one = cls.family(torch.zeros(1, dtype=torch.int64), num_classes, 0.5)
        return one.default_label_lr(lookahead_lr, batch_size, visits)

    @classmethod
    def default_label_step(cls) -> float:
        return cls.family.default_step

    @classmethod
    def default_eta(cls) -> float:
        return cls.family.default_eta
