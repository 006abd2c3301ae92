"""u by a central difference of the logits, inexact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State
from fastmeta.meta.tangents.plan import Tangent, arithmetic_of


def difference_tangent(network: Network, state: State, x: Any, direction: Tensors, random: RandomState) -> Tangent:
    """u by (z(theta + e d) - z(theta - e d)) / 2e, inexact.

    e moves the parameters by a fixed fraction of their norm, the cube root of the rounding error of the logits: there
    the truncation error e^2 and the rounding error / e meet. The logits between the two differ from those at theta by
    curvature, far less than the two from each other; in 16 bits e is too large to say so.
    """
    with torch.no_grad():
        names = list(direction)
        params = {name: p.detach() for name, p in network.params.items()}
        base = [params[name] for name in names]
        steps = [direction[name] for name in names]
        size = _norm(base)
        length = _norm(steps)
        e = (
            torch.finfo(arithmetic_of(base[0])).eps ** (1 / 3)
            * torch.where(size > 0, size, 1.0)
            / torch.where(length > 0, length, 1.0)
        )
        moved = torch._foreach_mul(steps, e)

        def logits_at(theta: tuple[Tensor, ...]) -> Tensor:
            scratch = state.clone()
            with random.replay():
                return network({**params, **dict(zip(names, theta, strict=True))}, scratch, x)

        ahead = logits_at(torch._foreach_add(base, moved))
        behind = logits_at(torch._foreach_sub(base, moved))
        coarse = torch.finfo(arithmetic_of(base[0])).bits < 32
        spread = torch.inf if coarse else (ahead - behind).norm() / 4
        return Tangent((ahead - behind) / (2 * e), (ahead + behind) / 2, spread)


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).norm()
