"""The label gradient, Eqs. (3), (4), (7): one look-ahead step, the meta loss there, and its gradient for the labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta._numbers import as_real, shown
from fastmeta.functional.call import plain
from fastmeta.functional.network import Network, Tensors, math_attention, recorded
from fastmeta.functional.state import State
from fastmeta.functional.turns import TURN
from fastmeta.losses import ClassLabels, InstanceLabels
from fastmeta.meta.doubts import Unfit, Unrepeatable, adjoint, adjoint_bounds, gap_of, repeats
from fastmeta.meta.finite import all_finite, both, stay_finite
from fastmeta.meta.lookahead import LookAhead, LookAheadChoice, PreparedLookAhead, Rate
from fastmeta.meta.micro import WHOLE, Cut, TrainPieces, add_up, check_logits, fits, pieces_of
from fastmeta.meta.rows import take
from fastmeta.meta.tangents import (
    TangentChoice,
    TangentPlan,
    arithmetic_of,
    bends,
    difference_tangent,
    forward_tangent,
    plan_tangent,
    reverse_tangent,
)

Labels = InstanceLabels | ClassLabels
#: averages gradients over the ranks of a process group, or returns them as they are
Reduce = Callable[[list[Tensor]], list[Tensor]]


@dataclass
class MetaPass:
    """Everything up to the tangent; the train graph hangs on `logits`, or is built again by `pieces`."""

    logits: Tensor  # (n, C), with its graph where `pieces` is None
    before: ops.LabelLoss  # under the labels as they were
    train_loss: Tensor  # 0-d, weighted mean
    meta_loss: Tensor  # 0-d, at theta*
    g: list[Tensor]  # gradient of the meta loss at theta*
    u: Tensor  # (n, C)
    scale: Rate  # lambda / n of the closed forms
    state: State  # what the model's one train forward has moved, as it stands after
    grads: Tensors  # of the training loss at theta under the old labels, of the parameters that theta* moves
    network: Network
    plan: TangentPlan
    sound: list[Tensor]  # 0-d bools: whether `state` stayed finite
    pieces: TrainPieces | None = None
    same: Tensor | None = None  # 0-d bool: repeated forwards gave the same logits, see fastmeta.meta.doubts
    found: Tensor | None = None  # of :func:`adjoint`: whether u is the adjoint of the gradient; None for differences

    def pull(self, params: Tensors, v: Tensor) -> Tensors:
        """J'v by parameter name, of those that the logits reach: the backward of covectors (n, C)."""
        if self.pieces is not None:
            return self.pieces.pull(v)
        grads: Tensors = {}
        with self.network.held(params), math_attention(self.plan.math_attention):
            add_up(grads, list(params), torch.autograd.grad(self.logits, list(params.values()), v, allow_unused=True))
        return grads

    def refuse_unrepeatable(self) -> None:
        """Raise where a repeated forward gave other logits; waits for the device."""
        if self.same is not None and not bool(self.same):
            raise Unrepeatable

    def finite(self) -> Tensor:
        """0-d bool: the loss, the meta loss, g, u and the new buffers hold no NaN and no infinity."""
        return both(all_finite((self.train_loss, self.meta_loss, self.u, *self.g)), self.sound)


def check_labels(labels: object) -> None:
    """Raise a TypeError unless `labels` are of one of the two families."""
    if not isinstance(labels, Labels):
        raise TypeError(f"labels must be InstanceLabels or ClassLabels, got {type(labels).__name__}")


