"""Where the label logits of a training set lie: a seam of two functions, and the dense tensor that is the default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from fastmeta.functional.finite import all_finite

if TYPE_CHECKING:
    from fastmeta.losses.labels import Labels

#: numbers of a table that are fetched at once where all of it is looked at: 64 MiB of float32
_AT_ONCE = 2**24


class Rows(Protocol):
    """Rows (N, C) that are read and replaced by index."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def rows(self, index: Tensor) -> Tensor: ...
    def write_(self, index: Tensor, rows: Tensor) -> None: ...


class Start:
    """The label logits (N, C) as labels start, to be read: `margin` at the given class, 0 elsewhere. Held nowhere."""

    def __init__(self, labels: Labels, margin: float, dtype: torch.dtype) -> None:
        self._labels, self.margin, self.dtype = labels, margin, dtype
        self.shape = (len(labels), labels.num_classes)

    @property
    def device(self) -> torch.device:
        """Where the labels are, and the indices of their batches."""
        return self._labels.device

    def rows(self, index: Tensor) -> Tensor:
        """Rows `index`, (n,) int64, as they start: (n, C) on the index's device."""
        given = self._labels.given(index).to(index.device).clamp(min=0)
        rows = torch.zeros(len(index), self.shape[1], dtype=self.dtype, device=index.device)
        return rows.scatter_(1, given.unsqueeze(1), self.margin)

    def pieces(self) -> Iterator[Tensor]:
        """The numbers 0 to N - 1 in pieces whose rows are 64 MiB of float32."""
        return pieces_of(self.shape, self.device)


