"""Nested mappings, as TOML gives them, into the dataclasses of a config."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from fastmeta._text import shown
from fastmeta.data import InputError
from fastmeta.training.option_names import names_of, near
from fastmeta.training.values import check_types, hints_of


def nested(cls: type, values: Mapping[str, Any], prefix: str, known: Sequence[str]) -> Any:
    """A dataclass of nested mappings; `known` are all options that a key may have been meant for."""
    if not isinstance(values, Mapping):
        raise InputError(f"a config is a table of values, got {shown(values)}")
    hints = hints_of(cls)
    for key in values:
        if key not in hints:
            tables = {name.partition(".")[0] for name in known if "." in name}
            table = isinstance(values[key], Mapping)
            close = difflib.get_close_matches(str(key)[:80], tables, n=1) if table else near(f"{prefix}{key}", known)
            close = [option for option in close if option != prefix.rstrip(".")]  # the table that it stands in
            listed = f"known are {', '.join(hints)}" if hints else "there are none"
            hint = f"did you mean {' or '.join(close)}?" if close else listed
            raise InputError(f"unknown key {shown(f'{prefix}{key}')}; {hint}")
    arguments = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(hints[key], type) and dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} must be a table [{name}], got {shown(value)}")
            value = nested(cast(type, hints[key]), value, f"{name}.", known)
        arguments[key] = value
    return cls(**arguments)


def options_of(cls: type, options: Any, method: str, known: Iterable[str]) -> Any:
    """`options` as the method's Config, which a mapping of some of its values or None is made; `known` are others'."""
    if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise InputError(f"method {method}: Config must be a frozen dataclass, got {shown(cls)}")
    if options is None or isinstance(options, Mapping):
        options = nested(cls, options or {}, "method.", [*names_of(cls, "method."), *known])
    if type(options) is not cls:
        raise InputError(
            f"options must be a {cls.__qualname__} or a mapping, as method={method} wants it, got {shown(options)}"
        )
    check_types(options, "method.")
    return options
