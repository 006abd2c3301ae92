"""What the commands that parse with argparse share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from fastmeta._text import printable, shown


class Parser(argparse.ArgumentParser):
    """Leaves with one line and exit code 2; argparse would print the usage too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{printable(f'{self.prog}: {message}')}\n")


#: rows, classes, sizes and seeds of the command line
MOST = 2**63 - 1
MOST_THREADS = 1024


def positive_int(text: str) -> int:
    return at_least(1)(text)


def whole(text: str) -> int:
    """Whose range a config checks."""
    return at_least(-MOST)(text)


def threads(text: str) -> int:
    return at_least(1, MOST_THREADS)(text)


def seed(text: str) -> int:
    return at_least(0)(text)


def at_least(low: int, high: int = MOST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _whole(text)
        if value is None:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {shown(text)}")
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {shown(value)}")
        if value > high:
            limit = "below 2^63" if high == MOST else f"at most {high:,}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {shown(value)}")
        return value

    return parse


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # also of more digits than Python reads
        return None


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {shown(text)}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {printable(text, 80)}")
    return value


def integers(separator: str, count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """Whole numbers with `separator` between them, `count` of them if given."""

    def parse(text: str) -> tuple[int, ...]:
        found = [_whole(part) for part in text.split(separator)]
        values = tuple(value for value in found if value is not None and abs(value) <= MOST)
        if len(values) < len(found) or (count and len(values) != count):
            shape = separator.join("N" * (count or 3))
            raise argparse.ArgumentTypeError(f"must look like {shape}, got {shown(text)}")
        return values

    return parse
