"""Numbers as Python, NumPy, pandas and torch give them, made Python's own. None of the last three is imported for it.

A number is of any integer or floating type, also as an array or a tensor of no dimension. Truth values are none: True
where a rate is wanted is a mistake. Who asks says what was wrong, in its own words, with :func:`shown`.
"""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any

from fastmeta._text import shown

__all__ = ["as_real", "as_whole", "shown"]


def as_real(value: Any) -> float | None:
    """`value` as a float, infinite where it is beyond float64; None for what is no real number."""
    if type(value) is float:
        return value
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except ValueError:  # Decimal("sNaN")
        return math.nan


def as_whole(value: Any) -> int | None:
    """`value` as an int; None for what is of no integer type, 3.0 too."""
    if type(value) is int:
        return value
    value = _scalar(value)
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _scalar(value: Any) -> Any:
    """What stands in an array, a tensor or a NumPy scalar of no dimension; other values as they are."""
    if not hasattr(value, "dtype") or getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except (TypeError, ValueError, RuntimeError):  # a tensor on the meta device
        return None
