"""A moving average of a model's weights over the steps of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmeta.training.model_copy import copy_of


class MeanModel:
    """theta_mean <- d theta_mean + (1 - d) theta, behind each step; d = min(decay, (1 + t) / (10 + t)) at step t.

    The smaller d of early steps lets go of the initial weights. Buffers, such as running statistics, are those of the
    model. A step that was not finite moves nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.decay = model, decay
        self.model = copy_of(model)
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        self._trained = [(mean, p) for mean, p in pairs if p.requires_grad]

    @torch.no_grad()
    def follow(self, step: int, finite: Tensor) -> None:
        """Behind step number `step`, from 0 on. It waits for no device."""
        share = (1 - min(self.decay, (1 + step) / (10 + step))) * finite.to(torch.float32)
        for mean, p in self._trained:
            mean.lerp_(p, share.to(mean.dtype))
        for own, b in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(b)
