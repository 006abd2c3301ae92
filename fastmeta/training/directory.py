"""Where a run is, and that only one process at a time is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmeta.data import InputError
from fastmeta.training.config import TrainConfig
from fastmeta.training.result import resume_command

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None  # type: ignore[assignment]


def new_directory(config: TrainConfig) -> Path:
    """Where a run of this config will be, empty or not there yet; InputError if `out` is taken."""
    if config.out is not None:
        path = Path(config.out).expanduser()
        check_free(path)
    else:
        source = Path(config.dataset.removeprefix("npz:")).stem
        stem = f"{source}-{config.method}-seed{config.seed}"
        number = 1
        path = Path("runs", stem)
        while path.exists():
            number += 1
            path = Path("runs", f"{stem}-{number}")
    return path


def check_free(path: Path) -> None:
    """InputError if anything stands there."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        way = f", or go on with that run: {resume_command(path)}" if (path / "config.toml").is_file() else ""
        raise InputError(f"{path} is not empty; choose another --out{way}")


def make_directory(config: TrainConfig) -> Path:
    """Make :func:`new_directory`; InputError where that cannot be done."""
    while True:
        path = new_directory(config)
        try:
            path.mkdir(parents=True, exist_ok=config.out is not None)
            return path
        except OSError as error:
            if not isinstance(error, FileExistsError) or config.out is not None:
                raise InputError(f"cannot write the run directory {path}: {error.strerror}") from error
            # a run beside this one has just taken the name: take the next


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Hold the directory `path`; InputError where another process does.

    The lock ends with the process that has it, however that ends, so there is never one to clear away.
    """
    try:
        held = os.open(path, os.O_RDONLY)
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
        yield
    finally:
        os.close(held)
