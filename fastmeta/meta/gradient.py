"""The meta-gradient of a loss's own parameters, Eqs. (3), (4), (7), without a step. Nothing of the caller's changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_real, shown
from fastmeta.functional.call import plain
from fastmeta.functional.network import Network, recorded
from fastmeta.functional.turns import TURN
from fastmeta.losses import Labels, LearnableLoss
from fastmeta.losses.head import Head
from fastmeta.meta.algorithm import LookedAhead, look_ahead
from fastmeta.meta.doubts import Unrepeatable, adjoint_bounds, gap_of
from fastmeta.meta.engines.eager import plan_through, train_graphs
from fastmeta.meta.lookahead import LookAhead, LookAheadChoice, PreparedLookAhead
from fastmeta.meta.micro import WHOLE
from fastmeta.meta.tangents import TangentChoice, TangentPlan, arithmetic_of, plan_tangent


def check_loss(loss: object, name: str = "loss") -> None:
    """Raise a TypeError for what is no learnable loss."""
    if not isinstance(loss, LearnableLoss):
        raise TypeError(
            f"{name} must be InstanceLabels, ClassLabels or another fastmeta.LearnableLoss, got {type(loss).__name__}"
        )


def check_batch(
    loss: LearnableLoss, train: tuple[Any, Tensor], meta: tuple[Any, Tensor], weight: Tensor | None = None
) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
    """Both batches with index and y_meta as int64, or a ValueError that names the wrong argument.

    On CUDA it looks at shapes and dtypes alone: no sync.
    """
    check_loss(loss)
    return check_train(loss, train, weight), check_meta(loss, meta)


def check_train(loss: LearnableLoss, train: Any, weight: Tensor | None = None) -> tuple[Any, Tensor]:
    """(x, index) with index as int64, or a ValueError."""
    _check_pair("train", train, "(x, index)")
    index = _int64(train[1])
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        got = f"{tuple(index.shape)} of {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(
            f"index must be an int64 vector (n,) of rows of the training set (or of another integer dtype), got {got}; "
            "it says whose labels the batch carries"
        )
    if not index.shape[0]:
        raise ValueError("the train batch is empty: index has no entries; drop empty batches")
    rows = loss.row_count()
    if rows is not None and index.is_cpu and not _inside(index, rows):
        raise ValueError(
            f"index must lie in [0, {rows - 1}] for {rows} training samples, "
            f"got {int(index.min())} to {int(index.max())}; it counts rows of the targets that the labels were made of"
        )
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != index.shape):
        got = str(tuple(weight.shape)) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be None or a vector ({len(index)},), one weight for each row, got {got}")
    device = loss.device
    if device not in (None, index.device):
        raise ValueError(
            f"index must be on the labels' device, {device}, got {index.device}; "
            "move one of them, e.g. labels.to(device)"
        )
    return train[0], index


def check_meta(loss: LearnableLoss, meta: Any) -> tuple[Any, Tensor]:
    """(x_meta, y_meta) with y_meta as int64, or a ValueError."""
    _check_pair("meta", meta, "(x_meta, y_meta)")
    y_meta = _int64(meta[1])
    if not isinstance(y_meta, Tensor) or y_meta.dtype != torch.int64 or y_meta.ndim != 1 or not y_meta.shape[0]:
        got = f"{tuple(y_meta.shape)} of {y_meta.dtype}" if isinstance(y_meta, Tensor) else type(y_meta).__name__
        raise ValueError(f"y_meta must be a non-empty int64 vector (m,) of clean hard labels, got {got}")
    if isinstance(meta[0], Tensor) and meta[0].ndim and meta[0].shape[0] != y_meta.shape[0]:
        raise ValueError(f"x_meta has {len(meta[0])} rows and y_meta {len(y_meta)}; they must belong together")
    classes = loss.num_classes
    if classes is not None and y_meta.is_cpu and not _inside(y_meta, classes):
        raise ValueError(
            f"y_meta must lie in [0, {classes - 1}] for {classes} classes, "
            f"got {int(y_meta.min())} to {int(y_meta.max())}"
        )
    return meta[0], y_meta


def _check_pair(name: str, pair: Any, want: str) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} values" if isinstance(pair, tuple | list) else type(pair).__name__
        raise ValueError(f"the {name} batch must be a pair {want}, got {got}")


def _inside(numbers: Tensor, size: int) -> bool:
    """All in [0, size)."""
    low, high = torch.aminmax(numbers)
    return int(low) >= 0 and int(high) < size


def _int64(numbers: Any) -> Any:
    """A vector of another integer dtype as int64; what is none as it is."""
    if isinstance(numbers, Tensor) and numbers.dtype == torch.int64:
        return numbers
    whole = isinstance(numbers, Tensor) and not (numbers.is_floating_point() or numbers.is_complex())
    return numbers.to(torch.int64) if whole and numbers.dtype != torch.bool else numbers


@dataclass
class MetaGradient:
    """What :func:`meta_gradient` returns; all tensors are detached and on the batch's device."""

    #: by parameter name of the loss; of instance labels ``"label_logits"``, (n, C), the rows of the batch
    grads: dict[str, Tensor]
    train_loss: Tensor  #: 0-d, mean training loss at theta under the loss as it is
    meta_loss: Tensor  #: 0-d, mean meta loss at theta*
    loss: Tensor  #: (n,) training loss of each row, unweighted
    logits: Tensor  #: (n, C) at theta
    tangent: Tensor  #: (n, C) u = J g
    alignment: Tensor  #: (n,) <v_i, u_i> = <grad_theta l_i, g>: positive where the sample pulls with the meta set
    plan: TangentPlan  #: how u was made, and why


