"""A look-ahead of K steps on K train batches, its exact gradient, and K steps of the model with the moved loss.

    theta_{k+1}  = theta_k - lambda G_k,    G_k = (1/n) sum_i grad l_ki(theta_k, phi)                   k < K
    a_K          = grad L_meta(theta_K)
    u_k          = J_k a_{k+1}                                              as in one step, J_k = dz/dtheta at theta_k
    a_k          = a_{k+1} - lambda H_k a_{k+1}                             H_k = dG_k/dtheta, never formed
    dL_meta/dphi = -sum_k (lambda/n) d/dphi sum_i <v_ki(phi), u_ki>
    phi          <- the loss's step along it, of the rows of all K batches at once
    theta        <- K steps of the optimizer, on the same batches in their order, with the new phi

One backward through the graph of G_k gives u_k and H_k a_{k+1} together. The graphs of all K steps are held until
then, with K - 1 copies of the parameters; no graph is longer than one step. For K = 1 this is Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.finite import all_finite, both, stay_finite
from fastmeta.functional.network import Network, Tensors, math_attention
from fastmeta.functional.optimizers import Snapshot, step_along
from fastmeta.functional.precision import without_autocast
from fastmeta.functional.state import State
from fastmeta.losses import LearnableLoss, Move
from fastmeta.losses.head import Head, Moved, Rate
from fastmeta.meta.lookahead import PreparedLookAhead
from fastmeta.meta.meta_batch import gradient_at
from fastmeta.meta.micro import add_up, check_logits
from fastmeta.meta.result import StepResult
from fastmeta.meta.tangents import TangentPlan
from fastmeta.meta.update import update
from fastmeta.meta.window import TrainBatch


class Pulled(NamedTuple):
    """One step of the look-ahead on the way back, along a direction d."""

    u: Tensor  # (n, C) J d
    curved: Tensors  # H d, of the parameters that it reaches
    learned: Tensors  # d <G, d> / d phi


class KeptStep:
    """One step of the look-ahead, with the graph of its gradient G from theta and from v / n."""

    def __init__(
        self, network: Network, plan: TangentPlan, loss: LearnableLoss, batch: TrainBatch, theta: Tensors, state: State
    ) -> None:
        """`state` is moved by the forward."""
        self.network, self.plan, self.batch = network, plan, batch
        x, index, weight = batch
        self.random = network.random_state(index.device)
        self.start = state.again()
        self.theta = {name: t.detach().requires_grad_() for name, t in theta.items()}
        with math_attention(plan.math_attention):
            self.logits = network(self.theta, state, x)
        check_logits(self.logits, len(index), loss.num_classes)
        self.sound = stay_finite(self.start, state)
        self.phi, loss_of = loss.seen_by(index, x)
        with without_autocast():
            each = loss_of(self.phi, self.logits)
            self.loss = each if weight is None else each * weight
            self.v = torch.autograd.grad(self.loss.mean(), self.logits, create_graph=True)[0]
            if not self.v.requires_grad:
                self.v.requires_grad_()  # of a loss that is linear in the logits
            #: derivative of each row's own loss, without its weight
            self.own_v = self.v * len(index)
            if weight is not None:
                self.own_v = torch.autograd.grad(each.sum(), self.logits, retain_graph=True)[0]
        self.loss, self.own_loss, self.own_v = self.loss.detach(), each.detach(), self.own_v.detach()
        self._grads = self._backward(self.v, create_graph=True)

    def _backward(self, v: Tensor, *, create_graph: bool) -> Tensors:
        with self.network.held(self.theta, self.start), math_attention(self.plan.math_attention):
            made = torch.autograd.grad(
                self.logits, list(self.theta.values()), v, create_graph=create_graph, allow_unused=True
            )
        grads = Tensors()
        add_up(grads, list(self.theta), made)
        return grads

    @property
    def gradient(self) -> Tensors:
        """G, detached."""
        return {name: g.detach() for name, g in self._grads.items()}

    def pull(self, direction: Tensors, learned: Tensors, *, first: bool) -> Pulled:
        """Along `direction`; the `first` step of the look-ahead needs no H, and its graph stays for :meth:`again`."""
        found = [(g, direction[name]) for name, g in self._grads.items() if name in direction and g.requires_grad]
        theta = {} if first else self.theta
        wanted = [self.v, *learned.values(), *theta.values()]
        with self.network.held(self.theta, self.start), math_attention(self.plan.math_attention):
            made: Sequence[Tensor | None] = torch.autograd.grad(
                [g for g, _ in found], wanted, [d for _, d in found], retain_graph=first, allow_unused=True
            )
        self._grads = {}
        if not first:
            self.theta, self.logits = {}, self.logits.detach()
        u, rest = made[0], made[1:]
        of_phi, of_theta = rest[: len(learned)], rest[len(learned) :]
        return Pulled(
            torch.zeros_like(self.logits) if u is None else u.detach(),
            {name: t.detach() for name, t in zip(theta, of_theta, strict=True) if t is not None},
            {name: t.detach() for name, t in zip(learned, of_phi, strict=True) if t is not None},
        )

    def again(self, v: Tensor) -> Tensors:
        """J'v for the covectors v of a moved loss; once, of the first step."""
        return self._backward(v, create_graph=False)


