"""Rows of a batch, cut out of whatever a model takes for x: a tensor, or tensors in tuples, lists, dicts, dataclasses.

Which tensors of a structure are per row is the caller's to say (`per_row`): the length of a tensor does not tell, for
a table that all rows share may have as many rows as the batch. Where nothing is said, one case is clear: a single
tensor has as many rows as the batch. Everything else is refused, by name.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

#: values that no cut concerns
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, slice)


def take(x: Any, rows: slice, count: int, per_row: Any = None, name: str = "x") -> Any:
    """The `rows` of a batch of `count`; what is not per row stays whole.

    Args:
        x: the batch's input, called `name` in errors.
        per_row: None; True for all that x holds; or the structure of x, or the upper part of it, with True and False
            in the places of what is per row and what is not. A dataclass is spelled as a dict of its fields. True cuts
            tensors, arrays and lists of one entry per row; numbers, also tensors of no dimension, stay as they are.

    Raises:
        ValueError: it is not said which tensors are per row; one that is has another length; what cannot be cut.
    """
    if rows.stop - rows.start == count:
        return x
    if per_row is None and not isinstance(x, Tensor):
        per_row = _only_one(x, count, name)
    cut = [False]

    def part(value: Any, at: str) -> Any:
        piece = _piece(value, rows, count, at)
        cut[0] = cut[0] or piece is not value
        return piece

    taken = _mapped(x, True if per_row is None else per_row, part, name)
    if not cut[0]:
        raise ValueError(f"micro_batch has to cut {name}, in which per_row says that nothing is per row")
    return taken


def _piece(value: Any, rows: slice, count: int, at: str) -> Any:
    """Of one value that is per row."""
    empty = type(value) in (list, tuple) and not value
    if empty or isinstance(value, _CONSTANTS) or getattr(value, "ndim", None) == 0:
        return value
    kind = _uncuttable(value)
    if kind is not None:
        raise ValueError(f"micro_batch cannot cut {at}, {kind}; {_WAY_OUT}")
    if len(value) != count:
        shape = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"length {len(value)}"
        raise ValueError(
            f"micro_batch cuts {at} by its rows, which must be {count} along the first dimension, got a "
            f"{type(value).__name__} of {shape}; for what all rows share give per_row=, the structure of x with False"
        )
    return value[rows]


_WAY_OUT = "say per_row=False for it if all rows share it, give plain tensors, or leave micro_batch out"


def _uncuttable(value: Any) -> str | None:
    """What `value` is, for an error, unless it has a first dimension to be cut."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return "a nested tensor"
        return None if value.layout == torch.strided else f"a tensor of layout {value.layout}"
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        return None
    array = hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0 and type(value).__module__ == "numpy"
    return None if array else f"a {type(value).__name__}"


def _only_one(x: Any, count: int, name: str) -> Any:
    """`per_row` of a structure of which nothing was said: the one tensor that has `count` rows."""
    found: list[str] = []
    odd: list[str] = []
    for at, value in _leaves(x, name):
        if isinstance(value, _CONSTANTS) or getattr(value, "ndim", None) == 0:
            continue
        if _uncuttable(value) is not None:
            odd.append(at)
        elif len(value) == count:
            (found if isinstance(value, Tensor) else odd).append(at)
    if len(found) == 1 and not odd:
        return _mapped(x, True, lambda value, at: at == found[0], name, shape_only=True)
    if found:
        listed = ", ".join((found + odd)[:6]) + (", ..." if len(found + odd) > 6 else "")
        why = f"{listed} may each be per row or shared by all rows"
    else:
        why = f"no tensor in it has {count} rows" + (f", and {', '.join(odd[:6])} may be anything" if odd else "")
    raise ValueError(
        f"micro_batch has to cut {name} of {count} rows, a {type(x).__name__}, and {why}; say so by per_row= of "
        "MetaStep: True for all, or the structure of x with True for what is per row and False for what is shared"
    )


def _leaves(x: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Everything in a structure that is no structure itself, with its name. A list of no tensors is one thing."""
    parts = _parts(x, at)
    if parts is None:
        yield at, x
    else:
        for _, below, value in parts:
            yield from _leaves(value, below)


def _parts(x: Any, at: str) -> list[tuple[Any, str, Any]] | None:
    """Key, name and value of each part of a structure; None for what is none."""
    if isinstance(x, Tensor | PackedSequence):
        return None
    if dataclasses.is_dataclass(x) and not isinstance(x, type) and not isinstance(x, Mapping):
        return [(f.name, f"{at}.{f.name}", getattr(x, f.name)) for f in dataclasses.fields(x) if hasattr(x, f.name)]
    if isinstance(x, Mapping):
        return [(key, f"{at}[{key!r}]", x[key]) for key in x]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return [(k, f"{at}.{field}", value) for k, (field, value) in enumerate(zip(x._fields, x, strict=True))]
    if type(x) in (tuple, list) and any(not isinstance(value, _CONSTANTS) for value in x):
        return [(k, f"{at}[{k}]", value) for k, value in enumerate(x)]
    return None


def _mapped(x: Any, said: Any, part: Callable[[Any, str], Any], at: str, *, shape_only: bool = False) -> Any:
    """`x` with `part(value, name)` for each leaf under True; with `shape_only` as plain dicts and lists of these."""
    if said is False:
        return x
    parts = _parts(x, at)
    if parts is None:
        if said is not True:
            raise ValueError(f"per_row of {at} must be True or False, got {said!r}")
        return part(x, at)
    parts_said = [True] * len(parts) if said is True else _said_of_parts(x, said, parts, at)
    new = {
        key: _mapped(value, of_it, part, below, shape_only=shape_only)
        for (key, below, value), of_it in zip(parts, parts_said, strict=True)
    }
    if shape_only:
        return new if isinstance(x, Mapping) or not isinstance(x, tuple | list) else list(new.values())
    return _rebuilt(x, new, at)


def _said_of_parts(x: Any, said: Any, parts: list[tuple[Any, str, Any]], at: str) -> list[Any]:
    if isinstance(x, tuple | list):
        if not isinstance(said, tuple | list) or len(said) != len(parts):
            raise ValueError(
                f"per_row of {at} must be True, False or a {type(x).__name__} of {len(parts)}, got {said!r}"
            )
        return list(said)
    if dataclasses.is_dataclass(said) and not isinstance(said, type):
        said = {f.name: getattr(said, f.name) for f in dataclasses.fields(said)}
    names = [key for key, _, _ in parts]
    if not isinstance(said, Mapping) or set(said) != set(names):
        raise ValueError(
            f"per_row of {at} must be True, False or a dict of {', '.join(map(repr, names))}, got {said!r}"
        )
    return [said[key] for key in names]


def _rebuilt(x: Any, new: dict[Any, Any], at: str) -> Any:
    """A structure of the kind of `x` with other parts."""
    if isinstance(x, tuple):
        return type(x)._make(new.values()) if hasattr(x, "_make") else tuple(new.values())
    if isinstance(x, list):
        return list(new.values())
    if type(x) is dict:
        return new
    try:
        made = copy.copy(x)
        for key, value in new.items():
            if isinstance(x, Mapping):
                made[key] = value
            else:
                object.__setattr__(made, key, value)
    except Exception as error:
        raise ValueError(
            f"micro_batch cannot cut {at}, a {type(x).__name__} ({error}); give a dict or a tuple"
        ) from error
    return made
