"""A plain training step under learned labels as they are, which do not move."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.losses import Labels
from fastmeta.methods.base import Batch, Context, Outcome
from fastmeta.methods.mixup import Mixup
from fastmeta.methods.plain_step import PlainStep


class HeldLabelsStep:
    """theta <- a step of the optimizer along the gradient of the mean loss under `labels`."""

    def __init__(self, context: Context, model: nn.Module, labels: Labels, optimizer: torch.optim.Optimizer) -> None:
        self.labels, self.network_input = labels, context.network_input
        self.plain_step = PlainStep(model, optimizer, context.config.micro_batch, context.ranks)
        self.mixup = Mixup(context.config.mixup)

    def __call__(self, batch: Batch, smoothed: float | None = None) -> Outcome:
        """With `smoothed`, the loss is of the given labels, of which all classes alike have that share."""
        n, index = len(batch.index), batch.index
        entropy: list[Tensor] = []
        x, pairs = self.mixup(self.network_input(batch.x))

        def backward(logits: Tensor, rows: slice) -> Tensor:
            if smoothed is not None:
                entropy.append(torch.special.entr(self.labels.probs(index[rows])).sum(1))
                loss = partial(cross_entropy, logits, label_smoothing=smoothed, reduction="sum")
                part = pairs.mix([loss(self.labels.given(i)) for i in pairs.of(index, rows)]) / n
                part.backward()
                return part.detach()
            terms = [self.labels.batch_loss(logits.detach(), i) for i in pairs.of(index, rows)]
            logits.backward(pairs.mix([t.v for t in terms]) / n)
            entropy.append(terms[0].entropy)
            return pairs.mix([t.loss.sum() for t in terms]) / n

        outcome = self.plain_step(x, n, backward)
        return Outcome(*outcome, entropy=torch.cat(entropy) if len(entropy) > 1 else entropy[0])
