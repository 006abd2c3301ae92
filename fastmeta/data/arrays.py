"""Anything that holds an array (lists, tensors, images of PIL, columns of pandas, lazy mappings) as one of NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from fastmeta._numbers import as_whole
from fastmeta._text import printable, reason, shown
from fastmeta.data.errors import InputError

#: what marks rows that are arrays: of NumPy and torch, of PIL, of columns
_ARRAYS = ("shape", "__array__", "__array_interface__")
_LARGEST = np.iinfo(np.int64).max
#: the way out where labels are texts
NUMBER_NAMES = "number them: names, y = np.unique(y, return_inverse=True), and give names as class_names"


def entries(arrays: Mapping[str, Any], fields: Iterable[str], name: str) -> dict[str, Any]:
    """Those of `fields` that a mapping has, which may be one of files or of anything else that is read when asked."""
    found = {}
    for field in fields:
        try:
            value = arrays[field] if field in arrays else None  # noqa: SIM401 # not all have get
        except Exception as error:  # of the user's mapping
            raise InputError(f"{name}: {field} cannot be read ({reason(error)})") from error
        if value is not None:
            found[field] = value
    return found


def names_in(arrays: Mapping[str, Any]) -> str:
    """The keys, for messages."""
    try:
        names = sorted(printable(key, 40) for key in arrays)
    except Exception:  # of the user's mapping
        return "what cannot be listed"
    return ", ".join(names[:20]) + (" …" if len(names) > 20 else "") or "no array at all"


def as_array(value: Any, what: str) -> np.ndarray:
    """`value` as an array of the host; InputError, in one line, where it is none. `what` it is, for that line."""
    try:
        if isinstance(value, torch.Tensor):
            return value.detach().resolve_conj().resolve_neg().cpu().numpy()
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            first = tuple(int(i) for i in np.argwhere(np.ma.getmaskarray(value))[0])
            raise InputError(f"{what} has masked entries, the first at {first}; drop these rows, or fill them")
        if getattr(value, "mode", None) in ("P", "PA") and hasattr(value, "convert"):
            raise InputError(f"{what} is an image of PIL with a palette, whose pixels are no colours; .convert('RGB')")
        if isinstance(value, list | tuple):
            return _stacked(value, what)
        array = np.asarray(value)
        if array.dtype != object or array.ndim != 1:
            return array
        rows = array.tolist()
        return _stacked(rows, what) if any(hasattr(v, "__array__") for v in rows) else _objects(rows)
    except InputError:
        raise
    except Exception as error:  # of the user's own __array__, or of what NumPy and torch cannot make one of
        raise InputError(f"{what} cannot be made an array ({reason(error, 200)}); pass one of NumPy") from error


def _stacked(values: list[Any] | tuple[Any, ...], what: str) -> np.ndarray:
    """Rows as one array; the first that is of another shape or dtype than row 0 is named."""
    if not any(isinstance(v, list | tuple) or any(hasattr(v, name) for name in _ARRAYS) for v in values):
        if len(set(map(type, values))) <= 1:
            return np.asarray(values)
        return _objects(values)  # which NumPy would bring to one type: True among numbers to 1
    if all(as_whole(v) is not None for v in values):  # tensors and arrays without dimensions
        return np.asarray([as_whole(v) for v in values])
    rows = [as_array(v, f"{what}[{i}]") for i, v in enumerate(values)]
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape or row.dtype != rows[0].dtype:
            raise InputError(
                f"{what}[{i}] is {_kind(row)}, {what}[0] is {_kind(rows[0])}; bring all to one shape and dtype"
            )
    return np.stack(rows)


def _objects(values: list[Any] | tuple[Any, ...]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def class_numbers(array: np.ndarray, what: str) -> np.ndarray:
    """(N,) as int64; InputError for what has no number there, or a larger one. `array` is of integers or objects."""
    if array.dtype == object:
        numbers = [as_whole(v) for v in array.tolist()]
        for i, number in enumerate(numbers):
            if number is None:
                way = NUMBER_NAMES if isinstance(array[i], str) else "drop or fill such rows"
                raise InputError(f"{what}[{i}] must be a class number, got {shown(array[i])}; {way}")
    else:
        numbers = [int(array.max())] if array.dtype.kind == "u" and array.size else []
    for number in numbers:
        if number is not None and abs(number) > _LARGEST:
            raise InputError(f"{what} holds {shown(number)}, which is no class number: they start from 0")
    return array.astype(np.int64)


def texts(value: Any, what: str) -> tuple[str, ...]:
    """A row of names; bytes are read as UTF-8, anything else as it prints."""
    if isinstance(value, np.ndarray | torch.Tensor) or not isinstance(value, list | tuple):
        if getattr(value, "ndim", None) != 1:
            shape = getattr(value, "shape", ())
            raise InputError(f"{what} must be one name per class (C,), got shape {shown(shape)}")
        try:
            value = (value if hasattr(value, "tolist") else np.asarray(value)).tolist()
        except Exception as error:  # characters beyond Unicode, a lazy column
            raise InputError(f"{what} cannot be read ({reason(error)})") from error
    for i, v in enumerate(value):
        if isinstance(v, list | tuple | dict | set) or getattr(v, "ndim", None):
            raise InputError(f"{what} must be one name per class (C,), got {shown(v)} at {i}")
    try:
        return tuple(_text(v) for v in value)
    except Exception as error:  # of a __str__ of the user's
        raise InputError(f"{what} cannot be read ({reason(error)})") from error


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str.__str__(value) if isinstance(value, str) else str(value)
