"""Which labels of a run are kept: those of the epoch that the choosing canaries find best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fastmeta.losses import LabelTable
from fastmeta.training.canaries import Canaries, Fate, figures
from fastmeta.training.label_metrics import learned_labels
from fastmeta.training.parts import Part

#: epochs in a row, at least, and as a share of the run, in which labels are worse than they were, before they stop
PATIENCE, PATIENCE_SHARE = 3, 0.2


class KeptLabels:
    """Looks at the canaries behind each epoch, and keeps a copy of the best labels so far on the host.

    Labels are better that give more of the choosing canaries, each by its value, their right class; of equally good
    ones the later. They have gone astray where they are worse than the best ones by more than the canaries between the
    two tell by chance: that difference is a sum of values v_i, one for each canary that was right in one of the two
    alone, and its standard error sqrt(sum v_i^2).

    Args:
        labels: of the stage.
        canaries: whose rows are the last ones of the labels.
        epochs: of the run.
    """

    def __init__(self, labels: Any, canaries: Canaries, epochs: int) -> None:
        self.canaries, self._labels, self._part = canaries, labels, Part("labels", labels)
        self._patience = max(PATIENCE, round(PATIENCE_SHARE * epochs))
        self.epoch = 0  # of the best labels
        self.stopped_at: int | None = None  # the epoch behind which labels have moved no more
        self._right = np.zeros(len(canaries.right), bool)  # which canaries were right in the best labels
        self._astray = 0  # epochs in a row
        self._tensors: dict[str, Tensor] = {}
        self._values: Any = None
        self._judge(self.learned() == canaries.right, 0)

    def learned(self) -> np.ndarray:
        """Learned classes (K,) of the canaries."""
        rows = range(len(self._labels) - len(self.canaries.right), len(self._labels))
        return learned_labels(self._labels, rows)["learned"].cpu().numpy()

    def look(self, epoch: int) -> dict[str, Any]:
        """Behind an epoch: figures of the reporting canaries. `stopped_at` is then this epoch where labels should stop;
        they have been put back to the best ones.
        """
        learned = self.learned()
        if self.stopped_at is None and self._judge(learned == self.canaries.right, epoch):
            self.stopped_at = epoch
            self.put_back()
        fate = self.canaries.fate(learned)
        return {"canaries_put_right": fate.put_right.rate, "canaries_spoiled": fate.spoiled.rate}

    def _judge(self, right: np.ndarray, epoch: int) -> bool:
        """Keep the labels if they are the best so far; whether they have been astray for too long."""
        difference = self.canaries.choice * (right.astype(np.float64) - self._right)
        gain, error = float(difference.sum()), float(np.sqrt((difference**2).sum()))
        if self._values is None or gain >= 0:
            self._right, self.epoch, self._astray = right, epoch, 0
            tensors, self._values = self._part.save()
            if isinstance(table := getattr(self._labels, "table", None), LabelTable):
                table.keep("kept")
            self._tensors = {name: t.detach().cpu().clone() for name, t in tensors.items()}
            return False
        self._astray = self._astray + 1 if gain < -error else 0
        return self._astray >= self._patience

    def put_back(self) -> None:
        """The best labels are the stage's again."""
        self._part.load(self._tensors, self._values)

    def fate(self, learned: Tensor) -> Fate:
        """By the reporting canaries, of labels `learned` (n,) of all rows, however they were read."""
        return self.canaries.fate(self._own(learned))

    def choose(self, learned: Mapping[str, Tensor]) -> tuple[str, dict[str, dict[str, float | None]]]:
        """The choosing canaries' choice among labels (n,) of all rows, and what they say: see `Canaries.choose`."""
        return self.canaries.choose({name: self._own(classes) for name, classes in learned.items()})

    def _own(self, learned: Tensor) -> np.ndarray:
        return learned[len(learned) - len(self.canaries.right) :].cpu().numpy()

    def result(self, learned: Tensor | None = None) -> dict[str, Any]:
        """What summary.json says of canaries, of labels `learned` (n,) of all rows; by default those of the table."""
        fate = self.canaries.fate(self.learned() if learned is None else self._own(learned))
        return {
            "count": len(self.canaries.right),
            "kept_epoch": self.epoch,
            "stopped_at": self.stopped_at,
            **figures(self.canaries, fate),
        }

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self._tensors), {
            "epoch": self.epoch,
            "stopped_at": self.stopped_at,
            "right": self._right.tolist(),
            "astray": self._astray,
            "values": self._values,
        }

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._tensors, self._values = {k: v.cpu() for k, v in tensors.items()}, values["values"]
        self.epoch, self.stopped_at, self._astray = values["epoch"], values["stopped_at"], values["astray"]
        self._right = np.asarray(values["right"], bool)
