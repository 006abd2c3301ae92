"""Less memory: the same step, with the graphs of at most so many rows held at once (`micro_batch`).

The whole step holds the graph of the train batch while that of the meta batch is there too, n + m rows. Where that is
too much, the train graph is dropped after the look-ahead and built again for the last backward, and a batch that is too
large alone is taken in pieces: the training gradient and the meta gradient are sums over rows, the tangent u has a row
of its own for each. Both are exact, up to the order of additions, but for pieces in which a row's logits depend on the
other rows. That is train-mode BatchNorm: its statistics are then those of each piece, and its running statistics move
once per piece, in order.

It costs, beside the whole step's work, 1 F (train forwards) for the second train graph; the reverse way of the tangent
builds it and J'v once more, 3 F. A batch that is whole costs nothing the forward way, whose tangent needs a second
forward anyhow: where that one can leave the graph (`TangentPlan.joined`), eager steps go this way unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastmeta import ops
from fastmeta.functional.network import Network, Tensors, is_out_of_memory, math_attention
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State
from fastmeta.meta.doubts import Unrepeatable, repeats
from fastmeta.meta.finite import stay_finite
from fastmeta.meta.rows import take
from fastmeta.meta.tangents import (
    TangentPlan,
    arithmetic_of,
    difference_tangent,
    forward_tangent,
    forward_with_graph,
    reverse_tangent,
)


class Cut(NamedTuple):
    """How a step is cut: graphs of at most `most` rows at once, and what of x and x_meta is per row (see `rows`)."""

    most: int | None = None
    per_row: Any = None
    per_row_meta: Any = None


WHOLE = Cut()


def pieces_of(count: int, most: int | None) -> list[slice]:
    """The fewest runs of at most `most` rows, whose sizes differ by one at most: no piece of a single odd row."""
    number = 1 if most is None else -(-count // most)
    return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


def fits(train: Any, meta: Any, most: int | None) -> bool:
    """Whether the graphs of both batches (pairs whose second has the rows) may be held at once."""
    return most is None or len(train[1]) + len(meta[1]) <= most


def add_up(total: Tensors, names: list[str], grads: tuple[Tensor | None, ...]) -> None:
    """Add `grads` to the sums by name; None is a parameter that this piece does not reach."""
    for name, g in zip(names, grads, strict=True):
        if g is not None:
            # out of place: autograd may hand out one tensor for two parameters
            total[name] = total[name] + g if name in total else g


def couples_rows(network: Network) -> bool:
    """Whether a train-mode BatchNorm makes the logits of a row depend on the others."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in network.model.modules())


def refuse_coupled_rows(network: Network, x: Any, count: int, cut: Cut) -> None:
    """ValueError where a piece of x has other logits alone than in the whole batch; nothing changes.

    A model that draws random numbers is not asked, nor one that has no room for the whole forward.
    """
    like, rows = next(iter(network.params.values())), pieces_of(count, cut.most)[-1]
    piece, state = take(x, rows, count, cut.per_row), network.random_state(like.device)
    try:
        with torch.no_grad():
            alone = network(network.params, network.state(), piece)
            whole = network(network.params, network.state(), x)
        drawn = state.has_drawn()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return
    finally:
        state.restore()
    size = rows.stop - rows.start
    alike = len(whole) == count and alone.shape == whole[rows].shape
    if not alike or not (drawn or bool(repeats(whole[rows], alone, arithmetic_of(like)))):
        got = f"other logits than among all {count}" if alike else f"logits of shape {tuple(alone.shape)}"
        raise ValueError(
            f"micro_batch: {size} rows of x alone give {got}: the model mixes the rows of a "
            "batch, they do not lie along the first dimension, or something is cut that all rows share; give x with "
            "rows first, say what is per row (per_row=), or leave micro_batch out"
        )


class TrainGradient(NamedTuple):
    """What one pass over the train pieces gives."""

    logits: Tensor  # (n, C), detached
    before: ops.LabelLoss  # under the labels as they were
    grads: Tensors  # of the mean training loss, by name
    sound: list[Tensor]  # 0-d bools: whether the buffers stayed finite


