"""What methods share whose loss makes the labels: these are read at the end of each epoch, for the run to keep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmeta.functional.evaluation import evaluation
from fastmeta.losses import InstanceLabels
from fastmeta.losses.labels import Movement
from fastmeta.methods.base import Context, Samples
from fastmeta.methods.learned_loss import LearnedLoss

#: probability of the given class in the labels that are read before the first epoch has ended
_UNTIL_READ = 0.9


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


class CorrectingLoss(LearnedLoss):
    """A learned loss that makes labels: those of all training rows are the learned labels of the run."""

    learns_labels: ClassVar[bool] = True
    labels: CorrectedLabels

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.labels = CorrectedLabels(context.targets, context.num_classes, _UNTIL_READ)

    def stateful(self) -> Mapping[str, Any]:
        return {**super().stateful(), "labels": self.labels}

    @abstractmethod
    def corrected(self, x: Any, rows: Tensor) -> Tensor:
        """Labels (n, C) of the training rows `rows` (n,) with network input `x`; model and loss are in evaluation."""

    @torch.no_grad()
    def end_epoch(self, samples: Samples) -> None:
        lost = 0
        with evaluation(self.model), evaluation(self.loss):
            for x, rows in samples.train():
                lost += self.labels.read(rows, self.corrected(x, rows))
        if lost:
            self.warnings.append(
                f"{lost} training rows had corrected labels that are not finite at the end of an epoch: they keep "
                "those of before"
            )
