"""The graphs of a step in turn, in pieces of the batch where it is large: see :mod:`fastmeta.meta.micro`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.finite import stay_finite
from fastmeta.functional.network import Network, Tensors, math_attention
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State
from fastmeta.losses.head import Head
from fastmeta.meta.algorithm import TrainGradient
from fastmeta.meta.doubts import Unrepeatable, repeats
from fastmeta.meta.meta_batch import gradient_at
from fastmeta.meta.micro import Cut, add_up, check_logits, pieces_of
from fastmeta.meta.rows import take
from fastmeta.meta.tangents import (
    TangentPlan,
    arithmetic_of,
    difference_tangent,
    forward_tangent,
    forward_with_graph,
    reverse_tangent,
)


class InTurn:
    """The train batch of one step in pieces: a first forward of each, and as many more of the same as are asked for.

    Every later forward of a piece sees the state and draws the random numbers (dropout masks) of its first.
    """

    def __init__(
        self,
        network: Network,
        plan: TangentPlan,
        x: Any,
        index: Tensor,
        num_classes: int | None,
        cut: Cut,
        *,
        keep_graph: bool = False,
    ) -> None:
        self.network, self.plan, self.index, self.num_classes, self.keep_graph = (
            network,
            plan,
            index,
            num_classes,
            keep_graph,
        )
        self.rows = pieces_of(len(index), cut.max_rows)
        self._x = [take(x, rows, len(index), cut.per_row) for rows in self.rows]
        self.state = network.state()  # after the forwards so far
        self._starts: list[State] = []
        self._random: list[RandomState] = []
        self._first: list[Tensor] = []  # their logits
        self._same: list[Tensor] = []  # whether later ones had these again
        self._graph: Tensor | None = None  # the logits of the tangent's own forward

    def gradient(self, head: Head, names: list[str], *, last: bool = False) -> TrainGradient:
        """The first forward of every piece; the gradient for the parameters `names` under the loss as it is.

        A loss that mixes rows must have the logits of the whole batch before there is any v: the graphs of pieces are
        then built once more, for 1 F.
        """
        losses, grads, n = [], Tensors(), len(self.index)
        params = [self.network.params[k] for k in names]
        together = len(self.rows) > 1 and not head.separable
        for piece, (rows, x) in enumerate(zip(self.rows, self._x, strict=True)):
            self._starts.append(self.state.again())
            self._random.append(self.network.random_state(self.index.device))
            with math_attention(self.plan.math_attention), torch.set_grad_enabled(not together):
                z = self.network(self.network.params, self.state, x)
            check_logits(z, rows.stop - rows.start, self.num_classes)
            self._first.append(z.detach())
            if not together:
                loss = head.loss(z.detach(), rows if len(self.rows) > 1 else None)
                with self._held(piece):
                    add_up(grads, names, torch.autograd.grad(z, params, loss.v / n, allow_unused=True))
                losses.append(loss)
            del z
        sound = stay_finite(self._starts[0], self.state)
        logits = self._first[0] if len(self._first) == 1 else torch.cat(self._first)
        if together:
            before = head.loss(logits)
            grads = self._backward(before.v / n, names, self._again())
        elif len(losses) == 1:
            before = losses[0]
        else:
            before = ops.LabelLoss(*(torch.cat(parts) for parts in zip(*losses, strict=True)))
        return TrainGradient(logits, before, grads, sound)

    def _backward(self, v: Tensor, names: list[str], graphs: Iterator[Tensor]) -> Tensors:
        params, grads = [self.network.params[k] for k in names], Tensors()
        for piece, z in enumerate(graphs):
            with self._held(piece):
                add_up(grads, names, torch.autograd.grad(z, params, v[self.rows[piece]], allow_unused=True))
            del z  # its graph, before the next piece's forward
        return grads

    def meta_gradient(self, ahead: Tensors, names: list[str], x: Any, y: Tensor) -> tuple[Tensor, Tensors]:
        return gradient_at(self.network, self.state, ahead, names, x, y)

    def pull(self, v: Tensor) -> Tensors:
        """J'v by parameter name, once, for covectors (n, C): by the tangent's graph, or every piece's built anew."""
        known = len(self._same)
        graphs = self._again() if self._graph is None else iter([self._graph])
        self._graph = None
        grads = self._backward(v, list(self.network.params), graphs)
        if not all(map(bool, self._same[known:])):  # waits for the device, after that many forwards
            raise Unrepeatable
        return grads

    def same(self) -> Tensor | None:
        """0-d bool, whether all forwards so far gave the logits of the first; None before a second."""
        return torch.stack(self._same).all() if self._same else None

    def _compare(self, piece: int, again: Tensor, spread: Tensor | float = 0.0) -> None:
        like = next(iter(self.network.params.values()))
        self._same.append(repeats(self._first[piece], again, arithmetic_of(like), spread))

    def tangent(self, direction: Tensors) -> Tensor:
        """u = J d (n, C), piece by piece by the planned tangent."""
        u = []
        if self.keep_graph and self.plan.leaves_graph and len(self.rows) == 1:
            start = self._starts[0].clone()
            with math_attention(self.plan.math_attention), self._random[0].replay():
                self._graph, only = forward_with_graph(self.network, start, self._x[0], direction)
            self._compare(0, self._graph)
            return only
        if self.plan.kind == "reverse":
            params = [self.network.params[k] for k in direction]
            for piece, z in enumerate(self._again()):
                v = torch.zeros_like(z).requires_grad_()  # anywhere: J'v is linear in v
                with self._held(piece):
                    pulled = torch.autograd.grad(z, params, v, create_graph=True, allow_unused=True)
                    u.append(reverse_tangent(pulled, v, list(direction.values())).detach())
                del z, v, pulled  # their graph is whole still: gone before the next piece's forward
            return torch.cat(u)
        for piece, (x, start, random) in enumerate(zip(self._x, self._starts, self._random, strict=True)):
            with math_attention(self.plan.math_attention):
                if self.plan.kind == "forward":
                    with random.replay():
                        made = forward_tangent(self.network, start.clone(), x, direction)
                else:
                    made = difference_tangent(self.network, start, x, direction, random)
            self._compare(piece, made.logits, made.spread)
            u.append(made.u)
        return torch.cat(u)

    @contextmanager
    def _held(self, piece: int) -> Iterator[None]:
        """For a backward of this piece: what its forwards began with."""
        with self.network.held(self.network.params, self._starts[piece]), math_attention(self.plan.math_attention):
            yield

    def _again(self) -> Iterator[Tensor]:
        """The logits of every piece, with a graph."""
        for piece, (x, start, random) in enumerate(zip(self._x, self._starts, self._random, strict=True)):
            with math_attention(self.plan.math_attention), random.replay():
                z = self.network(self.network.params, start.clone(), x)
            self._compare(piece, z)
            yield z
            del z