@dataclass
class LabelGradient:
    """What :func:`label_gradient` returns; all tensors are detached and on the batch's device."""

    grad: Tensor  #: (n, C) for the label logits of each batch row, or (C,) for class smoothing alpha
    train_loss: Tensor  #: 0-d, mean training loss at theta under the current labels
    meta_loss: Tensor  #: 0-d, mean meta loss at theta*
    logits: Tensor  #: (n, C) at theta
    tangent: Tensor  #: (n, C) u = J g
    alignment: Tensor  #: (n,) <q_i - p_i, u_i> = <grad_theta L_i, g>: positive where the sample pulls with the meta set
    plan: TangentPlan  #: how u was made, and why


def meta_gradient(
    model: torch.nn.Module,
    loss: LearnableLoss,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    *,
    lr: float | None = None,
    lookahead: LookAheadChoice = "sgd",
    optimizer: torch.optim.Optimizer | None = None,
    tangent: TangentChoice = "auto",
    logits_of: Callable[[Any], Tensor] | None = None,
    weight: Tensor | None = None,
) -> MetaGradient:
    """Gradient of the meta loss after one look-ahead step with respect to the loss's own parameters. Changes nothing.

        theta* = theta - (lambda/n) sum_i grad_theta weight_i l_i(theta, phi)          Eq. (3)
        grads  = d/d phi  mean_j CE(f(x_meta_j; theta*), y_meta_j)                     Eqs. (4), (7)

    Args:
        model: any nn.Module with logits (n, C); see :class:`fastmeta.MetaStep` for how it gets x.
        loss: any :class:`fastmeta.LearnableLoss`, the label families among them.
        train: (x, index), index (n,) rows of the training set. Each entry of a repeated index gives its own term.
        meta: (x_meta, y_meta), y_meta (m,) clean hard labels.
        lr: lambda, the rate of a plain SGD look-ahead; or None, and `lookahead` with `optimizer` says it.
        lookahead, tangent, logits_of: see :class:`fastmeta.MetaStep`.
        weight: (n,) optional constant weights of the training loss.

    Returns:
        MetaGradient. A parameter that has no influence is not in ``grads``. Running statistics, parameters, ``.grad``,
        the loss and random generators stand as before.

    Raises:
        ValueError, TypeError: a wrong argument, named; a loss that breaks the conditions of its class.
        RuntimeError: a `tangent` named by hand that the model cannot do.
    """
    return _gradient_of(model, loss, train, meta, lr, lookahead, optimizer, tangent, logits_of, weight)


