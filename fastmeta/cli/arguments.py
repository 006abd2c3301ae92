"""What the commands that parse with argparse share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from fastmeta._text import printable


class Parser(argparse.ArgumentParser):
    """Leaves with one line and exit code 2; argparse would print the usage too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{printable(f'{self.prog}: {message}')}\n")


def positive_int(text: str) -> int:
    return at_least(1)(text)


def at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    return parse


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return value


def integers(separator: str, count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """Whole numbers with `separator` between them, `count` of them if given."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split(separator))
        except ValueError:
            values = ()
        if not values or (count and len(values) != count):
            shape = separator.join("N" * (count or 3))
            raise argparse.ArgumentTypeError(f"must look like {shape}, got {text!r}")
        return values

    return parse
