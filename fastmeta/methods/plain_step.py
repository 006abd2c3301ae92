"""A training step as everybody takes it, under any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.distributed import ALONE, Ranks
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.functional.finite import all_finite, stay_finite
from fastmeta.functional.network import Network
from fastmeta.meta.micro import pieces_of
from fastmeta.meta.update import update


class PlainStep:
    """theta <- a step of the optimizer along the gradient of a mean loss.

    A batch of more than `micro_batch` rows is taken in pieces, whose gradients are added up. A step whose loss,
    gradient or new running statistics are not finite changes nothing, as with learned labels.

    Over `ranks`, each with equally many rows of the batch, the mean is that of all: one all-reduce of the gradient,
    the loss and whether the statistics are finite.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, micro_batch: int | None, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.optimizer, self.micro_batch, self.ranks = model, optimizer, micro_batch, ranks
        self.network = Network(model, [p for group in optimizer.param_groups for p in group["params"]])

    def __call__(self, x: Any, n: int, backward: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, C) before the step, the mean loss, and whether all was finite.

        `backward` is given the logits of some rows of the batch, takes the backward of their share of the mean loss
        over this rank's rows, and gives that share, 0-d and detached.
        """
        self.optimizer.zero_grad(set_to_none=True)
        # the model runs as it is, on its own weights and buffers: as a function of them it would take 5% longer
        before = self.network.state()
        made: list[Tensor] = []
        loss: Tensor | None = None
        whole = self.micro_batch is None or n <= self.micro_batch
        for rows in pieces_of(n, self.micro_batch):
            logits = pick_logits(call_model(self.model, x if whole else x[rows]))
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            part = backward(logits, rows)
            made.append(logits.detach())
            loss = part if loss is None else loss + part
        assert loss is not None
        grads = {name: p.grad for name, p in self.network.params.items() if p.grad is not None}
        after = self.network.state()
        self.network.write_state(before)
        sound = stay_finite(before, after)
        if self.ranks.size > 1:
            lost = torch.zeros_like(loss)  # NaN where the statistics of a rank are not finite
            for flag in sound:
                lost = torch.where(flag, lost, torch.nan)
            loss, lost, *reduced = self.ranks.mean([loss, lost, *grads.values()])
            grads, sound = dict(zip(grads, reduced, strict=True)), [lost.isfinite()]
        finite = all_finite([loss, *grads.values()])
        for flag in sound:
            finite = finite & flag
        if finite.is_cuda or bool(finite):
            update(self.network, self.optimizer, grads, after, keep=finite if finite.is_cuda else None)
        return torch.cat(made) if len(made) > 1 else made[0], loss, finite
