"""Samples that are read on the host as they are needed, by a DataLoader's workers ahead of the steps where asked."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from fastmeta.data.source import Source

#: step, or None where samples are measured, and row
Key = tuple[int | None, int]


class ReadAhead(Source):
    """A source whose batches are made by :meth:`batch_of`, in this process or in others."""

    workers = 0
    _ahead: Iterator[Any] | None = None
    _sent: tuple[tuple[Any, Sent], ...] = ()  # what the next step will fetch
    _fetched = 0  # batches since the last step

    @abstractmethod
    def batch_of(self, rows: list[int], step: int | None) -> Any:
        """What :meth:`fetch` gives of these rows, on the host: a function of rows and `step` alone."""

    def pinned(self, batch: Tensor) -> Tensor:
        """In pages that a GPU copies by itself, where there is one; a DataLoader pins what its workers make."""
        return batch.pin_memory() if not self.workers and torch.cuda.is_available() else batch

    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        wanted = rows.tolist()
        step = None if step is None else int(step)
        if self._ahead is not None and step is not None:
            self._fetched += 1
            if not self._sent:
                self._sent = (self._next(device),)
            (key, sent), *left = self._sent
            self._sent = tuple(left)
            if key == (step, wanted):
                return sent.arrived()
            self.close()  # somebody asks for something else than the plan: from here on without it
        return moved(self.batch_of(wanted, step), device)

    def _next(self, device: torch.device) -> tuple[Any, Sent]:
        assert self._ahead is not None
        key, batch = next(self._ahead, (None, None))
        return key, Sent(batch, device)

    def ahead(self, device: torch.device) -> None:
        if self._ahead is not None:
            more = self._fetched - len(self._sent)  # a step takes as many as the one before
            self._sent, self._fetched = (*self._sent, *(self._next(device) for _ in range(more))), 0

    def read(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Any]:
        if not self.workers or len(batches) < 2:  # to start workers takes as long as they would save
            yield from super().read(batches, device)
            return
        for _, batch in self._loader([[(None, row) for row in rows.tolist()] for rows in batches]):
            yield self.measured(moved(batch, device))

    def network_input(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        if step is None:
            return self.measured(self.fetch(rows, None, device))
        return super().network_input(rows, step, device)

    def measured(self, batch: Any) -> Any:
        """Network input of a batch that :meth:`fetch` gives without a step."""
        return self.transform(batch, self.transform.tensors)

    def follow(self, plan: Callable[[int], Sequence[Tensor]], start: int, stop: int) -> None:
        if self.workers:
            self._ahead, self._sent, self._fetched = iter(self._loader(_Plan(plan, start, stop))), (), 0

    def close(self) -> None:
        self._ahead, self._sent = None, ()  # whose end is that of its workers

    def _loader(self, plan: Any) -> DataLoader[Any]:
        """Workers that read lists of (step, row)."""
        alone = copy.copy(self)
        alone.close()  # no other process can have the iterator
        return DataLoader(
            _Batches(alone),
            batch_sampler=plan,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or a seed for the workers, who need none, would be drawn from the run's own
        )


class Sent:
    """A batch of the host on its way to `device`, beside whatever runs there: on a stream of its own."""

    def __init__(self, batch: Any, device: torch.device) -> None:
        self._stream = _stream_of(device) if device.type == "cuda" else None
        # pages that are pinned go by themselves; their allocator keeps them until the copy is done
        with torch.cuda.stream(self._stream):  # of None: as if it were not there
            self._batch = moved(batch, device)
        self._done = None if self._stream is None else self._stream.record_event()

    def arrived(self) -> Any:
        """The batch, for what is queued on the current stream from now on."""
        if self._done is not None:
            current = torch.cuda.current_stream(self._stream.device) if self._stream is not None else None
            assert current is not None
            current.wait_event(self._done)
            # the memory belongs to the other stream, which may not use it again before the step is done
            tree_map(lambda t: t.record_stream(current) if isinstance(t, Tensor) else None, self._batch)
        return self._batch


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch of the host on `device`."""
    return tree_map(lambda t: t.to(device, non_blocking=True) if isinstance(t, Tensor) else t, batch)


class _Batches(Dataset[Any]):
    """Lists of (step, row) -> ((step, rows), batch), for workers."""

    def __init__(self, source: ReadAhead) -> None:
        self._source = source

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> tuple[tuple[int | None, list[int]], Any]:
        step, rows = keys[0][0], [row for _, row in keys]
        return (step, rows), self._source.batch_of(rows, step)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Plan:
    """The batches to come, as lists of (step, row)."""

    def __init__(self, plan: Callable[[int], Sequence[Tensor]], start: int, stop: int) -> None:
        self._plan, self._start, self._stop = plan, start, stop

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self._start, self._stop):
            for rows in self._plan(step):
                yield [(step, row) for row in rows.tolist()]
