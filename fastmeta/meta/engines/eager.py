"""The step run eagerly: which graphs are held, whether to believe the tangent, and Eq. (6) by any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.distributed import Ranks
from fastmeta.functional.finite import all_finite, finite_here
from fastmeta.functional.network import Network, Tensors, is_out_of_memory
from fastmeta.functional.state import State
from fastmeta.losses.head import Head, Move
from fastmeta.meta.algorithm import LookedAhead, TrainGraphs, look_ahead, meta_step, plain_step
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.doubts import Doubts, Unfit, Unrepeatable
from fastmeta.meta.engines.closed import Closed
from fastmeta.meta.engines.in_turn import InTurn
from fastmeta.meta.engines.whole import WholeGraph
from fastmeta.meta.lookahead import LookAhead
from fastmeta.meta.micro import Cut, fits
from fastmeta.meta.result import StepResult
from fastmeta.meta.tangents import TangentChoice, TangentPlan, arithmetic_of, bends, plan_tangent
from fastmeta.meta.update import update


def train_graphs(
    network: Network,
    plan: TangentPlan,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    num_classes: int | None,
    cut: Cut,
    *,
    all_move: bool = True,
    keep_graph: bool = False,
) -> TrainGraphs:
    """Both graphs at once where they may be and that is cheaper, else in turn; products where the plan is for them.

    `all_move` says that theta* moves all parameters, `keep_graph` that a backward follows the tangent.
    """
    if not fits(train, meta, cut.max_rows) or plan.one_backward or (plan.leaves_graph and all_move):
        return InTurn(network, plan, *train, num_classes, cut, keep_graph=keep_graph and all_move)
    if plan.closed and (chain := network.chain()) is not None and chain.takes(train[0], meta[0]):
        return Closed(network, chain, *train, num_classes)
    return WholeGraph(network, plan, *train, num_classes)


def plan_through(
    network: Network, head: Head, x: Any, plan: TangentPlan, choice: TangentChoice, device: torch.device
) -> TangentPlan:
    """A plan for a batch on which hooks bend the backward: double-vjp, which takes their derivative where they bend.

    So does autograd through the look-ahead. The other ways, and pieces, take the backward for linear. Raises Unfit
    where it is, because then `plan` is wrong, and for another kind that was named by hand.
    """
    random = network.random_state(device)
    if plan.one_backward or not (plan.kind == "reverse" or choice == "auto"):
        raise Unfit(plan.kind, wrong=True)
    with random.replay(), torch.no_grad():
        logits = network(network.params, network.state(), x)
    if not bends(network, x, head.loss(logits).v / len(logits), random):
        raise Unfit(plan.kind, wrong=True)
    return plan if plan.kind == "reverse" else plan_tangent(network, x, "reverse")


@dataclass
class EagerEngine:
    """One step on these batches.

    Attributes:
        choose_plan: a plan of train input and its rows, for the model as it is by now.
        new_plan: told the plan that was taken in the place of `plan`.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    lookahead: LookAhead
    approx: Approximation
    plan: TangentPlan
    choice: TangentChoice
    ranks: Ranks
    doubts: Doubts
    cut: Cut
    num_classes: int | None
    train: tuple[Any, Tensor]
    meta: tuple[Any, Tensor]
    weight: Tensor | None
    on_grad: Callable[[Tensors], None] | None
    choose_plan: Callable[[Any, int], TangentPlan]
    new_plan: Callable[[TangentPlan], None]

    def step(self, head: Head, move: Move, *, moves: bool) -> StepResult:
        if moves:
            return meta_step(self, head, move, self.weight, delayed=self.approx.kind == "delayed")
        graphs = InTurn(self.network, self.plan, *self.train, self.num_classes, self.cut)
        return plain_step(self, head, graphs, self.weight)

    def look(self, head: Head) -> tuple[LookedAhead, Tensor]:
        """The pass, and whether it is finite and to be believed, on all ranks: a 0-d bool.

        Where the planned tangent raises or is wrong by now (a schedule may have switched on a layer), once more by the
        plan of the model as it is; once more too where the forward did not repeat, which may have made a generator.
        """
        network, last, delayed = self.network, self.approx.kind == "last", self.approx.kind == "delayed"
        again, like = False, next(iter(network.params.values()))
        while True:
            try:
                self.doubts.recall()
                graphs = train_graphs(
                    network,
                    self.plan,
                    self.train,
                    self.meta,
                    self.num_classes,
                    self.cut,
                    all_move=not last,
                    keep_graph=not delayed,
                )
                out = look_ahead(
                    graphs,
                    head,
                    self.lookahead.prepare(network.params),
                    self.meta,
                    self.approx.moving(network) if last else list(network.params),
                    weight=self.weight,
                    ranks=self.ranks,
                    cut=self.cut,
                    judge=self.plan.kind != "difference",
                    keep_grads=delayed,
                )
                finite = self.doubts.settle(
                    self.plan.kind, graphs.same(), out.found, arithmetic_of(like), out.finite(), self.ranks
                )
                return out, finite
            except RuntimeError as error:
                together = isinstance(error, Unfit | Unrepeatable)  # on all ranks, or on one alone
                if again or is_out_of_memory(error) or not (together or self.ranks.size == 1):
                    raise
                again = True
                if isinstance(error, Unrepeatable):
                    continue
                self._replan(head, error)

    def _replan(self, head: Head, error: RuntimeError) -> None:
        x, index = self.train
        now = self.choose_plan(x, len(index))
        same = now.key == self.plan.key
        if same and isinstance(error, Unfit) and not error.wrong:
            self.doubts.rounding()
        elif same and isinstance(error, Unfit) and self.cut.max_rows is None:
            now = plan_through(self.network, head, x, self.plan, self.choice, index.device)
            self.doubts.bends = True
        elif same:
            raise error
        self.plan = now
        self.new_plan(now)

    def update(self, gradient: Callable[[], Tensors], finite: Tensor, state: State, head: Head) -> Tensor:
        """The optimizer's step and the new running statistics, or neither: whether all of it is finite."""
        try:
            grads = gradient()
            on_device = finite.is_cuda
            if on_device or bool(finite):
                if self.on_grad is not None:
                    self.on_grad(grads)
                whole = all_finite(grads.values()) if on_device else finite_here(grads.values())
                finite = self.ranks.all(finite & whole)
            if on_device or bool(finite):
                update(self.network, self.optimizer, grads, state, keep=finite if on_device else None)
            if on_device or not bool(finite):
                head.undo(finite)
        except BaseException:  # out of memory, on_grad, the optimizer: the loss has moved already
            head.undo()
            raise
        return finite
