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


Rate = float | Tensor


@dataclass(frozen=True)
class Rule:
    """One parameter's step: theta* = theta - lr * d(G), d by SGD's momentum, dampening, Nesterov, weight decay."""

    lr: Rate
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    buffer: Tensor | None = None

    @property
    def gain(self) -> float:
        """-d theta* / d G, over lr."""
        if not self.momentum:
            return 1.0
        kept = 1.0 if self.buffer is None else 1.0 - self.dampening
        return 1.0 + self.momentum * kept if self.nesterov else kept

    @property
    def slope(self) -> Rate:
        """c = -d theta* / d G."""
        return self.lr if self.gain == 1.0 else self.lr * self.gain

    def offset(self, theta: Tensor) -> Tensor:
        """b: theta* at G = 0."""
        decayed = theta * (1 - self.slope * self.weight_decay) if self.weight_decay else theta
        if not self.momentum or self.buffer is None:
            return decayed
        carried = self.momentum * self.momentum if self.nesterov else self.momentum
        return decayed - (self.lr * carried) * self.buffer


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

    def rules(self, params: Tensors) -> dict[str, Rule]:
        if isinstance(self.choice, int | float):
            rule = Rule(float(self.choice))
            return dict.fromkeys(params, rule)
        assert self.optimizer is not None
        by_id = {}
        for group in self.optimizer.param_groups:
            lr = float(group["lr"])
            for p in group["params"]:
                if self.choice == "sgd":
                    by_id[id(p)] = Rule(lr)
                else:
                    by_id[id(p)] = Rule(
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
        return PreparedLookAhead(self.rules(params))


class PreparedLookAhead:
    """One step's look-ahead: ``star`` gives theta*, ``direction`` the tangent direction of the label gradient.

    Rates may be floats or 0-d tensors (a compiled step reads them on the device).
    """

    def __init__(self, rules: dict[str, Rule]) -> None:
        self.rules = rules
        first = next(iter(rules.values()))
        self.uniform = all(r.lr is first.lr or _same(r.lr, first.lr) for r in rules.values()) and all(
            r.gain == first.gain for r in rules.values()
        )
        #: the slope of the first parameter: lambda, where all parameters share one
        self.rate: Rate = first.slope

    @property
    def scale(self) -> Rate:
        """lambda of the closed forms, to go with u = J direction."""
        return self.rate if self.uniform else 1.0

    def direction(self, g: Tensors) -> Tensors:
        """g; where parameters have slopes of their own, g times slope, and then ``scale`` is 1."""
        return g if self.uniform else {name: t * self.rules[name].slope for name, t in g.items()}

    def star(self, params: Tensors, grads: Tensors) -> Tensors:
        """theta*, detached; a parameter that `grads` lacks stays, as the optimizer would leave it."""
        star = {name: p.detach() for name, p in params.items()}
        moved = list(grads)
        with torch.no_grad():
            offsets = [self.rules[name].offset(star[name]) for name in moved]
            deltas = [grads[name] for name in moved]
            if self.uniform and not isinstance(self.rate, Tensor):
                new = list(torch._foreach_add(offsets, deltas, alpha=-self.rate))
            else:
                new = [b - self.rules[name].slope * d for name, b, d in zip(moved, offsets, deltas, strict=True)]
        star.update(zip(moved, new, strict=True))
        return star


def _same(a: Rate, b: Rate) -> bool:
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
