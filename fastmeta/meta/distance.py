"""How far an approximate step is from the exact one, measured now and then while a model is trained.

Two vectors are made in one step, from the same theta, phi, batches, random masks and rates, by eager passes that change
nothing: a, what the approximation moves along, and e, what the exact step would.

    h      = dL_meta(theta*)/dphi, Eqs. (4), (7): of instance labels the rows of the batch, over ranks those of all
    G(phi) = (1/n) sum_i grad l_i(theta, phi)

| approx       | a                                      | e                                                          |
|--------------|----------------------------------------|------------------------------------------------------------|
| "last:L"     | h, theta* and u of the last L layers   | h                                                          |
| "difference" | h, u a difference of logits            | h                                                          |
| "delayed"    | G(phi)                                 | G(phi_new), of the labels that this step moves to          |
| "every:k"    | h of the step of k in which labels     | the sum of h over these k steps, each where the training   |
|              | move                                   | that is watched is by then                                 |

    cosine = <a, e> / (|a| |e|)      length = |a| / |e|      error = |a - e| / |e|

Cosine and length are 1 and the error is 0 where the step is exact. The steps of "every:k" have other rows: with
instance labels the cosine is near 1/sqrt(k), and says how much of the movement is left out. For losses that all rows
share it says how well one batch stands for k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_whole, shown
from fastmeta._text import reason
from fastmeta.distributed import Ranks
from fastmeta.functional.network import Network, Tensors, is_out_of_memory
from fastmeta.functional.random_state import RandomState
from fastmeta.losses import Labels, LearnableLoss, Move
from fastmeta.losses.autograd_head import generators_of
from fastmeta.losses.head import Head
from fastmeta.meta.approximation import EXACT, Approximation
from fastmeta.meta.doubts import Doubts, Unfit, Unrepeatable
from fastmeta.meta.engines.eager import EagerEngine
from fastmeta.meta.result import Distance
from fastmeta.meta.rows import take
from fastmeta.meta.tangents import TangentChoice, TangentPlan, plan_tangent, tried_by_all

#: gradients by name, of the rows `index` (n,) of a table, or with None whole ones
Part = tuple[Tensor | None, Tensors]


def distance_of(ours: Sequence[Part], exact: Sequence[Part], ranks: Ranks | None = None) -> Distance:
    """Of the sum of `ours` from the sum of `exact`; `ranks` where each has a part of the rows."""
    sums = []
    for name in dict.fromkeys(name for _, grads in (*ours, *exact) for name in grads):
        a, e = _aligned([[(index, g[name]) for index, g in parts if name in g] for parts in (ours, exact)])
        sums.append(torch.stack([(a * e).sum(), a.square().sum(), e.square().sum(), (a - e).square().sum()]))
    total = torch.stack(sums).sum(0)
    product, a2, e2, d2 = total if ranks is None else ranks.sum(total)
    cosine = torch.where((a2 == 0) & (e2 > 0), 0.0, product / (a2.sqrt() * e2.sqrt()))
    return Distance(cosine, (a2 / e2).sqrt(), (d2 / e2).sqrt())


def _aligned(sides: list[list[tuple[Tensor | None, Tensor]]]) -> list[Tensor]:
    """The sum of each side in float64; of rows, as tables of all rows that either has."""
    like = next(g for side in sides for _, g in side)
    indices = [index for side in sides for index, _ in side if index is not None]
    if not indices:
        zero = torch.zeros_like(like, dtype=torch.float64)
        return [sum((g.double() for _, g in side), zero) for side in sides]
    rows, places = torch.cat(indices).unique(return_inverse=True)
    where = iter(places.split([len(index) for index in indices]))
    tables = [like.new_zeros(len(rows), *like.shape[1:], dtype=torch.float64) for _ in sides]
    for table, side in zip(tables, sides, strict=True):
        for _, g in side:
            table.index_add_(0, next(where), g.double())
    return tables


def watch_of(
    every: Any, approx: Approximation, tangent: TangentChoice, loss: LearnableLoss, ranks: Ranks, own_rows: bool
) -> DistanceWatch:
    """What `watch_every` asks for. ValueError for what is no number of steps, and for exact steps."""
    if every is None:
        return DistanceWatch(None, approx, loss, ranks, own_rows)
    steps = as_whole(every)
    if steps is None or steps < 1:
        raise ValueError(f"watch_every must be None or a whole number of steps from 1 on, got {shown(every)}")
    if approx == EXACT and tangent == "difference":
        approx = Approximation("difference")
    if approx == EXACT:
        raise ValueError(
            f"watch_every={steps} is about approximate steps, and approx is None: the step is exact; leave it out, or "
            "take an approx"
        )
    return DistanceWatch(steps, approx, loss, ranks, own_rows)


class DistanceWatch:
    """Measures :class:`Distance` in every `every`-th step, of "every:k" in the first k steps that begin there or later.

    With None it never does. What cannot be watched is given up with a warning, and training goes on: a model without an
    exact tangent, an exact pass that does not fit into memory.
    """

    def __init__(
        self, every: int | None, approx: Approximation, loss: LearnableLoss, ranks: Ranks, own_rows: bool
    ) -> None:
        self.every, self.approx, self.loss, self.ranks = every, approx, loss, ranks
        self.period = approx.period
        self.by_row = isinstance(loss, Labels) and loss.by_row
        #: whether each rank has a part of the vectors, and not all of them
        self.divided = loss.for_one_step or (self.by_row and own_rows)
        self.gave_up = ""
        self._doubts = Doubts(), Doubts()  # of the exact step, and of the approximate one as it is taken here
        self._plan: TangentPlan | None = None
        self._planned: Any = None
        self._parts: list[Part] = []  # h of the steps of a period that has begun

    def __str__(self) -> str:
        if self.gave_up:
            return f"no: {self.gave_up}"
        of = "" if self.period == 1 else f", over {self.period} of them"
        return f"the distance from the exact step, every {self.every} steps{of}"

    def covers(self, step: int) -> bool:
        """Whether number `step`, from 0 on, is looked at."""
        if self.every is None or self.gave_up:
            return False
        begin = step - step % self.period
        return -(-begin // self.every) * self.every < begin + self.period

    def look(
        self, engine: EagerEngine, head: Callable[[], Head], move: Move, step: int, warn: Callable[[str], None]
    ) -> Distance | None:
        """Before number `step`, which `engine` would take eagerly: its distance, or None where there is none (yet)."""
        network, device = engine.network, engine.train[1].device
        random = RandomState(device, [*network.generators, *generators_of(self.loss)])
        try:
            return self._look(engine, partial(self._pass, head, random), move, step)
        except RuntimeError as error:
            together = isinstance(error, Unfit | Unrepeatable)  # on all ranks, or on one alone
            if self.ranks.size > 1 and not together:
                raise
            why = "it does not fit into memory" if is_out_of_memory(error) else reason(error, 300)
            self._give_up(why, warn)
            return None
        finally:
            random.restore()
            if self._plan is not None and self._plan.kind == "difference":
                self._give_up(f"no exact tangent works on this model: {self._plan.inexact}", warn)

    def _give_up(self, why: str, warn: Callable[[str], None]) -> None:
        if not self.gave_up:
            self.gave_up, self._parts = why, []
            warn(f"the distance from the exact step is not watched: {why}")

    def _pass(self, head: Callable[[], Head], random: RandomState, made: Callable[[Head], Any]) -> Any:
        """What `made` finds with a head of its own, from where the generators stood; nothing stays moved."""
        random.restore()
        own = head()
        try:
            return made(own)
        finally:
            own.undo()

    def _look(self, engine: EagerEngine, run: Callable[..., Any], move: Move, step: int) -> Distance | None:
        if step % self.period == 0:
            self._parts = []
        elif len(self._parts) != step % self.period:  # the state of a period's begin was not kept
            return None
        plan = self._exact_plan(engine)
        if plan.kind == "difference" or not plan.tried:
            self._parts = []
            return None
        exact = self._engine(engine, EXACT, plan, self._doubts[0])
        if self.approx.kind == "delayed":
            kept = replace(exact, approx=self.approx)  # which keeps the gradient of the labels before
            found = run(partial(self._both_updates, kept, move))
            return None if found is None else distance_of([(None, found[0])], [(None, found[1])])
        truth = run(partial(self._label_gradient, exact))
        if truth is None:
            self._parts = []
            return None
        ranks = self.ranks if self.divided and self.ranks.size > 1 else None
        if self.approx.kind == "every":
            self._parts.append(truth)
            if len(self._parts) < self.period:
                return None
            parts, self._parts = self._parts, []
            return distance_of(parts[:1], parts, ranks)
        ours = run(partial(self._label_gradient, self._engine(engine, self.approx, engine.plan, self._doubts[1])))
        return None if ours is None else distance_of([ours], [truth], ranks)

    def _engine(self, engine: EagerEngine, approx: Approximation, plan: TangentPlan, doubts: Doubts) -> EagerEngine:
        """As `engine`, by itself: its plans and doubts are not those of the training."""
        choice = engine.choice if approx == self.approx else "auto"
        own: Callable[[Any, int], TangentPlan] = engine.choose_plan
        if approx == EXACT:
            own = partial(self._choose, engine)
        return replace(
            engine, approx=approx, plan=plan, choice=choice, doubts=doubts, choose_plan=own, new_plan=lambda _: None
        )

    def _exact_plan(self, engine: EagerEngine) -> TangentPlan:
        """Of all parameters, for the model in its modes of now."""
        network, (x, index) = engine.network, engine.train
        device = index.device.type
        now = network, network.modes(), torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        if self._plan is None or not self._plan.tried or self._planned != now:
            self._plan, self._planned = self._choose(engine, x, len(index)), now
        return self._plan

    def _choose(self, engine: EagerEngine, x: Any, n: int) -> TangentPlan:
        network, cut = engine.network, engine.cut
        piece = take(x, slice(0, min(n, cut.max_rows or n)), n, cut.per_row)
        whole = Network(network.model, list(network.params.values()), network.logits_of)
        return tried_by_all(plan_tangent(whole, piece, "auto"), self.ranks)

    def _label_gradient(self, engine: EagerEngine, head: Head) -> Part | None:
        """h; None where the pass is not finite."""
        out, finite = engine.look(head)
        grads = head.gradient(out.logits, out.u, out.scale)
        if not bool(finite):
            return None
        index = engine.train[1] if self.by_row else None
        if self.ranks.size > 1 and not self.divided:
            if index is None:
                grads = dict(zip(grads, self.ranks.mean(list(grads.values())), strict=True))
            else:
                index, grads = self.ranks.gather(index), {k: self.ranks.gather(g) for k, g in grads.items()}
        return index, grads

    @staticmethod
    def _both_updates(engine: EagerEngine, move: Move, head: Head) -> tuple[Tensors, Tensors] | None:
        """G of the labels before the move, and behind it."""
        out, finite = engine.look(head)
        moved = head.step(out.logits, out.u, out.scale, finite, move)
        made = out.train.pull(moved.v / moved.v.shape[0])
        new = dict(zip(made, engine.ranks.mean(list(made.values())), strict=True))
        return (out.grads, new) if bool(moved.finite) else None

    def state_dict(self) -> dict[str, Any]:
        """Of a period that has begun; empty where none has."""
        parts = [{"index": index, "grads": grads} for index, grads in self._parts]
        return {"watched": {"ranks": self.ranks.size, "parts": parts}} if parts else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of other ranks, whose rows were others, the period is left out."""
        device, kept = self.loss.device, state.get("watched", {"ranks": self.ranks.size, "parts": []})
        self._parts = [
            (None if p["index"] is None else p["index"].to(device), {k: g.to(device) for k, g in p["grads"].items()})
            for p in (kept["parts"] if kept["ranks"] == self.ranks.size else ())
        ]
