"""What somebody may have meant by an option that there is not: ``--lr`` is ``--optim.lr``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fastmeta.training.option_names import near


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
