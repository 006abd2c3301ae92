"""Arrays of an .npz file of anybody's: what it declares is judged before anything is unpacked, nothing is unpickled.

numpy.load believes a file: it allocates what a header declares, unpacks what is no array too, and lets the errors of
zip, of four decompressors and of Python's parser through. Here each array is held against three bounds first: its own
header against the size of its entry, that against what deflate can make of the bytes that are there, and all together
against free memory.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from fastmeta._memory import free_memory, gibibytes
from fastmeta._text import printable, reason
from fastmeta.data.errors import InputError
from fastmeta.data.npy_header import MAGIC, Declared, open_regular, read_header, short

#: bytes of a zip's list of entries: some 30,000 arrays
MOST_DIRECTORY = 2**21
#: deflate makes at most 1,032 bytes of one
MOST_RATIO = 1032
#: an array of more bytes that shrinks by more than this holds hardly anything: no images do
SUSPECT_SIZE, SUSPECT_RATIO = 64 * 2**20, 500
_PIECE = 2**20
_WAY = "write it anew with np.savez"


class NpzFile:
    """An open .npz file. Every method raises InputError, in one line with the file and the array, for any bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._zip = self._tried("", lambda: zipfile.ZipFile(_Pieces(self._file)))
        except BaseException:
            self._file.close()
            raise
        self._entries: dict[str, list[zipfile.ZipInfo]] = {}
        for entry in self._zip.infolist():
            self._entries.setdefault(entry.filename.removesuffix(".npy"), []).append(entry)

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def names(self) -> str:
        """For messages."""
        names = sorted(self._entries)
        return ", ".join(printable(n, 40) for n in names[:20]) + (" …" if len(names) > 20 else "") or "none"

    def declared(self, name: str) -> Declared:
        """From the header of an array; its data stay packed."""

        def read() -> Declared:
            entry = self._entry(name)
            with self._zip.open(entry) as content:
                header = read_header(content)
            if header.header_bytes + header.nbytes != entry.file_size:
                raise ValueError(
                    f"its header declares {short(header.nbytes)} bytes of data, its entry has "
                    f"{entry.file_size - header.header_bytes:,}"
                )
            return header

        return self._tried(name, read)

    def read(self, declared: Mapping[str, Declared]) -> dict[str, np.ndarray]:
        """The arrays of these names, whose headers have been read."""
        needed, free = sum(header.nbytes for header in declared.values()), free_memory()
        if free is not None and needed > free:
            raise InputError(
                f"{self.path} holds {gibibytes(needed)} of arrays, and {gibibytes(free)} of memory are free; "
                f"unpack it (python -m zipfile -e {self.path} DIR) and name npy:DIR, which is read as it is needed"
            )
        return {name: self._tried(name, lambda: self._read(name, declared[name])) for name in declared}  # noqa: B023

    def _read(self, name: str, header: Declared) -> np.ndarray:
        array = np.empty(math.prod(header.shape), header.dtype)
        rest: memoryview = array.view(np.uint8).data if array.nbytes else memoryview(b"")
        with self._zip.open(self._entry(name)) as content:
            content.read(header.header_bytes)
            while rest:
                piece = content.read(min(_PIECE, len(rest)))
                if not piece:
                    raise ValueError("its data end early")
                rest[: len(piece)] = piece
                rest = rest[len(piece) :]
            content.read(1)  # behind the last byte zipfile compares its checksum
        return array.reshape(header.shape[::-1]).T if header.fortran_order else array.reshape(header.shape)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry, *others = self._entries[name]
        if others:
            raise ValueError(f"it stands there {1 + len(others)} times")
        if entry.flag_bits & 0x1:
            raise ValueError("it is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # whose decompressors cannot be held to a number of bytes by zipfile
            raise ValueError(f"it is packed by method {entry.compress_type} of zip, only deflate is read")
        size, packed = entry.file_size, entry.compress_size
        if packed > os.fstat(self._file.fileno()).st_size:
            raise ValueError(f"its entry has {packed:,} packed bytes, more than the file")
        if size > (packed if entry.compress_type == zipfile.ZIP_STORED else MOST_RATIO * (packed + 1)):
            raise ValueError(f"its entry cannot make {size:,} bytes of {packed:,}")
        if size > SUSPECT_SIZE and size > SUSPECT_RATIO * packed:
            raise ValueError(
                f"it would unpack {gibibytes(packed)} to {gibibytes(size)}, which no real data do; "
                "if they are meant, store them unpacked"
            )
        return entry

    def _tried(self, name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MemoryError:
            why = "it does not fit into memory, or is no header that Python can read"
            raise InputError(f"{self.path}{_array(name)} cannot be read as .npz ({why}); {_WAY}") from None
        except Exception as error:  # of zipfile, zlib, numpy, ast, struct: any kind, for any bytes
            why = str(error) if type(error) is ValueError and str(error) else reason(error)
            raise InputError(
                f"{self.path}{_array(name)} cannot be read as .npz ({printable(why, 300)}); {_WAY}"
            ) from error


def _array(name: str) -> str:
    return f": array {name!r}" if name else ""


def _open(path: Path) -> IO[bytes]:
    opened = open_regular(path, "npz:PATH wants a file written by np.savez", "; a folder of .npy files is npy:DIR")
    if opened.read(len(MAGIC)) == MAGIC:
        opened.close()
        raise InputError(f"{path} holds a single array; write a file of several with np.savez")
    opened.seek(0)
    return opened


class _Pieces:
    """A file that gives no more at once than a list of entries may have: zipfile reads that whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(MOST_DIRECTORY + 1 if size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(content) > MOST_DIRECTORY:
            raise ValueError(f"its list of entries has more than {MOST_DIRECTORY:,} bytes")
        return content
