"""The help of a config tree: one option for each field of its dataclasses, in the style of the other commands."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastmeta._text import printable
from fastmeta.cli.parser import Parser

#: what stands for a value of a kind
_WORDS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT"}


def config_help(parser: Parser, own: object, tree: object, without: Collection[str] = ()) -> str:
    """`parser`'s help with an option for each field of `own`, which has no defaults to tell, and of `tree`.

    A field that is a dataclass is a group of options, ``--group.option``, with its docstring above it; the group has
    the name that the field's metadata gives under "flags", or the field's own. What an option means is the string below
    its field. Fields of the tree by the names `without` are left out.
    """
    for field, text in _fields(own):
        if not dataclasses.is_dataclass(getattr(own, field.name)):
            _add(parser, field.name, _hint(own, field), text, None)
    for field, text in _fields(tree):
        value = getattr(tree, field.name)
        if not dataclasses.is_dataclass(value) and "flags" not in field.metadata and field.name not in without:
            _add(parser, field.name, _hint(tree, field), text, _told(value))
    for field, _ in _fields(tree):
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value) and dataclasses.fields(value):
            name_of_group = field.metadata.get("flags", field.name)
            group = parser.add_argument_group(f"{name_of_group} options", _doc(type(value)))
            for part, text in _fields(value):
                name = f"{name_of_group}.{part.name}"
                _add(group, name, _hint(value, part), text, _told(getattr(value, part.name)))
    return parser.format_help().rstrip()


def _doc(of: type) -> str | None:
    """Of a class that has none, dataclasses write its signature there."""
    doc = inspect.getdoc(of)
    return None if doc is None or doc.startswith(f"{of.__name__}(") else doc


def _add(group: Any, name: str, hint: Any, text: str, default: str | None) -> None:
    flag = f"--{name.replace('_', '-')}"
    if default is not None:
        text = f"{text} (default: {default})"
    if _without_none(hint) is bool:
        parts = flag.removeprefix("--").rpartition(".")
        flags = [flag] if default is None else [flag, f"--{parts[0]}{parts[1]}no-{parts[2]}"]
        group.add_argument(*flags, action="store_true", help=_escaped(text))
        return
    several = get_origin(hint) is tuple
    kind = get_args(hint)[0] if several else _without_none(hint)
    choices = get_args(kind) if get_origin(kind) is Literal else None
    word = "{" + ",".join(map(str, choices)) + "}" if choices else _WORDS.get(kind, "VALUE")
    word = "|".join((word, *_words_beside(hint)))
    group.add_argument(flag, metavar=word, nargs="*" if several else None, help=_escaped(text))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _without_none(hint: Any) -> Any:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return next((m for m in members if m is not types.NoneType), hint)


def _words_beside(hint: Any) -> tuple[str, ...]:
    """Of ``float | Literal["a word"]``."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return tuple(word for m in members[1:] if get_origin(m) is Literal for word in get_args(m))


def _told(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(_told, value)) if isinstance(value, tuple) else printable(value)


def _hint(of: object, field: dataclasses.Field[Any]) -> Any:
    return get_type_hints(type(of)).get(field.name, str)


def _fields(of: Any) -> Iterator[tuple[dataclasses.Field[Any], str]]:
    texts = _texts(type(of))
    for field in dataclasses.fields(of):
        yield field, texts.get(field.name, "")


def _texts(of: type) -> Mapping[str, str]:
    """The strings below the fields of a class; none where there is no source."""
    found: dict[str, str] = {}
    for kind in reversed(of.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(statements):
            string = below.value if isinstance(below, ast.Expr) else None
            text = string.value if isinstance(string, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                found[field.target.id] = " ".join(text.split())
    return found
