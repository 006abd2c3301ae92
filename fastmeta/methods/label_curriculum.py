"""What exact steps may do to labels beside moving them: samples count by entropy, and labels start anew."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import Labels


def entropy_weights(probs: Tensor, kind: str, ranks: Ranks = ALONE) -> Tensor:
    """Constant weights (n,) with mean 1 of samples with label distributions `probs` (n, C), H their entropies.

    `kind` is 1-H/logC, exp(-H) or H/logC. Where all of them are 0 (only uniform labels, only hard ones) all are 1. Of
    several ranks, each with n rows, the mean is that of all.
    """
    entropy = torch.special.entr(probs.detach()).sum(1)
    share = (entropy / math.log(probs.shape[1])).clamp(max=1)
    weight = {"1-H/logC": 1 - share, "exp(-H)": (-entropy).exp(), "H/logC": share}[kind]
    (mean,) = ranks.mean([weight.mean()])
    return torch.where(mean > 0, weight / torch.where(mean > 0, mean, 1.0), 1.0)


class Restart:
    """Labels are as they started, in the first step of each epoch but the first; read behind an epoch, they are its."""

    def __init__(self, labels: Labels, target_prob: float) -> None:
        self.labels, self.target_prob, self.due = labels, target_prob, False

    def before_step(self) -> None:
        if self.due:
            self.labels.restart_(self.target_prob)
            self.due = False

    def state_dict(self) -> dict[str, Any]:
        return {"due": self.due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.due = state["due"]
