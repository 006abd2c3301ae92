"""A stage that goes on in another number of processes than it was saved by: same labels and models, other draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastmeta.data import InputError, derived_seed
from fastmeta.distributed import ALONE
from fastmeta.training import global_generators
from fastmeta.training.batches import steps_per_epoch
from fastmeta.training.rundir.rank_files import own_rows

if TYPE_CHECKING:
    from fastmeta.training.stage import Stage


def state_of(stage: Stage, tensors: dict[str, Tensor], values: Mapping[str, Any], saved_by: int) -> dict[str, Tensor]:
    """What this rank takes of a state that so many saved; InputError where they alone can go on from it."""
    ranks, before, now = stage.ranks, _steps_before(stage, values), stage.steps_per_epoch
    way = f"go on in as many processes as before, {saved_by}, and not in {ranks.size}"
    if (what := stage.parts.of_few) is not None:
        raise InputError(f"{what} does not say which of its state is by row (row_state): {way}")
    if stage.recorder is not None and before != now:
        raise InputError(f"the trajectory is of {before:,} steps an epoch, and here are {now:,}: {way}")
    return own_rows(tensors, stage.by_row(values), ranks) if saved_by == 1 else tensors


def go_on(stage: Stage, values: Mapping[str, Any], saved_by: int) -> None:
    """Behind the loading: the stage stands where it stood in its schedule, and draws what no rank has drawn."""
    before, now = _steps_before(stage, values), stage.steps_per_epoch
    epoch, within = divmod(stage.step, before)
    stage.step = min(epoch * now + within * now // before, stage.total)
    stage.totals.regroup(saved_by)
    stream = f"random-layers from step {stage.step} on {stage.ranks.size} ranks"
    global_generators.seed_all(derived_seed(stage.config.seed, stream, stage.ranks.rank))


def _steps_before(stage: Stage, values: Mapping[str, Any]) -> int:
    """Steps of an epoch as it was saved: one process does not write them down."""
    alone = steps_per_epoch(stage.data.in_all, stage.config.data.batch_size or 1, ALONE)
    return int(values.get("steps_per_epoch", alone))
