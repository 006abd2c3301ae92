"""What a meta step says of itself, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmeta.meta.step import MetaStep


def explanation(step: MetaStep) -> str:
    """One line each on labels, look-ahead, tangent, approximation, batches, graphs and steps."""
    plan = step.plan
    tangent = f"not chosen before the first step ({step.tangent!r})"
    if plan is not None:
        attention = ", attention as plain maths" if plan.math_attention else ""
        exact = "inexact" if plan.way == "difference" else "exact"
        tangent = f"{plan.way} ({exact}{attention}): {plan.reason}"
    choice = step._lookahead.choice
    look = {
        "sgd": "plain SGD at the optimizer's current learning rate (Eq. 3)",
        "optimizer": "the optimizer's own step, with its momentum and weight decay",
    }.get(str(choice), f"plain SGD at the fixed rate {choice}")
    rate = "" if step.label_lr is None else f"{step.label_lr:g}"
    if step._given_label_lr is None:
        rate += f"{' now, ' if rate else ''}set in each step from lambda and n"
    graph = {"off": "no", "trace": "one graph", "full": "one graph through inductor"}[step.compile]
    batches = "whole" if step.micro_batch is None else f"graphs of at most {step.micro_batch} rows at once"
    if step._untraced:
        graph = f"runs eagerly: {step._untraced}"
    elif step._graphs is not None and step._graphs.record is not None:
        refused = step._graphs.uncaptured
        graph += f", not captured in a CUDA graph: {refused}" if refused else ", captured in a CUDA graph"
    if step._network is not None and step._network.model is not step.model:
        graph += "; the model's own torch.compile is set aside"
    layers = ""
    if step.approx.kind == "last" and step._network is not None:
        layers = f": {', '.join(step.approx.moving(step._network))}"
    return "\n".join(
        [
            f"labels:     {step.loss.family} ({step.loss.extra_repr()}), label_lr {rate}"
            if step.loss.moves_itself
            else f"loss:       {type(step.loss).__name__}, moved by {type(step.loss_optimizer).__name__}",
            f"look-ahead: {look}",
            f"tangent:    {tangent}",
            f"approx:     {step.approx}{layers}",
            f"batches:    {batches}",
            f"compiled:   {graph}",
            f"steps:      {step.steps}, of which not finite and skipped: {int(step.nonfinite_steps)}",
        ]
    )
