"""One learned smoothing value per class."""

from __future__ import annotations

from fastmeta.losses import ClassLabels
from fastmeta.methods.base import Context
from fastmeta.methods.learned import LearnedLabels


class ClassLabelMethod(LearnedLabels):
    """:class:`fastmeta.ClassLabels` moved by :class:`fastmeta.MetaStep`."""

    family = ClassLabels

    def make_labels(self, context: Context) -> ClassLabels:
        return ClassLabels(context.targets, context.num_classes, context.config.labels.target_prob)
