"""Which rows each step of a stage takes, and their samples.

Of several ranks each draws its part of a train batch from its own rows, and all take the same number of steps. A meta
batch is drawn by all alike, and each takes its part of it. The order is a function of (seed, epoch, step, ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmeta.data import EpochSampler, Pool
from fastmeta.distributed import Ranks
from fastmeta.methods import Batch
from fastmeta.training.coming_rows import ComingRows
from fastmeta.training.config import TrainConfig


def steps_per_epoch(rows: int, batch_size: int, ranks: Ranks) -> int:
    """Whole batches of `batch_size` in all that every rank has of `rows` in all."""
    least = ranks.least_share(rows)
    return least // min(batch_size // ranks.size, least)


class Batches:
    """Those of one stage.

    Args:
        name: of the stage.
        config: resolved.
    """

    def __init__(self, name: str, config: TrainConfig, data: Pool) -> None:
        self.name, self.config, self.data, self.ranks = name, config, data, data.ranks
        self.size = sum(map(len, data.rows(name)))
        #: numbers rows of the stage, and clean rows of all ranks together
        self.sampler, self.meta_sampler = self._samplers()
        self.coming = ComingRows(None, self.sampler, data.device, 0)
        self._following = False  # whether the source has been told which batches will come

    def _samplers(self) -> tuple[EpochSampler, EpochSampler]:
        data, batches, ranks = self.data, self.config.data, self.ranks
        device = torch.device("cpu") if data.source.rows_on_host else data.device
        how: dict[str, Any] = {"seed": self.config.seed, "device": device}
        size, order, passes = batches.batch_size or 1, "train-order", None
        if ranks.size > 1:
            size, order = size // ranks.size, f"train-order of rank {ranks.rank} of {ranks.size}"
            least = ranks.least_share(self.in_all)
            size = min(size, least)
            passes = least // size
        train = EpochSampler(self.size, size, stream=order, batches=passes, **how)
        meta = EpochSampler(data.meta_size, batches.meta_batch_size or 1, stream="meta-order", **how)
        return train, meta

    @property
    def in_all(self) -> int:
        """Rows of the stage, of all ranks."""
        data = self.data
        clean = data.canary_size + data.meta_size
        of_fixed = {"union": data.train_in_all + clean, "clean": clean, "noisy": data.train_in_all}
        return of_fixed.get(self.name, data.in_all)

    def meta_rows(self, sampler: EpochSampler, step: int) -> Tensor:
        """This rank's part of a meta batch, rows of the source."""
        rows, ranks = sampler(step), self.ranks
        if ranks.size > 1:
            each = len(rows) // ranks.size
            rows = rows[ranks.rank * each : (ranks.rank + 1) * each]
        return rows + self.data.clean_start

    def follow(self, start: int, stop: int, wants_meta: Callable[[], bool]) -> None:
        """Tell the source which batches will come, from samplers of its own: it may be ahead of the steps."""
        train, meta = self._samplers()

        def plan(step: int) -> list[Tensor]:
            rows = [self.data.numbers(self.name, train(step))]
            return [*rows, self.meta_rows(meta, step)] if wants_meta() else rows

        self.data.source.follow(plan, start, stop)
        self._following = True

    def tell(self, labels: Any, stop: int) -> ComingRows:
        """A label table of `labels` hears of the rows of steps to come, up to the one before `stop`."""
        self.coming = ComingRows(labels, self.sampler, self.data.device, stop)
        return self.coming

    def ahead(self) -> None:
        """The step has been queued: the next one's samples may be sent beside it."""
        if self._following:
            self.data.source.ahead(self.data.device)

    def close(self) -> None:
        self.data.source.close()
        self._following = False

    def __call__(self, step: int, stop: int, wants_meta: Callable[[], bool]) -> Batch:
        """That of `step`, the last of which is the one before `stop`."""
        if not self._following:
            self.follow(step, stop, wants_meta)
        data, (drawn, index) = self.data, self.coming(step)
        # by a fill: a copy from the host would wait
        number = step if data.source.rows_on_host else torch.full((), step, device=data.device)
        x = data.source.fetch(data.numbers(self.name, drawn), number, data.device)
        meta = None
        if wants_meta():
            rows = self.meta_rows(self.meta_sampler, step)
            meta = data.source.fetch(rows, number, data.device), data.targets[rows.to(data.device)]
        return Batch(x, index, meta)
