"""One step as a pure function of tensors: the same algorithm that runs eagerly, with an update that writes nothing.

Rates, momentum and weight decay are 0-d inputs, so a schedule changes no graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.distributed import Ranks
from fastmeta.functional.copies import same_form, without_graph
from fastmeta.functional.finite import all_finite, both
from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.optimizers import SGD, Plus, plus, sgd
from fastmeta.functional.state import State
from fastmeta.losses import Head, Move, TracedLoss
from fastmeta.meta.algorithm import LookedAhead, look_ahead, meta_step, plain_step
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.engines.graph import Untraceable
from fastmeta.meta.engines.whole import WholeGraph
from fastmeta.meta.lookahead import LookAhead, PreparedLookAhead, Rule, fused_plus
from fastmeta.meta.result import Totals
from fastmeta.meta.tangents import TangentPlan


class BoundNetwork(Network):
    """A network over given tensors in the place of the model's own."""

    def __init__(self, network: Network, params: Tensors, frozen: Tensors, state: Tensors) -> None:
        self._network, self.params, self._frozen_values, self._own = network, params, frozen, state

    def state(self) -> State:
        return State(self._own).clone()

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        return self._network({**self._frozen_values, **params}, state, x)

    def held(self, params: Tensors, state: State | None = None) -> AbstractContextManager[None]:
        return self._network.held({**self._frozen_values, **params}, State(self._own) if state is None else state)


