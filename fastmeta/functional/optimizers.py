"""An optimizer's step: taken or put back as a whole, and torch.optim.SGD's and Adam's as functions of tensors.

There is one SGD rule. :func:`sgd` is it, for look-ahead, model and loss in a graph; what an eager look-ahead takes in
one launch is its closed form, :class:`fastmeta.meta.lookahead.Rule`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.sgd import sgd as fused_sgd

Rate = float | Tensor


def steps_as(optimizer: torch.optim.Optimizer, kind: type[torch.optim.Optimizer]) -> bool:
    """Whether its step is that of torch's own `kind`, and not one that a subclass has put in its place."""
    return isinstance(optimizer, kind) and _innermost(type(optimizer).step) is _innermost(kind.step)


@lru_cache(maxsize=64)
def _innermost(step: Any) -> Any:
    """Without what torch wraps around it for its profiler."""
    return inspect.unwrap(step)


def steps_as_sgd(optimizer: torch.optim.Optimizer) -> bool:
    return steps_as(optimizer, torch.optim.SGD)


def state_tensors(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    """The optimizer's tensors beside the parameters, wherever they lie."""
    return [t for p in params for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor)]


def drop_grads(optimizer: torch.optim.Optimizer) -> None:
    """Every ``.grad`` is None: ``zero_grad`` without its record for torch's profiler, which costs 10 us."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None


def has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody's Python runs before or after each step."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks)


_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``, of torch's SGD on a CPU by its fused kernel where that is left open.

    By itself torch takes that kernel on demand alone; its default makes several operations for each parameter and
    a record for the profiler, 46 us and not 18 for the four parameters of a small network.
    """
    if type(optimizer) is not torch.optim.SGD or not steps_as_sgd(optimizer) or has_hooks(optimizer):
        optimizer.step()
        return
    groups = [_fusable(optimizer, group) for group in optimizer.param_groups]
    # an attribute of the object in the place of the method: schedules of torch count steps by one
    if "step" in vars(optimizer) or None in groups:
        optimizer.step()
        return
    with torch.no_grad():
        for group, lists in zip(optimizer.param_groups, groups, strict=True):
            assert lists is not None
            params, grads, buffers = lists
            first = bool(buffers) and buffers[0] is None
            fused_sgd(params, grads, buffers, fused=True, foreach=False, **{key: group[key] for key in _NUMBERS})
            for p, buffer in zip(params, buffers, strict=False) if first else ():
                optimizer.state[p]["momentum_buffer"] = buffer


def _fusable(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]] | None:
    """Parameters, gradients and buffers of a group, or None where the kernel may not have them.

    It walks through memory, whatever the strides are, and starts all buffers of a call or none.
    """
    if group["foreach"] is not None or group["fused"] is not None or group["differentiable"]:
        return None
    params = [p for p in group["params"] if p.grad is not None]
    grads, buffers = [p.grad for p in params], []
    if group["momentum"] != 0:
        buffers = [optimizer.state[p].get("momentum_buffer") for p in params]
    started = [b for b in buffers if b is not None]
    if not isinstance(group["lr"], float | int) or (started and len(started) < len(buffers)):
        return None
    for p, *others in zip(params, grads, *([started] if started else []), strict=True):
        for t in (p, *others):
            plain = t.is_cpu and t.dtype == p.dtype and t.dtype in (torch.float32, torch.float64)
            if not plain or t.layout != torch.strided or t.stride() != p.stride() or not t.is_contiguous():
                return None
    return params, grads, buffers