class LabelTable(nn.Module, ABC):
    """The label logits (N, C) of a training set, wherever they lie: in a file, on the host, on another machine.

    A table of your own is a subclass with :meth:`rows` and :meth:`write_`, given to
    ``InstanceLabels(targets, num_classes, table=MyTable)``. A step fetches the rows of its batch once, moves them by
    the fused kernel and writes them once: bit for bit what it does with a dense table.

    It is a module: its buffers are saved, copied and moved to devices with the labels. A state of another kind goes
    through ``get_extra_state`` and ``set_extra_state``, as tensors, arrays, numbers, texts, and lists and dicts of
    these. The rows must then be those of the moment when the state was asked for: a file may be ahead of the checkpoint
    that a run resumes from.

    Args:
        start: the logits as labels start: ``start.rows(index)``, ``start.pieces()``, ``start.shape``, ``start.dtype``,
            ``start.device``. A table may read all of them at once, or each row when it is first asked for.
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.start = start

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """Rows `index` as they are now, a copy: (n,) int64 in [0, N) to (n, C) in `dtype`, on the index's device.

        An index may stand there more than once.
        """

    @abstractmethod
    def write_(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows `index` by `rows`, (n, C) in `dtype`. Equal indices come with equal rows."""

    #: names in its state_dict whose first dimension counts the rows
    row_state: frozenset[str] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C)."""
        return self.start.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows: float32, bfloat16, or float64 for logits of float64. That of `start`, unless you say another."""
        return self.start.dtype

    def finite(self) -> bool:
        """Whether no row holds a NaN or an infinity. Reads all rows; one that knows which have moved may do less."""
        return all(bool(all_finite([self.take(index)])) for index in self.start.pieces())

    # What the trainer tells a table that wants to know.

    def begin(self) -> None:
        """The first step is about to be taken, of a run that begins and goes on from no state."""

    def ahead(self, index: Tensor, on_host: Tensor | None = None) -> None:
        """The rows that the next step asks for, by this very tensor; `on_host` is its copy where it is on CUDA."""

    def soon(self, index: Tensor) -> None:
        """Rows of steps to come, of so many batches as :meth:`horizon` says."""

    def horizon(self, batch: int) -> int:
        """How many batches of `batch` rows to be told of at once; 0 where :meth:`soon` has no use for them."""
        return 0

    def restart(self, start: Start) -> bool:
        """Be as `start` says; False where all rows have to be written for that."""
        return False

    def keep(self, name: str) -> None:
        """The state that was asked for last is wanted until the next one is kept by this name."""

    def saved(self) -> None:
        """The state that was asked for last counts: nobody goes back behind it, but to what was kept then or is now."""

    def finished(self) -> None:
        """Nobody goes back any more."""

    # What labels ask. A table of a user's need not look further.

    def take(self, index: Tensor) -> Tensor:
        """Rows `index`; NaN where the index is out of range on CUDA. ValueError for rows of another form."""
        rows = take_rows(self, index) if index.is_cuda else self.rows(index)
        shape, dtype, device = (len(index), self.shape[1]), self.dtype, index.device
        if not isinstance(rows, Tensor) or rows.shape != shape or rows.dtype != dtype or rows.device != device:
            tensor = isinstance(rows, Tensor)
            got = f"{tuple(rows.shape)} of {rows.dtype} on {rows.device}" if tensor else type(rows).__name__
            raise ValueError(
                f"{type(self).__name__}.rows(index) must give {shape} of {dtype} on {device}, as the table's shape and "
                f"dtype and the index say, got {got}"
            )
        return rows

    def put_(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows `index`, those in range on CUDA."""
        rows = rows.to(self.dtype)
        if index.is_cuda:
            put_rows_(self, index, rows)
        else:
            self.write_(index, rows)

    def add_(self, index: Tensor, rows: Tensor) -> None:
        """Add `rows` (n, C) to the rows `index`; those of one index are summed in the order of the batch."""
        first = (index.unsqueeze(1) == index).to(torch.uint8).argmax(1)  # of each row's index, its place in the block
        block = self.take(index).index_put_((first,), rows.to(self.dtype), accumulate=True)
        self.put_(index, block[first])


class DenseTable:
    """A tensor (N, C) as a table."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def rows(self, index: Tensor) -> Tensor:
        return self.tensor[index]

    def write_(self, index: Tensor, rows: Tensor) -> None:
        self.tensor[index] = rows

    def finite(self) -> bool:
        return bool(all_finite([self.tensor]))

    def take(self, index: Tensor) -> Tensor:
        return take_rows(self, index) if index.is_cuda else self.tensor[index]

    def put_(self, index: Tensor, rows: Tensor) -> None:
        rows = rows.to(self.tensor.dtype)
        if index.is_cuda:
            put_rows_(self, index, rows)
        else:
            self.tensor[index] = rows

    def add_(self, index: Tensor, rows: Tensor) -> None:
        self.tensor.index_put_((index,), rows.to(self.tensor.dtype), accumulate=True)


class FewRows(LabelTable):
    """Copies of some rows of another table, under their numbers there; nothing else of it may be asked for."""

    held: Tensor
    numbers: Tensor

    def __init__(self, start: Start, of: LabelTable, index: Tensor) -> None:
        super().__init__(start)
        self.register_buffer("numbers", index.unique())
        self.register_buffer("held", of.take(self.numbers))

    @property
    def dtype(self) -> torch.dtype:
        return self.held.dtype

    def rows(self, index: Tensor) -> Tensor:
        return self.held[self._places(index)]

    def write_(self, index: Tensor, rows: Tensor) -> None:
        self.held[self._places(index)] = rows

    def _places(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self.numbers, index)


def pieces_of(shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    """The row numbers of a table (N, C), in pieces that take 64 MiB of float32."""
    size = max(1, _AT_ONCE // max(1, shape[1]))
    for first in range(0, shape[0], size):
        yield torch.arange(first, min(first + size, shape[0]), device=device)


# torch's own indexing kills the CUDA context on a row out of range. These two read and write nothing there, and wait
# for nothing; the kernels skip such a row, because its labels are NaN, and count it.


def take_rows(table: Rows, index: Tensor) -> Tensor:
    """Rows `index` of `table`, (n, C); NaN where the index is out of range."""
    size = table.shape[0]
    inside = (index >= 0) & (index < size)
    return torch.where(inside.unsqueeze(1), table.rows(index.clamp(0, size - 1)), torch.nan)


def put_rows_(table: Rows, index: Tensor, rows: Tensor) -> None:
    """Replace the rows `index` of `table`, those in range; equal indices must come with equal rows."""
    size = table.shape[0]
    inside = (index >= 0) & (index < size)
    # an entry out of range writes once more what some entry in range writes, or, where none is, what is there
    other = inside.to(torch.uint8).argmax().view(1)
    at = torch.where(inside, index, index.gather(0, other)).clamp(0, size - 1)
    rows = torch.where(inside.unsqueeze(1), rows, rows.index_select(0, other))
    table.write_(at, torch.where(inside.any(), rows, table.rows(at)))
