"""Fixed labels: the given class with probability one, plain cross-entropy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.finite import all_finite, stay_finite
from fastmeta.functional.network import Network
from fastmeta.meta.micro import pieces_of
from fastmeta.meta.update import update
from fastmeta.methods.base import Batch, Context, Method, Outcome


class OneHot(Method):
    """theta <- a step of the optimizer along the gradient of the mean cross-entropy with the given labels.

    A batch of more than `micro_batch` rows is taken in pieces, whose gradients are added up. A step whose loss,
    gradient or new running statistics are not finite changes nothing, as with learned labels.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch"})

    def setup(self, context: Context) -> None:
        self.model = context.model()
        self.optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.targets, self.network_input = context.targets, context.network_input
        self.micro_batch = context.config.micro_batch
        self.network = Network(self.model, [p for group in self.optimizer.param_groups for p in group["params"]])

    def predictor(self) -> nn.Module:
        return self.model

    def step(self, batch: Batch) -> Outcome:
        x = self.network_input(batch.x)
        n, targets = len(batch.index), self.targets[batch.index]
        self.optimizer.zero_grad(set_to_none=True)
        # the model runs as it is, on its own weights and buffers: as a function of them it would take 5% longer
        before = self.network.state()
        made: list[Tensor] = []
        loss: Tensor | None = None
        whole = self.micro_batch is None or n <= self.micro_batch
        for rows in pieces_of(n, self.micro_batch):
            logits = pick_logits(call_model(self.model, x if whole else x[rows]))
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            part = cross_entropy(logits, targets[rows])
            if len(logits) < n:
                part = part * (len(logits) / n)
            part.backward()
            made.append(logits.detach())
            loss = part.detach() if loss is None else loss + part.detach()
        assert loss is not None
        grads = {name: p.grad for name, p in self.network.params.items() if p.grad is not None}
        after = self.network.state()
        self.network.write_state(before)
        finite = all_finite([loss, *grads.values()])
        for flag in stay_finite(before, after):
            finite = finite & flag
        if finite.is_cuda or bool(finite):
            update(self.network, self.optimizer, grads, after, keep=finite if finite.is_cuda else None)
        return Outcome(torch.cat(made) if len(made) > 1 else made[0], loss, finite)
