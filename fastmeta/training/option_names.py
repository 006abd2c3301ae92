"""What somebody may have meant by a name that no option has, in a file or as a flag: ``lr`` is ``optim.lr``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator

from fastmeta.training.values import hints_of

#: of a name that is given; no option's is longer
_LONGEST = 80


def names_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Every option of a config and of its tables, as ``table.option``."""
    for field in dataclasses.fields(cls):
        hint = hints_of(cls)[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from names_of(hint, f"{prefix}{field.name}.")
        elif "flags" not in field.metadata:  # the options of a method, which have names of their own
            yield prefix + field.name


def near(word: str, known: Iterable[str]) -> list[str]:
    """The options that `word` may stand for, best first, by the first of these rules that finds any.

    The same words joined otherwise (``--optim-lr``, ``--batch_size``); an option of the group that is named, with its
    words (``--labels.lr``); an option of any group by its own name (``--lr``); one of the group that is spelled alike;
    the group itself, where it is an option (``--noise.rate``); any option that is spelled alike.
    """
    wanted = _plain(word)[:_LONGEST]
    names = {_plain(option): option for option in known}
    group, _, own = wanted.rpartition(".")
    joined = [option for name, option in names.items() if _joined(name) == _joined(wanted)]
    if joined:
        return joined
    of_group = {_own(name): option for name, option in names.items() if group and name.startswith(f"{group}.")}
    with_words = [name for name in of_group if set(own.split("-")) <= set(name.split("-"))]
    if with_words:
        return [of_group[name] for name in difflib.get_close_matches(own, with_words, n=1, cutoff=0)]
    by_own_name = [option for name, option in names.items() if _own(name) == own]
    if by_own_name:
        return by_own_name[:3]
    alike = difflib.get_close_matches(own, of_group, n=1, cutoff=0.6)
    if alike:
        return [of_group[name] for name in alike]
    if group in names:
        return [names[group]]
    forms = {form: option for name, option in names.items() for form in (_own(name), _joined(name))}
    return [forms[form] for form in difflib.get_close_matches(_joined(wanted), forms, n=1, cutoff=0.7)]


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()


def _joined(name: str) -> str:
    return name.replace(".", "-")


def _own(name: str) -> str:
    return name.rpartition(".")[2]
