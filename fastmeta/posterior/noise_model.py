"""Class-conditional label noise: a transition matrix, fitted to given labels by EM, and the posterior under it.

    T[c, k]         = P(given = k | true = c)
    P(c | x_i, k)   ~ q_i(c) T[c, k]                   k the given label of row i, q_i the class by its sample alone
    E: r_i = P(. | x_i, y_i);    M: T[c, k] ~ sum_{i: y_i = k} r_i(c) + trust (N/C) [c = k]

The term of `trust` is a Dirichlet prior on each row of T: given labels count as right until the samples say otherwise.
Each round raises sum_i log sum_c q_i(c) T[c, y_i] plus the log prior (Dempster, Laird, Rubin 1977; for label noise:
Dawid and Skene 1979).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmeta.distributed import ALONE, Ranks

#: rows at a time
_CHUNK = 65536
#: EM ends when no entry of T moves by more
_TOLERANCE = 1e-6


def fit_transition(
    predicted: Tensor, given: Tensor, trust: float = 0.2, rounds: int = 200, ranks: Ranks = ALONE
) -> Tensor:
    """T (C, C) float64, rows true classes, columns given ones, each row with the sum 1.

    Args:
        predicted: (N, C) q_i(c), which knows nothing of the row's given label; rows with the sum 1.
        given: (N,) int64.
        trust: weight of the prior beside the data, >= 0.
        rounds: most rounds of EM.
        ranks: who else has rows; all get the T of all rows.
    """
    classes = predicted.shape[1]
    size = ranks.sum(torch.tensor(len(given), device=predicted.device))
    prior = torch.eye(classes, dtype=torch.float64, device=predicted.device) * (trust * int(size) / classes)
    start = torch.eye(classes, dtype=torch.float64, device=predicted.device)
    transition = 0.7 * start + 0.3 / classes
    for _ in range(rounds):
        counts = torch.zeros_like(transition)
        for q, y in zip(predicted.split(_CHUNK), given.split(_CHUNK), strict=True):
            r = posterior(q, y, transition)
            # a product and not index_add_, whose float atomics differ from run to run on CUDA
            counts += r.T @ torch.nn.functional.one_hot(y, classes).to(r.dtype)
        counts = ranks.sum(counts) + prior
        total = counts.sum(1, keepdim=True)
        # a class that no row may have keeps its labels
        new = torch.where(total > 0, counts / total.clamp_min(torch.finfo(torch.float64).tiny), start)
        moved, transition = float((new - transition).abs().max()), new
        if moved < _TOLERANCE:
            break
    return transition


def posterior(predicted: Tensor, given: Tensor, transition: Tensor) -> Tensor:
    """P(c | x_i, y_i) (N, C) float64. A given label that T and q hold to be impossible leaves q as it is."""
    q = predicted.double()
    joint = q * transition.T[given]
    total = joint.sum(1, keepdim=True)
    return torch.where(total > 0, joint / total.clamp_min(torch.finfo(torch.float64).tiny), q)
