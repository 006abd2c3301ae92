"""An optimizer's step as a function of tensors, for graphs: torch.optim.SGD, Adam and AdamW.

What a schedule may change are 0-d tensors that a graph reads in every step, so that it changes no graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.optimizers import SGD, Adam, adam, has_hooks, sgd, steps_as


class Scalars:
    """Numbers as 0-d tensors that stay where they are, written by fills: a copy from the host would wait."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Any, Tensor]] = {}

    def set(self, numbers: dict[str, Any], like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        for name, number in numbers.items():
            before, tensor = self._held.get(name, (None, None))
            if tensor is None or tensor.device != like.device:
                before, tensor = None, torch.empty((), dtype=dtype, device=like.device)
            if isinstance(number, Tensor):
                tensor.copy_(number)
            elif number != before:
                tensor.fill_(float(number))
            self._held[name] = number, tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name][1]

    def tensors(self) -> list[Tensor]:
        return [t for _, t in self._held.values()]


def refuse_hooks(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """NotImplementedError for Python around the update, of which a graph would keep nothing."""
    if has_hooks(optimizer):
        raise NotImplementedError("hooks of the optimizer's step are Python around the update")
    if any(p._backward_hooks for p in params):
        raise NotImplementedError("hooks of parameters are Python between the gradient and the update")


class PureOptimizer(ABC):
    """The step of `optimizer` on `params`.

    Attributes:
        key: equal where one graph serves.
    """

    #: what a graph reads of each parameter group
    fields: tuple[str, ...] = ()
    #: what the optimizer keeps of each parameter, in the order of :meth:`state`
    kept: tuple[str, ...] = ()

    def __init__(self, optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
        self.optimizer, self.params = optimizer, params
        at = {id(p): k for k, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.group_of = [at[id(p)] for p in params]
        self.key: Any = (type(self), tuple(self.group_of), tuple(map(self.terms, optimizer.param_groups)))
        self.scalars = Scalars()

    def terms(self, group: dict[str, Any]) -> Any:
        """What a group's numbers decide about the form of the step; NotImplementedError where it has none."""
        return ()

    def group_numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        return {key: group[key] for key in self.fields}

    def set_rates(self) -> None:
        """Read the groups as they are now."""
        for k, group in enumerate(self.optimizer.param_groups):
            self.scalars.set({f"{key} {k}": v for key, v in self.group_numbers(group).items()}, self.params[0])

    def numbers(self) -> list[Tensor]:
        """The groups' numbers as tensors, read last by :meth:`set_rates`."""
        return self.scalars.tensors()

    def state(self) -> list[Tensor]:
        """What is kept, parameter by parameter; made where there is none yet."""
        return [self._kept(p, key) for p, k in zip(self.params, self.group_of, strict=True) for key in self._keys(k)]

    def _keys(self, group: int) -> tuple[str, ...]:
        return self.kept

    def _kept(self, p: Tensor, key: str) -> Tensor:
        state = self.optimizer.state[p]
        if state.get(key) is None:
            state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
        found: Tensor = state[key]
        return found

    @abstractmethod
    def step(
        self, params: list[Tensor], grads: list[Tensor | None], state: list[Tensor], numbers: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """New parameters and state; a parameter without a gradient stays."""


class PureSGD(PureOptimizer):
    """torch.optim.SGD without dampening; a buffer of zeros stands for none."""

    fields = ("lr", "momentum", "weight_decay")
    kept = ("momentum_buffer",)

    def terms(self, group: dict[str, Any]) -> Any:
        if group["dampening"] or group.get("maximize"):
            raise NotImplementedError("the graph holds SGD without dampening and maximize")
        return group["momentum"] != 0, bool(group["nesterov"]), group["weight_decay"] != 0

    def _keys(self, group: int) -> tuple[str, ...]:
        return self.kept if self.optimizer.param_groups[group]["momentum"] != 0 else ()

    def step(
        self, params: list[Tensor], grads: list[Tensor | None], state: list[Tensor], numbers: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        new, kept, held = [], list[Tensor](), iter(state)
        for p, grad, k in zip(params, grads, self.group_of, strict=True):
            momentum, nesterov, decay = self.terms(self.optimizer.param_groups[k])
            lr, mu, wd = numbers[3 * k : 3 * k + 3]
            buffers = [next(held)] if momentum else []
            if grad is None:
                new.append(p)
                kept += buffers
                continue
            rule = SGD(lr, mu if momentum else 0.0, 0.0, nesterov, wd if decay else 0.0)
            (theta,), grown = sgd(rule, [p], [grad], buffers)
            new.append(theta)
            kept += grown
        return new, kept


class PureAdam(PureOptimizer):
    """torch.optim.Adam and AdamW without amsgrad; the number of steps lies beside the parameter."""

    fields = ("lr", "eps", "weight_decay")
    kept = ("exp_avg", "exp_avg_sq", "step")

    def terms(self, group: dict[str, Any]) -> Any:
        if group["amsgrad"] or group.get("maximize"):
            raise NotImplementedError("the graph holds Adam without amsgrad and maximize")
        return bool(group.get("decoupled_weight_decay", isinstance(self.optimizer, torch.optim.AdamW)))

    def group_numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {**super().group_numbers(group), "beta1": beta1, "beta2": beta2}

    def _kept(self, p: Tensor, key: str) -> Tensor:
        if key != "step":
            return super()._kept(p, key)
        state = self.optimizer.state[p]
        found = state.get(key)
        if found is None or not isinstance(found, Tensor) or found.device != p.device:
            # torch's own step counts there too, and counts on the host only where it made the counter
            state[key] = torch.tensor(0.0 if found is None else float(found), dtype=torch.float32, device=p.device)
        made: Tensor = state[key]
        return made

    def step(
        self, params: list[Tensor], grads: list[Tensor | None], state: list[Tensor], numbers: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        new, kept, held = [], list[Tensor](), iter(state)
        for p, grad, k in zip(params, grads, self.group_of, strict=True):
            lr, eps, decay, beta1, beta2 = numbers[5 * k : 5 * k + 5]
            mean, square, count = next(held), next(held), next(held)
            if grad is None:
                new.append(p)
                kept += [mean, square, count]
                continue
            rule = Adam(lr, beta1, beta2, eps, decay, self.terms(self.optimizer.param_groups[k]))
            theta, *after = adam(rule, p, grad, mean, square, count)
            new.append(theta)
            kept += after
        return new, kept


def pure_optimizer(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> PureOptimizer:
    """NotImplementedError, with the reason, for an optimizer that has no form here."""
    refuse_hooks(optimizer, params)
    if steps_as(optimizer, torch.optim.SGD):
        return PureSGD(optimizer, params)
    if steps_as(optimizer, torch.optim.Adam):
        return PureAdam(optimizer, params)
    raise NotImplementedError(f"the graph holds torch.optim.SGD, Adam and AdamW, not {type(optimizer).__name__}")
