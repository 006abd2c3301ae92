"""How often labels move between epochs, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmeta.data import Pool
from fastmeta.posterior import FOLDS
from fastmeta.training.batches import steps_per_epoch
from fastmeta.training.config import TrainConfig
from fastmeta.training.outlook import plain_share

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage


def moves(stage: Stage, first: int = 0, last: int | None = None) -> int:
    """How often labels move at the end of an epoch, behind steps `first` to `last` and by default in the whole run."""
    if stage.name != stage.config.method:
        return 0
    last = stage.total if last is None else last
    ends = (min(epoch * stage.steps_per_epoch, stage.total) for epoch in _epochs_of_moves(stage.config))
    return sum(first <= end <= last for end in ends)


def moves_of(config: TrainConfig) -> int:
    """The same, in the whole run, of the method's own stage of a resolved config."""
    return len(_epochs_of_moves(config))


def _epochs_of_moves(config: TrainConfig) -> list[int]:
    labels, epochs = config.labels, config.epochs or 0
    if labels.update not in ("epoch", "posterior"):
        return []
    return [epoch for epoch in range(1, epochs + 1) if labels.moves_after(epoch, epochs)]


def steps_per_move(config: TrainConfig, data: Pool) -> float:
    """What such a move costs, in steps on a batch: by counted forwards, a step being three of each row."""
    rows, labels = data.in_all, config.labels
    if labels.update == "posterior":
        forwards = FOLDS * (rows + 3 * (labels.steps or 0) * (labels.clean_batch or 0)) + data.meta_size
    else:
        forwards = 2 * rows + 3 * (labels.steps or 0) * min(config.data.meta_batch_size or 1, data.meta_size)
    return forwards / (3 * min(config.data.batch_size or 1, rows))


def plain_steps_of(config: TrainConfig, data: Pool) -> float:
    """What the method's own stage costs, in plain steps on a batch."""
    in_epoch = steps_per_epoch(data.in_all, config.data.batch_size or 1, data.ranks)
    steps = in_epoch * (config.epochs or 0)
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    plain = min(in_epoch * config.labels.plain_epochs, steps)
    learns_in_steps = config.method_class().uses_meta_batch and config.labels.update == "exact"
    in_steps = plain + (steps - plain) / plain_share(learns_in_steps, config.approx)
    return in_steps + moves_of(config) * steps_per_move(config, data)
