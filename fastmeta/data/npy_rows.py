"""Rows of arrays in .npy files, which are read as they are asked for.

They are read from the file, and not through a mapping of it into memory: where a mapped file shrinks, or its disk
fails, the process ends without a word (SIGBUS), and its pages count as memory of every process that looks at them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import printable, reason
from fastmeta.data.errors import InputError
from fastmeta.data.npy_header import Declared, open_regular, read_header, short
from fastmeta.data.pictures import digest
from fastmeta.data.source import as_slice, digest_of
from fastmeta.data.statistics import pieces, spans

#: bytes of rows up to which all of them go into a fingerprint, and are looked at for equal ones: half a second
LOOKED_AT = 2**28
#: of more, so many stand for all
SAMPLED = 256
#: rows whose places are worked out together
AT_ONCE = 2**16
#: columns behind each other are read whole, of at most one part in so many of what memory is free
SHARE = 4
_WAY = "write it anew with np.save"


class NpyFile:
    """A .npy file, open: its header was held against its size. InputError, in one line, for any other bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path, "npy:DIR wants files written by np.save") as file:
            try:
                self.declared: Declared = read_header(file)
            except Exception as error:  # of numpy, ast, struct: any kind, for any bytes
                raise self._broken(str(error) if type(error) is ValueError else reason(error)) from error
            wanted, there = self.declared.nbytes, os.fstat(file.fileno()).st_size - self.declared.header_bytes
            if wanted != there:
                raise self._broken(f"its header declares {short(wanted)} bytes of data, and {there:,} are there")
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self.row_bytes = self.declared.nbytes // max(1, self.declared.shape[0] if self.declared.shape else 1)
        self._columns: np.ndarray | None = None  # all of it, where a row does not lie in one piece

    def __reduce__(self) -> Any:
        """Another process opens it itself: of the path, whatever lies there then."""
        return _again, (self.path, self.declared)

    def whole(self) -> np.ndarray:
        """The array, for what is small, such as labels."""
        declared = self.declared
        free = free_memory()
        if free is not None and declared.nbytes > free:
            raise InputError(
                f"{self.path} holds {gibibytes(declared.nbytes)}, and {gibibytes(free)} of memory are free"
            )
        flat = np.empty(declared.nbytes, np.uint8)
        self._into(flat, 0, 0)
        array = flat.view(declared.dtype) if declared.nbytes else np.empty(0, declared.dtype)
        return array.reshape(declared.shape[::-1]).T if declared.fortran_order else array.reshape(declared.shape)

    def check_rows(self) -> None:
        """InputError where rows cannot be read one by one, and all of them cannot be held."""
        declared, free = self.declared, free_memory()
        if not declared.fortran_order or declared.ndim < 2 or declared.nbytes == 0:
            return
        if free is not None and SHARE * declared.nbytes > free:
            raise InputError(
                f"{self.path} holds columns one behind the other (Fortran order), so that no row can be read by "
                f"itself, and its {gibibytes(declared.nbytes)} are more than a quarter of the memory that is free; "
                "write it anew as np.save(path, np.ascontiguousarray(array))"
            )
        self._columns = np.ascontiguousarray(self.whole())

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray | slice) -> None:
        """Rows (n,) int64, in any order, into ``out[places]``, which is of the file's own dtype."""
        if self._columns is not None:
            out[places] = self._columns[rows]
            return
        flat, width = out.reshape(len(out), -1).view(np.uint8), self.row_bytes
        if isinstance(places, slice) and bool((np.diff(rows) >= 0).all()):
            flat = flat[places]
            begins = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            for first, last in pairwise(begins):  # what lies together is read at once
                self._into(flat[first:last].reshape(-1), int(rows[first]) * width, int(rows[first]))
            return
        to = np.arange(len(out))[places]
        order = np.argsort(rows, kind="stable")  # the file is read from its beginning to its end
        for row, place in zip(rows[order].tolist(), to[order].tolist(), strict=True):
            self._into(flat[place], row * width, row)

    def _into(self, flat: np.ndarray, offset: int, row: int) -> None:
        rest, offset = flat.data, offset + self.declared.header_bytes
        while rest:
            try:
                got = os.preadv(self._file, [rest], offset)
            except OSError as error:
                raise InputError(
                    f"{self.path} cannot be read at row {row} ({error.strerror}); mend that and resume the run"
                ) from error
            if not got:
                raise InputError(
                    f"{self.path} ends before row {row + (len(flat) - len(rest)) // max(1, self.row_bytes)}: it has "
                    "become shorter since it was opened; bring it back and resume the run"
                )
            rest, offset = rest[got:], offset + got

    def _broken(self, why: str) -> InputError:
        return InputError(f"{self.path} cannot be read as .npy ({printable(why, 300)}); {_WAY}")


def _again(path: Path, declared: Declared) -> NpyFile:
    file = NpyFile(path)
    if file.declared != declared:
        raise InputError(f"{path} holds another array now than when the run began; bring it back and resume the run")
    file.check_rows()
    return file


