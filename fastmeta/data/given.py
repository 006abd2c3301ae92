"""Data that somebody has in Python: arrays by name, map-style data sets, sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmeta._text import shown
from fastmeta.data.arrays import as_array, class_numbers, texts
from fastmeta.data.dataset import Dataset
from fastmeta.data.errors import InputError
from fastmeta.data.source import Source, check_source
from fastmeta.data.stream import Stream

_PARTS = ("train", "meta", "test")
#: for messages
DATA_FORMS = (
    "a mapping of arrays, such as {'x_train': ..., 'y_train': ...}, a map-style data set of (x, y) or a "
    "fastmeta.data.Dataset"
)
_BESIDE = ("y_true", "meta_index", "y_meta_given", "class_names", "superclasses")


def is_data(value: Any) -> bool:
    """Whether :func:`as_dataset` would look at it."""
    if isinstance(value, type | str | bytes | np.ndarray | list | tuple):
        return False
    if hasattr(value, "columns") and hasattr(value, "dtypes"):  # a frame, whose items are columns
        return False
    map_style = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return map_style or isinstance(value, Dataset | Mapping | Source)


def as_dataset(value: Any, name: str = "arrays") -> Dataset:
    """A :class:`Dataset` of what a caller or a factory gives.

    Args:
        value: a Dataset; a mapping of arrays as an npz file has them; one map-style torch data set of (x, y), or a
            :class:`Source`, to train on; or a mapping of such by ``train``, ``meta`` and ``test``, with ``y_true``,
            ``meta_index``, ``y_meta_given``, ``class_names`` and ``superclasses`` beside them.

    Raises:
        InputError: anything else, or parts that do not fit each other.
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Mapping) and "train" not in value:
        return Dataset.from_arrays(value, name=name)
    if not isinstance(value, Mapping):
        if not is_data(value):
            raise InputError(f"{name}: expected {DATA_FORMS}, got {type(value).__name__}")
        value = {"train": value}
    unknown = [key for key in value if key not in (*_PARTS, *_BESIDE)]
    if unknown:
        raise InputError(f"{name}: unknown part {shown(unknown[0])}; known are {', '.join((*_PARTS, *_BESIDE))}")
    parts = {key: _source(value[key], f"{name}: {key}") for key in _PARTS if value.get(key) is not None}
    beside = {key: value[key] for key in _BESIDE if value.get(key) is not None}
    names = texts(beside["class_names"], f"{name}: class_names") if "class_names" in beside else None
    numbers = {
        k: class_numbers(as_array(beside[k], f"{name}: {k}"), f"{name}: {k}") for k in _BESIDE[:3] if k in beside
    }
    return Dataset.from_sources(
        name,
        **parts,
        class_names=names,
        y_true=numbers.get("y_true"),
        meta_index=numbers.get("meta_index"),
        meta_given=numbers.get("y_meta_given"),
        superclasses=beside.get("superclasses"),
    )


def _source(value: Any, name: str) -> Source:
    source = value if isinstance(value, Source) else Stream.of(value, name)
    check_source(source, name)
    return source