class TrainPieces:
    """The train batch of one step in pieces: a first forward of each, and as many more of the same as are asked for.

    Every later forward of a piece sees the state and draws the random numbers (dropout masks) of its first.
    """

    def __init__(self, network: Network, plan: TangentPlan, x: Any, index: Tensor, cut: Cut) -> None:
        self.network, self.plan, self.index = network, plan, index
        self.rows = pieces_of(len(index), cut.most)
        self._x = [take(x, rows, len(index), cut.per_row) for rows in self.rows]
        self.state = network.state()  # after the forwards so far
        self._starts: list[State] = []
        self._random: list[RandomState] = []
        self._first: list[Tensor] = []  # their logits
        self._same: list[Tensor] = []  # whether later ones had these again
        self._graph: Tensor | None = None  # the logits of the tangent's own forward

    def gradient(self, labels: Any, weight: Tensor | None, names: list[str]) -> TrainGradient:
        """The first forward of every piece; the gradient for the parameters `names` under the labels as they are."""
        losses, grads = [], Tensors()
        params = [self.network.params[k] for k in names]
        for rows, x in zip(self.rows, self._x, strict=True):
            self._starts.append(self.state.again())
            self._random.append(self.network.random_state(self.index.device))
            with math_attention(self.plan.math_attention):
                z = self.network(self.network.params, self.state, x)
            check_logits(z, rows.stop - rows.start, labels.num_classes)
            loss = labels.batch_loss(z.detach(), self.index[rows], None if weight is None else weight[rows])
            with self._held(len(self._starts) - 1):
                add_up(grads, names, torch.autograd.grad(z, params, loss.v / len(self.index), allow_unused=True))
            self._first.append(z.detach())
            losses.append(loss)
        sound = stay_finite(self._starts[0], self.state)
        if len(losses) == 1:
            return TrainGradient(self._first[0], losses[0], grads, sound)
        before = ops.LabelLoss(*(torch.cat(parts) for parts in zip(*losses, strict=True)))
        return TrainGradient(torch.cat(self._first), before, grads, sound)

    def pull(self, v: Tensor) -> Tensors:
        """J'v by parameter name, once, for covectors (n, C): by the tangent's graph, or every piece's built anew."""
        names, params, grads = list(self.network.params), list(self.network.params.values()), Tensors()
        known = len(self._same)
        graphs = self._again() if self._graph is None else iter([self._graph])
        self._graph = None
        for piece, z in enumerate(graphs):
            with self._held(piece):
                add_up(grads, names, torch.autograd.grad(z, params, v[self.rows[piece]], allow_unused=True))
            del z  # its graph, before the next piece's forward
        if not all(map(bool, self._same[known:])):  # waits for the device, after that many forwards
            raise Unrepeatable
        return grads

    def same(self) -> Tensor | None:
        """0-d bool, whether all forwards so far gave the logits of the first; None before a second."""
        return torch.stack(self._same).all() if self._same else None

    def _compare(self, piece: int, again: Tensor, spread: Tensor | float = 0.0) -> None:
        like = next(iter(self.network.params.values()))
        self._same.append(repeats(self._first[piece], again, arithmetic_of(like), spread))

    def tangent(self, direction: Tensors, keep_graph: bool) -> Tensor:
        """u = J d (n, C), piece by piece in the planned way; `keep_graph` for a :meth:`pull` to come."""
        u = []
        if keep_graph and self.plan.joined and len(self.rows) == 1:
            start = self._starts[0].clone()
            with math_attention(self.plan.math_attention), self._random[0].replay():
                self._graph, only = forward_with_graph(self.network, start, self._x[0], direction)
            self._compare(0, self._graph)
            return only
        if self.plan.way == "reverse":
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
                if self.plan.way == "forward":
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


def check_logits(logits: Tensor, count: int, num_classes: int) -> None:
    """Raise a ValueError unless `logits` are (count, num_classes)."""
    if logits.shape != (count, num_classes):
        raise ValueError(
            f"logits must have shape ({count}, {num_classes}) for this index and these labels, "
            f"got {tuple(logits.shape)}; x and index must belong together, and the model must have num_classes outputs"
        )
