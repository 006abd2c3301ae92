"""The learning rate of label families: as it was given, or set in each step from the look-ahead's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_real, shown
from fastmeta.losses import LearnableLoss
from fastmeta.meta.lookahead import LookAhead, Rate

#: a look-ahead rate at most this (the start of a warm-up, the end of a cosine) moves no label by a default label_lr
_NO_RATE = 1e-30


class LabelRate:
    """eta, of a loss that moves itself.

    Attributes:
        given: as the user gave it; None takes the loss's default for the look-ahead's rate and the rows of a step.
        taken: the default that the last step took; None before.
        told: whether :meth:`doubt` has said all that it will.
    """

    def __init__(self, given: Any, loss: LearnableLoss, told: bool = False) -> None:
        eta = None if given is None else as_real(given)
        if given is not None and (eta is None or not 0 <= eta < float("inf")):
            raise ValueError(f"label_lr must be None or a finite number >= 0, got {shown(given)}")
        if given is not None and loss.for_one_step:
            raise TypeError(f"label_lr is a rate, and {type(loss).__name__} has none: leave it out")
        if given is not None and not loss.moves_itself:
            raise TypeError(
                f"label_lr is the rate of label families; {type(loss).__name__} moves by loss_optimizer, which has "
                "its own"
            )
        self.given = eta
        self.taken: Rate | None = None
        self.told = told

    @property
    def now(self) -> float | None:
        """As given, or what the last step took."""
        rate = self.taken if self.given is None else self.given
        return None if rate is None else float(rate)

    def default(self, loss: LearnableLoss, lookahead: LookAhead, moving: dict[str, Tensor], n: int) -> Rate:
        """For a step on `n` rows, those of all ranks together, whose look-ahead moves the parameters `moving`."""
        rate = lookahead.largest_rate(moving)
        if isinstance(rate, Tensor):
            self.taken = torch.where(rate > _NO_RATE, loss.default_label_lr(1.0, n) / rate, 0.0)
        else:
            self.taken = loss.default_label_lr(rate, n) if rate > _NO_RATE else 0.0
        return self.taken

    def doubt(self, loss: LearnableLoss, lookahead: LookAhead, optimizer: torch.optim.Optimizer) -> str:
        """What to say, once, of parameter groups with rates of their own; or "".

        Where rates lie on a device, that is looked at in the first step alone, for to compare them waits for it.
        """
        groups = optimizer.param_groups
        follows = loss.moves_itself and self.given is None and isinstance(lookahead.choice, str)
        if self.told or len(groups) < 2 or not follows or loss.for_one_step:
            return ""
        on_device = any(isinstance(group["lr"], Tensor) and group["lr"].is_cuda for group in groups)
        rates = [float(group["lr"]) for group in groups]
        self.told = on_device or min(rates) < max(rates)
        if min(rates) == max(rates):
            return ""
        listed = ", ".join(f"{rate:g}" for rate in rates)
        return (
            f"label_lr=None: the optimizer's parameter groups have different rates ({listed}); label_lr goes by "
            "the largest that the look-ahead takes, so that labels move no further than they should; pass label_lr "
            "to choose it yourself"
        )
