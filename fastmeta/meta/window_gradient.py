"""The meta-gradient through several look-ahead steps, without a step. Nothing of the caller's changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_real, shown
from fastmeta.functional.call import plain
from fastmeta.functional.network import Network, recorded
from fastmeta.functional.turns import TURN
from fastmeta.losses import LearnableLoss
from fastmeta.meta.engines.several_steps import look_ahead, together
from fastmeta.meta.gradient import MetaGradient, check_loss, check_meta
from fastmeta.meta.lookahead import LookAhead
from fastmeta.meta.tangents import plan_tangent
from fastmeta.meta.window import TrainBatch, by_double_vjp, check_window, is_window


def window_gradient(
    model: torch.nn.Module,
    loss: LearnableLoss,
    train: Sequence[tuple[Any, Tensor]],
    meta: tuple[Any, Tensor],
    *,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    logits_of: Callable[[Any], Tensor] | None = None,
    weight: Sequence[Tensor | None] | None = None,
) -> MetaGradient:
    """Gradient of the meta loss after K look-ahead steps on K train batches, in the loss's own parameters.

        theta_{k+1} = theta_k - (lambda/n) sum_i grad_theta weight_ki l_ki(theta_k, phi)          k < K
        grads       = d/d phi  mean_j CE(f(x_meta_j; theta_K), y_meta_j)

    Exact, backwards through the K steps: see :mod:`fastmeta.meta.engines.several_steps`. For K = 1 it is
    :func:`fastmeta.meta_gradient`.

    Args:
        model, loss, meta, logits_of: as :func:`fastmeta.meta_gradient` takes them.
        train: K pairs (x, index). A row may stand in several of them: each entry gives its own term.
        lr: lambda, the rate of the steps; None takes the rates of `optimizer` now.
        weight: constant weights (n,) of each batch, or None for some or all.

    Returns:
        MetaGradient of all N = K n rows, in the order of the batches; logits, u and losses are those of the look-ahead.
        ``train_loss`` is the mean over the batches.

    Raises:
        ValueError, TypeError: a wrong argument, named.
        RuntimeError: a model that has no double-vjp.
    """
    check_loss(loss)
    if not is_window(train):
        raise ValueError(f"train must be a list of pairs (x, index), one for each step, got {type(train).__name__}")
    if (lr is None) == (optimizer is None):
        raise ValueError("give either lr or optimizer, which say the rate of the look-ahead steps")
    rate = None if lr is None else as_real(lr)
    if lr is not None and (rate is None or not 0 <= rate < float("inf")):
        raise ValueError(f"lr must be None or a finite number >= 0, got {shown(lr)}")
    batches = [TrainBatch(plain(model, b.x), *b[1:]) for b in check_window(loss, train, weight, max(2, len(train)))]
    x_meta, y_meta = check_meta(loss, meta)
    trained = None if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    network = Network(model, trained, logits_of)
    prepared = LookAhead("sgd" if rate is None else rate, optimizer).prepare(network.params)
    learned = {} if loss.moves_itself else loss.learned()
    with TURN, recorded():
        random = network.random_state(batches[0].rows.device)
        try:
            with by_double_vjp(len(batches)):
                plan = plan_tangent(network, batches[0].x, "reverse")
            made = look_ahead(network, plan, loss, prepared, batches, (plain(model, x_meta), y_meta), learned)
        finally:
            random.restore()
    grads = made.learned
    if loss.moves_itself:
        index, weights = together(batches)
        grads = loss.head(index, None, weights).gradient(made.logits, made.tangent, made.row_scale)
    return MetaGradient(
        grads=grads,
        train_loss=made.train_loss,
        meta_loss=made.meta_loss,
        loss=torch.cat([step.own_loss for step in made.kept]),
        logits=made.logits,
        tangent=torch.cat(made.u),
        alignment=made.alignment,
        plan=plan,
    )
