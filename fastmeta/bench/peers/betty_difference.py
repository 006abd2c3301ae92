"""Betty's default for a one-step hypergradient: a central difference of first gradients. It is inexact.

Choe, Neiswanger, Xie, Xing, *Betty: An Automatic Differentiation Library for Multilevel Optimization*, 2023, whose
``darts`` hypergradient is that of Liu, Simonyan, Yang, *DARTS: Differentiable Architecture Search*, 2019, Eq. (8):

    dL_meta/dl = -lambda (grad_l L(theta + eps g, l) - grad_l L(theta - eps g, l)) / (2 eps),    eps = 0.01 / ||g||

with g = grad L_meta(theta*) and L the training loss of the batch. What it saves is the second derivative; the two
gradients in l ask for a forward each, and for no backward through the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmeta.bench.peers.by_hand import Tensors, in_a_script, logits_at, meta_gradient, soft_loss
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant

#: eps ||g||, as both papers set it
DISTANCE = 0.01


def build(problem: Problem) -> Variant:
    def grad(model: nn.Module, params: Tensors, buffers: Tensors, label: Tensor) -> Tensor:
        theta, g = meta_gradient(problem, model, params, buffers, label)

        def label_grad_at(weights: Tensors) -> Tensor:
            with torch.no_grad():
                logits = logits_at(problem, model, weights, buffers, problem.x)
            return torch.autograd.grad(soft_loss(logits, label), label)[0]

        eps = DISTANCE / torch.stack([t.norm() for t in g.values() if t is not None]).norm()
        ahead, behind = (
            label_grad_at({k: p if (t := g[k]) is None else p + sign * eps * t for k, p in theta.items()})
            for sign in (1, -1)
        )
        return (ahead - behind) * (-problem.lr / (2 * eps))

    return in_a_script(problem, grad, exact=False, twice=False)
