"""Fixed labels under four losses: methods that train on the given classes as they are."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, within
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.mixup import Mixup
from fastmeta.methods.plain_step import PlainStep


def confidence_penalty(logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Mean over rows of -log q_iy - beta H(q_i), 0-d. logits (n, C), targets (n,) int64."""
    log_q = logits.log_softmax(1)
    negative_entropy = (log_q.exp() * log_q).sum(1)
    return cross_entropy(logits, targets) + beta * negative_entropy.mean()


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Mean over rows of -(1 - q_iy)^gamma log q_iy, 0-d. logits (n, C), targets (n,) int64."""
    log_q = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    # above zero, where a power below one has no slope
    miss = (-torch.expm1(log_q)).clamp_min(torch.finfo(log_q.dtype).tiny)
    return -(miss**gamma * log_q).mean()


class FixedLabels(Method):
    """Plain steps along the gradient of a mean loss of labels that do not move by it, which :meth:`loss` says."""

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch", "ranks"})

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the rows, 0-d. logits (n, C), targets as :meth:`batch_targets` gives them."""

    def batch_targets(self, index: Tensor) -> Tensor:
        """Of the rows `index` (n,): the given classes (n,) int64."""
        return self.targets[index]

    def setup(self, context: Context) -> None:
        self.model = context.model()
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.targets, self.network_input = context.targets, context.network_input
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch, context.ranks)
        self.mixup = Mixup(context.config.mixup)

    def predictor(self) -> nn.Module:
        return self.model

    def step(self, batch: Batch) -> Outcome:
        n, targets = len(batch.index), self.batch_targets(batch.index)
        x, pairs = self.mixup(self.network_input(batch.x))

        def backward(logits: Tensor, rows: slice) -> Tensor:
            part = pairs.mix([self.loss(logits, y) for y in pairs.of(targets, rows)])
            if len(logits) < n:
                part = part * (len(logits) / n)
            part.backward()
            return part.detach()

        return Outcome(*self.plain_step(x, n, backward))


class OneHot(FixedLabels):
    """The given class with probability one: -log q_iy."""

    supports = FixedLabels.supports | {"ema", "mixup", "optim.warmup"}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets)


class LabelSmoothing(FixedLabels):
    """Szegedy et al., 2016: -sum_k p_ik log q_ik, p_ik = (1 - eps) [k = y_i] + eps / C."""

    @dataclass(frozen=True)
    class Config:
        eps: float = 0.1
        """Share of each label that all classes have alike, in [0, 1]."""
        target_prob: float | None = None
        """In place of eps: probability of the given class, from 1/C to 1; eps is (1 - target_prob) C / (C - 1)."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        own = config.options
        within("method.eps", own.eps, 0, 1)
        within("method.target_prob", own.target_prob, 0, 1)
        if own.target_prob is not None:
            if own.eps != cls.Config.eps:
                raise InputError(
                    f"method.eps={own.eps:g} and method.target_prob={own.target_prob:g} say the same; leave one out"
                )
            if num_classes is not None and own.target_prob < 1 / num_classes:
                raise InputError(
                    f"method.target_prob must be at least 1/C = {1 / num_classes:.4g} of {num_classes} classes, got "
                    f"{own.target_prob:g}"
                )

    def setup(self, context: Context) -> None:
        super().setup(context)
        own, classes = self.config, context.num_classes
        self.eps = own.eps if own.target_prob is None else min(1.0, (1 - own.target_prob) * classes / (classes - 1))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, label_smoothing=self.eps)

    def explain(self) -> str:
        if self.config.target_prob is not None:
            return f"labels: fixed as given, at a probability of {self.config.target_prob:g}"
        return f"labels: fixed as given, of which all classes alike have {self.config.eps:g}"


class ConfidencePenalty(FixedLabels):
    """Pereyra et al., 2017: -log q_iy - beta H(q_i), H the entropy of the prediction."""

    @dataclass(frozen=True)
    class Config:
        beta: float = 0.1
        """Weight of the entropy of the prediction, at least 0."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        within("method.beta", config.options.beta, 0, math.inf, high_open=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return confidence_penalty(logits, targets, self.config.beta)


class Focal(FixedLabels):
    """Lin et al., 2017: -(1 - q_iy)^gamma log q_iy."""

    @dataclass(frozen=True)
    class Config:
        gamma: float = 2.0
        """Power of what is missing of the given class's probability, at least 0; 0 is plain cross-entropy."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        within("method.gamma", config.options.gamma, 0, math.inf, high_open=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal(logits, targets, self.config.gamma)
