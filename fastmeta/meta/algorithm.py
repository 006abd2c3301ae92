"""Algorithm 1, once: Eqs. (3) to (7) for every learnable loss, every tangent and every engine.

Symbols: theta parameters, phi the loss's own, l_i the training loss of row i, z = f(x; theta) logits (n, C),
v_i = d(sum_j l_j)/dz_i, J = dz/dtheta, G = J'v / n the training gradient, lambda the look-ahead rate.

    theta*        = theta - lambda G                                        Eq. (3), by the look-ahead's own rule
    g             = grad L_meta(theta*)                                     Eq. (4)
    u             = J g                                                     the logit tangent, no Hessian
    dL_meta/dphi  = -(lambda/n) d/dphi sum_i <v_i(phi), u_i>                Eqs. (4), (7): through the loss alone
    phi           <- the loss's step along it                               Eq. (5)
    theta         <- the optimizer's step along J'v(phi) / n                Eq. (6): same theta, same batch, new phi

What differs from step to step is not here: how the graph of the train batch is held (:class:`TrainGraphs`), what a loss
does (:class:`fastmeta.losses.Head`), how the model moves (:class:`Engine`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.finite import all_finite, both
from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.state import State
from fastmeta.losses.head import Head, Move
from fastmeta.meta.doubts import Found, adjoint, tells_finite
from fastmeta.meta.lookahead import PreparedLookAhead, Rate
from fastmeta.meta.micro import WHOLE, Cut, add_up, pieces_of
from fastmeta.meta.result import StepResult
from fastmeta.meta.rows import take
from fastmeta.ops import LabelLoss


class TrainGradient(NamedTuple):
    """The train forward, and the backward of the loss as it is."""

    logits: Tensor  # (n, C), detached
    before: LabelLoss  # the loss before its move
    grads: Tensors  # J'v / n by parameter name
    sound: list[Tensor]  # 0-d bools: whether the buffers stayed finite


class TrainGraphs(Protocol):
    """The graph of the train batch through one step: held whole, or built again and in pieces."""

    network: Network
    state: State  # what the one train forward has moved

    def gradient(self, head: Head, names: list[str], *, last: bool = False) -> TrainGradient:
        """The forward, and the gradient of the parameters `names`; `last` says that nothing else will be asked."""
        ...

    def tangent(self, direction: Tensors) -> Tensor:
        """u = J d (n, C)."""
        ...

    def meta_gradient(self, ahead: Tensors, names: list[str], x: Any, y: Tensor) -> tuple[Tensor, Tensors]:
        """Mean cross-entropy at the parameters `ahead`, and its gradient for those `names` that it reaches."""
        ...

    def pull(self, v: Tensor) -> Tensors:
        """J'v by parameter name, of all that the logits reach; once."""
        ...

    def same(self) -> Tensor | None:
        """0-d bool: whether repeated forwards gave the same logits; None where there was none."""
        ...


@dataclass
class LookedAhead:
    """Everything up to the tangent."""

    train: TrainGraphs
    logits: Tensor  # (n, C), detached
    before: LabelLoss
    train_loss: Tensor  # 0-d, weighted mean
    meta_loss: Tensor  # 0-d, at theta*
    u: Tensor  # (n, C)
    scale: Rate  # lambda / n
    grads: Tensors  # of the training loss at theta, averaged over the ranks; empty unless kept
    sound: list[Tensor]
    found: Found | None  # of :func:`fastmeta.meta.doubts.adjoint`; None where nothing is to be judged
    unseen: list[Tensor]  # g and u, as far as `found` does not tell whether they are finite

    def finite(self) -> Tensor:
        """0-d bool: the loss, the meta loss, g, u and the new buffers hold no NaN and no infinity."""
        losses = self.train_loss, self.meta_loss
        if self.unseen or self.found is None or isinstance(self.found, Tensor):
            return both(all_finite((*losses, *self.unseen)), self.sound)
        finite = math.isfinite(sum(self.found) + sum(t.item() for t in losses))
        return both(torch.full((), finite, dtype=torch.bool), self.sound)


