"""A weight for each sample by a net of its loss."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta._numbers import as_whole, shown
from fastmeta.distributed import Ranks
from fastmeta.losses.labels import check_targets
from fastmeta.losses.learnable_loss import LearnableLoss

#: what the weights of a batch are divided by: the number of its rows, or their own sum
Normalise = Literal["n", "sum"]


class WeightingNet(LearnableLoss):
    """l_i = w_i CE(z_i, y_i), or n w_i / sum_j w_j CE(z_i, y_i), with w_i = sigmoid(net(CE_i)) in (0, 1).

    The net is 1 - `hidden` - 1 with ReLU, its input the sample's loss, constant. With ``normalise="n"`` the mean loss
    of a batch is (1/n) sum_i w_i CE_i: a net that doubts everything also takes short steps. With ``"sum"`` it is
    sum_i w_i CE_i / sum_j w_j, whose gradient goes through the sum too.
    Shu, Xie, Yi, Zhao, Zhou, Xu, Meng, *Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting*, 2019,
    Eqs. (3) to (6).

        loss = fastmeta.WeightingNet(targets, num_classes)
        adam = torch.optim.Adam(loss.parameters(), lr=1e-3, weight_decay=1e-4)
        step = fastmeta.MetaStep(model, loss, optimizer, loss_optimizer=adam)

    The net is float32, whatever the logits are; ``loss.double()`` makes it float64.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        hidden: units of the hidden layer.
        normalise: "n" or "sum".
        process_group: that of the step: the sum is then over the rows of all ranks, which have equally many each. Else
            each rank takes the sum of its own rows.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; hidden below 1; another normalise.
    """

    targets: Tensor
    num_classes: int

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        hidden: int = 100,
        normalise: Normalise = "n",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        targets, self.num_classes = check_targets(targets, num_classes)
        units = as_whole(hidden)
        if units is None or units < 1:
            raise ValueError(f"hidden must be a whole number from 1 on, got {shown(hidden)}")
        if normalise not in get_args(Normalise):
            raise ValueError(f"normalise must be n or sum, got {shown(normalise)}")
        self.normalise: Normalise = normalise
        self._ranks = Ranks(process_group)
        self.register_buffer("targets", targets)
        net = nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1), nn.Sigmoid())
        self.net = net.to(targets.device)

    def weight(self, losses: Tensor) -> Tensor:
        """Weights (n,) in (0, 1) of samples with these losses (n,), before a batch is normalised."""
        wide = next(self.net.parameters()).dtype
        weight: Tensor = self.net(losses.detach().to(wide).unsqueeze(1)).squeeze(1)
        return weight.to(losses.dtype)

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Weighted loss (n,) of each sample."""
        losses = cross_entropy(logits, self.targets[index], reduction="none")
        weight = self.weight(losses)
        if self.normalise == "sum":
            # a sum of sigmoids is 0 where all of them underflow: the weights are then 0, as they are
            total = self._ranks.sum_through(weight.sum())
            weight = weight * (len(weight) * self._ranks.size / torch.where(total > 0, total, 1.0))
        return weight * losses

    def extra_repr(self) -> str:
        return f"N={len(self.targets)}, num_classes={self.num_classes}, normalise={self.normalise}"
