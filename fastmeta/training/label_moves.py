"""How often labels move between epochs, and what that costs."""

from __future__ import annotations

from fastmeta.posterior import FOLDS
from fastmeta.training.stage import Stage


def moves(stage: Stage) -> int:
    """How often labels move at the end of an epoch, in the whole run."""
    labels, epochs = stage.config.labels, stage.config.epochs or 0
    if stage.name != stage.config.method or labels.update == "exact":
        return 0
    return sum(labels.moves_after(epoch, epochs) for epoch in range(1, epochs + 1))


def steps_per_move(stage: Stage) -> float:
    """What such a move costs, in steps on a batch: by counted forwards, a step being three of each row."""
    rows, labels = stage.last_row - stage.first, stage.config.labels
    if labels.update == "posterior":
        forwards = FOLDS * (rows + 3 * (labels.steps or 0) * (labels.clean_batch or 0)) + stage.data.meta_size
    else:
        forwards = 2 * rows + 3 * (labels.steps or 0) * stage.meta_sampler.batch_size
    return forwards / (3 * stage.sampler.batch_size)
