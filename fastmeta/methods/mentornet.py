"""MentorNet (Jiang et al., 2018): samples are weighted by how their loss compares, by rule (PD) or by a net (DD)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, positive, within
from fastmeta.data.seeds import derived_seed
from fastmeta.functional.evaluation import evaluation
from fastmeta.functional.network import Network
from fastmeta.functional.precision import without_autocast
from fastmeta.methods.base import Batch, Context, Method, Outcome, Samples
from fastmeta.methods.kept import Kept
from fastmeta.methods.mentor import Mentor, Rows, pairs
from fastmeta.methods.plain_step import PlainStep
from fastmeta.rng import random_bits

#: percent of the run: all weights are one up to the first, a threshold decides below the second, then a slope
BURN_IN, SLOPE = 18, 90
#: share of a batch that is left out at random, for this many percent of the run and behind it
DROPPED, DROPPED_FOR = 0.5, 17
#: clean rows at a time whose losses are taken
_CHUNK = 256


class MentorNet(Method):
    """The given classes, each row weighted by a curriculum of its loss.

        a <- average a + (1 - average) percentile of the batch's losses       a = 0 at the start
        d_i = loss_i - a
        predefined: v_i = 1 up to 18% of the run;  [d_i <= 0] below 90%;  then clamp(1 - d_i / slope, 0, 1)
        learned:    v_i = 1 until the mentor is fitted;  then sigmoid(mentor(loss_i, d_i, y_i))
        loss = mean_i v_i loss_i,   v_i = 0 in a random share of the batch: half for 17% of the run, then `dropout`

    The percentage is whole, floor(100 step / steps). The published program asks a small net that was fitted to the
    predefined v; here v itself weights. The learned curriculum fits :class:`Mentor` once, on the clean set, at the end
    of the first epoch from 18% of the run on.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"ranks"})

    @dataclass(frozen=True)
    class Config:
        curriculum: Literal["predefined", "learned"] = "predefined"
        """Weights by rule (PD), or by a net that is fitted to the clean set in the run (DD)."""
        percentile: float = 0.7
        """Which quantile of a batch's losses is the threshold, in [0, 1]: about the share of right labels."""
        average: float = 0.5
        """Share of the threshold's moving average that a batch leaves, in [0, 1)."""
        slope: float = 1.0
        """Of curriculum=predefined: loss above the threshold at which the weight is zero in the last tenth of the run,
        above 0."""
        dropout: float = 0.05
        """Share of a batch that is left out at random behind the first 17% of the run, in [0, 1)."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        own = config.options
        within("method.percentile", own.percentile, 0, 1)
        within("method.average", own.average, 0, 1, high_open=True)
        positive("method.slope", own.slope)
        within("method.dropout", own.dropout, 0, 1, high_open=True)
        if own.curriculum == "learned" and own.slope != cls.Config.slope:
            raise InputError(f"method.slope={own.slope} is about method.curriculum=predefined; leave it out")
        if own.curriculum == "learned" and config.epochs == 1:
            raise InputError(
                "method.curriculum=learned fits its mentor at the end of an epoch and weights those behind it, and "
                "epochs=1 leaves none; train longer"
            )

    @classmethod
    def uses_clean(cls, options: Any) -> bool:
        return bool(options.curriculum == "learned")

    def setup(self, context: Context) -> None:
        self.model, self.targets = context.model(), context.targets
        self.network_input, self.steps = context.network_input, context.steps
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step, self.ranks = PlainStep(self.model, optimizer, None, context.ranks), context.ranks
        self.seed = derived_seed(context.config.seed, "mentornet")
        zero = torch.zeros((), dtype=torch.float64, device=context.device)
        self.kept = Kept(step=0, average=zero, weight=zero.clone(), fitted=False, right=None, wrong=None)
        self.mentor: Mentor | None = None
        if self.config.curriculum == "learned":
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn on the host
                torch.manual_seed(self.seed)
                self.mentor = Mentor(context.num_classes).to(context.device)

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"mentornet": self.kept} | ({} if self.mentor is None else {"mentor": self.mentor})

    def weights(self, losses: Tensor, average: Tensor, targets: Tensor, percent: int) -> Tensor:
        """v (n,) of rows with `losses` (n,) and given labels `targets` (n,) where the threshold is `average`, at so
        many percent of the run."""
        above = losses - average
        if self.mentor is not None:
            if not self.kept.fitted:
                return torch.ones_like(losses)
            with torch.no_grad(), without_autocast():
                return self.mentor(losses, above, targets, BURN_IN).sigmoid().to(losses.dtype)
        if percent <= BURN_IN:
            return torch.ones_like(losses)
        if percent < SLOPE:
            return (above <= 0).to(losses.dtype)
        return (1 - above / self.config.slope).clamp(0, 1)

    def kept_at_random(self, n: int, percent: int) -> Tensor:
        """(n,) bool: the rows of a batch that are not dropped, a function of the seed, the step and the place in the
        batch of all ranks."""
        share = DROPPED if percent < DROPPED_FOR else self.config.dropout
        own, n = slice(self.ranks.rank * n, (self.ranks.rank + 1) * n), n * self.ranks.size
        count = max(1, math.floor(n * (1 - share) + 1e-9))
        rows = torch.arange(n, device=self.targets.device)
        order = random_bits(self.seed, self.kept.step, rows)[:, 0].argsort(stable=True)
        return torch.zeros(n, dtype=torch.bool, device=rows.device).index_fill_(0, order[:count], True)[own]

    def percent(self) -> int:
        """Of the run, that is done."""
        return 100 * int(self.kept.step) // self.steps

    def step(self, batch: Batch) -> Outcome:
        n, targets, old = len(batch.index), self.targets[batch.index], self.kept.average.clone()
        percent = self.percent()
        new: list[Tensor] = []

        def backward(logits: Tensor, rows: slice) -> Tensor:
            losses = cross_entropy(logits, targets, reduction="none")
            every = losses.detach() if self.ranks.size == 1 else self.ranks.gather(losses.detach())
            now = every.quantile(self.config.percentile, interpolation="nearest")
            average = old.lerp(now.to(old.dtype), 1 - self.config.average)
            v = self.weights(losses.detach(), average.to(losses.dtype), targets, percent)
            v = v * self.kept_at_random(n, percent)
            new.extend((average, self.ranks.mean([v.mean().to(old.dtype)])[0]))
            loss = (v * losses).mean()
            loss.backward()
            return loss.detach()

        logits, loss, finite = self.plain_step(self.network_input(batch.x), n, backward)
        for name, value in zip(("average", "weight"), new, strict=True):
            held = getattr(self.kept, name)
            held.copy_(torch.where(finite, value, held))
        self.kept.step += 1
        return Outcome(logits, loss, finite)

    def end_epoch(self, samples: Samples) -> None:
        if self.mentor is not None and not self.kept.fitted and self.percent() >= BURN_IN:
            self._fit(self.mentor, samples)

    @torch.no_grad()
    def _fit(self, mentor: Mentor, samples: Samples) -> None:
        """The mentor, by the losses of the clean rows under right and wrong labels."""
        network, y, made = Network(self.model), samples.clean_targets, []
        with evaluation(self.model):
            for rows in torch.arange(len(y), device=y.device).split(_CHUNK):
                made.append(network(network.params, network.state(), samples.clean_rows(rows)))
        with without_autocast():
            logits = torch.cat(made)
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            rows = pairs(logits.log_softmax(1), y, self.kept.average.to(logits.dtype))
            if not self._fitted(mentor, rows):
                self.warnings.append(
                    "the mentor could not be fitted, because losses of clean rows are not finite: all weights stay "
                    "one, and it is tried again at the end of the next epoch"
                )
                return
            v = mentor(rows.losses, rows.above, rows.labels, BURN_IN).sigmoid()
        self.kept.fitted = True
        for name, part in (("right", rows.right), ("wrong", ~rows.right)):
            share = rows.weight * part
            setattr(self.kept, name, float((v * share).sum() / share.sum()))

    def _fitted(self, mentor: Mentor, rows: Rows) -> bool:
        """Whether it was; of several ranks all have the first one's."""
        own = list(mentor.state_dict().values())
        sound = torch.tensor(mentor.fit(rows, BURN_IN), device=rows.losses.device)
        sound, *values = self.ranks.of_first([sound, *own])
        for t, value in zip(own, values, strict=True):
            t.copy_(value)
        return bool(sound)

    def figures(self) -> Mapping[str, Any]:
        """The threshold, the mean weight of the last batch, and what the mentor gave right and wrong clean rows."""
        own = {"loss_threshold": float(self.kept.average), "mean_weight": float(self.kept.weight)}
        if self.mentor is None:
            return own
        return own | {"mentor_of_right": self.kept.right, "mentor_of_wrong": self.kept.wrong}

    def explain(self) -> str:
        own = self.config
        if own.curriculum == "learned":
            return (
                "labels: fixed as given; samples are weighted by a mentor, which is fitted to the clean set at the "
                f"end of the first epoch from {BURN_IN}% of the run on"
            )
        return (
            f"labels: fixed as given; samples are weighted by their loss from {BURN_IN}% of the run on, against the "
            f"{own.percentile:.0%} quantile"
        )
