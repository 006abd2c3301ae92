"""The step by libraries to take instead: higher (Grefenstette et al., 2019) and TorchOpt (Ren et al., 2023)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fastmeta.bench.peers.by_hand import finish, soft_loss, twice_differentiable
from fastmeta.bench.peers.installed import load
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant


def higher_step(problem: Problem) -> Variant | str:
    higher: Any = load("higher")
    if isinstance(higher, str):
        return higher
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        with problem.precision(), twice_differentiable():
            with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
                differentiable.step(soft_loss(problem.logits(functional, problem.x), label))
                meta_loss = F.cross_entropy(problem.logits(functional, problem.x_meta), problem.y_meta)
                (grad,) = torch.autograd.grad(meta_loss, label)
            table[problem.index] = finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)


def torchopt_step(problem: Problem) -> Variant | str:
    torchopt: Any = load("torchopt")
    if isinstance(torchopt, str):
        return torchopt
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    differentiable = torchopt.MetaSGD(model, lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        before = torchopt.extract_state_dict(model, by="reference")
        before_optimizer = torchopt.extract_state_dict(differentiable, by="reference")
        with problem.precision(), twice_differentiable():
            differentiable.step(soft_loss(problem.logits(model, problem.x), label))
            meta_loss = F.cross_entropy(problem.logits(model, problem.x_meta), problem.y_meta)
            (grad,) = torch.autograd.grad(meta_loss, label)
            torchopt.recover_state_dict(model, before)
            torchopt.recover_state_dict(differentiable, before_optimizer)
            table[problem.index] = finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)
