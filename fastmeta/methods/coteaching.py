"""Co-teaching (Han et al., 2018): two networks pick the samples of small loss for each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, at_least, within
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.methods.base import Batch, Context, Method, Outcome, Samples
from fastmeta.methods.kept import Kept
from fastmeta.methods.plain_step import PlainStep


class Coteaching(Method):
    """Two networks with initial weights of their own; each takes the rows of small loss that the other has picked.

        R = forget_rate min(t / ramp_epochs, 1)                         t epochs are done
        K_a = the max(1, floor((1 - R) n)) rows of smallest loss of network a
        loss of a = mean over K_b of -log q^a_iy,  and the other way round

    Both steps are taken, or neither. The first network is the run's model: it is evaluated, and predicts.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"ranks"})

    @dataclass(frozen=True)
    class Config:
        forget_rate: float | None = None
        """Share of each batch that is left out in the end, in [0, 1); by default the share of wrong labels that the
        run's own noise has made."""
        ramp_epochs: int = 10
        """Epochs over which that share grows from zero."""

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        rate = config.options.forget_rate
        within("method.forget_rate", rate, 0, 1, high_open=True)
        at_least("method.ramp_epochs", config.options.ramp_epochs, 1)
        if rate is None and num_classes is not None and config.noise == "none":
            raise InputError(
                "method=coteaching leaves out as many samples as have wrong labels, which nobody knows where the run "
                "adds no noise; give method.forget_rate, such as 0.2"
            )

    def setup(self, context: Context) -> None:
        self.model, self.second = context.model(), context.model("second")
        self.targets, self.network_input = context.targets, context.network_input
        own = self.config
        rate = context.noise_rate if own.forget_rate is None else own.forget_rate
        assert rate is not None
        self.forget_rate = min(rate, 1.0)
        pair = _Pair(self.model, self.second)
        optimizer = context.optimizer(p for p in pair.parameters() if p.requires_grad)
        self.plain_step, self.ranks = PlainStep(pair, optimizer, None, context.ranks), context.ranks
        self.kept = Kept(epochs_done=0)

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"coteaching": self.kept}

    def end_epoch(self, samples: Samples) -> None:
        self.kept.epochs_done = samples.epoch

    def forgotten(self) -> float:
        """The share R of this epoch."""
        return float(self.forget_rate * min(self.kept.epochs_done / self.config.ramp_epochs, 1.0))

    def step(self, batch: Batch) -> Outcome:
        targets, n = self.targets[batch.index], len(batch.index)
        size = self.ranks.size  # rows of all ranks are one batch
        count = max(1, int((1 - self.forgotten()) * n * size + 1e-9))  # 0.7 * 10 is not quite 7
        of_first: list[Tensor] = []

        def backward(logits: Tensor, rows: slice) -> Tensor:
            both = logits.chunk(2, 1)
            losses = [cross_entropy(z, targets, reduction="none") for z in both]
            small = [self._smallest(loss.detach(), count) for loss in losses]
            exchanged = [losses[k][small[1 - k]].sum() * (size / count) for k in range(2)]
            of_first.append(exchanged[0].detach())
            loss = exchanged[0] + exchanged[1]  # of networks that share nothing: each follows its own term
            loss.backward()
            return loss.detach()

        # in a list, which reaches forward as it is
        logits, _, finite = self.plain_step([self.network_input(batch.x)], n, backward)
        return Outcome(logits.chunk(2, 1)[0], of_first[0], finite)

    def _smallest(self, losses: Tensor, count: int) -> Tensor:
        """Which of this rank's rows are among the `count` of smallest loss of all ranks."""
        n = len(losses)
        if self.ranks.size == 1:
            return losses.argsort(stable=True)[:count]
        rows = self.ranks.gather(losses).argsort(stable=True)[:count] - self.ranks.rank * n
        return rows[(rows >= 0) & (rows < n)]

    def figures(self) -> Mapping[str, Any]:
        return {"forgotten": self.forgotten()}

    def explain(self) -> str:
        own = self.config
        return (
            f"labels: fixed as given; two networks leave out {self.forget_rate:.1%} of each batch, from zero over "
            f"{own.ramp_epochs} epochs; the first one predicts"
        )


class _Pair(nn.Module):
    """Logits (n, 2 C) of two networks side by side: one step moves both or neither."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, boxed: list[Any]) -> Tensor:
        (x,) = boxed
        return torch.cat([pick_logits(call_model(model, x)) for model in (self.first, self.second)], 1)
