"""The meta step: look-ahead, tangent, label gradient, and one whole iteration of Algorithm 1.

Threads may take steps at once, each on a model, labels and optimizer of its own: see :mod:`fastmeta.functional.turns`.
"""

from fastmeta.meta.epoch import EpochLookahead, EpochResult
from fastmeta.meta.gradient import LabelGradient, MetaGradient, label_gradient, meta_gradient
from fastmeta.meta.graph_memory import OutOfMemory, Saved, graph_bytes
from fastmeta.meta.inputs import InputTransform
from fastmeta.meta.result import Distance, StepResult, Totals
from fastmeta.meta.step import MetaStep
from fastmeta.meta.window_gradient import window_gradient

__all__ = [
    "Distance",
    "EpochLookahead",
    "EpochResult",
    "InputTransform",
    "LabelGradient",
    "MetaGradient",
    "MetaStep",
    "OutOfMemory",
    "Saved",
    "StepResult",
    "Totals",
    "graph_bytes",
    "label_gradient",
    "meta_gradient",
    "window_gradient",
]
