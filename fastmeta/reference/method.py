"""The method in plain autograd. theta, buffers and label parameters go in, new ones come out.

Nothing of the caller's moves, but by :func:`meta_step` and :func:`plain_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.functional.attention import PlainAttention
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.reference.operations import soft_cross_entropy

Params = dict[str, Tensor]


@dataclass
class SGDState:
    """Hyper-parameters and momentum buffers of plain torch SGD, for one set of parameters."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    buffers: Mapping[str, Tensor | None] | None = None

    def update(self, params: Params, grads: Mapping[str, Tensor | None]) -> tuple[Params, dict[str, Tensor]]:
        """One step of torch.optim.SGD, differentiable in the gradients: new parameters, new buffers."""
        new, buffers = dict(params), {}
        for name, grad in grads.items():
            if grad is None:
                continue
            d = grad + self.weight_decay * params[name] if self.weight_decay else grad
            if self.momentum:
                old = (self.buffers or {}).get(name)
                buf = d if old is None else self.momentum * old + (1 - self.dampening) * d
                buffers[name] = buf
                d = d + self.momentum * buf if self.nesterov else buf
            new[name] = params[name] - self.lr * d
        return new, buffers


def _split(model: nn.Module) -> tuple[Params, Params]:
    params = {k: p.detach().clone().requires_grad_(p.requires_grad) for k, p in model.named_parameters()}
    return params, {k: b.detach().clone() for k, b in model.named_buffers()}


def _grads(loss: Tensor, params: Params, *, create_graph: bool) -> dict[str, Tensor | None]:
    names = [k for k, p in params.items() if p.requires_grad]
    grads = torch.autograd.grad(loss, [params[k] for k in names], create_graph=create_graph, allow_unused=True)
    return dict(zip(names, grads, strict=True))


