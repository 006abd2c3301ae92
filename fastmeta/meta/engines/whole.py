"""The graph of the train batch held whole, from the look-ahead to the last backward."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.copies import without_graph
from fastmeta.functional.finite import stay_finite
from fastmeta.functional.network import Network, Tensors, math_attention
from fastmeta.losses.head import Head
from fastmeta.meta.algorithm import TrainGradient
from fastmeta.meta.doubts import repeats
from fastmeta.meta.meta_batch import gradient_at
from fastmeta.meta.micro import add_up, check_logits
from fastmeta.meta.tangents import (
    TangentPlan,
    arithmetic_of,
    difference_tangent,
    forward_tangent,
    reverse_tangent,
)


class WholeGraph:
    """Without `replay` the model must draw no random numbers, or the tangent must be double-vjp."""

    def __init__(
        self,
        network: Network,
        plan: TangentPlan,
        x: Any,
        index: Tensor,
        num_classes: int | None,
        *,
        replay: bool = True,
    ) -> None:
        self.network, self.plan, self.x, self.index = network, plan, x, index
        self.num_classes, self.replay = num_classes, replay
        self.state = network.state()
        self._same: Tensor | None = None

    def gradient(self, head: Head, names: list[str], *, last: bool = False) -> TrainGradient:
        network, plan, n = self.network, self.plan, len(self.index)
        params = network.params
        # double-vjp looks at the train graph itself, so it needs no second draw of the same masks
        again = self.replay and plan.kind != "reverse" and not last
        self._random = network.random_state(self.index.device) if again else None
        self._start = self.state.again()
        with math_attention(plan.math_attention):
            self._logits = network(params, self.state, self.x)
        check_logits(self._logits, n, self.num_classes)
        sound = stay_finite(self._start, self.state)  # now: the tangent's forward may write into `start`
        before = head.loss(self._logits.detach())
        self._v, self._names = before.v / n, names
        linear = plan.kind == "reverse" and not last
        if linear:
            self._v.requires_grad_()
        with network.held(params, self._start), math_attention(plan.math_attention):
            grads = torch.autograd.grad(
                self._logits,
                [params[k] for k in names],
                self._v,
                retain_graph=not last,
                create_graph=linear,
                allow_unused=True,
            )
        self._linear = list(grads) if linear else []
        local = {k: without_graph(t) for k, t in zip(names, grads, strict=True) if t is not None}
        return TrainGradient(self._logits.detach(), before, local, sound)

    def tangent(self, direction: Tensors) -> Tensor:
        network, plan, start = self.network, self.plan, self._start
        if plan.kind == "reverse":
            grads, self._linear = self._linear, []
            with network.held(network.params, start), math_attention(plan.math_attention):
                return reverse_tangent(grads, self._v, [direction.get(k) for k in self._names]).detach()
        if plan.kind == "forward":
            replay = nullcontext() if self._random is None else self._random.replay()
            with math_attention(plan.math_attention), replay:
                made = forward_tangent(network, start, self.x, direction)
        else:
            assert self._random is not None
            made = difference_tangent(network, start, self.x, direction, self._random)
        if self.replay:
            like = next(iter(network.params.values()))
            self._same = repeats(self._logits, made.logits, arithmetic_of(like), made.spread)
        return made.u.detach()

    def meta_gradient(self, ahead: Tensors, names: list[str], x: Any, y: Tensor) -> tuple[Tensor, Tensors]:
        return gradient_at(self.network, self.state, ahead, names, x, y)

    def pull(self, v: Tensor) -> Tensors:
        grads: Tensors = {}
        params = self.network.params
        # the tangent's forward has written into `start`, where there was one
        start = self._start if self.plan.kind == "reverse" else None
        with self.network.held(params, start), math_attention(self.plan.math_attention):
            made = torch.autograd.grad(self._logits, list(params.values()), v, allow_unused=True)
            add_up(grads, list(params), made)
        return grads

    def same(self) -> Tensor | None:
        return self._same
