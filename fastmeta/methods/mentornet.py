"""MentorNet (Jiang et al., 2018), predefined curriculum (PD): samples are weighted by how their loss compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import positive, within
from fastmeta.data.seeds import derived_seed
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.kept import Kept
from fastmeta.methods.plain_step import PlainStep
from fastmeta.rng import random_bits

#: percent of the run: all weights are one up to the first, a threshold decides below the second, then a slope
BURN_IN, SLOPE = 18, 90
#: share of a batch that is left out at random, for this many percent of the run and behind it
DROPPED, DROPPED_FOR = 0.5, 17


class MentorNet(Method):
    """The given classes, each row weighted by the predefined curriculum that the published PD mentor was fitted to.

        a <- average a + (1 - average) percentile of the batch's losses       a = 0 at the start
        d_i = loss_i - a
        v_i = 1 up to 18% of the run;  [d_i <= 0] below 90%;  then clamp(1 - d_i / slope, 0, 1)
        loss = mean_i v_i loss_i,   v_i = 0 in a random share of the batch: half for 17% of the run, then `dropout`

    The percentage is whole, floor(100 step / steps). The published program asks a small net that was fitted to v; here
    v itself weights.
    """

    @dataclass(frozen=True)
    class Config:
        percentile: float = 0.7
        """Which quantile of a batch's losses is the threshold, in [0, 1]: about the share of right labels."""
        average: float = 0.5
        """Share of the threshold's moving average that a batch leaves, in [0, 1)."""
        slope: float = 1.0
        """Loss above the threshold at which the weight is zero in the last tenth of the run, above 0."""
        dropout: float = 0.05
        """Share of a batch that is left out at random behind the first 17% of the run, in [0, 1)."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        own = config.options
        within("method.percentile", own.percentile, 0, 1)
        within("method.average", own.average, 0, 1, high_open=True)
        positive("method.slope", own.slope)
        within("method.dropout", own.dropout, 0, 1, high_open=True)

    def setup(self, context: Context) -> None:
        self.model, self.targets = context.model(), context.targets
        self.network_input, self.steps = context.network_input, context.steps
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step = PlainStep(self.model, optimizer, None)
        self.seed = derived_seed(context.config.seed, "mentornet")
        zero = torch.zeros((), dtype=torch.float64, device=context.device)
        self.kept = Kept(step=0, average=zero, weight=zero.clone())

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"mentornet": self.kept}

    def weights(self, losses: Tensor, average: Tensor, percent: int) -> Tensor:
        """v (n,) of rows with `losses` (n,) where the threshold is `average`, at so many percent of the run."""
        above = losses - average
        if percent <= BURN_IN:
            return torch.ones_like(losses)
        if percent < SLOPE:
            return (above <= 0).to(losses.dtype)
        return (1 - above / self.config.slope).clamp(0, 1)

    def kept_at_random(self, n: int, percent: int) -> Tensor:
        """(n,) bool: the rows of a batch that are not dropped, a function of the seed and the step."""
        share = DROPPED if percent < DROPPED_FOR else self.config.dropout
        count = max(1, math.floor(n * (1 - share) + 1e-9))
        rows = torch.arange(n, device=self.targets.device)
        order = random_bits(self.seed, self.kept.step, rows)[:, 0].argsort(stable=True)
        return torch.zeros(n, dtype=torch.bool, device=rows.device).index_fill_(0, order[:count], True)

    def step(self, batch: Batch) -> Outcome:
        n, targets, old = len(batch.index), self.targets[batch.index], self.kept.average.clone()
        percent = 100 * self.kept.step // self.steps
        new: list[Tensor] = []

        def backward(logits: Tensor, rows: slice) -> Tensor:
            losses = cross_entropy(logits, targets, reduction="none")
            now = losses.detach().quantile(self.config.percentile, interpolation="nearest")
            average = old.lerp(now.to(old.dtype), 1 - self.config.average)
            v = self.weights(losses.detach(), average.to(losses.dtype), percent) * self.kept_at_random(n, percent)
            new.extend((average, v.mean().to(old.dtype)))
            loss = (v * losses).mean()
            loss.backward()
            return loss.detach()

        logits, loss, finite = self.plain_step(self.network_input(batch.x), n, backward)
        for name, value in zip(("average", "weight"), new, strict=True):
            held = getattr(self.kept, name)
            held.copy_(torch.where(finite, value, held))
        self.kept.step += 1
        return Outcome(logits, loss, finite)

    def figures(self) -> Mapping[str, Any]:
        """The threshold, and the mean weight of the last batch."""
        return {"loss_threshold": float(self.kept.average), "mean_weight": float(self.kept.weight)}

    def explain(self) -> str:
        return (
            f"labels: fixed as given; samples are weighted by their loss from {BURN_IN}% of the run on, against the "
            f"{self.config.percentile:.0%} quantile"
        )
