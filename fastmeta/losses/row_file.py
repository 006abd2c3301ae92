"""One file of rows (N, C) of fixed length behind a header; disk is taken up by the rows that are written alone."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import mmap
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fastmeta.functional.finite import all_finite

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"fmrows1\n"
#: bytes before the first row: a page
HEAD = 4096
#: where the header's text begins; before it stand the magic, a generation and whether rows have been written
_TEXT = 64
#: rows from this size on go by a call of the system each, which costs less than the faults of a mapping
_LARGE = 1024
#: disk is asked for in so many bytes at once
_CHUNK = 65536
#: bytes that are touched through a mapping before it lets go of its pages, which the system keeps as it likes
_MAPPED = 2**26


class TableError(OSError):
    """A label table in a file cannot go on: the message says why and what to do, in one line."""

    def __str__(self) -> str:
        return str(self.strerror)


class RowFile(io.IOBase):
    """Rows `first` to `first` + `count` of `total` in the file at `path`, which other processes may have other rows of.

    It is an IOBase, so that nobody who looks for the state of a module looks into it.
    """

    def __init__(self, path: Path, classes: int, dtype: torch.dtype, first: int, count: int, total: int) -> None:
        self.path, self.classes, self.dtype = path, classes, dtype
        self.first, self.count, self.total = first, count, total
        self.size = classes * dtype.itemsize  # bytes of a row
        self.id = ""  # of the file that is open
        self.generation = 0  # that its header tells
        self.broken: set[int] = set()  # rows that hold a NaN or an infinity
        self.full = False  # whether each row is known to have been written
        self._writes = 0  # since somebody looked
        self._file: int | None = None
        self._map: mmap.mmap | None = None
        self._rows = torch.empty(0)  # as the mapping has them
        self._touched = 0
        self._allocated = np.zeros(0, bool)
        self._all_allocated = False

    @property
    def opened(self) -> bool:
        return self._file is not None

    def fail(self, error: OSError, doing: str) -> NoReturn:
        way = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that, or "
        why = f"{os.strerror(error.errno or 0)}; {way}name a file elsewhere"
        raise TableError(error.errno, f"cannot {doing} the label rows in {self.path}: {why}") from error

    # -- the header -----------------------------------------------------------------------------------------

    def check(self, owner: str) -> None:
        """ValueError where another one's rows lie at the path, or none can be made there."""
        if not os.path.isdir(self.path.parent):
            raise ValueError(f"label rows cannot lie in {self.path}: {self.path.parent} is no folder; make it first")
        if owner and os.path.lexists(self.path):
            self._may_replace(owner)

    def _may_replace(self, owner: str) -> None:
        try:
            head = self._read_head()
        except ValueError as error:
            raise ValueError(f"{error}; name another file for the label rows") from None
        if head["begun"] and (not owner or head["owner"] != owner):
            raise ValueError(
                f"{self.path} holds the label rows of another run; name another file, or delete it if nobody goes on "
                "with that run"
            )

    def create(self, owner: str) -> None:
        """A new file, in the place of one that nobody has written to, or that had the same owner."""
        self.close_rows()
        if os.path.lexists(self.path):
            self._may_replace(owner)
            self._check_unused()
        text = {"id": secrets.token_hex(8), "owner": owner, **self._form()}
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(file, (_MAGIC.ljust(_TEXT, b"\0") + json.dumps(text).encode()).ljust(HEAD, b"\0"))
                os.ftruncate(file, HEAD + self.total * self.size)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(part, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            self.fail(error, "make the file of")
        self.open_rows()

    def _form(self) -> dict[str, Any]:
        return {"rows": self.total, "classes": self.classes, "dtype": str(self.dtype).removeprefix("torch.")}

    def _read_head(self) -> dict[str, Any]:
        try:
            if not os.path.isfile(self.path):
                raise ValueError(f"{self.path} is no regular file")
            with open(self.path, "rb") as file:
                head = file.read(HEAD)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from None
        if not head.startswith(_MAGIC):
            raise ValueError(f"{self.path} holds no label rows")
        try:
            text = json.loads(head[_TEXT:].rstrip(b"\0"))
            form = {key: text[key] for key in ("rows", "classes", "dtype")}
            found = {"id": str(text["id"]), "owner": str(text["owner"]), "form": form}
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{self.path} is damaged: its header cannot be read") from None
        whole = size == HEAD + self.total * self.size or form != self._form()
        return {**found, "generation": int.from_bytes(head[8:16], "little"), "begun": head[16] > 0, "whole": whole}

    def open_rows(self, wanted: str | None = None) -> None:
        """Open the file that is there; ValueError for one of another form, another `wanted` id, or in use elsewhere."""
        if not os.path.lexists(self.path):
            raise ValueError(f"the label rows were in {self.path}, which is gone; bring it back")
        head = self._read_head()
        if head["form"] != self._form():
            raise ValueError(f"{self.path} holds label rows of another form: {head['form']}, expected {self._form()}")
        if wanted is not None and head["id"] != wanted:
            raise ValueError(f"{self.path} holds the label rows of another run; bring the file of this one back")
        if not head["whole"]:
            raise ValueError(f"{self.path} is damaged: it has lost rows at its end; bring it back")
        try:
            file = os.open(self.path, os.O_RDWR)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be opened: {error.strerror}") from None
        try:
            if self.count:
                self._lock(file, self.count * self.size, self._place(0))
        except BaseException:
            os.close(file)
            raise
        self._file, self.id = file, head["id"]
        self.generation = head["generation"]
        begin, end = self._place(0), self._place(self.count)
        self._all_allocated = False
        self._allocated = np.zeros(-(-end // _CHUNK) - begin // _CHUNK, bool)
        if self.size < _LARGE and self.count:
            self._map = mmap.mmap(file, HEAD + self.total * self.size)
            self._map_rows()

    def _map_rows(self) -> None:
        assert self._map is not None
        numbers = torch.frombuffer(self._map, dtype=self.dtype, offset=HEAD, count=self.total * self.classes)
        self._rows = numbers.view(self.total, self.classes)[self.first : self.first + self.count]

    def _check_unused(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            file = os.open(self.path, os.O_RDWR)
            try:
                self._lock(file, 0, 0)
            finally:
                os.close(file)

    def _lock(self, file: int, size: int, begin: int) -> None:
        """So many bytes for this process alone, or all from there on; nothing where the file system knows no locks."""
        if fcntl is None:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, size, begin)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"{self.path} is in use by another process; wait for that run to end") from None

    def note(self, generation: int) -> None:
        """This generation has begun; kept in the header, which ranks write alike."""
        assert self._file is not None
        self.generation = generation
        try:
            os.pwrite(self._file, generation.to_bytes(8, "little") + b"\1", 8)
        except OSError as error:
            self.fail(error, "write")

    # -- rows -----------------------------------------------------------------------------------------------

    def _place(self, row: int) -> int:
        """Where a row of this process begins in the file."""
        return HEAD + (self.first + row) * self.size

    def read(self, index: Tensor) -> Tensor:
        """Rows `index` (n,) of those of this process, as bytes have it: what was never written is zeros."""
        assert self._file is not None
        if self._map is not None:
            self._touch(len(index))
            return self._rows[index]
        rows = torch.empty(len(index), self.classes, dtype=self.dtype)
        view = _bytes_of(rows)
        try:
            own = range(self.count)  # which knows negative numbers, and an IndexError, as a tensor does
            for k, row in enumerate(index.tolist()):
                got = os.preadv(self._file, [view[k * self.size : (k + 1) * self.size]], self._place(own[row]))
                if got != self.size:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError as error:
            self.fail(error, "read")
        return rows

    def write(self, index: Tensor, rows: Tensor) -> None:
        assert self._file is not None
        rows = rows.detach().contiguous()
        self._look(index, rows)
        try:
            if self._map is not None:
                self._allocate(index)
                self._touch(len(index))
                self._rows[index] = rows
                return
            view = _bytes_of(rows)
            own = range(self.count)
            for k, row in enumerate(index.tolist()):
                _pwrite(self._file, view[k * self.size : (k + 1) * self.size], self._place(own[row]))
        except OSError as error:
            self.fail(error, "write")

    def note_written(self, rows: int, written: Tensor) -> None:
        """So many rows more; `written` (N,) says which ones have been, and is looked at now and then."""
        self._writes += rows
        if self._writes >= self.count:
            self.full, self._writes = bool(written.all()), 0

    def _look(self, index: Tensor, rows: Tensor) -> None:
        if not bool(all_finite([rows])):
            self.broken |= set(index[~rows.isfinite().all(1)].tolist())
        elif self.broken:
            self.broken -= set(index.tolist())

    def _allocate(self, index: Tensor) -> None:
        """Disk for these rows, as an error where there is none: a store through a mapping would end the process."""
        if self._all_allocated:
            return
        assert self._file is not None
        base = self._place(0) // _CHUNK
        first = (index.numpy() * self.size + self._place(0)) // _CHUNK - base
        last = ((index.numpy() + 1) * self.size + self._place(0) - 1) // _CHUNK - base
        if self._allocated[first].all() and self._allocated[last].all():
            return
        own = self._place(0), self._place(self.count)
        for chunk in np.unique(np.concatenate([first, last])).tolist():
            if not self._allocated[chunk]:
                begin, end = max((base + chunk) * _CHUNK, own[0]), min((base + chunk + 1) * _CHUNK, own[1])
                _reserve(self._file, begin, end - begin)
                self._allocated[chunk] = True
        self._all_allocated = bool(self._allocated.all())

    def _touch(self, rows: int) -> None:
        self._touched += rows * max(self.size, mmap.PAGESIZE)
        if self._touched > _MAPPED and self._map is not None:
            if hasattr(self._map, "madvise"):
                self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def expect(self, index: Tensor) -> None:
        """These rows will be read soon: the system may bring them from the disk meanwhile."""
        if self._file is not None and self._map is None and hasattr(os, "posix_fadvise"):
            for row in index.tolist():
                os.posix_fadvise(self._file, self._place(row), self.size, os.POSIX_FADV_WILLNEED)

    def flush(self) -> None:
        """All rows that were written are on the disk."""
        assert self._file is not None
        try:
            os.fsync(self._file)
        except OSError as error:
            self.fail(error, "write")

    def close_rows(self) -> None:
        self._rows = torch.empty(0)
        if self._map is not None:
            with contextlib.suppress(BufferError):  # rows of it are still held: it goes with them
                self._map.close()
            self._map = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close_rows()


def _bytes_of(rows: Tensor) -> memoryview:
    array = rows.view(torch.uint8).numpy()
    return array.data.cast("B") if array.size else memoryview(b"")


def _pwrite(file: int, content: memoryview, place: int) -> None:
    while content:
        done = os.pwrite(file, content, place)
        content, place = content[done:], place + done


def _reserve(file: int, begin: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, begin, size)
    else:  # what is there, written again
        there = os.pread(file, size, begin).ljust(size, b"\0")
        _pwrite(file, memoryview(there), begin)


def sync_folder(path: Path) -> None:
    """What was made in the folder stays if the machine stops now."""
    with contextlib.suppress(OSError, AttributeError):  # of systems that cannot
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
