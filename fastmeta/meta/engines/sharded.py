"""A step of a model under FSDP2 (``torch.distributed.fsdp.fully_shard``): exact, and no rank holds it whole.

    train forward and backward      the training gradient, averaged into the shards by FSDP
    theta* into the shards          each rank moves its own; forward and backward of the meta batch give g, in shards
    theta back into the shards      bit for bit, whatever happened
    forward with dual numbers       u = J g of the rank's own rows; a unit's part of g is gathered for its forward
    train forward and backward      with the new labels; the optimizer steps on shards

Each pass frees its graph before the next. FSDP's hooks see ordinary forwards and backwards alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmeta.distributed import Ranks
from fastmeta.functional.finite import all_finite, stay_finite
from fastmeta.functional.fsdp_units import like_shard, local
from fastmeta.functional.network import Network, Tensors, math_attention
from fastmeta.functional.optimizers import drop_grads
from fastmeta.functional.recompute import is_reentrant
from fastmeta.functional.sharded_network import ShardedNetwork, detached
from fastmeta.functional.state import State
from fastmeta.losses.head import Head, Move
from fastmeta.meta.algorithm import LookedAhead, TrainGradient, look_ahead, meta_step, plain_step
from fastmeta.meta.doubts import Found, Unfit, Unrepeatable, repeats
from fastmeta.meta.engines.eager import EagerEngine
from fastmeta.meta.lookahead import LookAhead, PreparedLookAhead
from fastmeta.meta.meta_batch import check_meta_logits
from fastmeta.meta.micro import check_logits
from fastmeta.meta.result import StepResult
from fastmeta.meta.tangents import TangentPlan, arithmetic_of


def sharded_plan(now: TangentPlan | None) -> TangentPlan:
    """The one way there is; `now` may have learned of attention that must be plain in all passes."""
    reason = "the model is sharded: dual numbers, unit by unit"
    return now if now is not None and now.reason == reason else TangentPlan("forward", False, reason)


_WAY_OUT = (
    "or FSDP does not average (set_gradient_divide_factor, a custom reduce-scatter); run fastmeta.check on the model "
    "before fully_shard, which names the layer"
)


class AveragedRanks(Ranks):
    """Ranks whose gradients FSDP has averaged as it made them."""

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


class ShardedLookAhead(PreparedLookAhead):
    """theta* of this rank's shards."""

    def __init__(self, lookahead: LookAhead, params: Tensors) -> None:
        rules = lookahead.rules(params)
        for name, rule in rules.items():
            if rule.buffer is not None:
                rules[name] = replace(rule, buffer=local(rule.buffer))
        super().__init__(rules)

    def ahead(self, params: Tensors, grads: Tensors) -> Tensors:
        """Of what moves alone."""
        return super().ahead({name: local(params[name]) for name in grads}, grads)


class ShardedGraphs:
    """The train batch of one step, forward by forward."""

    def __init__(
        self, network: ShardedNetwork, plan: TangentPlan, ranks: Ranks, x: Any, index: Tensor, num_classes: int | None
    ) -> None:
        self.network: Network = network
        self._sharded, self.plan, self.ranks = network, plan, ranks
        self.index, self.num_classes, self._x = index, num_classes, detached(x)
        self.state = network.state()
        self.found: Found | None = None
        self.arithmetic = arithmetic_of(next(iter(network.params.values())))
        self._same: list[Tensor] = []

    def gradient(self, head: Head, names: list[str], *, last: bool = False) -> TrainGradient:
        self._start, self._random = self.state.again(), self.network.random_state(self.index.device)
        with math_attention(self.plan.math_attention):
            z = self.network({}, self.state, self._x)
            check_logits(z, len(self.index), self.num_classes)
            if not z.requires_grad:
                raise RuntimeError(
                    "the logits hang on no parameter that moves: the model detaches them, runs under no_grad, "
                    "or does not use the parameters that are trained"
                )
            if is_reentrant(z):
                raise RuntimeError(
                    "the model uses reentrant activation checkpointing, through which neither FSDP nor a tangent goes; "
                    "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
                )
            self._first, sound = z.detach(), stay_finite(self._start, self.state)
            before = head.loss(self._first)
            self._v = before.v / len(self.index)
            made = self._sharded.gradient(z, self._v, names, self._start)
        self._grads = {name: local(g) for name, g in made.items()}
        return TrainGradient(self._first, before, self._grads, sound)

    def meta_gradient(self, ahead: Tensors, names: list[str], x: Any, y: Tensor) -> tuple[Tensor, Tensors]:
        with self._sharded.at_shards(ahead), math_attention(self.plan.math_attention):
            logits = self.network({}, self.state.clone(), detached(x))
            check_meta_logits(logits, y)
            loss = torch.nn.functional.cross_entropy(logits, y)
            made = self._sharded.gradient(loss, None, names, self.state)
        return loss.detach(), {name: local(g) for name, g in made.items()}

    def tangent(self, direction: Tensors) -> Tensor:
        # fused attention has no forward derivative, so that this pass alone takes the plain form
        with math_attention(True), self._random.replay():
            logits, u, dtypes = self._sharded.tangent(self._start.clone(), self._x, direction)
        self.arithmetic = min((self.arithmetic, *dtypes), key=lambda dtype: dtype.itemsize)
        self._same.append(repeats(self._first, logits, self.arithmetic))
        self.found = self._adjoint(u, direction)
        return u

    def _adjoint(self, u: Tensor, direction: Tensors) -> Found:
        """As :func:`fastmeta.meta.doubts.adjoint`, of all ranks: the mean of <v, u>, and <G, d> over all shards."""
        v, params, size = self._v.to(u.dtype), self.network.params, self.ranks.size
        sums = [torch.dot(v.reshape(-1), u.reshape(-1)), v.square().sum(), u.square().sum()]
        products = []
        for name, g in self._grads.items():
            if (d := direction.get(name)) is not None:
                product = torch.dot(g.reshape(-1), d.to(g.dtype).reshape(-1))
                products.append(product.to(u.dtype) / _copies(params[name], size))
        self._grads = {}
        total = torch.stack([*sums, torch.stack(products).sum() if products else torch.zeros_like(sums[0])])
        vu, v2, u2, known = self.ranks.sum(total.double()) / torch.tensor([size, size, size, 1.0], device=u.device)
        found = torch.stack([vu, v2.sqrt(), u2.sqrt(), known])
        return found if u.is_cuda else found.tolist()

    def pull(self, v: Tensor) -> Tensors:
        """J'v, averaged over the ranks, as DTensors; by one more forward, whose graph it frees."""
        with math_attention(self.plan.math_attention):
            with self._random.replay():
                z = self.network({}, self._start.clone(), self._x)
            same = repeats(self._first, z, self.arithmetic)
            grads = self._sharded.gradient(z, v, list(self.network.params), self._start)
        if not bool(self.ranks.all(same)):
            raise Unrepeatable
        return grads

    def same(self) -> Tensor | None:
        return torch.stack(self._same).all() if self._same else None


