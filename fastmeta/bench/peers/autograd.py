"""The step as a script of twenty lines takes it: create_graph through the look-ahead, functional_call at theta*."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.bench.peers.by_hand import Tensors, gradient, in_a_script, logits_at, look_ahead, soft_loss
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant


def label_gradient(
    problem: Problem, model: nn.Module, params: Tensors, buffers: Tensors, label: Tensor, x: Any, x_meta: Any
) -> Tensor:
    """dL_meta(theta*) / dl (n, C) of label logits that require a gradient, Eqs. (3), (4)."""
    loss = soft_loss(logits_at(problem, model, params, buffers, x), label)
    star = look_ahead(params, gradient(loss, params, create_graph=True), problem.lr)
    meta_loss = F.cross_entropy(logits_at(problem, model, star, buffers, x_meta), problem.y_meta)
    return torch.autograd.grad(meta_loss, label)[0]


def build(problem: Problem) -> Variant:
    def grad(model: nn.Module, params: Tensors, buffers: Tensors, label: Tensor) -> Tensor:
        return label_gradient(problem, model, params, buffers, label, problem.x, problem.x_meta)

    return in_a_script(problem, grad)
