"""Training losses with parameters of their own, which the meta-gradient moves."""

from fastmeta.losses.class_labels import ClassLabels, class_gradient
from fastmeta.losses.instance_labels import InstanceLabels, instance_gradient
from fastmeta.losses.table import put_rows_, take_rows

__all__ = ["ClassLabels", "InstanceLabels", "class_gradient", "instance_gradient", "put_rows_", "take_rows"]
