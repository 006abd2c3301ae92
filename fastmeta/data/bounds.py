"""The ranges that numbers of a user may lie in."""

from __future__ import annotations

import math

from fastmeta._text import shown
from fastmeta.data.errors import InputError

#: of float32
LARGEST_RATE = 3.4e38


def positive(name: str, value: float | None) -> None:
    """For rates, by which float32 is multiplied."""
    if value is not None and not 0 < value <= LARGEST_RATE:
        finite = "at most 3.4e38, as float32 is" if 0 < value < math.inf else "finite"
        raise InputError(f"{name} must be above 0 and {finite}, got {shown(value)}")


def within(name: str, value: float | None, low: float, high: float, *, high_open: bool = False) -> None:
    if value is not None and not (low <= value < high if high_open else low <= value <= high):
        finite = " and finite" if high_open else ""
        interval = f"at least {low}{finite}" if high == math.inf else f"in [{low}, {high}{')' if high_open else ']'}"
        raise InputError(f"{name} must be {interval}, got {shown(value)}")


def at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise InputError(f"{name} must be at least {low}, got {shown(value)}")
