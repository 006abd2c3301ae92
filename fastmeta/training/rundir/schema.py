"""What the values of a JSON file of a run may be, looked at before anything is done with them.

A form is a function of a value and of its name that raises a ValueError for a value of another form.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Form = Callable[[Any, str], None]


def _refuse(value: Any, name: str, wanted: str) -> None:
    raise ValueError(f"{name} must be {wanted}, got {reprlib.repr(value)}")


def text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        _refuse(value, name, "a text")


def truth(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        _refuse(value, name, "true or false")


def real(value: Any, name: str) -> None:
    """Any finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(value, name, "a number")


def one_of(*values: str) -> Form:
    def form(value: Any, name: str) -> None:
        if value not in values:
            _refuse(value, name, f"one of {', '.join(values)}")

    return form


def whole(low: int = 0, high: float = math.inf) -> Form:
    """An integer in [low, high]."""

    def form(value: Any, name: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            _refuse(value, name, f"a whole number from {low} to {high:g}" if high < math.inf else f"at least {low}")

    return form


def number(low: float, high: float = math.inf) -> Form:
    """A number in [low, high]."""

    def form(value: Any, name: str) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            _refuse(value, name, f"a number from {low:g} to {high:g}")

    return form


def maybe(form: Form) -> Form:
    """The form, or null."""
    return lambda value, name: None if value is None else form(value, name)


def each(form: Form, count: int | None = None) -> Form:
    """A list of so many values of the form."""

    def of_list(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) != (len(value) if count is None else count):
            _refuse(value, name, "a list" if count is None else f"a list of {count}")
        for number, item in enumerate(value):
            form(item, f"{name}[{number}]")

    return of_list


def table(form: Form) -> Form:
    """An object whose values have the form."""

    def of_object(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            _refuse(value, name, "an object")
        for key, item in value.items():
            form(item, f"{name}.{key}")

    return of_object


def record(needed: Mapping[str, Form], optional: Mapping[str, Form] | None = None) -> Form:
    """An object with these names; others may stand beside them."""

    def of_record(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            _refuse(value, name, "an object")
        inside = f"{name}." if name else ""
        for key, form in needed.items():
            if key not in value:
                raise ValueError(f"{inside}{key} is missing")
            form(value[key], inside + key)
        for key, form in (optional or {}).items():
            if key in value:
                form(value[key], inside + key)

    return of_record


def anything(value: Any, name: str) -> None:
    """No more than that it is there."""
