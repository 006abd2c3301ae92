"""One step as a pure function of tensors.

It is the same :func:`~fastmeta.meta.gradient.meta_pass` that runs eagerly, with the rest of a step around it: finite
check, label step, second backward, SGD, totals. Rates, momentum and weight decay are 0-d inputs, so a schedule changes
no graph.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta.functional.network import Network, Tensors, math_attention
from fastmeta.functional.state import State, same_form
from fastmeta.losses import class_gradient, instance_gradient
from fastmeta.meta.approximation import Approximation
from fastmeta.meta.engines.graph import Untraceable
from fastmeta.meta.finite import all_finite, both, stay_finite
from fastmeta.meta.gradient import Labels, meta_pass
from fastmeta.meta.lookahead import LookAhead, PreparedLookAhead, Rate, Rule, plus
from fastmeta.meta.result import StepResult, Totals
from fastmeta.meta.tangents import TangentPlan


class BatchLabels:
    """The labels of one batch as tensors of a graph: what :func:`meta_pass` asks of a label family, and their step."""

    def __init__(self, family: str, num_classes: int, param: Tensor, targets: Tensor) -> None:
        self.family, self.num_classes = family, num_classes
        self.param, self.targets = param, targets  # instance: rows (n, C); class: alpha (C,)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        if self.family == "instance":
            own = torch.arange(logits.shape[0], device=logits.device)
            return ops.instance_loss(logits, self.param, own, weight)
        return ops.class_loss(logits, self.param, self.targets, weight)

    def step(
        self,
        index: Tensor,
        logits: Tensor,
        u: Tensor,
        scale: Tensor,
        label_lr: Tensor,
        weight: Tensor | None,
        unique: bool,
        seed: int | None,
        step: Tensor | None,
    ) -> tuple[Tensor, ops.LabelStep]:
        if self.family == "instance":
            new, *rest = ops.instance_label_step(
                self.param, index, logits, u, scale, label_lr, weight, unique=unique, seed=seed, step=step
            )
        else:
            new, *rest = ops.class_label_step(self.param, self.targets, logits, u, scale, label_lr, weight)
        return new, ops.LabelStep(*rest)

    def gradient(self, u: Tensor, scale: Rate, weight: Tensor | None) -> Tensor:
        if self.family == "instance":
            return instance_gradient(self.param, u, scale, weight)
        return class_gradient(self.targets, self.num_classes, u, scale, weight)


class BoundNetwork(Network):
    """A network over given tensors in the place of the model's own."""

    def __init__(self, network: Network, params: Tensors, frozen: Tensors, state: Tensors) -> None:
        self._network, self.params, self._frozen_values, self._own = network, params, frozen, state

    def state(self) -> State:
        return State(self._own).clone()

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        return self._network({**self._frozen_values, **params}, state, x)

    def held(self, params: Tensors, state: State | None = None) -> AbstractContextManager[None]:
        return self._network.held({**self._frozen_values, **params}, self.state() if state is None else state)


