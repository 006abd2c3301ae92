"""The meta batch at theta*: cross-entropy of hard labels, and its gradient by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.state import State


def gradient_at(
    network: Network, state: State, ahead: Tensors, names: list[str], x: Any, y: Tensor, *, moves: bool = False
) -> tuple[Tensor, Tensors]:
    """Mean loss at `ahead`, and its gradient for those of the parameters `names` that it reaches.

    `state` is left alone, unless it `moves` by the forward.
    """
    # a leaf of its own per parameter, so that this graph ends at theta*; what stays has no graph at all
    moved = set(names)
    ahead = {k: t.detach().requires_grad_(k in moved) for k, t in ahead.items()}
    logits = network(ahead, state if moves else state.clone(), x)
    check_meta_logits(logits, y)
    loss = torch.nn.functional.cross_entropy(logits, y)
    with network.held(ahead, state):
        made = torch.autograd.grad(loss, [ahead[k] for k in names], allow_unused=True)
    return loss.detach(), {k: g for k, g in zip(names, made, strict=True) if g is not None}


def check_meta_logits(logits: Tensor, y: Tensor) -> None:
    if logits.shape[0] != y.shape[0]:
        raise ValueError(
            f"{y.shape[0]} rows of x_meta gave {logits.shape[0]} rows of logits; x_meta and y_meta must belong "
            "together, with rows along their first dimension"
        )


def cross_entropy(logits: Tensor, y: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Mean loss and its derivative (m, C) at logits without a graph; `num_classes` where `y` was held against it.

    In the other case `y` may have what cross_entropy leaves out.
    """
    if num_classes is None:
        z = logits.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(z, y)
        return loss.detach(), torch.autograd.grad(loss, z)[0]
    log_q = logits.log_softmax(1)
    loss = torch.nn.functional.nll_loss(log_q, y)
    return loss, log_q.exp_().scatter_(1, y.unsqueeze(1), -1.0, reduce="add").div_(y.shape[0])
