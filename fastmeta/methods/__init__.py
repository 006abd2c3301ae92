"""What decides the training target of a batch: one file per method, found by name or as ``package.module:Class``."""

from fastmeta.methods.base import Batch, Context, Labels, Method, NoOptions, Outcome, Samples
from fastmeta.methods.instance_labels import InstanceLabelMethod
from fastmeta.methods.registry import METHODS, method_class

__all__ = [
    "METHODS",
    "Batch",
    "Context",
    "InstanceLabelMethod",
    "Labels",
    "Method",
    "NoOptions",
    "Outcome",
    "Samples",
    "method_class",
]
