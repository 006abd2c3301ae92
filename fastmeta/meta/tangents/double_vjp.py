"""u by double-vjp: u = d<J'v, g>/dv through the kept train graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reverse_tangent(grads: Sequence[Tensor | None], v: Tensor, direction: Sequence[Tensor | None]) -> Tensor:
    """u by double-vjp: `grads` = J'v was made with create_graph from the leaf `v`, in which it is linear."""
    pairs = [(a, b) for a, b in zip(grads, direction, strict=True) if a is not None and b is not None]
    pairs = [(a, b) for a, b in pairs if a.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    # the train graph is needed once more, by the backward of the new labels
    (u,) = torch.autograd.grad([a for a, _ in pairs], v, [b for _, b in pairs], retain_graph=True, allow_unused=True)
    return torch.zeros_like(v) if u is None else u