def _gradient_of(
    model: torch.nn.Module,
    loss: LearnableLoss,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    lr: float | None,
    lookahead: LookAheadChoice,
    optimizer: torch.optim.Optimizer | None,
    tangent: TangentChoice,
    logits_of: Callable[[Any], Tensor] | None,
    weight: Tensor | None,
) -> MetaGradient:
    if lr is not None:
        if lookahead != "sgd" or optimizer is not None:
            raise ValueError("give lr, or lookahead and optimizer, not both")
        rate = as_real(lr)
        if rate is None or not 0 <= rate < float("inf"):
            raise ValueError(f"lr must be None or a finite number >= 0, got {shown(lr)}")
        lookahead = rate
    train, meta = check_batch(loss, train, meta, weight)
    train, meta = (plain(model, train[0]), train[1]), (plain(model, meta[0]), meta[1])
    trained = None if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    network = Network(model, trained, logits_of)
    prepared = LookAhead(lookahead, optimizer).prepare(network.params)
    with TURN, recorded():
        random = network.random_state(train[1].device)
        try:
            plan = plan_tangent(network, train[0], tangent)
            if plan.warning:
                warnings.warn(plan.warning, stacklevel=3)
            made = planned_gradient(network, loss, prepared, plan, train, meta, weight=weight)
            _, wrong = adjoint_bounds(arithmetic_of(next(iter(network.params.values()))))
            if made.gap is not None and made.gap > wrong:
                head = loss.head(train[1], train[0], weight)
                try:
                    plan = plan_through(network, head, train[0], plan, tangent, train[1].device)
                finally:
                    head.undo()
                random.restore()
                made = planned_gradient(network, loss, prepared, plan, train, meta, weight=weight)
        finally:
            random.restore()
    return made.gradient


def label_gradient(
    model: torch.nn.Module,
    labels: Labels,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    *,
    lr: float | None = None,
    lookahead: LookAheadChoice = "sgd",
    optimizer: torch.optim.Optimizer | None = None,
    tangent: TangentChoice = "auto",
    logits_of: Callable[[Any], Tensor] | None = None,
    weight: Tensor | None = None,
) -> LabelGradient:
    """:func:`meta_gradient` for a loss of one parameter, such as a label family: the short form.

    Raises TypeError for a loss of several parameters.
    """
    check_loss(labels, "labels")
    if len(labels.learned()) != 1:
        raise TypeError(
            f"label_gradient is for a loss of one parameter, {type(labels).__name__} has {len(labels.learned())}; "
            "take meta_gradient, whose grads have names"
        )
    out = _gradient_of(model, labels, train, meta, lr, lookahead, optimizer, tangent, logits_of, weight)
    (grad,) = out.grads.values()
    return LabelGradient(grad, out.train_loss, out.meta_loss, out.logits, out.tangent, out.alignment, out.plan)


@dataclass
class PlannedGradient:
    """A gradient, and how far its tangent is from the adjoint of the training gradient; None for differences."""

    gradient: MetaGradient
    gap: Tensor | float | None


def planned_gradient(
    network: Network,
    loss: LearnableLoss,
    lookahead: PreparedLookAhead,
    plan: TangentPlan,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    *,
    weight: Tensor | None = None,
    moving: list[str] | None = None,
) -> PlannedGradient:
    """:func:`meta_gradient` by a plan that is there already; `moving` names the parameters that theta* moves (all).

    The generators advance. Raises Unrepeatable where a repeated forward gave other logits.
    """
    names = list(network.params) if moving is None else moving
    graphs = train_graphs(network, plan, train, meta, loss.num_classes, WHOLE, all_move=moving is None)
    head = loss.head(train[1], train[0], weight)
    try:
        out = look_ahead(graphs, head, lookahead, meta, names, weight=weight, judge=plan.kind != "difference")
        same = graphs.same()
        if same is not None and not bool(same):
            raise Unrepeatable
        return PlannedGradient(_gradient(out, head, plan), None if out.found is None else gap_of(out.found))
    finally:
        head.undo()


def _gradient(out: LookedAhead, head: Head, plan: TangentPlan) -> MetaGradient:
    return MetaGradient(
        grads=head.gradient(out.logits, out.u, out.scale),
        train_loss=out.train_loss,
        meta_loss=out.meta_loss,
        loss=out.before.loss,
        logits=out.logits,
        tangent=out.u,
        alignment=head.alignment(out.logits, out.u),
        plan=plan,
    )
