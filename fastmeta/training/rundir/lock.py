"""Only one process at a time is in a run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmeta.data import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Hold the directory `path`; InputError where another process does.

    The lock ends with the process that has it, however that ends, so there is never one to clear away.
    """
    try:
        held = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise InputError(f"cannot open the run directory {path}: {error.strerror}") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{path} is in use by another process; wait for it, or take another --out") from None
            except OSError:  # a file system without locks
                pass
            if not (os.path.isdir(path) and os.path.samestat(os.fstat(held), os.stat(path))):
                raise InputError(f"{path} was taken away by another process; try again")
        yield
    finally:
        os.close(held)
