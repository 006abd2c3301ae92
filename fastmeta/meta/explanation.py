"""What a meta step says of itself, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmeta.functional.network import Network
from fastmeta.meta.distance import DistanceWatch
from fastmeta.meta.engines.traced import GraphStep
from fastmeta.meta.lookahead import LookAheadChoice

if TYPE_CHECKING:
    from fastmeta.meta.step import MetaStep


def explanation(
    step: MetaStep,
    *,
    lookahead: LookAheadChoice,
    label_step: float | None,
    network: Network | None,
    graphs: GraphStep | None,
    untraced: str,
    watch: DistanceWatch,
) -> str:
    """One line each on labels, look-ahead, tangent, approximation, batches, graphs and steps."""
    plan = step.plan
    tangent = f"not chosen before the first step ({step.tangent!r})"
    if plan is not None:
        attention = ", attention as plain maths" if plan.math_attention else ""
        exact = "inexact" if plan.kind == "difference" else "exact"
        tangent = f"{plan.kind} ({exact}{attention}): {plan.reason}"
    look = {
        "sgd": "plain SGD at the optimizer's current learning rate (Eq. 3)",
        "optimizer": "the optimizer's own step, with its momentum and weight decay",
    }.get(str(lookahead), f"plain SGD at the fixed rate {lookahead}")
    if step.lookahead_steps > 1:
        look = f"{step.lookahead_steps} steps of {look}"
    rate = "" if step.label_lr is None else f"{step.label_lr:g}"
    if label_step is not None:
        rate += f"{' now, ' if rate else ''}set in each step so that a visit moves a label by {label_step:g}"
    graph = {"off": "no", "trace": "one graph", "full": "one graph through inductor"}[step.compile]
    batches = "whole" if step.micro_batch is None else f"graphs of at most {step.micro_batch} rows at once"
    if untraced:
        graph = f"runs eagerly: {untraced}"
    elif graphs is not None and graphs.record is not None:
        refused = graphs.uncaptured
        graph += f", not captured in a CUDA graph: {refused}" if refused else ", captured in a CUDA graph"
    if network is not None and network.model is not step.model:
        graph += "; the model's own torch.compile is set aside"
    layers = ""
    if step.approx.kind == "last" and network is not None:
        layers = f": {', '.join(step.approx.moving(network))}"
    how = f"label_lr {rate}" if step.loss.moves_itself else f"moved by {type(step.loss_optimizer).__name__}"
    moved = f"{step.loss.title()}, {'made anew in each step' if step.loss.for_one_step else how}"
    return "\n".join(
        [
            moved,
            f"look-ahead: {look}",
            f"tangent:    {tangent}",
            f"approx:     {step.approx}{layers}",
            *([] if watch.every is None else [f"watched:    {watch}"]),
            f"batches:    {batches}",
            f"compiled:   {graph}",
            f"steps:      {step.steps}, of which not finite and skipped: {int(step.nonfinite_steps)}",
        ]
    )


def headline(step: MetaStep) -> str:
    """Model, number of parameters and optimizer."""
    parameters = sum(p.numel() for group in step.optimizer.param_groups for p in group["params"])
    kinds = type(step.model).__name__, type(step.optimizer).__name__
    return f"MetaStep({kinds[0]}, {parameters:,} trained parameters, {kinds[1]})"
