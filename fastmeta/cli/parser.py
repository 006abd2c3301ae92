"""What the commands share: one style of help, one-line errors, kinds of numbers."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from fastmeta._text import printable, shown
from fastmeta.cli.near_miss import flags_of, unknown_option

#: columns of all that is printed, whatever the terminal has
WIDTH = 80


class HelpStyle(argparse.HelpFormatter):
    """The help of every command: a short usage; options to the left, a sentence with the default to the right."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=24, width=WIDTH)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        required = [f"{a.option_strings[0]} {a.metavar}" for a in actions if a.option_strings and a.required]
        positional = [str(a.metavar) for a in actions if not a.option_strings]
        words = " ".join([self._prog, *required, *positional, "[OPTIONS]"])
        self._add_item(lambda: f"usage: {words}\n\n", [])

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        several = action.nargs in ("*", "+")  # once, where argparse would write [X [X ...]]
        return f"{action.metavar} ..." if several else super()._format_args(action, default_metavar)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = " ".join((action.help or "").split()), action.default
        if action.dest == "help":
            return "Print this and exit."
        if action.nargs == 0 or not action.option_strings or "(default: " in text:
            return text
        if not isinstance(default, bool | int | float | str | list | tuple) or default == argparse.SUPPRESS:
            return text
        values = default if isinstance(default, list | tuple) else [default]
        words = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{text} (default: {words})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled; those with lines that are indented, such as examples, stay as they are."""
        parts = text.strip("\n").split("\n\n")
        return "\n\n".join(
            p if "\n  " in p else textwrap.fill(" ".join(p.split()), width, break_on_hyphens=False) for p in parts
        )


def wrapped(text: str, indent: str = "") -> str:
    """`text` with its lines in WIDTH columns: what does not fit goes on behind `indent`; no word is broken."""

    def wrap(line: str) -> list[str]:
        if len(line) <= WIDTH:
            return [line]
        own = line[: len(line) - len(line.lstrip())]
        return textwrap.wrap(
            line, WIDTH, subsequent_indent=f"{own}  " if own else indent, break_long_words=False, break_on_hyphens=False
        )

    return "\n".join(part for line in text.split("\n") for part in wrap(line))


class Parser(argparse.ArgumentParser):
    """Leaves with one line and exit code 2; argparse would print the usage too."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpStyle)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{printable(f'{self.prog}: {message}')}\n")

    def parse(
        self, argv: Sequence[str], commands: Mapping[str, argparse.ArgumentParser] | None = None
    ) -> argparse.Namespace:
        """As parse_args; an unknown option is answered with those that it may stand for.

        `commands` are the parsers of the sub-commands, by the value of `command`.
        """
        args, rest = self.parse_known_args(argv)
        if rest:
            parser = (commands or {}).get(getattr(args, "command", ""), self)
            self.error(unknown_option(rest, flags_of(parser.format_help())))
        return args


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
