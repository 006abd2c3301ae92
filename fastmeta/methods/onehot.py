"""Fixed labels: the given class with probability one, plain cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.meta.micro import pieces_of
from fastmeta.meta.network import pick_logits
from fastmeta.methods.base import Batch, Method, Outcome


class OneHot(Method):
    """theta <- SGD step along the gradient of the mean cross-entropy with the given labels.

    A batch of more than `micro_batch` rows is taken in pieces, whose gradients are added up.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        targets: Tensor,
        num_classes: int,
        *,
        micro_batch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, targets, num_classes, **options)
        self.micro_batch = micro_batch

    def step(self, batch: Batch) -> Outcome:
        x = self.transform(batch.x, self.transform.tensors)
        n, targets = len(batch.index), self.targets[batch.index]
        self.optimizer.zero_grad(set_to_none=True)
        made: list[Tensor] = []
        loss: Tensor | None = None
        for rows in pieces_of(n, self.micro_batch):
            logits = pick_logits(self.model(x[rows])).float()
            part = cross_entropy(logits, targets[rows])
            if len(logits) < n:
                part = part * (len(logits) / n)
            part.backward()
            made.append(logits.detach())
            loss = part.detach() if loss is None else loss + part.detach()
        assert loss is not None
        self.optimizer.step()
        outcome = Outcome(torch.cat(made), loss, torch.isfinite(loss))
        self.sums.add(outcome, targets)
        return outcome