@dataclass
class Window:
    """The look-ahead and its gradient; nothing has moved."""

    kept: list[KeptStep]
    after_first: State  # what the forward of the first step has moved
    meta_loss: Tensor  # 0-d, at theta_K
    u: list[Tensor]  # (n, C) of each batch
    scale: Rate  # lambda, which goes with u
    learned: Tensors  # dL_meta/dphi of parameters that an optimizer moves
    finite: Tensor  # 0-d bool

    @property
    def logits(self) -> Tensor:
        """(N, C) of the rows of all batches, in the look-ahead."""
        return torch.cat([step.logits.detach() for step in self.kept])

    @property
    def tangent(self) -> Tensor:
        """(N, C) u times N0 / n, to go with :attr:`row_scale` for all batches; N0 rows are in the first."""
        n = len(self.u[0])
        return torch.cat([u if len(u) == n else u * (n / len(u)) for u in self.u])

    @property
    def row_scale(self) -> Rate:
        return self.scale / len(self.u[0])

    @property
    def train_loss(self) -> Tensor:
        """0-d, mean over the batches, each at its theta_k under the loss as it is."""
        return torch.stack([step.loss.mean() for step in self.kept]).mean()

    @property
    def alignment(self) -> Tensor:
        """<v_ki, u_ki> of each row (N,)."""
        return torch.cat([ops.row_dot(step.own_v.contiguous(), u) for step, u in zip(self.kept, self.u, strict=True)])


def together(batches: Sequence[TrainBatch]) -> tuple[Tensor, Tensor | None]:
    """Rows (N,) of all batches, and their weights; None where no batch has any."""
    if len(batches) == 1:
        return batches[0].rows, batches[0].weight
    index = torch.cat([b.rows for b in batches])
    if all(b.weight is None for b in batches):
        return index, None
    like = next(b.weight for b in batches if b.weight is not None)
    return index, torch.cat([like.new_ones(len(b.rows)) if b.weight is None else b.weight for b in batches])


def look_ahead(
    network: Network,
    plan: TangentPlan,
    loss: LearnableLoss,
    lookahead: PreparedLookAhead,
    batches: Sequence[TrainBatch],
    meta: tuple[object, Tensor],
    learned: Tensors | None = None,
) -> Window:
    """K steps ahead and back again. `learned` are parameters whose gradient is wanted by autograd."""
    if plan.one_backward:
        raise ValueError(
            "the graph of a part of this model bears one backward alone (selective checkpointing), and a look-ahead of "
            "several steps goes through it more often; take lookahead_steps=1, or plain activation checkpointing"
        )
    learned = learned or {}
    state, theta = network.state(), {name: p.detach() for name, p in network.params.items()}
    after_first, kept = state, []
    for batch in batches:
        kept.append(step := KeptStep(network, plan, loss, batch, theta, state))
        if len(kept) == 1:
            after_first = state.clone()
            if state.contents:
                raise ValueError(
                    "lookahead_steps: the model's forward moves attributes that are no buffers, which several steps "
                    "could not put back; register tensors as buffers, or take lookahead_steps=1"
                )
        theta = lookahead.ahead(step.theta, step.gradient)
    meta_loss, adjoint = gradient_at(network, state, theta, list(theta), *meta)
    u: list[Tensor] = []
    total, numbers = Tensors(), [meta_loss, *adjoint.values()]
    for k, step in reversed(list(enumerate(kept))):
        pulled = step.pull(lookahead.direction(adjoint), learned, first=k == 0)
        u.insert(0, pulled.u)
        add_up(total, list(pulled.learned), [t * -lookahead.scale for t in pulled.learned.values()])
        add_up(adjoint, list(pulled.curved), [t * -lookahead.scale for t in pulled.curved.values()])
    numbers += [*(s.loss for s in kept), *u, *total.values()]
    finite = both(all_finite(numbers), [flag for s in kept for flag in s.sound])
    return Window(kept, after_first, meta_loss, u, lookahead.scale, total, finite)