class Snapshot:
    """Parameters and all that their optimizer keeps of them, as they are now.

    :meth:`restore` puts both back, in place. On CUDA it waits for the device where the optimizer keeps something on the
    host, as Adam without ``capturable`` does with its number of steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
        self._optimizer, self._params = optimizer, params
        self._values = [(p, p.detach().clone()) for p in params]
        self._state = {
            id(p): {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
            for p in params
            if p in optimizer.state
        }
        self._tensors = {
            id(p): {k: v for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
            for p in params
            if p in optimizer.state
        }

    def restore(self, keep: Tensor | None = None) -> None:
        """All of it; given a 0-d bool, where that is False."""
        made = [p for p in self._params if p in self._optimizer.state and id(p) not in self._state]
        if keep is not None and (not keep.is_cuda or made or self._on_host()):
            if bool(keep):
                return
            keep = None
        with torch.no_grad():
            for p, value in self._values:
                _put(p, value, keep)
            for p in made:
                del self._optimizer.state[p]
            for p in self._params:
                for key, value in self._state.get(id(p), {}).items():
                    own = self._tensors[id(p)].get(key)
                    if own is None:
                        self._optimizer.state[p][key] = value
                    else:
                        _put(own, value, keep)
                        self._optimizer.state[p][key] = own
                for key in self._optimizer.state.get(p, {}).keys() - self._state.get(id(p), {}).keys():
                    del self._optimizer.state[p][key]

    def _on_host(self) -> bool:
        return any(
            (not isinstance(v, Tensor) and v is not None) or (isinstance(v, Tensor) and not v.is_cuda)
            for state in self._state.values()
            for v in state.values()
        )


def _put(target: Tensor, value: Tensor, keep: Tensor | None) -> None:
    data = target.detach()
    data.copy_(value if keep is None else torch.where(keep, data, value))


def step_along(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
    """One step; parameters that `grads` lacks stay, and the parameters' ``.grad`` is None then."""
    drop_grads(optimizer)
    for name, grad in grads.items():
        params[name].grad = grad
    try:
        take_step(optimizer)
    finally:
        drop_grads(optimizer)


# ---------------------------------------------------------------------------------------------------------
# Steps as functions
# ---------------------------------------------------------------------------------------------------------

#: t + factor * o of each pair, the factor a float or a 0-d tensor
Plus = Callable[[list[Tensor], Rate, list[Tensor]], list[Tensor]]


def plus(tensors: list[Tensor], factor: Rate, others: list[Tensor]) -> list[Tensor]:
    """In plain torch, for a compiler to fuse with what stands around it."""
    return [
        torch.addcmul(t, o, factor) if isinstance(factor, Tensor) else t + factor * o
        for t, o in zip(tensors, others, strict=True)
    ]


def is_zero(number: Rate) -> bool:
    """A number that is known to be zero, whose term is left out; a tensor is not known."""
    return not isinstance(number, Tensor) and number == 0


@dataclass(frozen=True)
class SGD:
    """Numbers of torch.optim.SGD's step: floats, or 0-d tensors that a graph reads in every step."""

    lr: Rate
    momentum: Rate = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: Rate = 0.0


def sgd(
    rule: SGD,
    thetas: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    plus: Plus = plus,
    finite: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """New parameters and momentum buffers; `buffers` may be empty where there are none yet.

    Given `finite`, a 0-d bool, the old ones where that is False: a step of length zero does not look at what it would
    add, so that the mask of all is one of two numbers. The buffer mu b + d is b + (d + (mu - 1) b) therefore.
    """
    d = grads if is_zero(rule.weight_decay) else plus(grads, rule.weight_decay, thetas)
    grown: list[Tensor] = []
    if not is_zero(rule.momentum):
        if not buffers:
            grown = d
        elif finite is not None:
            added = plus(
                d if rule.dampening == 0 else [(1 - rule.dampening) * t for t in d], rule.momentum - 1, buffers
            )
            grown = plus(buffers, torch.where(finite, 1.0, 0.0), added)
        else:
            grown = plus(d if rule.dampening == 0 else [(1 - rule.dampening) * t for t in d], rule.momentum, buffers)
        d = plus(d, rule.momentum, grown) if rule.nesterov else grown
    lr = -rule.lr if finite is None else torch.where(finite, -rule.lr, 0.0)
    return plus(thetas, lr, d), grown


@dataclass(frozen=True)
class Adam:
    """Numbers of torch.optim.Adam's step, and of AdamW's where `decoupled`."""

    lr: Rate
    beta1: Rate
    beta2: Rate
    eps: Rate
    weight_decay: Rate
    decoupled: bool


def adam(
    rule: Adam, theta: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New parameter, first and second moment, and number of steps."""
    step = step + 1
    if rule.decoupled:
        theta = theta * (1 - rule.lr * rule.weight_decay)
    else:
        grad = grad + rule.weight_decay * theta
    mean = mean + (grad - mean) * (1 - rule.beta1)
    square = rule.beta2 * square + (1 - rule.beta2) * grad * grad
    root = square.sqrt() / (1 - rule.beta2**step).sqrt() + rule.eps
    return theta - rule.lr / (1 - rule.beta1**step) * (mean / root), mean, square, step


def numbers_of(optimizer: torch.optim.Optimizer, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """What schedules may change, by parameter group."""
    return [{key: group[key] for key in keys} for group in optimizer.param_groups]