def look_ahead(
    train: TrainGraphs,
    head: Head,
    lookahead: PreparedLookAhead,
    meta: tuple[Any, Tensor],
    names: list[str],
    *,
    weight: Tensor | None = None,
    ranks: Ranks = ALONE,
    cut: Cut = WHOLE,
    judge: bool = True,
    keep_grads: bool = False,
) -> LookedAhead:
    """theta* moves the parameters `names`; the tangent is along the meta gradient there. Nothing is written."""
    first = train.gradient(head, names)
    grads = _mean(first.grads, ranks)
    ahead = lookahead.ahead(train.network.params, grads)  # Eq. (3)
    kept = grads if keep_grads else {}
    del grads
    meta_loss, g = meta_gradient(partial(train.meta_gradient, ahead, names), meta, cut)  # Eq. (4)
    del ahead
    direction = lookahead.direction(g := _mean(g, ranks))
    u = train.tangent(direction)
    n, before = first.logits.shape[0], first.before
    found = adjoint(before.v / n, u, first.grads, direction) if judge else None
    told = found is not None and tells_finite(g, u, first.grads)
    return LookedAhead(
        train=train,
        logits=first.logits,
        before=before,
        train_loss=(before.loss if weight is None else before.loss * weight).mean(),
        meta_loss=meta_loss,
        u=u,
        scale=lookahead.scale / n,
        grads=kept,
        sound=first.sound,
        found=found,
        unseen=[] if told else [u, *g.values()],
    )


def meta_gradient(
    gradient_at: Callable[[Any, Tensor], tuple[Tensor, Tensors]], meta: tuple[Any, Tensor], cut: Cut = WHOLE
) -> tuple[Tensor, Tensors]:
    """Meta loss at theta* and its gradient, Eq. (4): `gradient_at` of x and y, summed over pieces of the batch."""
    (x, y), losses, g = meta, [], Tensors()
    m, pieces = y.shape[0], pieces_of(y.shape[0], cut.max_rows)
    if len(pieces) == 1:
        return gradient_at(x, y)
    for rows in pieces:
        piece, share = take(x, rows, m, cut.per_row_meta, "x_meta"), (rows.stop - rows.start) / m
        loss, grads = gradient_at(piece, y[rows])
        losses.append(loss * share)
        add_up(g, list(grads), [t * share for t in grads.values()])
    return torch.stack(losses).sum(), g


class Engine(Protocol):
    """How a step is run: eagerly, or as a pure function that a graph is made of."""

    ranks: Ranks

    def look(self, head: Head) -> tuple[LookedAhead, Tensor]:
        """:func:`look_ahead` on the batches of the step, and whether it is finite and to be believed, on all ranks."""
        ...

    def update(self, gradient: Callable[[], Tensors], finite: Tensor, state: State, head: Head) -> Tensor:
        """Eq. (6) and `state`, or neither, and then the loss is put back too: whether all was finite."""
        ...


def meta_step(engine: Engine, head: Head, move: Move, weight: Tensor | None, *, delayed: bool = False) -> StepResult:
    """A whole iteration; `delayed` takes the gradient of the look-ahead, of the loss before its move, for Eq. (6)."""
    out, finite = engine.look(head)
    moved = head.step(out.logits, out.u, out.scale, finite, move)  # Eqs. (7), (5)

    def gradient() -> Tensors:
        return out.grads if delayed else _mean(out.train.pull(moved.v / moved.v.shape[0]), engine.ranks)

    finite = engine.update(gradient, moved.finite, out.train.state, head)  # Eq. (6)
    return StepResult(
        train_loss=out.train_loss,
        meta_loss=out.meta_loss,
        loss=moved.loss,
        logits=out.logits,
        entropy=moved.entropy,
        alignment=moved.alignment,
        label_grad_norm=moved.grad_norm,
        skipped=moved.skipped,
        finite=finite,
    )


def plain_step(engine: Engine, head: Head, train: TrainGraphs, weight: Tensor | None) -> StepResult:
    """Training with the loss as it is: Eq. (6) alone."""
    first = train.gradient(head, list(train.network.params), last=True)
    before = first.before
    loss = (before.loss if weight is None else before.loss * weight).mean()
    finite = engine.ranks.all(both(loss.isfinite(), first.sound))
    finite = engine.update(lambda: _mean(first.grads, engine.ranks), finite, train.state, head)
    nothing = torch.full_like(loss, torch.nan)
    return StepResult(
        train_loss=loss,
        meta_loss=nothing,
        loss=before.loss,
        logits=first.logits,
        entropy=before.entropy,
        alignment=torch.full_like(before.loss, torch.nan),
        label_grad_norm=nothing,
        skipped=before.skipped,
        finite=finite,
    )


def _mean(grads: Tensors, ranks: Ranks) -> Tensors:
    return grads if ranks.size == 1 else dict(zip(grads, ranks.mean(list(grads.values())), strict=True))
