"""The data-driven mentor of MentorNet (Jiang et al., 2018): a small net that tells right labels from wrong ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

#: of the fit: full batches, Adam's rate, what is left of it after each tenth, and the largest norm of a gradient
STEPS, RATE, LEFT, MOST = 500, 0.1, 0.9, 5.0


class Rows(NamedTuple):
    """Pairs of a sample and a label, with how much each counts."""

    losses: Tensor  # (r,) float32
    above: Tensor  # (r,) the loss less the moving average of the batches' quantile
    labels: Tensor  # (r,) int64
    right: Tensor  # (r,) bool
    weight: Tensor  # (r,)


def pairs(log_q: Tensor, y: Tensor, average: Tensor) -> Rows:
    """Each clean row with each label, from log-probabilities (M, C) of a network that was trained on the given labels.

    A pair (i, k) counts as much as T[y_i, k], the mean of q_k over the clean rows of class y_i: an estimate of how many
    samples of that class are labelled k, as such a network sees it. Pairs that are not finite are left out.
    """
    m, c = log_q.shape
    of_class = torch.zeros(c, c, dtype=log_q.dtype, device=y.device).index_add_(0, y, log_q.exp())
    count = torch.zeros(c, dtype=log_q.dtype, device=y.device).index_add_(0, y, torch.ones_like(log_q[:, 0]))
    noise = of_class / count.clamp(min=1).unsqueeze(1)
    labels = torch.arange(c, device=y.device).expand(m, c)
    right = labels == y.unsqueeze(1)
    table = (-log_q, -log_q - average, labels, right, noise[y])
    losses, above, labels, right, weight = (t.reshape(-1) for t in table)
    sound = losses.isfinite() & weight.isfinite()
    return Rows(losses[sound].float(), above[sound].float(), labels[sound], right[sound], weight[sound].float())


class Mentor(nn.Module):
    """Logits of [the label is right], of a loss, how far it is above the threshold, a label and the percent of a run.

    One step of a two-way LSTM with one unit each way over (loss, above), from nothing: of such a step the cells are
    sigmoid(input gate) tanh(candidate), and nothing else of it counts. The cells, an embedding (2) of the label and a
    frozen one (5) of the percent go through 20 units with tanh.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.label, self.percent = nn.Embedding(num_classes, 2), nn.Embedding(100, 5).requires_grad_(False)
        self.gates, self.candidates = nn.Linear(2, 2), nn.Linear(2, 2)  # of both ways
        self.hidden, self.out = nn.Linear(9, 20), nn.Linear(20, 1)

    def forward(self, losses: Tensor, above: Tensor, labels: Tensor, percent: int) -> Tensor:
        x = torch.stack([losses, above], 1).float()
        cells = self.gates(x).sigmoid() * self.candidates(x).tanh()
        at = self.percent.weight[percent].expand(len(losses), -1)
        made: Tensor = self.out(self.hidden(torch.cat([self.label(labels), at, cells], 1)).tanh())
        return made.squeeze(1)

    def fit(self, rows: Rows, percent: int) -> bool:
        """Cross-entropy over `rows` with Adam; False, and nothing has moved, where that goes nowhere finite."""
        before = {k: t.clone() for k, t in self.state_dict().items()}
        params = [p for p in self.parameters() if p.requires_grad]
        adam = torch.optim.Adam(params, lr=RATE)
        rate = torch.optim.lr_scheduler.StepLR(adam, STEPS // 10, LEFT)
        target, weight = rows.right.float(), rows.weight / rows.weight.mean()
        with torch.enable_grad():
            for _ in range(STEPS):
                adam.zero_grad()
                logits = self(rows.losses, rows.above, rows.labels, percent)
                loss = binary_cross_entropy_with_logits(logits, target, weight)
                if not bool(loss.isfinite()):
                    break
                loss.backward()
                nn.utils.clip_grad_norm_(params, MOST)
                adam.step()
                rate.step()
        sound = bool(loss.isfinite()) and all(bool(p.isfinite().all()) for p in params)
        if not sound:
            self.load_state_dict(before)
        adam.zero_grad()  # nothing of it stays
        return sound
