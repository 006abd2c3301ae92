"""Names of code, ``package.module:name``: those that a file gave are told from those that the user gave."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fastmeta._text import reason


class Untrusted(str):
    """A text of a file that anybody may have written.

    It is a text like any other, but :func:`load_object` imports no code by it. Whoever trusts the file makes a plain
    ``str`` of it.
    """


def load_object(spec: str) -> Any:
    """What ``package.module:name`` stands for; ValueError in one line where it cannot be had.

    The import runs code. So a name that comes from a file (:class:`Untrusted`) is refused.
    """
    if isinstance(spec, Untrusted):
        raise ValueError(
            f"{str(spec)!r} names code and comes from a file: if you trust whoever wrote it, have it imported and run "
            "with --trust-code (in Python trust_code=True)"
        )
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"expected package.module:name, got {spec!r}")
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything, a script even that
        raise ValueError(f"cannot import {module_name!r} for {spec!r}: {reason(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module_name!r} has no {attribute!r}, asked for by {spec!r}")
        found = getattr(found, part)
    return found


class _Pickles:
    """Whether pickles are trusted, and whether one was."""

    def __init__(self, trusted: bool) -> None:
        self.trusted, self.met = trusted, False


_pickles: ContextVar[_Pickles | None] = ContextVar("pickles", default=None)


@contextmanager
def trusting_pickles(trusted: bool = True) -> Iterator[None]:
    """Within, pickles are loaded, which run whatever code their writer put there."""
    token = _pickles.set(_Pickles(trusted))
    try:
        yield
    finally:
        _pickles.reset(token)


def check_pickle(what: str) -> None:
    """ValueError unless pickles are trusted. `what` the file is, for the message."""
    pickles = _pickles.get()
    if pickles is None or not pickles.trusted:
        raise ValueError(
            f"it {what}, which would run code of whoever wrote it: write it anew as .npz, or, if you trust them, add "
            "--trust-pickle (in Python trust_pickle=True)"
        )
    pickles.met = True


def needs_pickles() -> bool:
    """Whether a pickle was loaded since they are trusted here: who goes on has to trust it again."""
    pickles = _pickles.get()
    return pickles is not None and pickles.met
