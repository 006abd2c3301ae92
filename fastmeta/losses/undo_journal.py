"""Old rows of a file that is written in place, so that it can be brought back to what it was at a checkpoint.

Time is cut into generations, each with a file of its own: ``ROWS.undo-GENERATION-FIRST``. Before a row is overwritten
for the first time in a generation, what stood there is appended and synced. To go back to the beginning of generation
g is to put back, from g on, what each row's oldest entry holds. Files are only ever made, appended to and removed, and
putting back may be done again: a process may die between any two writes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmeta.losses.row_file import RowFile, sync_folder

#: magic, id of the rows' file, generation, first row, rows, bytes of a row
_HEAD = struct.Struct("<8s16sQQQQ")
_MAGIC = b"fmundo1\n"
#: of a block of rows: magic, count, checksum of their numbers and bytes
_BLOCK = struct.Struct("<4sIQ")
_BLOCK_MAGIC = b"rows"


class Journal(io.IOBase):
    """Of the rows that `rows`, a :class:`RowFile`, has for this process. An IOBase for the reason that that is one."""

    def __init__(self, rows: RowFile) -> None:
        self.rows = rows
        self.generation = 0
        #: generations that somebody goes back to, by a name
        self.kept: dict[str, int] = {}
        self._named: tuple[int, ...] = ()  # those of `kept` that the last state knows, and its own
        self._undone = torch.zeros(0, dtype=torch.bool)  # rows of which nothing is in this generation's file
        self._left = 0  # of them
        self._coming = torch.zeros(0, dtype=torch.int64)  # rows that will be overwritten soon
        self._file: int | None = None
        self._end = 0
        self._pool: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None

    # -- writing --------------------------------------------------------------------------------------------

    def begin(self, generation: int, written: Tensor) -> None:
        """A new generation, whose rows `written` (N,) hold what somebody may go back to."""
        self.wait()
        self._close()
        rows = self.rows
        path = self._path(generation, rows.first)
        head = _HEAD.pack(_MAGIC, rows.id.encode(), generation, rows.first, rows.count, rows.size)
        part = path.with_name(f".{path.name}.part")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            self._file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(self._file, head)
            os.fsync(self._file)
            os.replace(part, path)  # so that none is there with half of a header
        except OSError as error:
            rows.fail(error, "write the journal of")
        sync_folder(path.parent)
        self.generation, self._end = generation, len(head)
        rows.note(generation)
        self._undone = written.clone()
        self._left = int(written.sum())

    def expect(self, index: Tensor) -> None:
        """These rows will be overwritten soon: one sync is for all of them."""
        self._coming = index
        self.keep_rows(index)

    def keep_rows(self, index: Tensor) -> None:
        """What stands in these rows is in the file of this generation, as far as it is wanted; on the disk behind
        :meth:`wait`.
        """
        if self._left and bool(self._undone[index].any()):
            index = torch.cat([index, self._coming])
            needed = index[self._undone[index]].unique()
            self.append(needed, self.rows.read(needed))
            self._undone[needed] = False
            self._left -= len(needed)

    def append(self, index: Tensor, old: Tensor) -> None:
        """What stands in the rows `index`, each once; on the disk behind :meth:`wait`."""
        self.wait()
        assert self._file is not None
        numbers = (index.numpy() + self.rows.first).astype("<i8").tobytes()
        content = old.contiguous().view(torch.uint8).numpy().data.cast("B")
        try:
            for piece in (_BLOCK.pack(_BLOCK_MAGIC, len(index), _checksum(numbers, content)) + numbers, content):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # half of a block would hide what comes behind it
                os.ftruncate(self._file, self._end)
                os.lseek(self._file, self._end, os.SEEK_SET)
            self.rows.fail(error, "write the journal of")
        self._end += _BLOCK.size + len(numbers) + len(content)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "label-journal")
        self._syncing = self._pool.submit(_sync, self._file)

    def wait(self) -> None:
        """Until all that was appended is on the disk."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            try:
                syncing.result()
            except OSError as error:
                self.rows.fail(error, "write the journal of")

    # -- reading --------------------------------------------------------------------------------------------

    def old_rows(self, generation: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers and contents of rows of this process as they were when `generation` began, each row once.

        Raises ValueError where the journal has a gap.
        """
        self.wait()
        rows, seen = self.rows, torch.zeros(self.rows.count, dtype=torch.bool)
        files = self._files()
        last = max([rows.generation, *(g for g, _ in files)])
        for g in range(generation, last + 1):
            parts = [path for (at, _), path in sorted(files.items()) if at == g]
            covered = rows.first
            for path in parts:
                # as far as it reaches now: what goes back is journaled too
                size = os.path.getsize(path)
                with open(path, "rb") as file:
                    begins, count = self._check_head(path, file.read(_HEAD.size), g)
                    if begins <= covered:
                        covered = max(covered, begins + count)
                    if begins >= rows.first + rows.count or begins + count <= rows.first:
                        continue
                    for numbers, content in self._blocks(path, file, size):
                        mine = numbers - rows.first
                        inside = (mine >= 0) & (mine < rows.count)
                        new = inside.clone()
                        new[inside] = ~seen[mine[inside]]
                        seen[mine[new]] = True
                        if bool(new.any()):
                            yield mine[new], content[new]
            if covered < rows.first + rows.count:
                raise ValueError(
                    f"the journal of the label rows is not whole: {self._path(g, covered)} is gone; bring it back"
                )

    def _check_head(self, path: Path, head: bytes, generation: int) -> tuple[int, int]:
        if len(head) == _HEAD.size:
            magic, name, at, first, count, size = _HEAD.unpack(head)
            if (magic, name, at, size) == (_MAGIC, self.rows.id.encode(), generation, self.rows.size):
                return first, count
        raise ValueError(f"{path} is damaged, or the journal of other label rows; bring the one of this run back")

    def _blocks(self, path: Path, file: io.BufferedReader, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All blocks; what was cut off in the middle of an append is the last one, and nothing came of it."""
        width = self.rows.size
        while len(head := file.read(_BLOCK.size)) == _BLOCK.size:
            magic, count, checksum = _BLOCK.unpack(head)
            if magic != _BLOCK_MAGIC:
                if not head.strip(b"\0") and not any(iter(lambda: file.read(2**20).strip(b"\0"), b"")):
                    return  # the machine stopped before its bytes came to the disk
                raise ValueError(f"{path} is damaged; bring it back")
            if file.tell() + count * (8 + width) > end:
                return
            numbers = file.read(8 * count)
            content = bytearray(file.read(count * width))
            if _checksum(numbers, memoryview(content)) != checksum:
                if file.tell() < end:
                    raise ValueError(f"{path} is damaged: its content and its checksum differ; bring it back")
                return
            values = torch.frombuffer(content, dtype=self.rows.dtype).view(count, self.rows.classes)
            yield torch.from_numpy(np.frombuffer(numbers, "<i8").astype(np.int64)), values

    # -- files ----------------------------------------------------------------------------------------------

    def _path(self, generation: int, first: int) -> Path:
        path = self.rows.path
        return path.with_name(f"{path.name}.undo-{generation}-{first}")

    def _files(self) -> dict[tuple[int, int], Path]:
        """By generation and first row."""
        folder, name = self.rows.path.parent, re.escape(self.rows.path.name)
        found = {}
        for entry in os.listdir(folder):
            if (match := re.fullmatch(rf"{name}\.undo-([0-9]{{1,18}})-([0-9]{{1,18}})", entry)) is not None:
                found[int(match[1]), int(match[2])] = folder / entry
        return found

    def last(self) -> int:
        """The newest generation that there is."""
        return max([self.rows.generation, *(generation for generation, _ in self._files())])

    def name_state(self) -> dict[str, int]:
        """Of the state that begins here: what else it goes back to."""
        self._named = (self.generation, *self.kept.values())
        return dict(self.kept)

    def forget(self) -> None:
        """Nobody goes back behind the state that was named last, but to what was kept then or is now."""
        self.remove(before=min([*self._named, *self.kept.values()], default=0))

    def remove(self, before: int | None = None) -> None:
        """Files of generations `before` this one, by default all, that begin in the rows of this process."""
        rows = self.rows
        if before is None:
            self.wait()
            self._close()
        for (generation, first), path in self._files().items():
            mine = rows.first <= first < rows.first + max(1, rows.count)
            if mine and (before is None or generation < before):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.wait()
            self._close()
            if self._pool is not None:
                self._pool.shutdown(wait=False)


def _checksum(numbers: bytes, content: memoryview) -> int:
    """Of a block: a sum of words, which goes at the speed of memory, and a CRC of what is small."""
    whole = len(content) // 8 * 8
    words = int(np.frombuffer(content[:whole], "<u8").sum(dtype=np.uint64))
    return (words + zlib.crc32(content[whole:], zlib.crc32(numbers))) % 2**64


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)
