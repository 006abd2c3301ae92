"""Meta label correction (Zheng et al., 2021): a net that learns a soft label from what is seen and what was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastmeta.data import InputError, at_least, positive, within
from fastmeta.functional.evaluation import evaluation
from fastmeta.functional.network import Network
from fastmeta.losses import InstanceLabels, LabelCorrector, LearnableLoss
from fastmeta.losses.labels import Movement
from fastmeta.methods.base import Context, Samples
from fastmeta.methods.learned_loss import LearnedLoss, adam

#: probability of the given class in the labels that are read before the first epoch has ended
_UNTIL_READ = 0.9


class MetaLabelCorrection(LearnedLoss):
    """:class:`fastmeta.LabelCorrector` moved by the meta-gradient of each step, with an Adam of its own.

    Its labels of all training samples, by the network in evaluation mode, are read at the end of each epoch: they are
    the learned labels of the run.
    """

    learns_labels: ClassVar[bool] = True

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

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.labels = CorrectedLabels(context.targets, context.num_classes, _UNTIL_READ)

    def stateful(self) -> Mapping[str, Any]:
        return {**super().stateful(), "labels": self.labels}

    @torch.no_grad()
    def end_epoch(self, samples: Samples) -> None:
        assert isinstance(self.loss, LabelCorrector)
        network, lost = Network(self.model), 0
        with evaluation(self.model):
            for x, rows in samples.train():
                logits = network(network.params, network.state(), x)
                lost += self.labels.read(rows, self.loss.probs(logits, rows, x))
        if lost:
            self.warnings.append(
                f"{lost} training rows had corrected labels that are not finite at the end of an epoch: they keep "
                "those of before"
            )

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        own = config.options
        at_least("method.embedding", own.embedding, 1)
        at_least("method.hidden", own.hidden, 1)
        positive("method.lr", own.lr)
        within("method.weight_decay", own.weight_decay, 0, math.inf, high_open=True)


class CorrectedLabels(InstanceLabels):
    """Labels as a corrector gives them, to be read. No rate moves them, so that none is to blame for how they stand."""

    def read(self, rows: Tensor, probs: Tensor) -> int:
        """Take `probs` (n, C) for the rows `rows` (n,), where they are finite; how many are not."""
        finite = probs.isfinite().all(1)
        self.assign_(rows[finite], probs[finite])
        return int((~finite).sum())

    def movement(self, target_prob: float) -> Movement:
        return Movement(1.0, 1.0, "labels")

    def stuck(self, target_prob: float, rate_name: str = "") -> tuple[str, str] | None:
        return None
