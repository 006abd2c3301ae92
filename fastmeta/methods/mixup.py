"""Mixup (Zhang et al., 2018): a network is trained on mixtures of pairs of samples."""

from __future__ import annotations

import torch
from torch import Tensor


class Mixup:
    """x_i <- a x_i + (1 - a) x_j and loss_i <- a loss(z_i, label_i) + (1 - a) loss(z_i, label_j), of one batch.

    a ~ Beta(alpha, alpha), one for the batch; j is a permutation of its rows. Both are drawn from torch's generator of
    the host, which is part of a run's state; each of several ranks mixes its own rows. Without alpha all stays
    as it is.
    """

    def __init__(self, alpha: float | None) -> None:
        self.alpha = alpha

    def __call__(self, x: Tensor) -> tuple[Tensor, Pairs]:
        """The mixed network input (n, ...), and what to do with the losses."""
        if self.alpha is None:
            return x, Pairs(1.0, None)
        # in float64, where a small alpha does not make 0 / 0 of its two draws
        alpha = torch.tensor(self.alpha, dtype=torch.float64)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        partner = torch.randperm(len(x)).to(x.device)
        return x.lerp(x[partner], 1 - share), Pairs(share, partner)


class Pairs:
    """How much of its own label each row of a batch has, and whose it has beside."""

    def __init__(self, share: float, partner: Tensor | None) -> None:
        self.share, self.partner = share, partner

    def of(self, labels: Tensor, rows: slice) -> list[Tensor]:
        """Of `labels` (n, ...) of the whole batch, those of `rows`, and those of their partners if there are any."""
        own = labels[rows]
        return [own] if self.partner is None else [own, labels[self.partner[rows]]]

    def mix(self, terms: list[Tensor]) -> Tensor:
        """The terms of both, in their shares."""
        return terms[0] if self.partner is None else self.share * terms[0] + (1 - self.share) * terms[1]
