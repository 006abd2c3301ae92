"""The files of a run: written whole or not at all, and read as what anybody may have put there.

Everything that changes a run directory goes through the functions here, and through no link that lies in it: a
directory that somebody sent may hold links to files of the reader's. What is read may be a link, to a regular file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastmeta._memory import free_memory
from fastmeta.data import InputError

T = TypeVar("T")

#: bytes of a JSON text, or of the header of a weight file, that is taken in whole; the largest real ones have a tenth
MOST_TEXT = 32 * 2**20
_PIECE = 2**20
_OWN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# without O_NONBLOCK the opening of a FIFO waits for its other end
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _OWN
_WRITE = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | _OWN
#: said by file systems that cannot sync a directory, such as some of a network
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}


def user_path(value: Any, name: str) -> Path:
    """The path that a user gave as `name`, its ``~`` filled in; InputError for what cannot be a path."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise InputError(f"{name} must be a path, got {type(value).__name__}")
    text = os.fsdecode(value)
    if not text:
        raise InputError(f"{name} is empty; name a folder")
    try:
        if b"\0" in os.fsencode(text):
            raise InputError(f"{name} holds a NUL, which no path can: {text!r}")
        return Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds a character that no path can: {text!r}") from error
    except RuntimeError as error:  # of a user who is not known here
        raise InputError(f"{name}: {text} has no home folder here; write the path out") from error


# -- writing ----------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """`path` holds either what it held or all of `content`, even if the machine stops now.

    A folder that is made for it is there for good with the next file that is written beside that folder.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    write_part(path, content)
    commit(path)


def part_of(path: Path) -> Path:
    """Where the content of `path` is written first.

    One name for all processes: what a killed one has left is replaced, and only one at a time has a run.
    """
    return path.with_name(f".{path.name}.part")


def write_part(path: Path, content: bytes) -> None:
    """The first half of :func:`write_atomically`: all of `content` lies on the disk, `path` is untouched."""
    part = part_of(path)
    _unlink(part)  # and never written into: it may be a link to another file
    try:
        file = os.open(part, _WRITE | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        _unlink(part)
        raise


def commit(path: Path) -> None:
    """The second half: `path` is what was written."""
    part = part_of(path)
    try:
        os.replace(part, path)
    except BaseException:
        _unlink(part)
        raise
    sync_directory(path.parent)


def append(path: Path, content: bytes) -> None:
    """`content` at the end of `path`, on the disk; a failure may leave a part of it there."""
    file = _open_regular(path, _WRITE | os.O_APPEND | os.O_CREAT)
    try:
        _write(file, content)
        os.fsync(file)
    finally:
        os.close(file)


def empty(path: Path) -> None:
    """`path` without content, made if it is not there. Not synced: there is nothing to lose."""
    os.close(_open_regular(path, _WRITE | os.O_TRUNC | os.O_CREAT))


def make_folders(path: Path, made: list[Path]) -> None:
    """Make `path` and its parents; `made` takes in those that were not there, outermost first."""
    missing = []
    while not os.path.isdir(path) and path != path.parent:
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError:  # made by another run in the meantime, or no folder and in the way
            if not os.path.isdir(folder):
                raise
        else:
            made.append(folder)
            sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """What was made or renamed in the directory `path` stays if the machine stops now."""
    if os.name == "nt":  # whose directories cannot be opened
        return
    directory = os.open(path, os.O_RDONLY | _OWN)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(directory)


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


# -- reading ----------------------------------------------------------------------------------------------


def _open_regular(path: Path, flags: int) -> int:
    """OSError for a folder, a FIFO or a device, which might never end, or for no file at all."""
    file = os.open(path, flags, 0o666)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read(path: Path, reader: Callable[[Path], T]) -> T:
    """What `reader` makes of a file of a run; InputError in one line for whatever it raises."""
    try:
        return reader(path)
    except Exception as error:  # whatever bytes of anybody's make a library raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
        reason = reason.splitlines()[0]
        raise InputError(
            f"{path} cannot be read ({reason}): the run is damaged or of another version; run it again"
        ) from error


def read_head(path: Path, count: int) -> tuple[int, bytes]:
    """Size of a regular file and its first `count` bytes; OSError for anything else."""
    with os.fdopen(_open_regular(path, _READ), "rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(count)


def read_tail(path: Path, most: int) -> bytes:
    """The last bytes of a regular file, at most so many."""
    with os.fdopen(_open_regular(path, _READ), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file. ValueError, before anything is read, for more than `most` bytes."""
    with os.fdopen(_open_regular(path, _READ), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, expected at most {most:,}")
        return file.read(most)


def digest_of(path: Path, size: int | None = None, each: Callable[[bytes], None] | None = None) -> str:
    """Digest of a regular file, or of its first `size` bytes; `each` is handed them piece by piece."""
    digest = new_digest()
    with os.fdopen(_open_regular(path, _READ), "rb") as file:
        left = os.fstat(file.fileno()).st_size if size is None else size
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            digest.update(piece)
            if each is not None:
                each(piece)
    return digest.hexdigest()


def seal_of(path: Path) -> dict[str, Any]:
    """Size and digest of a finished file, as a checkpoint and a summary keep them."""
    return {"bytes": read_head(path, 0)[0], "digest": digest_of(path)}


def is_sealed(path: Path, seal: Any) -> bool:
    """Whether a regular file is still what :func:`seal_of` saw; a file of another size is not read."""
    return isinstance(seal, dict) and seal["bytes"] == read_head(path, 0)[0] and seal["digest"] == digest_of(path)


def new_digest(content: bytes = b"") -> hashlib.blake2b:
    """As everywhere in a run."""
    return hashlib.blake2b(content, digest_size=16)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in which NaN and infinities are null; lone surrogates are escaped, so that it can be encoded."""

    def clean(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {k: clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    text = json.dumps(clean(value), indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # \\ud800 is JSON's escape too


def parse_json(text: bytes | str) -> Any:
    """Strict JSON: ValueError also for a name twice, NaN, infinities, and values too deep for Python to read."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("its values lie too deep in each other") from None


def read_schema(path: Path, schema: str, version: int) -> dict[str, Any]:
    """A JSON object that says it is of this schema and version; ValueError for anything else."""
    content = parse_json(read_bytes(path))
    content = content if isinstance(content, dict) else {}
    found = content.get("schema"), content.get("schema_version")
    if found != (schema, version):
        given = " ".join(str(part)[:40] for part in found)
        raise ValueError(f"schema {given}, this fastmeta reads {schema} {version}")
    return content


def check_memory(size: int) -> None:
    """ValueError where `size` bytes are more than the machine has free, as far as it says."""
    free = free_memory()
    if free is not None and size > free:
        raise ValueError(f"it has {size:,} bytes, and {free:,} bytes of memory are free")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return values


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return value
