"""What is timed: one way of taking a step, on a model and labels of its own, and its capture in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastmeta.bench.captured_bodies import replayed
from fastmeta.bench.step_problem import Problem


@dataclass
class Variant:
    """`step()` runs one iteration in place on its own `model` and on its own label `table` or `loss`.

    A plain step has neither. A loss whose weights live for one step has no parameters: the model shows what it did.
    """

    step: Callable[[], Any]
    model: nn.Module
    table: Tensor | None = None
    loss: nn.Module | None = None
    exact: bool = True
    period: int = 1  # steps after which the work repeats: figures are means over so many
    note: Callable[[], str] = lambda: ""  # after a step
    finite: Callable[[], bool] = lambda: True  # whether all steps so far have counted
    #: after a step, the same operations as calls that torch's counters see, where `step` hides them
    visible: Callable[[], Any] | None = None

    @property
    def bodies(self) -> list[Callable[[], Any]]:
        return [self.step] * self.period

    def cycle(self) -> None:
        """One period of steps."""
        for body in self.bodies:
            body()


#: builds a variant for a problem, or says in one line why it is skipped
Builder = Callable[[Problem], "Variant | str"]


def captured(build: Builder, problem: Problem) -> Variant | str:
    """The variant that `build` gives, its step captured whole in a CUDA graph: `step()` is one replay.

    The step must neither wait for the device nor depend on what Python holds; its inputs stay where they are. Where
    that does not hold, capture raises RuntimeError.
    """
    if problem.device.type != "cuda":
        return "needs a CUDA device (--device cuda)"
    variant = build(problem)
    if isinstance(variant, str):
        return variant
    state = [*variant.model.parameters(), *variant.model.buffers()]
    if variant.table is not None:
        state.append(variant.table)
    if variant.loss is not None:
        state += variant.loss.parameters()
    before = [t.detach().clone() for t in state]
    replay, _ = replayed([variant.step])  # which runs it before the capture, too
    with torch.no_grad():
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
    return replace(variant, step=replay, visible=variant.visible or variant.step)


def on_fake_tensors(graph: fx.GraphModule) -> None:
    """Run a traced graph without computing anything: for counters of operations."""
    graph(*(n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"))
