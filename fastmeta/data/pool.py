"""All parts of a split as a run trains on them: training rows, canaries behind them, then clean rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmeta._memory import free_memory, gibibytes
from fastmeta.data.errors import InputError
from fastmeta.data.source import Settings, Source, own
from fastmeta.data.splits import Part, Splits
from fastmeta.distributed import ALONE, Ranks

#: the run that finds out how the given labels are wrong, before canaries get wrong ones
PILOT = "pilot"
#: samples lie on a device where they take at most one part in so many of what is free there
SHARE = 2
#: rows of files are read into memory where they take at most one part in so many of what is free there
HELD = 4


@dataclass(frozen=True)
class Pool:
    """Rows [0, train_size) of `source` are train, then come the canaries, then clean rows; labels lie on `device`.

    So the number of a training row is the same whether there are canaries or not.
    """

    source: Source
    targets: Tensor  # (train + canaries + meta,) int64, given; the right ones of canaries
    y_true: Tensor | None  # (train,) int64
    train_size: int
    canary_size: int
    meta_size: int
    test: tuple[Source, Tensor] | None  # samples, targets
    num_classes: int
    device: torch.device
    val: tuple[Source, Tensor] | None = None  # samples, targets
    note: str | None = None  # that the user should see
    splits: Splits | None = None  # what it was made of
    ranks: Ranks = ALONE  # whose training rows lie apart: `train_size` is of this one's
    train_in_all: int = 0  # training rows of all ranks
    whole: Splits | None = None  # the parts of all ranks, where there are several

    @classmethod
    def of(
        cls,
        splits: Splits,
        device: torch.device,
        settings: Settings,
        resident: str = "auto",
        ranks: Ranks = ALONE,
        whole: Splits | None = None,
    ) -> Pool:
        """Bring everything to `device`; what is estimated of samples, such as a mean, is of the training rows.

        Where the training rows are those of one rank alone, it is of the rows of all `ranks`, each of which calls this;
        `whole` has them all.

        `resident` says whether arrays lie on the device: yes, no, or auto, where they take half of what is free there
        at most. Otherwise batches are made on the host and sent.

        Where samples of one rank cannot be used, all ranks raise its error.
        """
        return ranks.side_by_side(partial(cls._of, splits, device, settings, resident, ranks, whole))

    @classmethod
    def _of(
        cls,
        splits: Splits,
        device: torch.device,
        settings: Settings,
        resident: str,
        ranks: Ranks,
        whole: Splits | None,
        agree: Callable[[], None],
    ) -> Pool:
        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        train, meta, test = splits.train, splits.meta, splits.test
        clean = [meta] if splits.canaries is None else [splits.canaries, meta]
        behind = meta.source if splits.canaries is None else splits.canaries.source.join(meta.source)
        joined = train.source.join(behind) if len(meta) else train.source
        parts = [joined, *(part.source for part in (test, splits.val) if part is not None)]
        held, note = _held(parts, resident)
        fits = True
        if held and resident == "auto":
            fits, note = _fits(sum(s.bytes_to_place for s in parts), device)

        def total(sums: Tensor) -> Tensor:
            agree()
            return ranks.sum(sums.to(device)).to(sums.device)  # on the device, as NCCL wants it

        settings = replace(
            settings, held=held, resident=fits and resident != "no", total=own if ranks.size == 1 else total
        )
        source = joined.placed(settings, device, len(train))

        def measured(part: Part | None) -> tuple[Source, Tensor] | None:
            return None if part is None else (part.source.placed(settings, device, None, source), to(part.y))

        return cls(
            source=source,
            targets=torch.cat([to(part.y) for part in (train, *clean)]),
            y_true=None if train.y_true is None else to(train.y_true),
            train_size=len(train),
            canary_size=0 if splits.canaries is None else len(splits.canaries),
            meta_size=len(meta),
            test=measured(test),
            val=measured(splits.val),
            num_classes=splits.num_classes,
            device=device,
            note=note,
            splits=splits,
            ranks=ranks,
            train_in_all=len((whole or splits).train),
            whole=whole,
        )

    @property
    def clean_start(self) -> int:
        """The first clean row, which is one past the last row that a method trains on."""
        return self.train_size + self.canary_size

    @property
    def wrong_share(self) -> float | None:
        """Share of wrong given labels among all training rows; None where nobody knows. Waits for the device."""
        if self.whole is not None:
            return self.whole.noise_rate
        return None if self.y_true is None else float((self.targets[: self.train_size] != self.y_true).double().mean())

    def of_all(self) -> tuple[Tensor, Tensor | None]:
        """Given and right labels of all training rows: of several ranks, on the host."""
        if self.whole is None:
            return self.targets[: self.train_size], self.y_true
        train = self.whole.train
        y_true = None if train.y_true is None else torch.from_numpy(np.asarray(train.y_true, np.int64))
        return torch.from_numpy(np.asarray(train.y, np.int64)), y_true

    @property
    def in_all(self) -> int:
        """Rows that a method trains on, of all ranks."""
        return self.train_in_all + self.canary_size

    def rows(self, run: str) -> tuple[range, ...]:
        """The rows that a run trains on: ranges one behind the other.

        The baselines union and clean have all clean rows, which canaries were, too; noisy and the pilot have the
        training rows alone. All else is a method, which has training rows and canaries. A rank trains on its own share
        of clean rows.
        """
        train = range(self.train_size)
        first, last = self.ranks.share(self.canary_size + self.meta_size)
        clean = range(self.train_size + first, self.train_size + last)
        union = (range(clean.stop),) if self.ranks.size == 1 else (train, clean)
        of_fixed = {"union": union, "clean": (clean,), "noisy": (train,), PILOT: (train,)}
        return of_fixed.get(run, (range(self.clean_start),))

    def numbers(self, run: str, index: Tensor) -> Tensor:
        """Rows of the source, of the rows `index` of those that a run trains on."""
        first, *others = self.rows(run)
        rows, passed, end = index + first.start, len(first), first.stop
        for other in others:
            rows = rows + (index >= passed) * (other.start - end)
            passed, end = passed + len(other), other.stop
        return rows

    def given(self, run: str, of_canaries: np.ndarray | None) -> Tensor:
        """The labels that a run trains on: the right ones of canaries, unless it is told others."""
        parts = [self.targets[rows.start : rows.stop] for rows in self.rows(run)]
        given = parts[0] if len(parts) == 1 else torch.cat(parts)
        if of_canaries is None:
            return given
        return torch.cat([given[: self.train_size], torch.from_numpy(of_canaries).to(given.device)])

    def few(self, count: int) -> Any:
        """Network input of the first `count` samples, as they are measured."""
        rows = torch.arange(count, device="cpu" if self.source.rows_on_host else self.device)
        return self.source.network_input(rows, None, self.device)

    @property
    def bytes(self) -> int:
        """Size on the device."""
        sources = [self.source, *(part[0] for part in (self.test, self.val) if part is not None)]
        return sum(s.nbytes for s in sources) + self.targets.numel() * self.targets.element_size()


def _held(parts: list[Source], resident: str) -> tuple[bool, str | None]:
    """Whether rows of files are read into memory, and a line where they are not; `resident` as :meth:`Pool.of` has it.

    InputError where they must be, and take more than is free.
    """
    needed, free = sum(s.bytes_to_hold for s in parts), free_memory()
    if not needed or resident == "no":
        return resident != "no", None
    what = f"the samples take {gibibytes(needed)}"
    if resident == "yes" and free is not None and needed > free:
        raise InputError(
            f"{what}, and {gibibytes(free)} of memory are free; have them read as they are needed (--data.resident no)"
        )
    # others on this machine, which train together, read theirs in the same moment
    if resident == "yes" or free is None or HELD * needed * int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= free:
        return True, None
    return False, (
        f"{what}, more than a quarter of the {gibibytes(free)} of memory that are free: they are read as they are "
        "needed; --data.workers N has N processes read ahead"
    )


def _fits(needed: int, device: torch.device) -> tuple[bool, str | None]:
    """Whether samples of `needed` bytes lie on `device`, and a line where they do not."""
    free = free_on(device)
    if free is None or SHARE * needed <= free:
        return True, None
    return False, (
        f"the samples take {gibibytes(needed)}, more than half of the {gibibytes(free)} that are free on {device}: "
        "they stay on the host, and batches are sent"
    )


def free_on(device: torch.device) -> int | None:
    """Bytes of its own that `device` has free; None for the CPU, whose memory the samples lie in already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
