"""Flags of a config tree: read by tyro, whose errors become one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import tyro

from fastmeta._text import printable, shown
from fastmeta.cli.near_miss import flags_of, unknown_option
from fastmeta.data import InputError
from fastmeta.training import TrainConfig
from fastmeta.training.values import hints_of

T = TypeVar("T")


def read_flags(kind: type[T], start: T, argv: Sequence[str], *, prog: str, help_text: Callable[[], str]) -> T:
    """`start` with what the flags say, of the dataclass `kind`; `help_text` gives the list of those that there are.

    Raises:
        InputError: an unknown flag, or a value that is none; one line.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=_switches(argv), default=start, prog=prog, registry=_registry())
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(one_line(errors.getvalue(), flags_of(help_text()), prog)) from None


def value_of(argv: Sequence[str], flag: str) -> str | None:
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _switches(argv: Sequence[str]) -> list[str]:
    """``--group.option`` and ``--group.no-option`` of a truth value that may be left open, as an option with a word."""
    words: dict[str, list[str]] = {}
    for table in (f.name for f in fields(TrainConfig)):
        kind = hints_of(TrainConfig)[table]
        for name, hint in hints_of(kind).items() if isinstance(kind, type) and is_dataclass(kind) else ():
            if hint == bool | None:
                option = name.replace("_", "-")
                words[f"--{table}.{option}"] = [f"--{table}.{option}", "yes"]
                words[f"--{table}.no-{option}"] = [f"--{table}.{option}", "no"]
    return [part for word in argv for part in words.get(word, [word])]


def one_line(message: str, known: Sequence[str], prog: str) -> str:
    """The sentence inside tyro's box, which it draws with lines or, where the terminal has none, with dashes."""
    lines = [line.strip("│╭╮╰╯ ") for line in message.splitlines()][1:]  # the first is the box's title
    parts = "\n".join("" if re.fullmatch("[─-]+", line) else line for line in lines).strip().split("\n\n")
    text = " ".join(parts[0].split())
    text, of_config = re.subn(r"^Error parsing run\.\w+: ", "", text)  # a value that the config refuses by name
    if text.startswith("Unrecognized options: "):
        text = unknown_option(text.removeprefix("Unrecognized options: ").split(", "), known)
    return text if of_config else f"{text} ({prog} --help lists the options)"


_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}
_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT"}


def _parsed(kind: Any, text: str, *also: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        *first, last = _NUMBERS[kind], *also
        raise ValueError(f"expected {', '.join(first) + ' or ' if first else ''}{last}, got {shown(text)}") from None


def _registry() -> Any:
    """`int | None` and its like as one plain word whose absence means None, instead of tyro's {None}|INT.

    Texts of a config file are shown by the help as defaults, and so made printable.
    """
    from types import NoneType, UnionType
    from typing import Literal, Union, get_args, get_origin

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _optional(info: Any) -> Any:
        members = get_args(info.type)
        if get_origin(info.type) not in (Union, UnionType) or NoneType not in members:
            return None
        kind, *others = (m for m in members if m is not NoneType)
        also = tuple(word for other in others for word in get_args(other))  # of a number or a word
        choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else None
        if kind is bool:  # said by a flag of its own, see `_switches`
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs=1,
                metavar="{yes,no}",
                instance_from_str=lambda texts: texts[0] == "yes",
                is_instance=lambda value: value is None or isinstance(value, bool),
                str_from_instance=lambda value: ["auto" if value is None else "yes" if value else "no"],
                choices=("yes", "no"),
            )
        metavar = "{" + ",".join(choices) + "}" if choices else _METAVARS[kind]

        def read(texts: list[str]) -> Any:
            if kind in _NUMBERS and texts[0] == "auto":  # takes back what a file says
                return None
            return texts[0] if choices or texts[0] in also else _parsed(kind, texts[0], "auto", *also)

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join((metavar, *also)),
            instance_from_str=read,
            is_instance=lambda value: value is None or value in also or isinstance(value, kind if not choices else str),
            str_from_instance=lambda value: ["auto" if value is None else printable(value)],
            choices=None,
        )

    @registry.primitive_rule
    def _plain(info: Any) -> Any:
        kind = info.type
        if kind not in _METAVARS:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=_METAVARS[kind],
            instance_from_str=lambda texts: texts[0] if kind is str else _parsed(kind, texts[0]),
            is_instance=lambda value: isinstance(value, int | float if kind is float else kind),
            str_from_instance=lambda value: [printable(value)],  # in the help alone
        )

    return registry
