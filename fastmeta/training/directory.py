"""Where a run is, what stands there, and that only one process at a time is in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmeta.data import InputError
from fastmeta.training.config import TrainConfig
from fastmeta.training.files import CONFIG, METRICS, STATE, make_folders, part_of, sync_directory, user_path
from fastmeta.training.result import command, resume_command

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None  # type: ignore[assignment]

#: bytes of a file name that every usual file system takes
_MOST_NAME = 255
#: names that other runs may take while this one looks for its own
_MOST_RIVALS = 1000


def new_directory(config: TrainConfig) -> Path:
    """Where a run of this config will be: free, or not there yet. InputError if `out` is taken."""
    if config.out is not None:
        path = user_path(config.out, "out")
        check_free(path)
        return path
    return next(path for path in _numbered(config) if not os.path.lexists(path))


def _numbered(config: TrainConfig) -> Iterator[Path]:
    """runs/DATASET-METHOD-seedN, then the same with -2, -3, …"""
    stem = Path(config.dataset.removeprefix("npz:")).stem
    source = "".join(c if c.isprintable() else "_" for c in stem)
    number = 1
    while True:
        end = f"-{config.method}-seed{config.seed}" + (f"-{number}" if number > 1 else "")
        room = max(1, _MOST_NAME - len(end))
        # cut by characters, so that none is torn
        while len(os.fsencode(source)) > room:
            source = source[:-1]
        yield Path("runs", source + end)
        number += 1


def check_free(path: Path) -> None:
    """InputError if anything stands there but an empty folder, or one with a start that was cut off."""
    if os.path.isdir(path):
        try:
            if not os.listdir(path) or only_a_beginning(path):
                return
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}; choose another --out") from error
    elif not os.path.lexists(path):
        return
    elif not os.path.isfile(path):
        what = "a link to nothing" if os.path.islink(path) and not os.path.exists(path) else "no folder"
        raise InputError(f"{path} is {what}; choose another --out")
    way = f", or go on with that run: {resume_command(path)}" if os.path.isfile(path / CONFIG) else ""
    raise InputError(f"{path} is not empty; choose another --out{way}")


# The first file of a run is the unfinished config.toml, and the last step of its start gives that file its name. So
# what a start that was cut off leaves can be told from a run, and from files of the user's: nothing is lost with it.


def only_a_beginning(path: Path) -> bool:
    """Whether all that the folder `path` holds is what a start of a run leaves that was cut off."""
    found = {entry.name: entry for entry in os.scandir(path)}
    config, metrics, states = (
        found.pop(name, None) for name in (part_of(CONFIG).name, METRICS.name, STATE.parent.name)
    )
    if found or not all(entry is None or entry.is_file(follow_symlinks=False) for entry in (config, metrics)):
        return False
    if metrics is not None and metrics.stat(follow_symlinks=False).st_size:
        return False
    if states is None:
        return True
    if not states.is_dir(follow_symlinks=False):
        return False
    inside = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(states)}
    known = {part_of(STATE).name} if config is None else {part_of(STATE).name, STATE.name}
    return inside.keys() <= known and all(inside.values())


def remove_beginning(path: Path, made: list[Path]) -> None:
    """Take away what a start has written into the folder `path`, and the folders that were `made` for it."""
    for name in (CONFIG, METRICS, STATE):
        for file in (path / name, path / part_of(name)):
            with contextlib.suppress(OSError):
                os.unlink(file)
    _remove_folders([*made, path / STATE.parent])


def _remove_folders(made: list[Path]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # something of another's is in it
            os.rmdir(folder)


def begun_directory(path: Path) -> Path:
    """`path` if a run has begun there; otherwise an InputError that says how to begin it."""
    if os.path.isfile(path / CONFIG):
        return path
    what = f"{path} is no run directory: it has no {CONFIG}"
    with contextlib.suppress(OSError):
        names = set(os.listdir(path))
        if not names:
            raise InputError(f"{what}; it is empty: begin the run as the first time")
        if only_a_beginning(path):
            part = part_of(path / CONFIG)
            way = "begin it again as the first time"
            if names > {part.name}:  # or the file may be half written
                way += f", or by {command('--config', str(part), '--out', str(path))}"
            raise InputError(f"{what}; its start was cut off before any step, and nothing is lost: {way}")
    raise InputError(what)


def make_directory(config: TrainConfig, made: list[Path] | None = None) -> Path:
    """Make :func:`new_directory`; InputError where that cannot be done. `made` takes in folders that it has made."""
    made = [] if made is None else made
    path = new_directory(config)
    try:
        if config.out is not None:
            make_folders(path, made)
            return path
        make_folders(path.parent, made)
        rivals = 0
        for path in _numbered(config):
            if os.path.lexists(path):
                continue
            try:
                path.mkdir()
            except FileExistsError:  # a run beside this one has just taken the name: take the next
                rivals += 1
                if rivals == _MOST_RIVALS:
                    raise
            else:
                made.append(path)
                sync_directory(path.parent)
                return path
        raise AssertionError("there is always one more number")
    except OSError as error:
        _remove_folders(made)
        raise InputError(f"cannot write the run directory {path}: {error.strerror}{_in_the_way(path)}") from error


def _in_the_way(path: Path) -> str:
    """What stands where a folder of `path` should be, and the way out; "" where nothing does."""
    for folder in (path, *path.parents):
        if os.path.islink(folder) and not os.path.exists(folder):
            return (
                f"; {folder} is a link to {os.readlink(folder)}, which cannot be followed: mend it, or name another out"
            )
        if os.path.lexists(folder) and not os.path.isdir(folder):
            return f"; {folder} is no folder: move it away, or name another out"
    return ""


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
