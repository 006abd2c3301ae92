"""What decides the training target of a batch: one small class per method, found by name in `METHODS`."""

from fastmeta.methods.base import Batch, Method, Outcome
from fastmeta.methods.learned import ClassLabelMethod, InstanceLabelMethod
from fastmeta.methods.onehot import OneHot

#: every method by its name in a config
METHODS: dict[str, type[Method]] = {
    "onehot": OneHot,
    "class_labels": ClassLabelMethod,
    "instance_labels": InstanceLabelMethod,
}

__all__ = ["METHODS", "Batch", "Method", "Outcome"]
