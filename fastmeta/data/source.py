"""What the trainer asks of data: samples with given labels, and a batch of them on the device."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastmeta.data.errors import InputError


def own(sums: Tensor) -> Tensor:
    """Sums over all training rows, of a process by itself."""
    return sums


@dataclass(frozen=True)
class Settings:
    """What a run's config says about its samples; each kind of source takes its own and refuses the others."""

    seed: int = 0  # of augmentation, and of what a data set of the user's draws
    augment: str = "none"
    padding: int = 4
    pad_mode: Literal["zero", "reflect"] = "zero"
    mean: tuple[float, ...] = ()  # of pixels, per channel as a share of 255; empty: as the training images have it
    std: tuple[float, ...] = ()
    standardise: bool = True
    workers: int = 0
    total: Callable[[Tensor], Tensor] = own  # sums over the training rows of this process -> over those of all ranks
    held: bool = True  # whether rows of files are read into memory; otherwise they are read as they are needed
    resident: bool = True  # whether arrays lie on the device; otherwise batches of them are sent
    dtype: torch.dtype = torch.float32  # of images in training
    memory_format: torch.memory_format = torch.contiguous_format


class AsItIs:
    """The transform of a source whose `fetch` gives network input."""

    tensors: Sequence[Tensor] = ()

    def __call__(self, x: Any, tensors: Sequence[Tensor]) -> Any:
        return x


