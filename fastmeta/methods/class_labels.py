"""One learned smoothing value per class."""

from __future__ import annotations

from typing import Any

from fastmeta.losses import ClassLabels
from fastmeta.methods.base import Context
from fastmeta.methods.learned import LearnedLabels


class ClassLabelMethod(LearnedLabels):
    """:class:`fastmeta.ClassLabels` moved by :class:`fastmeta.MetaStep`."""

    family = ClassLabels

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        if config.label_update == "posterior":
            raise ValueError(
                "labels.update=posterior gives each sample a label of its own, and class_labels hold one value per "
                "class; take exact or epoch, or method=instance_labels"
            )

        for name, without in (("parametrisation", "softmax"), ("label_momentum", 0)):
            if (value := getattr(config.labels, name)) == without:
                continue
            raise ValueError(
                f"labels.{name}={value} is about a distribution of each sample, and "
                "class_labels hold one value per class; leave it out, or take method=instance_labels"
            )

    def make_labels(self, context: Context) -> ClassLabels:
        return ClassLabels(context.targets, context.num_classes, context.config.labels.target_prob)
