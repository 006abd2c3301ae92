"""What somebody may have meant by an option that there is not: ``--lr`` is ``--optim.lr``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def flags_of(help_text: str) -> list[str]:
    """All options that a help in :class:`fastmeta.cli.parser.HelpStyle` lists."""
    heads = re.findall(r"^  (-\S.*?)(?:  |$)", help_text, re.M)
    return [flag for head in heads for flag in re.findall(r"--[a-z][\w.-]*", head)]


def unknown_option(words: Sequence[str], known: Iterable[str]) -> str:
    """``unknown option --lr; did you mean --optim.lr?``, of the first word that looks like an option.

    Without one, of the first word: an argument that has no option before it.
    """
    word = next((w for w in words if w.startswith("-")), words[0]).split("=")[0]
    if not word.startswith("-"):
        data = "--dataset" in known and (":" in word or word.endswith(".npz"))
        named = word if ":" in word else f"npz:{word}"
        return f"unexpected argument {word}" + (f"; did you mean --dataset {named}?" if data else "")
    close = near(word, known)
    return f"unknown option {word}" + (f"; did you mean {' or '.join(close)}?" if close else "")


def near(word: str, known: Iterable[str]) -> list[str]:
    """The options that `word` may stand for, best first, by the first of these rules that finds any.

    The same words joined otherwise (``--optim-lr``, ``--batch_size``); an option of the group that is named; an option
    of any group by its own name (``--lr``); an option that is spelled alike.
    """
    wanted = word.lstrip("-").replace("_", "-").lower()
    names = {flag.lstrip("-"): flag for flag in known}
    group, _, own = wanted.rpartition(".")
    joined = [flag for name, flag in names.items() if _joined(name) == _joined(wanted)]
    if joined:
        return joined
    of_group = {_own(name): flag for name, flag in names.items() if group and name.startswith(f"{group}.")}
    if not of_group and group in names:  # --noise.rate: an option that has no parts
        return [names[group]]
    if of_group:
        return [of_group[name] for name in difflib.get_close_matches(own, of_group, n=1, cutoff=0.3)]
    by_own_name = [flag for name, flag in names.items() if _own(name) == own]
    if by_own_name:
        return by_own_name[:3]
    forms = {form: flag for name, flag in names.items() for form in (_own(name), _joined(name))}
    return [forms[form] for form in difflib.get_close_matches(_joined(wanted), forms, n=1, cutoff=0.7)]


def _joined(name: str) -> str:
    return name.replace(".", "-")


def _own(name: str) -> str:
    return name.rpartition(".")[2]
