"""The look-ahead step theta*, Eq. (3): which step it takes, and how that step depends on the training gradient.

For every choice here theta* is affine in the training gradient G of a parameter: theta* = b - c G with a constant
c per parameter. So the label gradient needs only `c`: the tangent direction is c g instead of lambda g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmeta.meta.network import Tensors

LookAheadChoice = Literal["sgd", "optimizer"] | float


@dataclass(frozen=True)
class _Rule:
    """One parameter's step: theta* = theta - lr * d(G), d by SGD's momentum, dampening, Nesterov, weight decay."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    buffer: Tensor | None = None

    @property
    def slope(self) -> float:
        """c = -d theta* / d G."""
        if not self.momentum:
            return self.lr
        kept = 1.0 if self.buffer is None else 1.0 - self.dampening
        return self.lr * (1.0 + self.momentum * kept if self.nesterov else kept)

    def offset(self, theta: Tensor) -> Tensor:
        """b: theta* at G = 0."""
        decayed = theta * (1 - self.slope * self.weight_decay) if self.weight_decay else theta
        if not self.momentum or self.buffer is None:
            return decayed
        carried = self.momentum * self.momentum if self.nesterov else self.momentum
        return decayed - self.lr * carried * self.buffer


class LookAhead:
    """theta* for a set of parameters, at the learning rates of this moment.

    Args:
        choice: ``"sgd"``, Eq. (3) at the optimizer's current learning rate; ``"optimizer"``, the very step that
            torch.optim.SGD would take, with its momentum, dampening, Nesterov and weight decay; or a fixed rate.
        optimizer: read at each call, never changed. None needs a float.

    Raises:
        ValueError, TypeError: a choice that does not fit the optimizer; the message names the way out.
    """

    def __init__(self, choice: LookAheadChoice, optimizer: torch.optim.Optimizer | None) -> None:
        if isinstance(choice, str):
            if choice not in ("sgd", "optimizer"):
                raise ValueError(f'lookahead must be "sgd", "optimizer" or a learning rate, got {choice!r}')
            if optimizer is None:
                raise ValueError(f"lookahead={choice!r} reads an optimizer, got none; pass optimizer= or lr=")
            if not isinstance(optimizer, torch.optim.SGD):
                raise TypeError(
                    f"lookahead={choice!r} follows torch.optim.SGD, got {type(optimizer).__name__}; "
                    "pass a float, the rate of a plain SGD look-ahead step"
                )
            if any(group.get("maximize") for group in optimizer.param_groups):
                raise ValueError("lookahead follows a descending SGD, got maximize=True; pass a float")
        elif isinstance(choice, bool) or not isinstance(choice, int | float) or not choice >= 0:
            raise ValueError(f'lookahead must be "sgd", "optimizer" or a learning rate >= 0, got {choice!r}')
        self.choice = choice
        self.optimizer = optimizer

    def _rules(self, params: Tensors) -> dict[str, _Rule]:
        if isinstance(self.choice, int | float):
            rule = _Rule(float(self.choice))
            return dict.fromkeys(params, rule)
        assert self.optimizer is not None
        by_id = {}
        for group in self.optimizer.param_groups:
            lr = float(group["lr"])
            for p in group["params"]:
                if self.choice == "sgd":
                    by_id[id(p)] = _Rule(lr)
                else:
                    by_id[id(p)] = _Rule(
                        lr,
                        group["momentum"],
                        group["dampening"],
                        group["nesterov"],
                        float(group["weight_decay"]),
                        self.optimizer.state.get(p, {}).get("momentum_buffer"),
                    )
        return {name: by_id[id(p)] for name, p in params.items()}

    def prepare(self, params: Tensors) -> PreparedLookAhead:
        """Read the optimizer once, for one step."""
        return PreparedLookAhead(self._rules(params))


class PreparedLookAhead:
    """One step's look-ahead: ``star`` gives theta*, ``direction`` the tangent direction of the label gradient."""

    def __init__(self, rules: dict[str, _Rule]) -> None:
        self.rules = rules
        slopes = {name: rule.slope for name, rule in rules.items()}
        #: lambda of the closed forms; where parameters differ, the largest slope
        self.lr = max(slopes.values(), default=0.0)
        self.relative = {name: s / self.lr for name, s in slopes.items() if s != self.lr} if self.lr else {}

    def star(self, params: Tensors, grads: Tensors) -> Tensors:
        """theta*, detached; a parameter that `grads` lacks stays, as the optimizer would leave it."""
        star = {name: p.detach() for name, p in params.items()}
        moved = list(grads)
        with torch.no_grad():
            offsets = [self.rules[name].offset(star[name]) for name in moved]
            slopes = [self.rules[name].slope for name in moved]
            deltas = [grads[name] for name in moved]
            if len(set(slopes)) == 1:
                new = torch._foreach_add(offsets, deltas, alpha=-slopes[0])
            else:
                new = torch._foreach_add(offsets, torch._foreach_mul(deltas, [-s for s in slopes]))
        star.update(zip(moved, new, strict=True))
        return star

    def direction(self, g: dict[str, Tensor]) -> Tensors:
        """g, scaled where a parameter's slope differs from ``lr``: then u = J direction and scale = lr / n."""
        return {name: t * self.relative[name] if name in self.relative else t for name, t in g.items()}
