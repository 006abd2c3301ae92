"""Only one process at a time is in a run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmeta.data import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None  # type: ignore[assignment]


#: seconds for which a lock is tried again: somebody may just look whether there is one
_LOOK = 0.2


def _lock(held: int) -> None:
    last = time.monotonic() + _LOOK
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > last:
                raise
        time.sleep(_LOOK / 20)


def is_held(path: Path) -> bool:
    """Whether a process is in the directory `path`, as far as this machine knows."""
    if fcntl is None:
        return False
    try:
        looked = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        fcntl.flock(looked, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    else:
        return False
    finally:
        os.close(looked)


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
                _lock(held)
            except BlockingIOError:
                raise InputError(f"{path} is in use by another process; wait for it, or take another --out") from None
            except OSError:  # a file system without locks
                pass
            if not (os.path.isdir(path) and os.path.samestat(os.fstat(held), os.stat(path))):
                raise InputError(f"{path} was taken away by another process; try again")
        yield
    finally:
        os.close(held)
