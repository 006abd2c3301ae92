"""What a step is built of, held against each other before anything runs."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from fastmeta.distributed import Ranks
from fastmeta.functional.fsdp_units import is_sharded
from fastmeta.functional.network import functional_module
from fastmeta.losses import LearnableLoss
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.demands import (
    approximation_of,
    check_choice,
    check_loss_optimizer,
    check_optimizer,
    check_own_rows,
    most_rows,
)
from fastmeta.meta.engines.traced import CompileMode
from fastmeta.meta.gradient import check_loss
from fastmeta.meta.sharded_demands import check_sharded
from fastmeta.meta.tangents import TangentChoice
from fastmeta.meta.window import steps_ahead


class Settings(NamedTuple):
    """Arguments as the step goes by them."""

    tangent: TangentChoice
    approx: Approximation
    max_rows: int | None
    lookahead_steps: int


def settled(
    model: nn.Module,
    loss: LearnableLoss,
    optimizer: torch.optim.Optimizer,
    loss_optimizer: torch.optim.Optimizer | None,
    ranks: Ranks,
    *,
    own_rows: bool,
    lookahead: Any,
    tangent: TangentChoice,
    compile: CompileMode,
    approx: str | None,
    watch_every: int | None,
    micro_batch: int | None,
    lookahead_steps: int,
) -> Settings:
    """A TypeError or ValueError for arguments of :class:`fastmeta.MetaStep` that do not fit each other, named."""
    functional_module(model, sharded=True)  # raises for what is none
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    check_optimizer(optimizer)
    check_sharded(model, optimizer, ranks, compile, tangent, micro_batch, approx, watch_every)
    check_loss(loss)
    check_loss_optimizer(loss, loss_optimizer, model)
    check_own_rows(loss, ranks, own_rows)
    max_rows = most_rows(micro_batch)
    check_choice("tangent", tangent, get_args(TangentChoice))
    check_choice("compile", compile, get_args(CompileMode))
    parsed, tangent = approximation_of(approx, loss, tangent)
    steps = steps_ahead(
        lookahead_steps,
        loss,
        lookahead=lookahead,
        tangent=tangent,
        compile=compile,
        approx=approx,
        micro_batch=micro_batch,
        ranks=ranks.size,
        sharded=is_sharded(model),
    )
    return Settings(tangent if steps == 1 else "reverse", parsed, max_rows, steps)
