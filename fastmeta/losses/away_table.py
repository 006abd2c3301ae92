"""Label tables whose rows are on the host while labels are on a CUDA device: brought ahead, written behind."""

from __future__ import annotations

import copy
import io
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.losses.table import LabelTable, Start


class AwayTable(LabelTable):
    """Rows on the host: what a subclass reads and writes there, and how they come to the device of the labels.

    On a CPU that is all. On CUDA the rows of the next step, told by :meth:`ahead`, are copied on a stream of their own
    while the step before it runs, and new rows are copied back on it and reach the host one step later. A row that
    stands in both batches is patched on the device.
    """

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.way: Way | None = Way(CudaLink(start.device)) if start.device.type == "cuda" else None

    @abstractmethod
    def read(self, index: Tensor) -> Tensor:
        """Rows `index`, both on the host, a copy."""

    @abstractmethod
    def store(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows `index`, both on the host."""

    def ahead(self, index: Tensor, on_host: Tensor | None = None) -> None:
        if self.way is not None:
            self.way.fetch(self, index, index.cpu() if on_host is None else on_host)

    def rows(self, index: Tensor) -> Tensor:
        return self.read(index) if self.way is None else self.way.rows(self, index)

    def write_(self, index: Tensor, rows: Tensor) -> None:
        if self.way is None:
            self.store(index, rows)
        else:
            self.way.write(index, rows)

    def take(self, index: Tensor) -> Tensor:
        if self.way is None:
            return self.read(index)
        rows = self.way.rows(self, index)
        inside = (index >= 0) & (index < self.shape[0])
        return torch.where(inside.unsqueeze(1), rows, torch.nan)

    def put_(self, index: Tensor, rows: Tensor) -> None:
        self.write_(index, rows.to(self.dtype))

    def settle(self) -> None:
        """All rows that were written are on the host."""
        if self.way is not None:
            self.way.settle(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self.settle()
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__dict__ |= copy.deepcopy(self.__dict__, memo)
        return made

    def get_extra_state(self) -> Any:
        self.settle()
        return {}

    def set_extra_state(self, state: Any) -> None:
        if self.way is not None:
            self.way.forget()


@dataclass
class _Fetched:
    index: Tensor  # on the device
    version: int  # of it
    rows: Tensor
    arrived: Any
    since: list[tuple[Tensor, Tensor]]  # what was written and may not be in these rows, oldest first


@dataclass
class _Written:
    there: tuple[Tensor, Tensor]  # index and rows on the device
    here: tuple[Tensor, Tensor]  # and on the host, once `left` has happened
    left: Any


class Way(io.IOBase):
    """Rows on their way. `link` copies them.

    It is an IOBase, so that nobody who looks for the state of a module looks into it: all is settled before a state is
    made.
    """

    def __init__(self, link: Any) -> None:
        self.link = link
        self._next: _Fetched | None = None
        self._behind: list[_Written] = []

    def fetch(self, table: AwayTable, index: Tensor, on_host: Tensor) -> None:
        """Begin to bring the rows of `index`, a tensor that :meth:`rows` will be asked with; `on_host` is its copy."""
        self._settle_but(table, 1)  # the last one may still be computed, and the host would wait for it
        rows, arrived = self.link.to_device(table.read(on_host))
        since = [written.there for written in self._behind]
        self._next = _Fetched(index, index._version, rows, arrived, since)

    def rows(self, table: AwayTable, index: Tensor) -> Tensor:
        ready = self._next
        if ready is not None and ready.index is index and ready.version == index._version:
            self.link.wait(ready.arrived, ready.rows)
            rows = ready.rows.clone()
            for other, written in ready.since:
                same = index.unsqueeze(1) == other
                new = written[same.to(torch.uint8).argmax(1)]
                rows = torch.where(same.any(1, keepdim=True), new, rows)
            return rows
        self.settle(table)
        rows, arrived = self.link.to_device(table.read(index.clamp(0, table.shape[0] - 1).cpu()))
        self.link.wait(arrived, rows)
        return rows

    def write(self, index: Tensor, rows: Tensor) -> None:
        index, rows = index.clone(), rows.clone()  # the caller's may change before they are copied
        *here, left = self.link.to_host(index, rows)
        self._behind.append(_Written((index, rows), (here[0], here[1]), left))
        if self._next is not None:
            self._next.since.append((index, rows))

    def settle(self, table: AwayTable) -> None:
        self._settle_but(table, 0)

    def _settle_but(self, table: AwayTable, last: int) -> None:
        while len(self._behind) > last:
            written = self._behind[0]
            written.left.synchronize()
            index, rows = written.here
            inside = (index >= 0) & (index < table.shape[0])
            if not bool(inside.all()):
                index, rows = index[inside], rows[inside]
            table.store(index, rows)
            del self._behind[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Way:
        return Way(self.link)

    def forget(self) -> None:
        """What is on its way belongs to rows that have been replaced."""
        self._next = None
        self._behind.clear()


class CudaLink:
    """Copies between pinned memory and a CUDA device on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None

    @property
    def stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        return self._stream

    def to_device(self, rows: Tensor) -> tuple[Tensor, Any]:
        pinned = rows.pin_memory()
        with torch.cuda.stream(self.stream):
            # the allocator of pinned memory waits for this copy before it gives these bytes away
            there = pinned.to(self.device, non_blocking=True)
            return there, self.stream.record_event()

    def wait(self, arrived: Any, rows: Tensor) -> None:
        """What the current stream does next sees the rows; their memory is not given away before it has."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        rows.record_stream(current)

    def to_host(self, index: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Any]:
        stream = self.stream
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (index, rows)]
            for here, there in zip(pinned, (index, rows), strict=True):
                here.copy_(there, non_blocking=True)
                there.record_stream(stream)
            return pinned[0], pinned[1], stream.record_event()