class NpyRows:
    """Rows of .npy files, of one or of several behind each other, as an array that is read when it is asked for.

    uint8 images (N, height, width, channels), or features (N, ...) float32. Every row that is read and holds NaN,
    infinity, or what is too large for float32 is an InputError that names it.

    Args:
        parts: files, and which of their rows.
    """

    def __init__(self, parts: Sequence[tuple[NpyFile, np.ndarray | range]]) -> None:
        self._parts = [part for part in parts if len(part[1])] or list(parts[:1])
        self._ends = np.cumsum([len(rows) for _, rows in self._parts])
        form = self._parts[0][0].declared
        images = form.dtype == np.uint8
        self.dtype = np.dtype(np.uint8 if images else np.float32)
        one = (*form.shape[1:], 1) if images and form.ndim == 3 else form.shape[1:]
        self.shape = (int(self._ends[-1]), *one)

    @classmethod
    def of(cls, file: NpyFile) -> NpyRows:
        """All rows of a file. InputError where they cannot be read one by one."""
        file.check_rows()
        return cls([(file, range(file.declared.shape[0]))])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all in one array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of a file become an array by a copy alone")
        array = self[:]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """As an array gives them: row number `rows`, or those of a slice, of numbers, or of a mask."""
        if isinstance(rows, int | np.integer):
            return self.rows([range(len(self))[rows]])[0]
        return self.rows(range(len(self))[rows] if isinstance(rows, slice) else np.arange(len(self))[rows])

    def rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows (n,) of these, in any order, (n, ...)."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for first in range(0, len(rows), AT_ONCE):
            wanted = np.asarray(rows[first : first + AT_ONCE], np.int64)
            of = np.searchsorted(self._ends, wanted, side="right")
            for number in np.unique(of).tolist():
                places = np.flatnonzero(of == number)
                file, own = self._of_part(number, wanted[places])
                self._read(file, own, out[first : first + AT_ONCE], as_slice(places))
        return out

    def _of_part(self, number: int, rows: np.ndarray) -> tuple[NpyFile, np.ndarray]:
        """The file of a part, and its own numbers of `rows`, which are all of that part."""
        file, own = self._parts[number]
        inside = rows - (int(self._ends[number]) - len(own))
        return file, inside + own.start if isinstance(own, range) else own[inside]

    def _read(self, file: NpyFile, rows: np.ndarray, out: np.ndarray, places: slice | np.ndarray) -> None:
        if file.declared.dtype == self.dtype:
            file.read(rows, out, places)
            self._check_numbers(file, rows, out[places])
            return
        to = np.arange(len(out))[places]
        for first, last in spans(len(rows), self.shape[1:]):
            made = np.empty((last - first, *self.shape[1:]), file.declared.dtype)
            file.read(rows[first:last], made, slice(None))
            with np.errstate(over="ignore"):
                out[to[first:last]] = made
            self._check_numbers(file, rows[first:last], out[to[first:last]], made)

    def _check_numbers(
        self, file: NpyFile, rows: np.ndarray, read: np.ndarray, before: np.ndarray | None = None
    ) -> None:
        if self.dtype == np.uint8 or bool(np.isfinite(read).all()):
            return
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(read))[0])
        value, row = (read if before is None else before)[at], int(rows[at[0]])
        raise InputError(
            f"{file.path} holds {value} in row {row} (at {(row, *at[1:])}); fill such numbers, or drop the rows"
        )

    def take(self, rows: np.ndarray) -> NpyRows:
        """Some of these; nothing is read."""
        which = as_slice(rows)
        if isinstance(which, np.ndarray):
            of = np.searchsorted(self._ends, which, side="right")
            cuts = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(which)]
            spans_of = [(a, b) for a, b in pairwise(cuts) if a < b]
            return NpyRows([self._of_part(int(of[a]), which[a:b]) for a, b in spans_of] or self._none)
        parts: list[tuple[NpyFile, np.ndarray | range]] = []
        for (file, own), end in zip(self._parts, self._ends.tolist(), strict=True):
            begin = end - len(own)
            parts.append((file, own[max(which.start - begin, 0) : max(which.stop - begin, 0)]))
        return NpyRows(parts)

    @property
    def _none(self) -> list[tuple[NpyFile, np.ndarray | range]]:
        return [(self._parts[0][0], range(0))]

    def join(self, other: NpyRows) -> NpyRows:
        """These, then those of `other`; nothing is read."""
        return NpyRows([*self._parts, *other._parts])

    def sums(self, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Of the pixels of the first `count` images by channel, and of their squares, int64: all are read."""
        sums, squares = (np.zeros(self.shape[-1], np.int64) for _ in range(2))
        for piece in self.pieces(count):
            counts = [np.bincount(channel.reshape(-1), minlength=256) for channel in np.moveaxis(piece, -1, 0)]
            sums += [int(c @ np.arange(256)) for c in counts]
            squares += [int(c @ np.square(np.arange(256))) for c in counts]
        return sums, squares

    def pieces(self, count: int | None = None) -> Iterator[np.ndarray]:
        """The first `count` rows, or all, some at a time."""
        return pieces(self if count is None else self.take(np.arange(count)))

    @property
    def _looked_at(self) -> bool:
        return self.nbytes <= LOOKED_AT

    def fingerprint(self, targets: np.ndarray) -> str:
        """Of all labels; of all rows where these take 256 MiB at most, of 256 that are spread evenly where more.

        So other labels, another number of rows and another shape are seen, and a few other rows among many are not.
        """
        if self._looked_at:
            return digest_of(self[:], targets)
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        return digest_of(self.shape, self.rows(rows), targets)

    def digests(self) -> Iterator[bytes] | None:
        if not self._looked_at:
            return None
        return (digest(row) for piece in self.pieces() for row in piece)
