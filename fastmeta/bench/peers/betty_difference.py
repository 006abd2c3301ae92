"""Betty's default for a one-step hypergradient: a central difference of first gradients. It is inexact.

Choe, Neiswanger, Xie, Xing, *Betty: An Automatic Differentiation Library for Multilevel Optimization*, 2023, whose
``darts`` hypergradient is that of Liu, Simonyan, Yang, *DARTS: Differentiable Architecture Search*, 2019, Eq. (8):

    dL_meta/dl = -lambda (grad_l L(theta + eps g, l) - grad_l L(theta - eps g, l)) / (2 eps),    eps = 0.01 / ||g||

with g = grad L_meta(theta*) and L the training loss of the batch. What it saves is the second derivative; the two
gradients in l ask for a forward each, and for no backward through the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmeta.bench.peers.by_hand import Tensors, finish, gradient, logits_at, look_ahead, soft_loss, trainable
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant

#: eps ||g||, as both papers set it
DISTANCE = 0.01


def build(problem: Problem) -> Variant:
    model, table = problem.model(), problem.labels().label_logits
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def step() -> None:
        label = table[problem.index].requires_grad_()
        params = trainable(model)
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        theta = {k: p.detach() for k, p in params.items()}

        def label_grad_at(weights: Tensors) -> Tensor:
            with torch.no_grad():
                logits = logits_at(problem, model, weights, buffers, problem.x)
            return torch.autograd.grad(soft_loss(logits, label), label)[0]

        with problem.precision():
            loss = soft_loss(logits_at(problem, model, params, buffers, problem.x), label.detach())
            star = look_ahead(theta, gradient(loss, params), problem.lr)
            star = {k: p.requires_grad_() for k, p in star.items()}
            meta_loss = F.cross_entropy(logits_at(problem, model, star, buffers, problem.x_meta), problem.y_meta)
            g = gradient(meta_loss, star)
            norm = torch.stack([t.norm() for t in g.values() if t is not None]).norm()
            eps = DISTANCE / norm
            ahead, behind = (
                label_grad_at({k: p if (t := g[k]) is None else p + sign * eps * t for k, p in theta.items()})
                for sign in (1, -1)
            )
            grad = (ahead - behind) * (-problem.lr / (2 * eps))
            table[problem.index] = finish(problem, model, optimizer, label, grad)

    return Variant(step, model, table, exact=False)
