"""fastmeta: labels learned by exact meta-gradients, with fused kernels.

    labels = fastmeta.InstanceLabels(targets, num_classes, target_prob=0.9)
    step = fastmeta.MetaStep(model, labels, optimizer)
    result = step((x, index), (x_meta, y_meta))

The library needs torch alone; the trainer behind ``fastmeta.train`` loads its own libraries when it is first asked for.
"""

from __future__ import annotations

from fastmeta import _path  # noqa: F401  # isort: skip  (first: every other import goes by the path)
from typing import TYPE_CHECKING, Any

from fastmeta import ops
from fastmeta._version import __version__
from fastmeta.checker import check
from fastmeta.losses import (
    BatchWeights,
    ClassLabels,
    HostTable,
    InstanceLabels,
    LabelCorrector,
    LabelTable,
    LabelTeacher,
    LearnableLoss,
    MmapTable,
    SimplexLabels,
    WeightingNet,
)
from fastmeta.meta import EpochLookahead, EpochResult, MetaStep, StepResult, label_gradient, meta_gradient
from fastmeta.per_sample import per_sample
from fastmeta.posterior import LabelEstimate, LabelPosterior

if TYPE_CHECKING:
    from fastmeta._train import train, train_folds
    from fastmeta.comparison import compare
    from fastmeta.learner import LabelLearner
    from fastmeta.training import Listener, TrainConfig, load_run


__all__ = [
    "BatchWeights",
    "ClassLabels",
    "EpochLookahead",
    "EpochResult",
    "HostTable",
    "InstanceLabels",
    "LabelCorrector",
    "LabelEstimate",
    "LabelLearner",
    "LabelPosterior",
    "LabelTable",
    "LabelTeacher",
    "LearnableLoss",
    "Listener",
    "MetaStep",
    "MmapTable",
    "SimplexLabels",
    "StepResult",
    "TrainConfig",
    "WeightingNet",
    "__version__",
    "check",
    "compare",
    "label_gradient",
    "load_run",
    "meta_gradient",
    "ops",
    "per_sample",
    "train",
    "train_folds",
]

_TRAINER = ("Listener", "TrainConfig", "load_run")


def __getattr__(name: str) -> Any:
    if name in _TRAINER:
        from fastmeta import training

        return getattr(training, name)
    if name in ("train", "train_folds"):
        from fastmeta import _train

        return getattr(_train, name)
    if name == "compare":
        from fastmeta.comparison import compare

        return compare
    if name == "LabelLearner":
        from fastmeta.learner import LabelLearner

        return LabelLearner
    raise AttributeError(f"module 'fastmeta' has no attribute {name!r}")
