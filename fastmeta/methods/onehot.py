"""Fixed labels: the given class with probability one, plain cross-entropy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.plain_step import PlainStep


class OneHot(Method):
    """Plain steps along the gradient of the mean cross-entropy with the given labels."""

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch"})

    def setup(self, context: Context) -> None:
        self.model = context.model()
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.targets, self.network_input = context.targets, context.network_input
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch)

    def predictor(self) -> nn.Module:
        return self.model

    def step(self, batch: Batch) -> Outcome:
        n, targets = len(batch.index), self.targets[batch.index]

        def backward(logits: Tensor, rows: slice) -> Tensor:
            part = cross_entropy(logits, targets[rows])
            if len(logits) < n:
                part = part * (len(logits) / n)
            part.backward()
            return part.detach()

        return Outcome(*self.plain_step(self.network_input(batch.x), n, backward))