class _Runner(nn.Module):
    """Calls a function while `model` has the weights of a functional_call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        with PlainAttention():  # fused attention has no double backward
            return function()


def _run(model: nn.Module, params: Params, buffers: Params, function: Callable[[], Any]) -> Any:
    """function() while `model` holds these, which are written into, and replaced where the model replaces its own.

    Forwards run so, and so do their backwards: a checkpointed part runs again there, on what the model holds then.
    """
    state = {f"model.{name}": t for name, t in (params | buffers).items()}
    output = functional_call(_Runner(model), state, (function,))
    after = {name: state[f"model.{name}"] for name in buffers}
    buffers.clear()  # of those that are gone; None is one too
    buffers |= {k: b if b is None else b.detach() for k, b in after.items() if isinstance(b, Tensor | None)}
    params |= {name: state[f"model.{name}"].detach() for name, p in params.items() if not p.requires_grad}
    return output


def _copies(buffers: Params) -> Params:
    return {name: b if b is None else b.clone() for name, b in buffers.items()}


#: the training loss of each row of a batch (n,) as a function of the loss's own parameters, by name, and of logits
LossOf = Callable[[Params, Tensor], Tensor]


@dataclass
class ReferenceMetaGradient:
    """What :func:`meta_gradient` returns: `grads` by the names of the parameters that it was given."""

    grads: Params
    train_loss: Tensor
    meta_loss: Tensor
    logits: Tensor


@dataclass
class ReferenceGradient:
    """What :func:`label_gradient` returns; `grad` has the shape of the label parameter it was given."""

    grad: Tensor
    train_loss: Tensor
    meta_loss: Tensor
    logits: Tensor


def lookahead_meta_loss(
    model: nn.Module,
    loss_of: LossOf,
    phi: Params,
    x: Any,
    x_meta: Any,
    y_meta: Tensor,
    *,
    lookahead: SGDState,
    weight: Tensor | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> Tensor:
    """L_meta(theta*), Eq. (3) and the loss in (4), as a number: its differences serve where autograd has no second one.

    theta* = theta - lambda/n sum_i grad_theta weight_i l_i(theta, phi)   or the SGD step given in `lookahead`
    L_meta = mean cross-entropy of the meta batch with hard labels `y_meta` (m,)
    """
    ahead = _LookAhead(model, x, lookahead, logits_of, create_graph=False)
    return ahead(loss_of, phi, weight).meta_loss(x_meta, y_meta)[0]


def _label_loss(probs_of: Callable[[Tensor], Tensor]) -> LossOf:
    """Cross-entropy with the distributions of the one label parameter."""
    return lambda phi, logits: soft_cross_entropy(logits, probs_of(phi[""]), reduction="none")


class _LookAhead:
    """theta* as a function of the loss's parameters, and the meta loss as one of theta*: the two parts of a chain.

    Each has its own weights, so that autograd runs through one after the other, while the model holds what that part
    ran on. The chain rule in one call would do the same, were no part of the model ever run again in its backward.
    """

    def __init__(
        self, model: nn.Module, x: Any, sgd: SGDState, logits_of: Callable[[Any], Tensor], *, create_graph: bool
    ) -> None:
        self.model, self.sgd, self.logits_of, self.create_graph = model, sgd, logits_of, create_graph
        self.params, self.start = _split(model)
        self.buffers = _copies(self.start)  # after the train forward
        self.logits = _run(model, self.params, self.buffers, lambda: logits_of(call_model(model, x)))

    def __call__(self, loss_of: LossOf, phi: Params, weight: Tensor | None) -> _LookAhead:
        """Eq. (3): sets `loss` and `star`."""
        self.loss = _weighted_mean(loss_of(phi, self.logits), weight)
        grads = _run(
            self.model,
            self.params,
            _copies(self.start),
            lambda: _grads(self.loss, self.params, create_graph=self.create_graph),
        )
        self.star, _ = self.sgd.update(self.params, grads)
        return self

    def meta_loss(self, x_meta: Any, y_meta: Tensor) -> tuple[Tensor, Params]:
        """L_meta at theta* and its gradient there, Eq. (4)."""
        star = {k: p.detach().requires_grad_(p.requires_grad) for k, p in self.star.items()}
        logits = _run(self.model, star, _copies(self.buffers), lambda: self.logits_of(call_model(self.model, x_meta)))
        loss = nn.functional.cross_entropy(logits, y_meta)
        g = _run(self.model, star, _copies(self.buffers), lambda: _grads(loss, star, create_graph=False))
        return loss.detach(), {k: t for k, t in g.items() if t is not None}

    def pull(self, g: Params, phi: Params) -> Params:
        """<g, d theta* / d phi>, of the parameters that theta* depends on."""
        moved = {k: t for k, t in g.items() if self.star[k].grad_fn is not None}
        grads = _run(
            self.model,
            self.params,
            _copies(self.start),
            lambda: torch.autograd.grad(
                [self.star[k] for k in moved], list(phi.values()), list(moved.values()), allow_unused=True
            ),
        )
        return {k: t for k, t in zip(phi, grads, strict=True) if t is not None}


def meta_gradient(
    model: nn.Module,
    loss_of: LossOf,
    phi: Params,
    x: Any,
    x_meta: Any,
    y_meta: Tensor,
    *,
    lookahead: SGDState,
    weight: Tensor | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> ReferenceMetaGradient:
    """d L_meta(theta*) / d phi by autograd through the look-ahead step, Eqs. (3), (4), (7), for any training loss.

    `loss_of(phi, logits)` gives the loss (n,) of each row of the batch, differentiable in both to second order. For a
    learnable loss: ``phi, loss_of = loss.seen_by(index, x)``. BatchNorm uses batch statistics in training mode; the
    model's own parameters, buffers and gradients stay as they are. A random layer draws from the global generators,
    which *do* advance here, first for the train forward, then for the meta forward.
    """
    phi = {k: t.detach().clone().requires_grad_() for k, t in phi.items()}
    step = _LookAhead(model, x, lookahead, logits_of, create_graph=True)(loss_of, phi, weight)
    meta_loss, g = step.meta_loss(x_meta, y_meta)
    return ReferenceMetaGradient(step.pull(g, phi), step.loss.detach(), meta_loss, step.logits.detach())


def _logits(model: nn.Module, x: Any, logits_of: Callable[[Any], Tensor]) -> Tensor:
    return logits_of(call_model(model, x))


def window_gradient(
    model: nn.Module,
    losses: Sequence[LossOf],
    phi: Params,
    xs: Sequence[Any],
    x_meta: Any,
    y_meta: Tensor,
    *,
    lookahead: SGDState,
    weights: Sequence[Tensor | None] | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> ReferenceMetaGradient:
    """d L_meta(theta_K) / d phi by autograd through K look-ahead steps on K train batches, unrolled.

        theta_{k+1} = theta_k - SGD step along (1/n) sum_i grad_theta weight_ki l_ki(theta_k, phi)        k < K

    ``losses[k](phi, logits)`` gives the loss (n,) of each row of batch k; all see the same phi. The logits are those of
    the look-ahead, (K n, C), and the train loss is the mean over the K batches. BatchNorm uses batch statistics in
    training mode; nothing of the model's moves. For models without random layers and without checkpointing.
    """
    phi = {k: t.detach().clone().requires_grad_() for k, t in phi.items()}
    params, buffers = _split(model)
    logits, means = [], []
    for k, (loss_of, x) in enumerate(zip(losses, xs, strict=True)):
        z = _run(model, params, buffers, partial(_logits, model, x, logits_of))
        loss = _weighted_mean(loss_of(phi, z), None if weights is None else weights[k])
        params, momentum = lookahead.update(params, _grads(loss, params, create_graph=True))
        lookahead = replace(lookahead, buffers={**(lookahead.buffers or {}), **momentum})
        logits.append(z.detach())
        means.append(loss.detach())
    z_meta = _run(model, params, buffers, partial(_logits, model, x_meta, logits_of))
    meta_loss = nn.functional.cross_entropy(z_meta, y_meta)
    grads = torch.autograd.grad(meta_loss, list(phi.values()), allow_unused=True)
    found = {k: t for k, t in zip(phi, grads, strict=True) if t is not None}
    return ReferenceMetaGradient(found, torch.stack(means).mean(), meta_loss.detach(), torch.cat(logits))


def label_gradient(
    model: nn.Module,
    label_param: Tensor,
    probs_of: Callable[[Tensor], Tensor],
    x: Any,
    x_meta: Any,
    y_meta: Tensor,
    *,
    lookahead: SGDState,
    weight: Tensor | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> ReferenceGradient:
    """:func:`meta_gradient` of the one parameter of a label family.

    `probs_of(label_param)` gives the (n, C) label distributions of the batch.
    """
    loss, label = _label_loss(probs_of), {"": label_param}
    out = meta_gradient(model, loss, label, x, x_meta, y_meta, lookahead=lookahead, weight=weight, logits_of=logits_of)
    return ReferenceGradient(out.grads[""], out.train_loss, out.meta_loss, out.logits)


def _weighted_mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    return (loss if weight is None else weight * loss).mean()


def meta_step(
    model: nn.Module,
    label_param: Tensor,
    probs_of: Callable[[Tensor], Tensor],
    x: Any,
    x_meta: Any,
    y_meta: Tensor,
    *,
    label_lr: float,
    optimizer: SGDState,
    lookahead: SGDState | None = None,
    constrain: Callable[[Tensor], Tensor] = lambda label: label,
    weight: Tensor | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One iteration of Algorithm 1, **in place on the model**: the new label parameter and the momentum buffers.

    (4), (5)  label <- constrain(label - eta * gradient)
    (6)       theta <- theta - lambda/n sum_i grad L_i(theta, p_i_new), by a fresh forward: same theta, same batch

    `lookahead` defaults to plain SGD at the optimizer's learning rate. BatchNorm's running statistics move once,
    in the forward of Eq. (6). Only for models without random layers: the second forward would draw anew.
    """
    plain = SGDState(lr=optimizer.lr) if lookahead is None else lookahead
    out = label_gradient(
        model, label_param, probs_of, x, x_meta, y_meta, lookahead=plain, weight=weight, logits_of=logits_of
    )
    label = constrain(label_param.detach() - label_lr * out.grad)
    return label, plain_step(
        model, _label_loss(probs_of), {"": label}, x, optimizer=optimizer, weight=weight, logits_of=logits_of
    )


def plain_step(
    model: nn.Module,
    loss_of: LossOf,
    phi: Params,
    x: Any,
    *,
    optimizer: SGDState,
    weight: Tensor | None = None,
    logits_of: Callable[[Any], Tensor] = pick_logits,
) -> Params:
    """Eq. (6) under the loss as it is, **in place on the model**: the new momentum buffers."""
    params: Params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    start = _copies(dict(model.named_buffers()))
    logits = logits_of(call_model(model, x))
    loss = _weighted_mean(loss_of(phi, logits), weight)
    grads = _run(model, params, start, lambda: _grads(loss, params, create_graph=False))
    new, buffers = optimizer.update(params, grads)
    with torch.no_grad():
        for k, p in params.items():
            p.copy_(new[k])
    return {k: b.detach() for k, b in buffers.items()}