class GroupNumbers(NamedTuple):
    """What a schedule may change of a parameter group: 0-d tensors, which a graph reads in every step."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor


@dataclass(frozen=True)
class SGDRule:
    """One parameter's update in the graph: torch.optim.SGD without dampening, a buffer of zeros standing for none.

    It says which terms there are; their numbers are those of the parameter group.
    """

    group: int
    momentum: bool
    nesterov: bool
    weight_decay: bool

    def __call__(
        self, theta: Tensor, grad: Tensor, buffer: Tensor | None, numbers: GroupNumbers
    ) -> tuple[Tensor, Tensor | None]:
        d = grad + numbers.weight_decay * theta if self.weight_decay else grad
        if buffer is not None:
            buffer = numbers.momentum * buffer + d
            d = d + numbers.momentum * buffer if self.nesterov else buffer
        return torch.addcmul(theta, d, -numbers.lr), buffer


def fused_sgd(
    rules: list[SGDRule],
    thetas: list[Tensor],
    grads: list[Tensor | None],
    buffers: list[Tensor | None],
    groups: list[GroupNumbers],
    finite: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """New parameters and buffers by a launch for each term, for all parameters of one rule; the old ones where not
    `finite`.

    A step of length zero does not look at what it would add, so that the mask of all is one of two numbers; the buffer
    mu b + d is b + (d + (mu - 1) b) therefore. Operation by operation it would be several small kernels for each
    parameter; torch's fused SGD writes into its inputs, and as a pure function copies all of them first.
    """
    new, kept = list(thetas), list(buffers)
    alike: dict[Any, list[int]] = {}
    for k, (rule, theta, grad) in enumerate(zip(rules, thetas, grads, strict=True)):
        if grad is not None:
            alike.setdefault((rule, theta.dtype), []).append(k)
    for (rule, _), places in alike.items():
        ours, numbers = [thetas[k] for k in places], groups[rule.group]
        d = [g for k in places if (g := grads[k]) is not None]
        if rule.weight_decay:
            d = plus(d, numbers.weight_decay, ours)
        if rule.momentum:
            bs = [b for k in places if (b := buffers[k]) is not None]
            grown = plus(bs, torch.where(finite, 1.0, 0.0), plus(d, numbers.momentum - 1, bs))
            d = plus(d, numbers.momentum, grown) if rule.nesterov else grown
            for k, value in zip(places, grown, strict=True):
                kept[k] = value
        for k, value in zip(places, plus(ours, torch.where(finite, -numbers.lr, 0.0), d), strict=True):
            new[k] = value
    return new, [b for b in kept if b is not None]


@dataclass
class StepInputs:
    """Everything that a step reads, as a tree of tensors; the graph is a function of its leaves in order."""

    params: list[Tensor]
    frozen: list[Tensor]
    state: list[Tensor]
    momentum: list[Tensor]  # of the parameters that have one
    label: Tensor  # rows (n, C) or alpha (C,)
    targets: Tensor  # (n,) given classes
    index: Tensor
    x: Any
    x_meta: Any
    y_meta: Tensor
    data: list[Tensor]  # what the transform of x and x_meta reads
    groups: list[GroupNumbers]
    lookahead_lr: Tensor  # 0-d, for a fixed look-ahead
    label_lr: Tensor  # 0-d
    label_step: list[Tensor]  # none, or the counter of a table that is rounded stochastically
    weight: list[Tensor]  # none or one
    totals: list[Tensor]  # none or one

    def tree(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


@dataclass
class PureStep:
    """New parameters, momentum, buffers, totals, labels, then the fields of a StepResult, from what a step reads."""

    network: Network
    labels: Labels
    lookahead: LookAhead
    rules: list[SGDRule]
    plan: TangentPlan
    approx: Approximation
    unique: bool
    totals: Totals | None

    def __call__(self, inputs: StepInputs, labels_move: bool) -> list[Tensor]:
        """On CUDA all new values are masked by `finite`, because nothing may wait for the device; on a CPU the caller
        looks at the flag before it writes (the masks cost a third of the update there).
        """
        network, names = self.network, list(self.network.params)
        params = {k: p.detach().requires_grad_() for k, p in zip(names, inputs.params, strict=True)}
        frozen = dict(zip(network.frozen(), inputs.frozen, strict=True))
        bound = BoundNetwork(network, params, frozen, dict(zip(network.own_state(), inputs.state, strict=True)))
        momenta = iter(inputs.momentum)
        buffer_of = {k: next(momenta) if r.momentum else None for k, r in zip(names, self.rules, strict=True)}
        labels = BatchLabels(self.labels.family, self.labels.num_classes, inputs.label, inputs.targets)
        weight = inputs.weight[0] if inputs.weight else None
        if labels_move:
            lookahead = PreparedLookAhead(self._lookahead_rules(inputs, buffer_of))
            out = meta_pass(
                bound,
                labels,  # type: ignore[arg-type]
                lookahead,
                self.plan,
                (inputs.x, inputs.index),
                (inputs.x_meta, inputs.y_meta),
                weight=weight,
                replay=False,
                moving=self.approx.moving(network) if self.approx.kind == "last" else None,
                keep_grads=self.approx.kind == "delayed",
            )
            finite, z, after = out.finite(), out.logits, out.state
            scale = out.scale
            if not isinstance(scale, Tensor):  # a fill: what as_tensor puts in a graph is a copy from the host
                scale = torch.full((), scale, dtype=torch.float64, device=z.device)
            grad_norm = labels.gradient(out.u, out.scale, weight).float().square().sum().sqrt()
            label, moved = labels.step(
                inputs.index,
                z.detach(),
                out.u,
                torch.where(finite, scale.to(torch.float64), 0.0),
                inputs.label_lr,
                weight,
                self.unique,
                getattr(self.labels, "seed", None),
                inputs.label_step[0] if inputs.label_step else None,
            )
            train_loss, meta_loss, v, grads = out.train_loss, out.meta_loss, moved.v, out.grads
        else:
            after = bound.state()
            with math_attention(self.plan.math_attention):
                z = bound(params, after, inputs.x)
            before = labels.batch_loss(z.detach(), inputs.index, weight)
            moved = ops.LabelStep(*before, torch.full_like(before.loss, torch.nan))
            label, grads = inputs.label, {}
            train_loss, v = (moved.loss if weight is None else moved.loss * weight).mean(), moved.v
            before_it = dict(zip(network.own_state(), inputs.state, strict=True))
            finite = both(train_loss.isfinite(), stay_finite(before_it, after))
            meta_loss = grad_norm = torch.full_like(train_loss, torch.nan)
        if not grads:
            with bound.held(params), math_attention(self.plan.math_attention):
                made = torch.autograd.grad(z, list(params.values()), v / len(v), allow_unused=True)
            grads = {k: t for k, t in zip(params, made, strict=True) if t is not None}
        finite = both(finite, [all_finite(grads.values(), finite.device)])

        def keep(value: Tensor, before: Tensor) -> Tensor:
            return torch.where(finite, value, before) if finite.is_cuda else value

        thetas, olds = [p.detach() for p in params.values()], list(buffer_of.values())
        wanted = [grads.get(name) for name in names]
        if finite.is_cuda:
            new, buffers = fused_sgd(self.rules, thetas, wanted, olds, inputs.groups, finite)
        else:
            new, buffers = [], []
            for rule, theta, grad, old in zip(self.rules, thetas, wanted, olds, strict=True):
                numbers = inputs.groups[rule.group]
                moved_to, buffer = (theta, old) if grad is None else rule(theta, grad, old, numbers)
                new.append(moved_to)
                if buffer is not None:
                    buffers.append(buffer)
        if moved_too := sorted(after.keys() & network.frozen().keys()):
            raise Untraceable(f"the model moves {moved_too[0]}, but not in every forward")
        # a plain attribute of another form than before is a cache for the meta batch: see GraphStep
        own = dict(zip(network.own_state(), inputs.state, strict=True))
        statistics = [keep(after[k], t) if same_form(after[k], t) else t for k, t in own.items()]
        result = StepResult(
            train_loss=train_loss,
            meta_loss=meta_loss,
            loss=moved.loss,
            logits=z.detach(),
            entropy=moved.entropy,
            alignment=moved.alignment,
            label_grad_norm=grad_norm,
            skipped=moved.skipped,
            finite=finite,
        )
        totals = [] if self.totals is None else [self.totals.added(inputs.totals[0], result, inputs.targets)]
        return [*new, *buffers, *statistics, *totals, keep(label, inputs.label), *vars(result).values()]

    def _lookahead_rules(self, inputs: StepInputs, buffer_of: dict[str, Tensor | None]) -> dict[str, Rule]:
        choice, rules = self.lookahead.choice, {}
        for (name, buffer), rule in zip(buffer_of.items(), self.rules, strict=True):
            numbers = inputs.groups[rule.group]
            if choice == "sgd":
                rules[name] = Rule(numbers.lr)
            elif choice == "optimizer":
                momentum = numbers.momentum if rule.momentum else 0.0
                decay = numbers.weight_decay if rule.weight_decay else 0.0
                rules[name] = Rule(numbers.lr, momentum, 0.0, rule.nesterov, decay, buffer)
            else:
                rules[name] = Rule(inputs.lookahead_lr)
        return rules
