"""Meta label correction (Zheng et al., 2021): a net that learns a soft label from what is seen and what was given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastmeta.data import InputError, at_least, positive, within
from fastmeta.functional.network import Network
from fastmeta.losses import LabelCorrector, LearnableLoss
from fastmeta.methods.base import Context
from fastmeta.methods.corrected_labels import CorrectingLoss
from fastmeta.methods.learned_loss import adam


class MetaLabelCorrection(CorrectingLoss):
    """:class:`fastmeta.LabelCorrector` moved by the meta-gradient of each step, with an Adam of its own.

    Its labels of all training samples, by the network in evaluation mode, are read at the end of each epoch: they are
    the learned labels of the run.
    """

    @dataclass(frozen=True)
    class Config:
        """The label corrector and its optimizer."""

        features: Literal["logits", "input"] = "logits"
        """What the corrector sees beside the given label: the network's prediction, or its input."""
        embedding: int = 128
        """Size of the embedding of the given label."""
        hidden: int = 128
        """Units of each of its two hidden layers."""
        lr: float = 3e-4
        """Learning rate of its Adam, constant."""
        weight_decay: float = 0.0
        """L2 penalty of the corrector."""

    def make_loss(self, context: Context) -> LabelCorrector:
        own, size = self.config, None
        if own.features == "input":
            if context.input_shape is None:
                raise InputError("method.features=input takes samples that are one tensor each; take logits")
            size = math.prod(context.input_shape)
        return LabelCorrector(
            context.targets,
            context.num_classes,
            features=own.features,
            input_size=size,
            embedding=own.embedding,
            hidden=own.hidden,
        )

    def make_optimizer(self, loss: LearnableLoss) -> torch.optim.Optimizer:
        return adam(loss, self.config.lr, self.config.weight_decay)

    def corrected(self, x: Any, rows: Tensor) -> Tensor:
        assert isinstance(self.loss, LabelCorrector)
        network = Network(self.model)
        return self.loss.probs(network(network.params, network.state(), x), rows, x)

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        own = config.options
        at_least("method.embedding", own.embedding, 1)
        at_least("method.hidden", own.hidden, 1)
        positive("method.lr", own.lr)
        within("method.weight_decay", own.weight_decay, 0, math.inf, high_open=True)