class ShardedEngine(EagerEngine):
    """One step on these batches, of a :class:`ShardedNetwork`."""

    def step(self, head: Head, move: Move, *, moves: bool) -> StepResult:
        network = self._network()
        self.ranks = AveragedRanks(self.ranks.group)
        with network.running():
            if moves:
                return meta_step(self, head, move, self.weight, delayed=self.approx.kind == "delayed")
            return plain_step(self, head, self._graphs(), self.weight)

    def _network(self) -> ShardedNetwork:
        assert isinstance(self.network, ShardedNetwork)
        return self.network

    def _graphs(self) -> ShardedGraphs:
        return ShardedGraphs(self._network(), self.plan, self.ranks, *self.train, self.num_classes)

    def look(self, head: Head) -> tuple[LookedAhead, Tensor]:
        network, tried = self._network(), False
        while True:
            try:
                self.doubts.recall()
                graphs = self._graphs()
                out = look_ahead(
                    graphs,
                    head,
                    ShardedLookAhead(self.lookahead, network.params),
                    self.meta,
                    self.approx.moving(network),
                    weight=self.weight,
                    ranks=self.ranks,
                    judge=False,
                    keep_grads=self.approx.kind == "delayed",
                )
                finite = self.doubts.settle(
                    "forward", graphs.same(), graphs.found, graphs.arithmetic, out.finite(), self.ranks
                )
                return out, finite
            except (Unfit, Unrepeatable) as error:
                if isinstance(error, Unfit) and (tried or error.wrong):
                    raise Unfit("forward", error.wrong, _WAY_OUT) from None
                if tried:
                    raise
                tried = True
                if isinstance(error, Unfit):
                    self.doubts.rounding()
                else:  # fused attention may draw its masks otherwise than the plain form does
                    self.plan = replace(self.plan, math_attention=True)
                    self.new_plan(self.plan)

    def update(self, gradient: Any, finite: Tensor, state: State, head: Head) -> Tensor:
        """As the eager engine's, on shards; it waits for the device, because a copy of the shards takes memory."""
        params = self.network.params
        try:
            grads = {name: like_shard(g, params[name]) for name, g in gradient().items()}
            if bool(finite):
                if self.on_grad is not None:
                    self.on_grad(grads)
                finite = self.ranks.all(finite & all_finite(map(local, grads.values())))
            if bool(finite):
                for name, g in grads.items():
                    params[name].grad = g
                self.optimizer.step()
                drop_grads(self.optimizer)
                self.network.write_state(state)
            else:
                head.undo(finite)
        except BaseException:
            head.undo()
            raise
        return finite


def _copies(p: Tensor, size: int) -> int:
    """How many of `size` ranks hold one shard."""
    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    return size // math.prod(mesh.size(k) for k, placement in enumerate(placements) if placement.is_shard())
