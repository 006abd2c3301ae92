"""Samples that a map-style data set gives one by one, for what does not fit: read ahead by a DataLoader's workers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

from fastmeta._numbers import as_whole
from fastmeta._text import reason, shown
from fastmeta.data.errors import InputError
from fastmeta.data.read_ahead import ReadAhead
from fastmeta.data.seeds import derived_seed
from fastmeta.data.source import Settings, Source, as_slice, digest_of

#: samples that stand for all in a fingerprint
SAMPLED = 64
_numpy: Any = np.random  # the old global generator, which transforms draw from


class Stream(ReadAhead):
    """A map-style ``torch.utils.data.Dataset`` of (x, y), where x is what a model takes of one sample.

    What its transforms draw from torch, Python and NumPy is a function of (seed, step, row), so that neither the number
    of workers nor a resumed run changes a batch.
    """

    options = frozenset({"workers"})

    def __init__(
        self, dataset: Any, targets: np.ndarray, class_names: tuple[str, ...] | None = None, seed: int = 0
    ) -> None:
        self.dataset, self.targets, self.class_names, self._seed = dataset, targets, class_names, seed

    @classmethod
    def of(cls, dataset: Any, name: str) -> Stream:
        """With the labels in the data set's `targets` or `labels`, else those that its samples say, read once."""
        try:
            size = len(dataset)
        except Exception as error:
            raise InputError(
                f"{name}: a data set must be map-style, with len() and dataset[i]; {type(dataset).__name__} has no "
                f"len() ({reason(error)})"
            ) from error
        if not size:
            raise InputError(f"{name} is empty")
        targets = _declared(dataset, size)
        source = cls(dataset, np.zeros(size, np.int64) if targets is None else targets)
        with _kept():
            if targets is None:
                source.targets = np.array([source._pair(row, None, name)[1] for row in range(size)], np.int64)
            x, y = source._pair(0, None, name)
        if y != source.targets[0]:
            raise InputError(f"{name}: sample 0 has label {y} and targets[0] is {source.targets[0]}; which is right?")
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
            source.class_names = tuple(names)
        first = source._collated([x], name)
        source.input_shape = tuple(first.shape[1:]) if isinstance(first, Tensor) else None
        return source

    def take(self, rows: np.ndarray) -> Source:
        which = as_slice(rows)
        indices = range(which.start, which.stop) if isinstance(which, slice) else which.tolist()
        taken = Stream(Subset(self.dataset, indices), self.targets[which], self.class_names, self._seed)
        taken.input_shape = self.input_shape
        return taken

    def join(self, other: Source) -> Source:
        if not isinstance(other, Stream):
            return super().join(other)
        both: Dataset[Any] = ConcatDataset([self.dataset, other.dataset])
        joined = Stream(both, np.concatenate([self.targets, other.targets]), self.class_names, self._seed)
        joined.input_shape = self.input_shape
        return joined

    def placed(self, settings: Settings, device: torch.device, fit: int | None, like: Source | None = None) -> Source:
        placed = Stream(self.dataset, self.targets, self.class_names, settings.seed)
        placed.input_shape, placed.workers = self.input_shape, settings.workers
        return placed

    def batch_of(self, rows: list[int], step: int | None) -> Any:
        with _kept():
            return self._read(rows, [self._pair(row, step, "data")[0] for row in rows])

    def fingerprint(self) -> str:
        """Of all labels in their order, and of 64 samples that are spread evenly.

        To read every sample would take as long as an epoch does, at the start of a run and of each resumption. So other
        labels, another number of samples and another transform are seen, and a few other samples among many are not.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64)).tolist()
        parts: list[Any] = [len(self), np.asarray(self.targets)]
        with _kept():
            for row in rows:
                tree_map(lambda t: parts.append(t.numpy() if isinstance(t, Tensor) else t), self._x(row))
        return digest_of(*parts)

    def _x(self, row: int) -> Any:
        return self._collated([self._pair(row, None, "data")[0]], "data")

    def _pair(self, row: int, step: int | None, name: str) -> tuple[Any, int]:
        seed = derived_seed(self._seed, "samples" if step is None else f"samples of step {step}", row)
        # not torch.manual_seed, which until CUDA begins keeps a stack trace of each call for later: 1 ms and 5 kB
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        _numpy.seed(seed % 2**32)
        try:
            pair = self.dataset[row]
        except Exception as error:  # of a class of the user's
            raise InputError(f"{name}: sample {row} cannot be read: {reason(error)}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"a {type(pair).__name__} of {len(pair)}" if isinstance(pair, tuple | list) else type(pair).__name__
            raise InputError(f"{name}: a data set must give (x, y), got {got} for sample {row}")
        label = as_whole(pair[1])
        if label is None:
            raise InputError(f"{name}: the label of sample {row} must be a class number, got {shown(pair[1])}")
        return pair[0], label

    def _read(self, rows: Sequence[int], samples: list[Any]) -> Any:
        """The batch of `samples`, which are those of `rows`. InputError that names a row with NaN."""
        batch = self._collated(samples, "data")
        if isinstance(batch, Tensor) and batch.is_floating_point() and bool(batch.isnan().any()):
            bad = batch.isnan().flatten(1).any(1).nonzero().flatten().tolist()
            raise InputError(f"data: sample {rows[bad[0]]} holds NaN; fill such numbers, or drop the sample")
        return batch

    def _collated(self, samples: list[Any], name: str) -> Any:
        try:
            return default_collate(samples)
        except Exception as error:
            raise InputError(
                f"{name}: samples of type {type(samples[0]).__name__} cannot be stacked to a batch ({reason(error)}); "
                "give tensors or arrays of one shape, such as by a transform"
            ) from error


def _declared(dataset: Any, size: int) -> np.ndarray | None:
    """Labels that a data set of torchvision or of its like holds beside its samples."""
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is None:
            continue
        try:
            array = np.asarray(values)
        except Exception:
            continue
        if array.shape == (size,) and array.dtype.kind in "iu":
            return array.astype(np.int64)
    return None


@contextmanager
def _kept() -> Iterator[None]:
    """After, the generators that samples draw from stand where they stood."""
    before = torch.get_rng_state(), random.getstate(), _numpy.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        _numpy.set_state(before[2])
