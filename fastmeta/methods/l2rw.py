"""Learning to reweight examples (Ren et al., 2018): a weight for each sample of a batch, made anew in each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import BatchWeights
from fastmeta.meta import StepResult
from fastmeta.methods.base import Context, Outcome, Samples
from fastmeta.methods.learned_loss import LearnedLoss


class L2RW(LearnedLoss):
    """:class:`fastmeta.BatchWeights`: w_i = max(<q_i - y_i, u_i>, 0) over their sum, of one meta-gradient at theta.

    A batch in which no sample pulls with the clean one has the weights 0, as in the paper: the model then moves by
    momentum and weight decay alone. There is nothing to tune.
    """

    counts_itself: ClassVar[bool] = False  # the loss as it is when a step begins is 0

    def make_loss(self, context: Context) -> BatchWeights:
        return BatchWeights(context.targets, context.num_classes)

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.tally = Tally(context.device, context.ranks)

    def stateful(self) -> Mapping[str, Any]:
        return {**super().stateful(), "tally": self.tally}

    def outcome(self, result: StepResult) -> Outcome:
        self.tally.add(result)
        return super().outcome(result)._replace(train_loss=result.loss.mean())

    def end_epoch(self, samples: Samples) -> None:
        self.tally.close()

    def figures(self) -> Mapping[str, Any]:
        return self.tally.last

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        if config.approx == "delayed" or config.approx.startswith("every"):
            raise ValueError(
                f"approx={config.approx} trains on the loss of an earlier step, and method={config.method} makes its "
                "weights anew in each; take none, last:L or difference"
            )
        if config.labels.lookahead == "optimizer":
            raise ValueError(
                f"labels.lookahead=optimizer moves a model on, and method={config.method} takes the meta-gradient "
                "where all weights are 0, at the model itself; leave it out"
            )


class Tally:
    """How many samples of an epoch had a weight, and how many batches had none at all; sums stay on the device.

    Batches are those of all ranks, which have equally many rows of each.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # rows, of these weighted; batches, without
        self.last: dict[str, float | None] = {"rows_weighted": None, "batches_without": None}

    def add(self, result: StepResult) -> None:
        pulls = self._ranks.sum((result.alignment > 0).sum().to(torch.float64))
        one = torch.ones_like(pulls)
        self.sums += torch.stack(
            [one * len(result.alignment) * self._ranks.size, pulls, one, (pulls == 0).to(torch.float64)]
        )

    def close(self) -> None:
        """At the end of an epoch; waits for the device."""
        rows, weighted, batches, without = self.sums.tolist()
        self.last = {
            "rows_weighted": weighted / rows if rows else None,
            "batches_without": without / batches if batches else None,
        }
        self.sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone(), "last": dict(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])
        self.last = dict(state["last"])