def check_batch(
    labels: Labels, train: tuple[Any, Tensor], meta: tuple[Any, Tensor], weight: Tensor | None = None
) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
    """Both batches with index and y_meta as int64, or a ValueError that names the wrong argument.

    On CUDA it looks at shapes and dtypes alone: no sync.
    """
    check_labels(labels)
    for name, pair, want in (("train", train, "(x, index)"), ("meta", meta, "(x_meta, y_meta)")):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"the {name} batch must be a pair {want}, got {type(pair).__name__}")
    index, y_meta = _int64(train[1]), _int64(meta[1])
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        got = f"{tuple(index.shape)} of {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(
            f"index must be an int64 vector (n,) of rows of the training set (or of another integer dtype), got {got}; "
            "it says whose labels the batch carries"
        )
    if not len(index):
        raise ValueError("the train batch is empty: index has no entries; drop empty batches")
    if index.device.type == "cpu" and not 0 <= int(index.min()) <= int(index.max()) < len(labels):
        raise ValueError(
            f"index must lie in [0, {len(labels) - 1}] for {len(labels)} training samples, "
            f"got {int(index.min())} to {int(index.max())}; it counts rows of the targets that the labels were made of"
        )
    if not isinstance(y_meta, Tensor) or y_meta.dtype != torch.int64 or y_meta.ndim != 1 or not len(y_meta):
        got = f"{tuple(y_meta.shape)} of {y_meta.dtype}" if isinstance(y_meta, Tensor) else type(y_meta).__name__
        raise ValueError(f"y_meta must be a non-empty int64 vector (m,) of clean hard labels, got {got}")
    if isinstance(meta[0], Tensor) and meta[0].ndim and len(meta[0]) != len(y_meta):
        raise ValueError(f"x_meta has {len(meta[0])} rows and y_meta {len(y_meta)}; they must belong together")
    if y_meta.device.type == "cpu" and not 0 <= int(y_meta.min()) <= int(y_meta.max()) < labels.num_classes:
        raise ValueError(
            f"y_meta must lie in [0, {labels.num_classes - 1}] for {labels.num_classes} classes, "
            f"got {int(y_meta.min())} to {int(y_meta.max())}"
        )
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != index.shape):
        got = str(tuple(weight.shape)) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be None or a vector ({len(index)},), one weight for each row, got {got}")
    if index.device != labels.targets.device:
        raise ValueError(
            f"index must be on the labels' device, {labels.targets.device}, got {index.device}; "
            "move one of them, e.g. labels.to(device)"
        )
    return (train[0], index), (meta[0], y_meta)


def _int64(numbers: Any) -> Any:
    """A vector of another integer dtype as int64; what is none as it is."""
    whole = isinstance(numbers, Tensor) and not (numbers.is_floating_point() or numbers.is_complex())
    return numbers.to(torch.int64) if whole and numbers.dtype != torch.bool else numbers


def meta_pass(
    network: Network,
    labels: Labels,
    lookahead: PreparedLookAhead,
    plan: TangentPlan,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    *,
    weight: Tensor | None = None,
    reduce: Reduce = lambda tensors: tensors,
    replay: bool = True,
    moving: list[str] | None = None,
    keep_grads: bool = False,
    pulls: bool = False,
    cut: Cut = WHOLE,
) -> MetaPass:
    """Steps 1 to 6: train forward at theta, look-ahead, meta forward and backward at theta*, tangent.

    Pure: parameters and state of the model stay; running statistics move in the returned copy, once. Without `replay`
    the model must draw no random numbers, or `plan` must be reverse. `moving` names the parameters that theta* moves
    (all); `grads` are empty unless kept; `pulls` says that the caller will :meth:`~MetaPass.pull`. `cut` says how
    many rows have their graphs held at once (fastmeta.meta.micro).
    """
    if not fits(train, meta, cut.most) or plan.once or (plan.joined and replay and moving is None):
        return _frugal_meta_pass(
            network, labels, lookahead, plan, train, meta, weight, reduce, moving, keep_grads, pulls, cut
        )
    x, index = train
    params, names = network.params, list(network.params) if moving is None else moving
    # double-vjp looks at the train graph itself, so it needs no second draw of the same masks
    random = network.random_state(index.device) if replay and plan.way != "reverse" else None
    state = network.state()
    start = state.again()
    with math_attention(plan.math_attention):
        logits = network(params, state, x)
    check_logits(logits, len(index), labels.num_classes)
    sound = stay_finite(start, state)  # now: the tangent's forward may write into `start`
    before = labels.batch_loss(logits.detach(), index, weight)
    v = before.v / len(index)
    reverse = plan.way == "reverse"
    if reverse:
        v.requires_grad_()
    with network.held(params, start), math_attention(plan.math_attention):
        moved = [params[k] for k in names]
        grads = list(torch.autograd.grad(logits, moved, v, retain_graph=True, create_graph=reverse, allow_unused=True))
    local = {k: t.detach() for k, t in zip(names, grads, strict=True) if t is not None}
    reached = dict(zip(local, reduce(list(local.values())), strict=True))
    star = lookahead.star(params, reached)
    kept = reached if keep_grads else {}
    del reached
    if not reverse:
        del grads

    meta_loss, g = _meta_gradient(network, star, names, state, meta)
    del star
    g = dict(zip(g, reduce(list(g.values())), strict=True))
    direction = lookahead.direction(g)

    if reverse:
        with network.held(params, start), math_attention(plan.math_attention):
            u = reverse_tangent(grads, v, [direction.get(k) for k in names])
        del grads
    elif plan.way == "forward":
        with math_attention(plan.math_attention), nullcontext() if random is None else random.replay():
            made = forward_tangent(network, start, x, direction)
    else:
        assert random is not None
        made = difference_tangent(network, start, x, direction, random)
    same = found = None
    if not reverse:
        u = made.u
        if replay:
            same = repeats(logits, made.logits, arithmetic_of(next(iter(params.values()))), made.spread)
    if replay and plan.way != "difference":
        found = adjoint(v, u, local, direction)
    loss = before.loss if weight is None else before.loss * weight
    return MetaPass(
        logits=logits,
        before=before,
        train_loss=loss.mean(),
        meta_loss=meta_loss,
        g=list(g.values()),
        u=u.detach(),
        scale=lookahead.scale / len(index),
        state=state,
        grads=kept,
        same=same,
        found=found,
        network=network,
        plan=plan,
        sound=sound,
    )


