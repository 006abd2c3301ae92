"""What every script writes around its label gradient: the loss, the model at other weights, Eqs. (5) and (6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant

Tensors = dict[str, Tensor]
#: of a model, its parameters and buffers by name, and label logits (n, C): the gradient of these (n, C)
LabelGradient = Callable[[nn.Module, Tensors, Tensors, Tensor], Tensor]


def soft_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, C) with softmax of the label logits (n, C)."""
    return -(label.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def trainable(model: nn.Module) -> Tensors:
    """The parameters that the step moves, by name."""
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def logits_at(problem: Problem, model: nn.Module, weights: Mapping[str, Tensor], buffers: Tensors, x: Any) -> Tensor:
    """Logits (n, C) with other weights; one that is not named is the model's. Batch norms write into `buffers`."""
    return problem.logits(lambda *a, **k: functional_call(model, (dict(weights), buffers), a, k), x)


def finish(problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer, label: Tensor, grad: Tensor) -> Tensor:
    """Eqs. (5) and (6) as everybody writes them: the new label rows, and a fresh forward with them."""
    rows = label.detach() - problem.label_lr * grad
    soft_loss(problem.logits(model, problem.x), rows).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rows


def look_ahead(params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], lr: float) -> Tensors:
    """Eq. (3): theta* = theta - lambda grad; a parameter without a gradient stays."""
    return {k: p if (g := grads[k]) is None else p - lr * g for k, p in params.items()}


def gradient(loss: Tensor, params: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor | None]:
    """By name; None where the loss does not depend on a parameter."""
    found = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph, allow_unused=True)
    return dict(zip(params, found, strict=True))


def twice_differentiable() -> AbstractContextManager[Any]:
    """Fused attention has neither a double backward nor a forward derivative; who needs one enters this."""
    return sdpa_kernel(SDPBackend.MATH)


def meta_gradient(
    problem: Problem, model: nn.Module, params: Tensors, buffers: Tensors, label: Tensor
) -> tuple[Tensors, dict[str, Tensor | None]]:
    """theta, detached, and g = grad L_meta(theta*), Eqs. (3), (4), by first derivatives alone."""
    theta = {k: p.detach() for k, p in params.items()}
    loss = soft_loss(logits_at(problem, model, params, buffers, problem.x), label.detach())
    star = {k: p.requires_grad_() for k, p in look_ahead(theta, gradient(loss, params), problem.lr).items()}
    meta_loss = F.cross_entropy(logits_at(problem, model, star, buffers, problem.x_meta), problem.y_meta)
    return theta, gradient(meta_loss, star)


def in_a_script(problem: Problem, label_gradient: LabelGradient, *, exact: bool = True, twice: bool = True) -> Variant:
    """A step around `label_gradient`, which is given label logits that require a gradient.

    `twice` says whether it needs :func:`twice_differentiable`.
    """
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        with problem.precision(), twice_differentiable() if twice else nullcontext():
            grad = label_gradient(model, trainable(model), buffers, label)
            table[problem.index] = finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table, exact=exact)
