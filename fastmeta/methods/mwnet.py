"""Meta-Weight-Net (Shu et al., 2019): a net that learns which losses to trust."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastmeta.data import InputError, at_least, positive, within
from fastmeta.losses import LearnableLoss, WeightingNet
from fastmeta.methods.base import Context
from fastmeta.methods.learned_loss import LearnedLoss, adam

#: weight decay of the net, by its optimizer
WEIGHT_DECAY = {"adam": 1e-4, "sgd": 5e-4}


class MetaWeightNet(LearnedLoss):
    """:class:`fastmeta.WeightingNet` moved by the meta-gradient of each step, with an optimizer of its own.

    The paper's long runs (WRN-28-10, 20,000 steps) take sgd and the sum, its program of later date adam and n. In short
    runs adam and n drive all weights to one, see docs/methods.md: the sum is the default.
    """

    @dataclass(frozen=True)
    class Config:
        """The weighting net and its optimizer."""

        hidden: int = 100
        """Units of the hidden layer of the net."""
        normalise: Literal["n", "sum"] = "sum"
        """What weights are divided by: the number of samples in a batch, or the sum of their weights."""
        optimizer: Literal["adam", "sgd"] = "adam"
        """Optimizer of the net."""
        lr: float = 1e-3
        """Learning rate of the net, constant."""
        momentum: float = 0.9
        """Momentum of the net's sgd."""
        weight_decay: float | None = None
        """L2 penalty of the net; by default 1e-4 for adam and 5e-4 for sgd."""

    def make_loss(self, context: Context) -> WeightingNet:
        own = self.config
        return WeightingNet(context.targets, context.num_classes, own.hidden, own.normalise, context.ranks.group)

    def make_optimizer(self, loss: LearnableLoss) -> torch.optim.Optimizer:
        own = self.config
        decay = WEIGHT_DECAY[own.optimizer] if own.weight_decay is None else own.weight_decay
        if own.optimizer == "sgd":
            return torch.optim.SGD(loss.parameters(), lr=own.lr, momentum=own.momentum, weight_decay=decay)
        return adam(loss, own.lr, decay)

    def figures(self) -> Mapping[str, Any]:
        """Weights of samples with no loss, with that of a guess, and with twice that."""
        assert isinstance(self.loss, WeightingNet)
        guess = math.log(self.loss.num_classes)
        losses = torch.tensor([0.0, guess, 2 * guess], device=self.loss.device)
        with torch.no_grad():
            weights = self.loss.weight(losses).tolist()
        return dict(zip(("weight_at_0", "weight_at_log_c", "weight_at_2_log_c"), weights, strict=True))

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        own = config.options
        at_least("method.hidden", own.hidden, 1)
        positive("method.lr", own.lr)
        within("method.momentum", own.momentum, 0, 1, high_open=True)
        within("method.weight_decay", own.weight_decay, 0, math.inf, high_open=True)
        if own.optimizer != "sgd" and own.momentum != cls.Config.momentum:
            raise InputError(
                f"method.momentum={own.momentum} is about sgd, and method.optimizer is {own.optimizer}; leave it out"
            )
