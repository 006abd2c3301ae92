"""Values of a config as exactly the types of its annotations, and the ranges that they may lie in."""

from __future__ import annotations

import difflib
import functools
import os
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastmeta._numbers import as_real, as_whole
from fastmeta._text import shown
from fastmeta._trust import Untrusted
from fastmeta.data.errors import InputError

#: whole numbers are those of TOML and of torch
LARGEST = 2**63 - 1
#: characters of a text; no path is longer
LONGEST = 4096


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class, which are texts and take their time."""
    return get_type_hints(cls)


def check_types(config: Any, prefix: str) -> None:
    """Give each field the type of its annotation, wherever the value comes from: Python, TOML or a flag."""
    for key, hint in hints_of(config.__class__).items():
        object.__setattr__(config, key, _typed(hint, getattr(config, key), prefix + key))


def _typed(hint: Any, value: Any, name: str) -> Any:
    """`value` as exactly the type `hint`, so that configs compare and are written; InputError where it is none.

    Numbers, truth values and texts of NumPy, pandas and torch are as good as Python's; an int counts as a float, any
    row of numbers as a tuple, a Path as a text.
    """
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        members = [m for m in get_args(hint) if m is not type(None)]
        if value is None or len(members) == 1:
            return None if value is None else _typed(members[0], value, name)
        return _number_or_word(members, value, name)
    if origin is tuple:
        return tuple(_typed(get_args(hint)[0], v, name) for v in _row(value, name))
    typed: Any
    if hint is int:
        typed = as_whole(value)
        if typed is not None and not -LARGEST <= typed <= LARGEST:
            raise InputError(f"{name} must be a whole number below 2^63, got {shown(typed)}")
    elif hint is float:
        typed = as_real(value)
    elif hint is bool:
        typed = bool(value) if isinstance(value, bool) or _is_truth_value(value) else None
    elif hint is str or origin is Literal:
        typed = _text(value, name)
        if origin is Literal:
            one_of(name, value if typed is None else typed, get_args(hint))
    else:
        typed = value if isinstance(value, hint) else None
    if typed is None:
        raise InputError(f"{name} must be {_WORDS.get(hint, f'of type {hint.__name__}')}, got {shown(value)}")
    return typed


def _number_or_word(members: list[Any], value: Any, name: str) -> Any:
    """Of ``float | Literal["a word"]``."""
    kind, words = members[0], get_args(members[1])
    if isinstance(value, str) and value in words:
        return words[words.index(value)]
    if isinstance(value, str):
        raise InputError(f"{name} must be {_WORDS[kind]} or {' or '.join(words)}, got {shown(value)}")
    return _typed(kind, value, name)


def _row(value: Any, name: str) -> list[Any]:
    """The values of a list, a tuple, or a vector of NumPy, pandas or torch."""
    if isinstance(value, list | tuple) or getattr(value, "ndim", None) == 1:
        return list(value)
    raise InputError(f"{name} must be a list, got {shown(value)}")


def _is_truth_value(value: Any) -> bool:
    """np.bool_, or an array or a tensor of one without dimensions."""
    return getattr(value, "ndim", None) == 0 and str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def _text(value: Any, name: str) -> str | None:
    """A plain str (or `Untrusted`, which stays); None for what is no text.

    InputError for one that no file could keep, or be named by.
    """
    if not isinstance(value, str | os.PathLike):
        return None
    text = os.fspath(value)
    if isinstance(text, str) and not isinstance(text, Untrusted):
        text = str.__str__(text)
    if not isinstance(text, str):
        return None
    if len(text) > LONGEST:
        raise InputError(f"{name} must have at most {LONGEST:,} characters, got {len(text):,}")
    if "\0" in text:
        raise InputError(f"{name} must not hold a NUL, got {shown(text)}")
    # the run directory itself may have any name, for no file tells it
    if name != "out" and any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"{name} is no valid UTF-8, as config.toml must be; rename it, got {shown(text)}")
    return text


_WORDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        close = difflib.get_close_matches(
            str(value)[:80] if isinstance(value, str) else "", [str(a) for a in allowed], n=1
        )
        raise InputError(
            f"{name} must be one of {', '.join(map(str, allowed))}, got {shown(value)}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