class GroupNumbers(NamedTuple):
    """What a schedule may change of a parameter group: 0-d tensors, which a graph reads in every step."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor


@dataclass(frozen=True)
class Terms:
    """Which terms a parameter's SGD has in the graph, and the parameter group that has their numbers.

    torch.optim.SGD without dampening; a buffer of zeros stands for none.
    """

    group: int
    momentum: bool
    nesterov: bool
    weight_decay: bool

    def rule(self, numbers: GroupNumbers) -> SGD:
        return SGD(
            numbers.lr,
            numbers.momentum if self.momentum else 0.0,
            0.0,
            self.nesterov,
            numbers.weight_decay if self.weight_decay else 0.0,
        )


def move(
    terms: list[Terms],
    thetas: list[Tensor],
    grads: list[Tensor | None],
    buffers: list[Tensor | None],
    groups: list[GroupNumbers],
    plus: Plus = plus,
    finite: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """New parameters and momentum buffers, by one call of :func:`sgd` for all parameters of one form.

    Given `finite`, the old ones where that is False. On CUDA `plus` is a launch for each term: operation by operation
    it would be several small kernels for each parameter; torch's fused SGD writes into its inputs, and as a pure
    function copies all of them first.
    """
    new, kept = list(thetas), list(buffers)
    alike: dict[Any, list[int]] = {}
    for k, (term, theta, grad) in enumerate(zip(terms, thetas, grads, strict=True)):
        if grad is not None:
            alike.setdefault((term, theta.dtype), []).append(k)
    for (term, _), places in alike.items():
        made, grown = sgd(
            term.rule(groups[term.group]),
            [thetas[k] for k in places],
            [g for k in places if (g := grads[k]) is not None],
            [b for k in places if (b := buffers[k]) is not None],
            plus,
            finite,
        )
        for k, value in zip(places, made, strict=True):
            new[k] = value
        for k, value in zip(places, grown, strict=False):
            kept[k] = value
    return new, [b for b in kept if b is not None]


@dataclass
class StepInputs:
    """Everything that a step reads, as a tree of tensors; the graph is a function of its leaves in order."""

    params: list[Tensor]
    frozen: list[Tensor]
    state: list[Tensor]
    momentum: list[Tensor]  # of the parameters that have one
    loss: list[Tensor]  # what the loss reads
    given: list[Tensor]  # none, or the given classes (n,) that totals see
    index: Tensor
    x: Any
    x_meta: Any
    y_meta: Tensor
    data: list[Tensor]  # what the transform of x and x_meta reads
    numbers: list[Tensor]  # of each parameter group, its GroupNumbers
    lookahead_lr: Tensor  # 0-d, for a fixed look-ahead
    label_lr: Tensor  # 0-d, of a loss that moves itself
    floor: list[Tensor]  # none, or of a normalised step the 0-d least norm
    weight: list[Tensor]  # none or one
    totals: list[Tensor]  # none or one

    def tree(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    @property
    def groups(self) -> list[GroupNumbers]:
        size = len(GroupNumbers._fields)
        return [GroupNumbers(*self.numbers[k : k + size]) for k in range(0, len(self.numbers), size)]


@dataclass
class PureEngine:
    """An engine whose update gives new tensors and writes none."""

    network: Network
    plan: TangentPlan
    names: list[str]  # of the parameters that theta* moves
    delayed: bool
    lookahead: PreparedLookAhead
    terms: list[Terms]
    inputs: StepInputs
    buffers: list[Tensor | None]
    num_classes: int | None
    ranks: Ranks

    def graph(self) -> WholeGraph:
        inputs = self.inputs
        return WholeGraph(self.network, self.plan, inputs.x, inputs.index, self.num_classes, replay=False)

    def look(self, head: Head) -> tuple[LookedAhead, Tensor]:
        inputs, weight = self.inputs, next(iter(self.inputs.weight), None)
        out = look_ahead(
            self.graph(),
            head,
            self.lookahead,
            (inputs.x_meta, inputs.y_meta),
            self.names,
            weight=weight,
            ranks=self.ranks,
            judge=False,
            keep_grads=self.delayed,
        )
        return out, self.ranks.all(out.finite())

    def update(self, gradient: Callable[[], Tensors], finite: Tensor, state: State, head: Head) -> Tensor:
        grads, params = gradient(), self.network.params
        finite = self.ranks.all(both(finite, [all_finite(grads.values(), finite.device)]))
        thetas, wanted = [without_graph(p) for p in self.inputs.params], [grads.get(name) for name in params]
        # on a CPU the caller looks at the flag, because masks cost a third of the update there
        masked = (fused_plus, finite) if finite.is_cuda else (plus, None)
        self.moved = move(self.terms, thetas, wanted, self.buffers, self.inputs.groups, *masked)
        self.after = state
        return finite


@dataclass
class PureStep:
    """New parameters, momentum, buffers, totals, what the loss writes, then the fields of a StepResult."""

    network: Network
    loss: TracedLoss
    num_classes: int | None
    lookahead: LookAhead
    terms: list[Terms]
    plan: TangentPlan
    approx: Approximation
    unique: bool
    totals: Totals | None
    ranks: Ranks
    own_rows: bool

    def __call__(self, inputs: StepInputs, loss_moves: bool) -> list[Tensor]:
        """On CUDA all new values are masked by `finite`, because nothing may wait for the device; on a CPU the caller
        looks at the flag before it writes (the masks cost a third of the update there).
        """
        network, names = self.network, list(self.network.params)
        params = {k: p.detach().requires_grad_() for k, p in zip(names, inputs.params, strict=True)}
        frozen = dict(zip(network.frozen(), inputs.frozen, strict=True))
        own = dict(zip(network.own_state(), inputs.state, strict=True))
        momenta = iter(inputs.momentum)
        buffers = {k: next(momenta) if t.momentum else None for k, t in zip(names, self.terms, strict=True)}
        weight = next(iter(inputs.weight), None)
        engine = PureEngine(
            BoundNetwork(network, params, frozen, own),
            self.plan,
            self.approx.moving(network),
            delayed := self.approx.kind == "delayed",
            PreparedLookAhead(self._lookahead_rules(inputs, buffers)),
            self.terms,
            inputs,
            list(buffers.values()),
            self.num_classes,
            self.ranks,
        )
        head = self.loss.head(inputs.loss, inputs.index, inputs.x, weight)
        if loss_moves:
            floor = next(iter(inputs.floor), None)
            how = Move(self.ranks, inputs.label_lr, floor, self.unique, own_rows=self.own_rows)
            result = meta_step(engine, head, how, weight, delayed=delayed)
        else:
            result = plain_step(engine, head, engine.graph(), weight)
        finite, after = result.finite, engine.after

        def keep(value: Tensor, before: Tensor) -> Tensor:
            return torch.where(finite, value, before) if finite.is_cuda else value

        if moved_too := sorted(after.keys() & network.frozen().keys()):
            raise Untraceable(f"the model moves {moved_too[0]}, but not in every forward")
        # a plain attribute of another form than before is a cache for the meta batch: see GraphStep
        statistics = [keep(after[k], t) if same_form(after[k], t) else t for k, t in own.items()]
        totals = [] if self.totals is None else [self.totals.added(inputs.totals[0], result, inputs.given[0])]
        new, grown = engine.moved
        return [*new, *grown, *statistics, *totals, *head.new(keep), *vars(result).values()]

    def _lookahead_rules(self, inputs: StepInputs, buffer_of: dict[str, Tensor | None]) -> dict[str, Rule]:
        choice, rules = self.lookahead.choice, {}
        for (name, buffer), term in zip(buffer_of.items(), self.terms, strict=True):
            numbers = inputs.groups[term.group]
            if choice == "sgd":
                rules[name] = Rule(numbers.lr)
            elif choice == "optimizer":
                rules[name] = Rule(**vars(term.rule(numbers)), buffer=buffer)
            else:
                rules[name] = Rule(inputs.lookahead_lr)
        return rules