def plan_through(
    network: Network,
    labels: Labels,
    train: tuple[Any, Tensor],
    weight: Tensor | None,
    plan: TangentPlan,
    choice: TangentChoice,
) -> TangentPlan:
    """A plan for a batch on which hooks bend the backward: double-vjp, which takes their derivative where they bend.

    So does autograd through the look-ahead. The other ways, and pieces, take the backward for linear. Raises Unfit
    where it is, because then `plan` is wrong, and for another way that was named by hand.
    """
    (x, index), random = train, network.random_state(train[1].device)
    if plan.once or not (plan.way == "reverse" or choice == "auto"):
        raise Unfit(plan.way, wrong=True)
    with random.replay(), torch.no_grad():
        logits = network(network.params, network.state(), x)
    if not bends(network, x, labels.batch_loss(logits, index, weight).v / len(index), random):
        raise Unfit(plan.way, wrong=True)
    return plan if plan.way == "reverse" else plan_tangent(network, x, "reverse")


def _meta_gradient(
    network: Network,
    star: Tensors,
    names: list[str],
    state: State,
    meta: tuple[Any, Tensor],
    cut: Cut = WHOLE,
) -> tuple[Tensor, Tensors]:
    """Meta loss at theta* and its gradient for the parameters `names`, Eq. (4); `state` is left alone."""
    # a leaf of its own per parameter, so that this graph ends at theta*; what stays has no graph at all
    star = {k: t.detach().requires_grad_(k in names) for k, t in star.items()}
    (x, y), losses, g = meta, [], Tensors()
    for rows in pieces_of(len(y), cut.most):
        piece = take(x, rows, len(y), cut.per_row_meta, "x_meta")
        logits = network(star, state.clone(), piece)
        if len(logits) != rows.stop - rows.start:
            raise ValueError(
                f"{rows.stop - rows.start} rows of x_meta gave {len(logits)} rows of logits; x_meta and y_meta must "
                "belong together, with rows along their first dimension"
            )
        loss = torch.nn.functional.cross_entropy(logits, y[rows])
        if len(logits) < len(y):
            loss = loss * (len(logits) / len(y))
        with network.held(star, state):
            add_up(g, names, torch.autograd.grad(loss, [star[k] for k in names], allow_unused=True))
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), g


def _frugal_meta_pass(
    network: Network,
    labels: Labels,
    lookahead: PreparedLookAhead,
    plan: TangentPlan,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    weight: Tensor | None,
    reduce: Reduce,
    moving: list[str] | None,
    keep_grads: bool,
    pulls: bool,
    cut: Cut,
) -> MetaPass:
    """:func:`meta_pass` without ever holding the graphs of more than ``cut.most`` rows."""
    names = list(network.params) if moving is None else moving
    pieces = TrainPieces(network, plan, *train, cut)
    logits, before, grads, sound = pieces.gradient(labels, weight, names)
    local = grads
    grads = dict(zip(grads, reduce(list(grads.values())), strict=True))
    star = lookahead.star(network.params, grads)
    kept = grads if keep_grads else {}
    del grads
    meta_loss, g = _meta_gradient(network, star, names, pieces.state, meta, cut)
    del star
    g = dict(zip(g, reduce(list(g.values())), strict=True))
    direction = lookahead.direction(g)
    u = pieces.tangent(direction, pulls and moving is None)
    v = before.v / len(train[1])
    loss = before.loss if weight is None else before.loss * weight
    return MetaPass(
        logits=logits,
        before=before,
        train_loss=loss.mean(),
        meta_loss=meta_loss,
        g=list(g.values()),
        u=u,
        scale=lookahead.scale / len(train[1]),
        state=pieces.state,
        grads=kept,
        network=network,
        plan=plan,
        sound=sound,
        pieces=pieces,
        same=pieces.same(),
        found=None if plan.way == "difference" else adjoint(v, u, local, direction),
    )


