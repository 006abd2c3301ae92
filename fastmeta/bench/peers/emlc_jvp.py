"""EMLC's way to the label gradient: one forward-mode product in place of a second backward.

Taraday, Baskin, *Enhanced Meta Label Correction for Coping with Label Corruption*, 2023, the exact meta-gradient of one
look-ahead step. With g = grad L_meta(theta*) the gradient of a label distribution p_i is

    dL_meta/dp_i = -(lambda/n) <g, grad_theta CE(q_i, p_i)> = (lambda/n) J_theta[log q_i(theta)] g

which one ``torch.func.jvp`` of the log-probabilities along g gives for all rows (n, C). The chain to what the labels
are made of (theirs by a teacher network, here softmax of label logits) goes on backwards from there. It is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.peers.by_hand import (
    Tensors,
    finish,
    gradient,
    logits_at,
    look_ahead,
    soft_loss,
    trainable,
    twice_differentiable,
)
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant


def build(problem: Problem) -> Variant:
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        params = trainable(model)
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        theta = {k: p.detach() for k, p in params.items()}
        with problem.precision(), twice_differentiable():
            loss = soft_loss(logits_at(problem, model, params, buffers, problem.x), label.detach())
            star = look_ahead(theta, gradient(loss, params), problem.lr)
            star = {k: p.requires_grad_() for k, p in star.items()}
            meta_loss = F.cross_entropy(logits_at(problem, model, star, buffers, problem.x_meta), problem.y_meta)
            g = {k: torch.zeros_like(theta[k]) if t is None else t for k, t in gradient(meta_loss, star).items()}

            def log_q(weights: Tensors) -> Tensor:
                inside = {k: b.clone() for k, b in buffers.items()}  # jvp lets nothing from outside be written into
                return logits_at(problem, model, weights, inside, problem.x).log_softmax(-1)

            with torch.no_grad():
                pull = torch.func.jvp(log_q, (theta,), (g,))[1]
            scaled = pull.to(label.dtype) * (problem.lr / len(label))
            (grad,) = torch.autograd.grad(label.softmax(-1), label, scaled)
            table[problem.index] = finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table)
