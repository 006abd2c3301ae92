"""EMLC's way to the label gradient: one forward-mode product in place of a second backward.

Taraday, Baskin, *Enhanced Meta Label Correction for Coping with Label Corruption*, 2023, the exact meta-gradient of one
look-ahead step. With g = grad L_meta(theta*) the gradient of a label distribution p_i is

    dL_meta/dp_i = -(lambda/n) <g, grad_theta CE(q_i, p_i)> = (lambda/n) J_theta[log q_i(theta)] g

which one ``torch.func.jvp`` of the log-probabilities along g gives for all rows (n, C). The chain to what the labels
are made of (theirs by a teacher network, here softmax of label logits) goes on backwards from there. It is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmeta.bench.peers.by_hand import Tensors, in_a_script, logits_at, meta_gradient
from fastmeta.bench.step_problem import Problem
from fastmeta.bench.step_variant import Variant


def build(problem: Problem) -> Variant:
    def grad(model: nn.Module, params: Tensors, buffers: Tensors, label: Tensor) -> Tensor:
        theta, found = meta_gradient(problem, model, params, buffers, label)
        g = {k: torch.zeros_like(theta[k]) if t is None else t for k, t in found.items()}

        def log_q(weights: Tensors) -> Tensor:
            inside = {k: b.clone() for k, b in buffers.items()}  # jvp lets nothing from outside be written into
            return logits_at(problem, model, weights, inside, problem.x).log_softmax(-1)

        with torch.no_grad():
            pull = torch.func.jvp(log_q, (theta,), (g,))[1]
        scaled = pull.to(label.dtype) * (problem.lr / len(label))
        return torch.autograd.grad(label.softmax(-1), label, scaled)[0]

    return in_a_script(problem, grad)
