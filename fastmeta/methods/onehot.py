"""Fixed labels: the given class with probability one, plain cross-entropy."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from fastmeta.methods.base import Batch, Method, Outcome


class OneHot(Method):
    """theta <- SGD step along the gradient of the mean cross-entropy with the given labels."""

    def step(self, batch: Batch) -> Outcome:
        x = self.transform(batch.x, self.transform.tensors)
        logits, targets = self.model(x).float(), self.targets[batch.index]
        loss = cross_entropy(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        outcome = Outcome(logits.detach(), loss, torch.isfinite(loss))
        self.sums.add(outcome, targets)
        return outcome
