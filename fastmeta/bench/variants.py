"""One whole iteration of Algorithm 1 in all the ways that a user could write it, and a plain SGD step as the unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta import reference
from fastmeta.bench import peers
from fastmeta.bench.problem import Problem
from fastmeta.meta import MetaStep

PLAIN, REFERENCE = "sgd", "reference"


@dataclass
class Variant:
    """`step()` runs one iteration in place on its own `model` and its own label `table` (None for the plain step)."""

    step: Callable[[], Any]
    model: nn.Module
    table: Tensor | None
    exact: bool = True
    note: Callable[[], str] = lambda: ""  # after a step
    finite: Callable[[], bool] = lambda: True  # whether all steps so far have counted


def _plain(problem: Problem) -> Variant:
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    targets = problem.targets[problem.index]

    def step() -> None:
        with problem.precision():
            loss = F.cross_entropy(reference.pick_logits(model(problem.x)), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Variant(step, model, None)


def _fastmeta(problem: Problem, tangent: Any) -> Variant:
    model, labels = problem.model(), problem.labels()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    # batches of the trainer's samplers hold no row twice, and neither does this one
    meta_step = MetaStep(model, labels, optimizer, label_lr=problem.label_lr, tangent=tangent, unique_index=True)

    def step() -> None:
        with problem.precision():
            meta_step((problem.x, problem.index), (problem.x_meta, problem.y_meta))

    return Variant(
        step,
        model,
        labels.label_logits,
        exact=tangent != "difference",
        note=lambda: "" if meta_step.plan is None else meta_step.plan.way,
        finite=lambda: int(meta_step.nonfinite_steps) == 0,
    )


def _reference(problem: Problem) -> Variant:
    model, table = problem.model(), problem.labels().label_logits
    sgd = reference.SGDState(lr=problem.lr)

    def step() -> None:
        with problem.precision():
            rows, _ = reference.meta_step(
                model,
                table[problem.index],
                reference.instance_probs,
                problem.x,
                problem.x_meta,
                problem.y_meta,
                label_lr=problem.label_lr,
                optimizer=sgd,
            )
        table[problem.index] = rows

    return Variant(step, model, table)


def _soft_loss(output: Any, label: Tensor) -> Tensor:
    return -(label.softmax(-1) * reference.pick_logits(output).log_softmax(-1)).sum(-1).mean()


def _finish(
    problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer, label: Tensor, grad: Tensor
) -> Tensor:
    """Eqs. (5) and (6) as everybody writes them: the new label rows, and a fresh forward with them."""
    rows = label.detach() - problem.label_lr * grad
    _soft_loss(model(problem.x), rows).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rows


def _naive(problem: Problem) -> Variant:
    """A script of twenty lines: create_graph through the look-ahead, functional_call at theta*."""
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        params: dict[str, Tensor] = dict(model.named_parameters())
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        with problem.precision():
            loss = _soft_loss(functional_call(model, (params, buffers), (problem.x,)), label)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            star = {k: p if g is None else p - problem.lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
            output = functional_call(model, (star, buffers), (problem.x_meta,))
            meta_loss = F.cross_entropy(reference.pick_logits(output), problem.y_meta)
            (grad,) = torch.autograd.grad(meta_loss, label)
            del loss, grads, star, output, meta_loss
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


def _higher(problem: Problem) -> Variant | str:
    higher: Any = peers.load("higher")
    if isinstance(higher, str):
        return higher
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        with problem.precision():
            with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
                differentiable.step(_soft_loss(functional(problem.x), label))
                meta_loss = F.cross_entropy(reference.pick_logits(functional(problem.x_meta)), problem.y_meta)
                (grad,) = torch.autograd.grad(meta_loss, label)
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


def _torchopt(problem: Problem) -> Variant | str:
    torchopt: Any = peers.load("torchopt")
    if isinstance(torchopt, str):
        return torchopt
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    differentiable = torchopt.MetaSGD(model, lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        before = torchopt.extract_state_dict(model, by="reference")
        before_optimizer = torchopt.extract_state_dict(differentiable, by="reference")
        with problem.precision():
            differentiable.step(_soft_loss(model(problem.x), label))
            meta_loss = F.cross_entropy(reference.pick_logits(model(problem.x_meta)), problem.y_meta)
            (grad,) = torch.autograd.grad(meta_loss, label)
            torchopt.recover_state_dict(model, before)
            torchopt.recover_state_dict(differentiable, before_optimizer)
            table[problem.index] = _finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


#: name -> builder; a builder returns the variant or one line that says why it is skipped
VARIANTS: dict[str, Callable[[Problem], Variant | str]] = {
    PLAIN: _plain,
    "fastmeta": partial(_fastmeta, tangent="auto"),
    "fastmeta:reverse": partial(_fastmeta, tangent="reverse"),
    "fastmeta:forward": partial(_fastmeta, tangent="forward"),
    "fastmeta:difference": partial(_fastmeta, tangent="difference"),
    REFERENCE: _reference,
    "autograd": _naive,
    "higher": _higher,
    "torchopt": _torchopt,
}
