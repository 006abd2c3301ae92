"""Label rows in a file, which takes up disk for the rows that have moved alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmeta.losses.away_table import AwayTable
from fastmeta.losses.row_file import RowFile, TableError
from fastmeta.losses.table import Start
from fastmeta.losses.undo_journal import Journal

#: bytes of old rows that one sync of the journal is for, where batches to come are known
_JOURNALED = 2**22


class MmapTable(AwayTable):
    """The label logits (N, C) in a file that is written in place, for labels that no memory holds.

    ``InstanceLabels(targets, num_classes, table=lambda start: MmapTable(start, "labels.rows"))``. A row that was never
    written is as labels start, and takes no disk. Which rows have been written is the buffer `written`, (N,) bool, a
    part of the state; the rows are not. A state names a generation of the file: old rows go to a journal beside it,
    ``labels.rows.undo-*``, before they are overwritten for the first time since, so that ``load_state_dict`` brings the
    file back to what it was when the state was asked for, also after a process has died between any two writes.

    Files of the journal go when the owner of a state says that it counts, :meth:`saved`.

    Args:
        start: as of any table.
        path: of the file. It is made at the first write, or by :meth:`begin`.
        owner: whose rows they are. A file with the rows of another owner, or of nobody that is known, is not replaced.
        first_row, rows_in_all: of a rank, whose rows are `first_row` and those behind it of a file that others share.
        meet: of ranks: called by each of them when the file is there; the one with row 0 has made it before that.

    Raises:
        ValueError: the folder is not there, or the file is another run's.
        TableError: in use, a disk that is full or fails; in one line.
    """

    row_state = frozenset({"written"})
    written: Tensor

    def __init__(
        self,
        start: Start,
        path: str | Path,
        *,
        owner: str = "",
        first_row: int = 0,
        rows_in_all: int | None = None,
        meet: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(start)
        rows, classes = start.shape
        total = rows if rows_in_all is None else rows_in_all
        if not 0 <= first_row <= first_row + rows <= total:
            raise ValueError(f"rows {first_row} to {first_row + rows} must lie in a file of {total} rows")
        self.owner, self.meet = owner, meet
        self.register_buffer("written", torch.zeros(rows, dtype=torch.bool))
        self.file = RowFile(Path(path).absolute(), classes, start.dtype, first_row, rows, total)
        self.file.check(owner)
        self.journal = Journal(self.file)

    def begin(self) -> None:
        """Make the file, if it is not open. Ranks do so together."""
        if self.file.opened:
            return
        try:
            if self.file.first == 0:
                self.file.create(self.owner)
            if self.meet is not None:
                self.meet()
            if not self.file.opened:
                self.file.open_rows()
        except ValueError as error:
            raise TableError(None, str(error)) from error
        self.journal.remove()  # of a file that was replaced
        self.journal.begin(1, self.written)

    # -- rows -----------------------------------------------------------------------------------------------

    def read(self, index: Tensor) -> Tensor:
        if self.file.full:
            return self.file.read(index)
        written = self.written[index]
        if bool(written.all()) and len(index):
            return self.file.read(index)
        rows = self.start.rows(index)
        if bool(written.any()):
            rows[written] = self.file.read(index[written])
        return rows

    def store(self, index: Tensor, rows: Tensor) -> None:
        self.begin()
        self.journal.keep_rows(index)
        self.journal.wait()
        self.file.write(index, rows)
        if not self.file.full:
            self.written[index] = True
            self.file.note_written(len(index), self.written)

    def soon(self, index: Tensor) -> None:
        """Their old rows are journaled together, and synced while something else runs."""
        if self.file.opened:
            self.journal.expect(index.cpu())

    def horizon(self, batch: int) -> int:
        return max(1, _JOURNALED // max(1, batch * self.file.size))

    def ahead(self, index: Tensor, on_host: Tensor | None = None) -> None:
        super().ahead(index, on_host)
        if self.way is None:
            self.file.expect(index)

    def finite(self) -> bool:
        """Nothing is read for it: rows are looked at when they are written."""
        self.settle()
        return not self.file.broken

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MmapTable:
        return self  # the file is where it is, and of the dtype that it is of

    def __deepcopy__(self, memo: dict[int, Any]) -> MmapTable:
        raise TypeError(f"label rows in {self.file.path} are not copied; labels.dense() is a copy in memory")

    # -- state ----------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Any:
        self.settle()
        if not self.file.opened:
            return {"generation": 0}
        self.file.flush()
        journal = self.journal
        journal.begin(journal.generation + 1, self.written)
        return {"id": self.file.id, "generation": journal.generation, "kept": journal.name_state()}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        self.file.full = False
        generation = int(state["generation"])
        self.file.broken.clear()
        if not generation:
            return  # no row was written then, as `written` says
        if self.file.opened:
            if str(state["id"]) != self.file.id:
                raise TableError(None, f"{self.file.path} holds other label rows than those of this state")
            self._put_back(generation)
            return
        try:
            self.file.open_rows(str(state["id"]))
            self._put_back(generation)
        except ValueError as error:
            self.file.close_rows()
            raise TableError(None, str(error)) from error
        self.file.flush()
        last = self.journal.last()
        if self.meet is not None:
            self.meet()  # before another rank begins one more
        self.journal.begin(last + 1, self.written)
        self.journal.kept = {str(name): int(at) for name, at in state["kept"].items()}

    def _put_back(self, generation: int) -> None:
        for index, rows in self.journal.old_rows(generation):
            self.journal.keep_rows(index)
            self.journal.wait()
            self.file.write(index, rows)

    def restart(self, start: Start) -> bool:
        if start.margin != self.start.margin:
            return False
        self.settle()
        self.written.fill_(False)
        self.file.full = False
        self.file.broken.clear()
        return True

    def keep(self, name: str) -> None:
        if self.file.opened:
            self.journal.kept[name] = self.journal.generation

    def saved(self) -> None:
        if self.file.opened:
            self.journal.forget()

    def finished(self) -> None:
        if self.file.opened:
            self.settle()
            self.journal.remove()