@dataclass
class LabelGradient:
    """What :func:`label_gradient` returns; all tensors are detached and on the batch's device."""

    grad: Tensor  #: (n, C) for the label logits of each batch row, or (C,) for class smoothing alpha
    train_loss: Tensor  #: 0-d, mean training loss at theta under the current labels
    meta_loss: Tensor  #: 0-d, mean meta loss at theta*
    logits: Tensor  #: (n, C) at theta
    tangent: Tensor  #: (n, C) u = J g
    alignment: Tensor  #: (n,) <q_i - p_i, u_i> = <grad_theta L_i, g>: positive where the sample pulls with the meta set
    plan: TangentPlan  #: which way made u, and why


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
    """Gradient of the meta loss after one look-ahead step with respect to the labels of a batch. Changes nothing.

        theta* = theta - (lambda/n) sum_i grad_theta weight_i L_i(theta, p_i)          Eq. (3)
        grad   = d/d label  mean_j CE(f(x_meta_j; theta*), y_meta_j)                   Eqs. (4), (7)

    Args:
        model: any nn.Module with logits (n, C); see :class:`fastmeta.MetaStep` for how it gets x.
        labels: InstanceLabels or ClassLabels over the training set.
        train: (x, index), index (n,) int64 rows of the training set. Each row of a repeated index gives its own term.
        meta: (x_meta, y_meta), y_meta (m,) int64 clean hard labels.
        lr: lambda, the rate of a plain SGD look-ahead; or None, and `lookahead` with `optimizer` says it.
        lookahead, tangent, logits_of: see :class:`fastmeta.MetaStep`.
        weight: (n,) optional constant weights of the training loss.

    Returns:
        LabelGradient. Running statistics, parameters, ``.grad``, labels and random generators stand as before.

    Raises:
        ValueError, TypeError: a wrong argument, named.
        RuntimeError: a `tangent` named by hand that the model cannot do.
    """
    if lr is not None:
        if lookahead != "sgd" or optimizer is not None:
            raise ValueError("give lr, or lookahead and optimizer, not both")
        rate = as_real(lr)
        if rate is None or not 0 <= rate < float("inf"):
            raise ValueError(f"lr must be None or a finite number >= 0, got {shown(lr)}")
        lookahead = rate
    train, meta = check_batch(labels, train, meta, weight)
    train, meta = (plain(model, train[0]), train[1]), (plain(model, meta[0]), meta[1])
    trained = None if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    network = Network(model, trained, logits_of)
    prepared = LookAhead(lookahead, optimizer).prepare(network.params)
    with TURN, recorded():
        random = network.random_state(train[1].device)
        try:
            plan = plan_tangent(network, train[0], tangent)
            if plan.warning:
                warnings.warn(plan.warning, stacklevel=2)
            out = meta_pass(network, labels, prepared, plan, train, meta, weight=weight)
            out.refuse_unrepeatable()
            _, wrong = adjoint_bounds(arithmetic_of(next(iter(network.params.values()))))
            if out.found is not None and gap_of(out.found) > wrong:
                plan = plan_through(network, labels, train, weight, plan, tangent)
                random.restore()
                out = meta_pass(network, labels, prepared, plan, train, meta, weight=weight)
        finally:
            random.restore()
    logits, index = out.logits.detach(), train[1]
    unweighted = out.before.v if weight is None else labels.batch_loss(logits, index).v
    return LabelGradient(
        grad=labels.gradient(logits, out.u, index, out.scale, weight),
        train_loss=out.train_loss,
        meta_loss=out.meta_loss,
        logits=logits,
        tangent=out.u,
        alignment=ops.row_dot(unweighted, out.u),
        plan=plan,
    )
