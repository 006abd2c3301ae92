"""u by dual numbers: one more forward with tangents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.state import State
from fastmeta.functional.turns import dual_level
from fastmeta.meta.tangents.plan import Tangent


def forward_tangent(network: Network, state: State, x: Any, direction: Tensors) -> Tangent:
    """u by dual numbers; `state` is scratch."""
    with torch.no_grad(), dual_level():
        params = dict(network.params)
        for name, t in direction.items():
            params[name] = forward_ad.make_dual(params[name], t)
        logits, u = forward_ad.unpack_dual(network(params, state, x))
        return Tangent(torch.zeros_like(logits) if u is None else u, logits)


def forward_with_graph(network: Network, state: State, x: Any, direction: Tensors) -> tuple[Tensor, Tensor]:
    """Logits with their graph, and u, from one forward with dual numbers; `state` is scratch.

    So no train graph has to be held while the meta graph is there. Autograd records the arithmetic of the tangents too,
    which nobody differentiates: what only that would keep is dropped, half of it all (ResNet-20 on 32 images: 93 MiB
    and not 185, where the graph alone is 46 and the other half are tangents of what it keeps).
    """
    with dual_level(), saved_tensors_hooks(_keep, _kept):
        tangents = {k: direction[k] if k in direction else torch.zeros_like(p) for k, p in network.params.items()}
        params = {k: forward_ad.make_dual(p, tangents[k]) for k, p in network.params.items()}
        logits, u = forward_ad.unpack_dual(network(params, state, x))
        return logits, torch.zeros_like(logits) if u is None else u.detach()


def _keep(saved: Tensor) -> Tensor | None:
    """What hangs on the parameters has a tangent (all of them have one), unless it belongs to the tangents itself."""
    value, tangent = forward_ad.unpack_dual(saved)
    return None if tangent is None and saved.grad_fn is not None else value.detach()


def _kept(saved: Tensor | None) -> Tensor:
    if saved is None:
        raise RuntimeError("a layer whose output has no tangent kept it for its backward")
    return saved
