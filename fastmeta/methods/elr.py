"""Early-learning regularisation (Liu et al., 2020): predictions are held to where they were early on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import within
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.kept import Kept, table_dtype
from fastmeta.methods.plain_step import PlainStep

#: probabilities are clamped to [_LEAST, 1 - _LEAST], as published
_LEAST = 1e-4


class ELR(Method):
    """The given classes, and a pull towards a moving average of what the network has said of each sample.

        p_i = clamp(softmax(z_i), 1e-4, 1 - 1e-4)
        t_i <- beta t_i + (1 - beta) p_i / sum_k p_ik        t_i = 0 at the start, no gradient
        loss = mean_i( -log q_iy + weight log(1 - <t_i, p_i>) )

    t is (N, C), in memory beside the network. The published lambda is `weight` here.
    """

    @dataclass(frozen=True)
    class Config:
        beta: float = 0.7
        """Share of the moving average that a visit leaves, in [0, 1)."""
        weight: float = 3.0
        """Weight of the regulariser, at least 0; 3 was published for CIFAR-10, 7 for CIFAR-100 (with beta 0.9)."""

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch", "ranks"})

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        within("method.beta", config.options.beta, 0, 1, high_open=True)
        within("method.weight", config.options.weight, 0, math.inf, high_open=True)

    def setup(self, context: Context) -> None:
        self.model, self.targets = context.model(), context.targets
        self.network_input = context.network_input
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch, context.ranks)
        size = len(context.targets), context.num_classes
        self.kept = Kept({"t": torch.zeros(size, dtype=table_dtype(self.model), device=context.device)})

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"elr": self.kept}

    def step(self, batch: Batch) -> Outcome:
        index, n = batch.index, len(batch.index)
        targets, before = self.targets[index], self.kept.t[index]
        moved: list[Tensor] = []

        def backward(logits: Tensor, rows: slice) -> Tensor:
            p = logits.softmax(1).clamp(_LEAST, 1 - _LEAST)
            said = p.detach()
            t = before[rows].lerp((said / said.sum(1, keepdim=True)).to(before.dtype), 1 - self.config.beta)
            moved.append(t)
            pull = torch.log(1 - (t * p).sum(1)).sum()
            loss = (cross_entropy(logits, targets[rows], reduction="sum") + self.config.weight * pull) / n
            loss.backward()
            return loss.detach()

        logits, loss, finite = self.plain_step(self.network_input(batch.x), n, backward)
        self.kept.write("t", index, torch.cat(moved), finite)
        return Outcome(logits, loss, finite)

    def explain(self) -> str:
        return "labels: fixed as given; predictions are held to a moving average of their own"
