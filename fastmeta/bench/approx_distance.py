"""How far an approximation of the step is from the exact one, from the same states of a short training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.bench.step_problem import StepConfig, build_model, input_shape_of
from fastmeta.losses import InstanceLabels
from fastmeta.meta import MetaStep
from fastmeta.meta.approximation import Approximation

#: share of the given labels that are wrong
NOISE_RATE = 0.4
#: distance of two class means in standard deviations of a sample around its own
SEPARATION = 6.0


@dataclass(frozen=True)
class Distance:
    """An approximation beside the exact step after `step` exact steps: 1 and 1 are no distance."""

    step: int
    cosine: float
    length: float  # by the exact one's


class ShortTraining:
    """Exact steps on Gaussian classes with wrong labels, and approximations held against them on the way.

    Class c is N(mu_c, 1) in the space of the model's inputs, with means SEPARATION apart.
    """

    def __init__(self, config: StepConfig) -> None:
        self.config, self.device = config, torch.device(config.device)
        shape, classes = input_shape_of(config), config.classes
        generator = torch.Generator().manual_seed(config.seed)
        means = torch.randn(classes, *shape, generator=generator) * (SEPARATION / math.sqrt(2 * math.prod(shape)))

        def draw(count: int) -> tuple[Tensor, Tensor]:
            y = torch.randint(classes, (count,), generator=generator)
            return means[y] + torch.randn(count, *shape, generator=generator), y

        x, true = draw(config.samples)
        wrong = torch.rand(config.samples, generator=generator) < NOISE_RATE
        given = torch.where(wrong, (true + torch.randint(1, classes, true.shape, generator=generator)) % classes, true)
        x_meta, y_meta = draw(4 * config.meta_batch)
        self.x, self.x_meta, self.y_meta = (t.to(self.device) for t in (x, x_meta, y_meta))
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(self.device)
        self.labels = InstanceLabels(given.to(self.device), classes, target_prob=0.9)
        self.step = self._meta_step(self.model, self.labels)

    def distances(self, approximations: Sequence[str], moments: Sequence[int]) -> dict[str, list[Distance]]:
        """Per approximation, after each number of exact steps in `moments`."""
        found: dict[str, list[Distance]] = {text: [] for text in approximations}
        self._choose()
        for moment in sorted(set(moments)):
            while self.step.steps < moment:
                _run(self.step, self._batches(self.step.steps, 1))
            for text in approximations:
                ours, exact = self._pair(Approximation.parse(text), text)
                cosine = torch.dot(ours, exact) / (ours.norm() * exact.norm())
                found[text].append(Distance(moment, float(cosine), float(ours.norm() / exact.norm())))
        return found

    def _choose(self) -> None:
        """The label rate, which a first step chooses: on copies, so that step 0 is the start itself."""
        model, labels = copy.deepcopy((self.model, self.labels))
        first = self._meta_step(model, labels)
        _run(first, self._batches(0, 1))
        self.step.label_lr = first.label_lr

    def _pair(self, approx: Approximation, text: str) -> tuple[Tensor, Tensor]:
        """What changes, by the approximation and by the exact step: float64 vectors."""
        of_labels = approx.kind != "delayed"  # which moves the labels as the exact step does
        batches = self._batches(10**6 + self.step.steps, approx.number if approx.kind == "every" else 1)
        return self._movement(text, batches, of_labels), self._movement(None, batches, of_labels)

    def _movement(self, approx: str | None, batches: list[Any], of_labels: bool) -> Tensor:
        """What copies of model and labels travel over `batches`."""
        model, labels = copy.deepcopy((self.model, self.labels))
        step = self._meta_step(model, labels, approx)
        step.label_lr = self.step.label_lr
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            _run(step, batches)
        if of_labels:
            return (labels.label_logits.double() - self.labels.label_logits.double()).flatten()
        pairs = zip(model.parameters(), self.model.parameters(), strict=True)
        return torch.cat([(a.detach().double() - b.detach().double()).flatten() for a, b in pairs])

    def _meta_step(self, model: torch.nn.Module, labels: InstanceLabels, approx: str | None = None) -> MetaStep:
        optimizer = torch.optim.SGD(model.parameters(), lr=self.config.lr)
        return MetaStep(model, labels, optimizer, unique_index=True, approx=approx)

    def _batches(self, seed: int, count: int) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        """`count` pairs of batches in which no training row comes twice."""
        generator = torch.Generator().manual_seed(self.config.seed + seed)
        n, m = self.config.batch, self.config.meta_batch
        rows = torch.randperm(self.config.samples, generator=generator)[: count * n].to(self.device).split(n)
        metas = [torch.randperm(len(self.y_meta), generator=generator)[:m].to(self.device) for _ in rows]
        return [((self.x[i], i), (self.x_meta[j], self.y_meta[j])) for i, j in zip(rows, metas, strict=True)]


def _run(step: MetaStep, batches: list[Any]) -> None:
    for train, meta in batches:
        if not bool(step(train, meta).finite):
            raise RuntimeError("a step of the short training was not finite; lower --lr")