class Source(ABC):
    """Samples, numbered from 0, and their given labels.

    A source of your own has `targets` and implements :meth:`fetch` and :meth:`fingerprint`; the rest has a default.
    A scheme or a factory puts one or several into a :class:`fastmeta.data.Dataset`.
    """

    #: (N,) int64, the given labels
    targets: np.ndarray
    #: a name per class; None: the class numbers
    class_names: tuple[str, ...] | None = None
    #: what people call the samples
    noun: str = "samples"
    #: of one sample as a network takes it; None where it is no tensor
    input_shape: tuple[int, ...] | None = None
    #: the options of the table [data] that this kind follows
    options: frozenset[str] = frozenset()
    #: whether :meth:`fetch` wants row numbers on the host, as most do, or on the device
    rows_on_host: bool = True
    #: finishes in the step, and in its graph, what :meth:`fetch` has begun
    transform: Any = AsItIs()

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        """The samples `rows`, (n,) int64, on `device`: a tensor (n, ...), or what the model takes as x.

        A function of rows and `step` alone, or a resumed run is another run. `step` is the number of the training step,
        which random augmentation may go by; None asks for the samples as they are, to measure on.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Another text for other samples: a resumed run must see the data that it began with."""

    def network_input(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        """:meth:`fetch` and its transform."""
        return self.transform(self.fetch(rows, step, device), self.transform.tensors)

    def read(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Any]:
        """Network input of these batches of rows, one after the other, as they are measured; it may be read ahead."""
        for rows in batches:
            yield self.network_input(rows, None, device)

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        """This source as it trains on `device`: the first `fit` rows set what is estimated, or `like` has done so."""
        return self

    def take(self, rows: np.ndarray) -> Source:
        """Some of the samples, in this order; of rows that follow each other a view, for which nothing is read."""
        return _Taken(self, rows)

    def join(self, other: Source) -> Source:
        """These samples, then those of `other`."""
        return _Joined([self, other])

    def follow(  # noqa: B027 (nothing to read ahead by default)
        self, plan: Callable[[int], Sequence[Tensor]], start: int, stop: int
    ) -> None:
        """The rows that each step from `start` to `stop` will fetch, for a source that reads ahead."""

    def ahead(self, device: torch.device) -> None:  # noqa: B027 (nothing is sent ahead by default)
        """A step has been queued: begin to send to `device` what the next one will fetch, as :meth:`follow` has it."""

    def close(self) -> None:  # noqa: B027 (nothing runs by default)
        """End what :meth:`follow` has begun, such as other processes."""

    def digests(self) -> Iterator[bytes] | None:
        """One per sample, equal for equal ones; None where looking would take too long."""
        return None

    @property
    def x(self) -> Any:
        """The samples as an array (N, ...), or one by one as ``x[i]``."""
        return _OneByOne(self)

    @property
    def nbytes(self) -> int:
        """Held on the device."""
        return 0

    @property
    def bytes_to_place(self) -> int:
        """What :meth:`placed` would hold on the device."""
        return self.bytes_to_hold

    @property
    def bytes_to_hold(self) -> int:
        """What :meth:`placed` would read from files into memory, of a source that may leave it there."""
        return 0


class _OneByOne(Sequence[Any]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        one = self._source.network_input(torch.tensor([int(row)]), None, torch.device("cpu"))
        return tree_map(lambda t: t[0].numpy() if isinstance(t, Tensor) else t, one)


class _Taken(Source):
    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self._source, self._which = source, as_slice(rows)
        self.targets = np.asarray(source.targets)[self._which]
        self.class_names, self.noun, self.input_shape = source.class_names, source.noun, source.input_shape
        self.options, self.rows_on_host, self.transform = source.options, source.rows_on_host, source.transform

    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        if isinstance(self._which, slice):
            return self._source.fetch(rows + self._which.start, step, device)
        return self._source.fetch(torch.from_numpy(self._which).to(rows.device)[rows], step, device)

    def fingerprint(self) -> str:
        which = self._which
        rows = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        return digest_of(self._source.fingerprint(), rows, np.asarray(self.targets))


class _Joined(Source):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.targets = np.concatenate([np.asarray(s.targets) for s in sources])
        first = sources[0]
        self.class_names, self.noun, self.input_shape, self.options = (
            first.class_names,
            first.noun,
            first.input_shape,
            first.options,
        )

    def fetch(self, rows: Tensor, step: Any, device: torch.device) -> Any:
        places, parts, begin = [], [], 0
        for source in self._sources:
            at = ((rows >= begin) & (rows < begin + len(source))).nonzero().flatten()
            if len(at):
                own = rows[at] - begin
                parts.append(source.network_input(own if source.rows_on_host else own.to(device), step, device))
                places.append(at)
            begin += len(source)
        if len(parts) == 1:
            return parts[0]
        order = torch.cat(places).argsort().to(device)
        return tree_map(lambda *t: torch.cat(t)[order] if isinstance(t[0], Tensor) else t[0], *parts)

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        first, *others = self._sources
        first = first.placed(settings, device, min(fit or len(first), len(first)), like)
        return _Joined([first, *(s.placed(settings, device, None, first) for s in others)])

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self._sources)

    @property
    def bytes_to_place(self) -> int:
        return sum(s.bytes_to_place for s in self._sources)

    @property
    def bytes_to_hold(self) -> int:
        return sum(s.bytes_to_hold for s in self._sources)

    def fingerprint(self) -> str:
        return digest_of(*(s.fingerprint() for s in self._sources))


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Row numbers (n,) int64, or the slice that they are: what it takes of an array is a view."""
    rows = np.asarray(rows, np.int64)
    if len(rows) and rows[0] >= 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def digest_of(*parts: Any) -> str:
    """Of texts and arrays, their shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, str(part.dtype))).encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()


def check_source(source: Source, name: str) -> None:
    """InputError, in one line, for a source of the user's that lacks what training needs."""
    targets = getattr(source, "targets", None)
    if not (isinstance(targets, np.ndarray) and targets.ndim == 1 and targets.dtype.kind in "iu" and len(targets)):
        got = type(targets).__name__ if not isinstance(targets, np.ndarray) else f"{targets.dtype} {targets.shape}"
        raise InputError(f"{name}: targets of a Source must be an array (N,) of an integer dtype, N > 0, got {got}")
    if len(source) != len(targets):
        raise InputError(f"{name}: the Source has {len(source)} samples and {len(targets)} targets")