@dataclass
class WindowEngine:
    """The look-ahead of a window, the move of the loss, and the steps of the model."""

    network: Network
    plan: TangentPlan
    loss: LearnableLoss
    optimizer: torch.optim.Optimizer
    lookahead: PreparedLookAhead
    learned: Tensors | None  # what the optimizer of the loss moves; None for a loss that moves itself
    on_grad: Callable[[Tensors], None] | None

    def step(self, batches: Sequence[TrainBatch], meta: tuple[object, Tensor], move: Move) -> StepResult:
        """All of it, or nothing of it where anything is not finite. On CUDA the host waits once, at the end."""
        window = look_ahead(self.network, self.plan, self.loss, self.lookahead, batches, meta, self.learned)
        params = list(self.network.params.values())
        before, state = Snapshot(self.optimizer, params), self.network.state()
        index, weight = together(batches)
        head = self.loss.head(index, None, weight) if self.learned is None else None
        of_loss = None if move.optimizer is None else Snapshot(move.optimizer, list((self.learned or {}).values()))
        heads: list[Head] = []

        def put_back() -> None:
            for each in reversed(heads):
                each.undo()
            if head is not None:
                head.undo()
            if of_loss is not None:
                of_loss.restore()
            before.restore()
            self.network.write_state(state)

        try:
            moved = self._moved(window, head, move)
            logits, terms, finite = self._train(window, heads, moved.finite)
            if not bool(finite):
                put_back()
        except BaseException:  # out of memory, on_grad, the optimizer
            put_back()
            raise
        return StepResult(
            train_loss=window.train_loss,
            meta_loss=window.meta_loss,
            loss=torch.cat([t.loss for t in terms]),
            logits=torch.cat(logits),
            entropy=torch.cat([t.entropy for t in terms]),
            alignment=window.alignment,
            label_grad_norm=moved.grad_norm,
            skipped=moved.skipped,
            finite=finite,
        )

    def _moved(self, window: Window, head: Head | None, move: Move) -> Moved:
        """The loss's one move, by the rows of all batches."""
        if head is not None:
            return head.step(window.logits, window.tangent, window.row_scale, window.finite, move)
        assert move.optimizer is not None
        assert self.learned is not None
        finite = window.finite
        if finite.is_cuda or bool(finite):
            step_along(move.optimizer, self.learned, window.learned)
        norm = torch.stack([torch.linalg.vector_norm(g) for g in window.learned.values()]).norm()
        nothing = torch.full_like(norm, torch.nan)
        return Moved(nothing, nothing, nothing, nothing, torch.zeros_like(norm, dtype=torch.int32), norm, finite)

    def _train(
        self, window: Window, heads: list[Head], finite: Tensor
    ) -> tuple[list[Tensor], list[ops.LabelLoss], Tensor]:
        """The model's steps on the batches: logits and loss of each, and whether all was finite.

        On a CPU a step that is not, and all behind it, are left out: only their losses are told.
        """
        network, params = self.network, self.network.params
        logits, terms = [], []
        for k, step in enumerate(window.kept):
            x, index, weight = step.batch
            start = network.state()
            if k == 0:
                z, state = step.logits, window.after_first
            else:
                state = start.clone()
                with step.random.replay(), math_attention(self.plan.math_attention):
                    z = network(params, state, x)
            heads.append(head := self.loss.head(index, x, weight, self.learned))
            terms.append(loss := head.loss(z.detach()))
            logits.append(z.detach())
            if not (finite.is_cuda or bool(finite)):
                continue
            v = loss.v / len(index)
            if k == 0:
                grads = step.again(v)
            else:
                with network.held(params, start), math_attention(self.plan.math_attention):
                    made = torch.autograd.grad(z, list(params.values()), v, allow_unused=True)
                grads = Tensors()
                add_up(grads, list(params), made)
            if self.on_grad is not None:
                self.on_grad(grads)
            finite = both(finite & all_finite(grads.values()), stay_finite(start, state))
            if finite.is_cuda or bool(finite):
                update(network, self.optimizer, grads, state)
        return logits, terms, finite
