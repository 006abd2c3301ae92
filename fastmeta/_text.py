"""Text of others, such as names, paths and error messages, as it may be shown: one line, no control characters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

#: controls, invisible and direction characters, lone surrogates, separators of lines and paragraphs
_ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: object, most: int | None = None) -> str:
    """`text` as one line that is safe to print: what a terminal would act on, or nobody could see, is escaped.

    A terminal obeys ESC sequences (also the one-byte C1 forms), a newline makes a line of its own, direction marks
    reorder what stands around them, and a lone surrogate cannot be encoded. Each becomes its Python escape, such as
    ``\\x1b``. Files keep the true text; this is for terminals, figures, warnings and messages. With `most`, longer
    texts lose their end.
    """
    text = text if isinstance(text, str) else str(text)
    text = _cut(text, most)  # before the rest, which takes its time for a long text
    if text.isascii() and text.isprintable():
        return text
    return _cut("".join(_escape(c) if unicodedata.category(c) in _ESCAPED else c for c in text), most)


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def printable_lines(text: object) -> str:
    """The same for a text of several lines, which it keeps."""
    return "\n".join(map(printable, str(text).split("\n")))


def shown(value: object, most: int = 80) -> str:
    """`value` for a message: its repr as one printable line of at most `most` characters.

    The repr of others' values may raise (an int beyond 4,300 digits, tables in tables), or be as long as the data.
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # RecursionError and ValueError of Python's own, anything of a class of the user's
        text = f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return printable(text, most)


def reason(error: BaseException, most: int = 500) -> str:
    """``Type: first line`` of an error that may be of the user's code."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # its __str__ is of the user's code too
        lines = []
    return printable(f"{type(error).__name__}: {lines[0] if lines else 'no message'}", most)


def encodable(text: str) -> str:
    """`text` as UTF-8 can write it: names of files may hold bytes that are none, which are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def distinct(names: Sequence[str]) -> list[str]:
    """`names` for tools that refuse equal ones: those that stand there several times bear their number."""
    counts = Counter(names)
    made = [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
    # where somebody has called a class "cat (1)"
    return made if len(set(made)) == len(made) else [f"{number}: {name}" for number, name in enumerate(names)]
