"""Activation checkpointing, and all else that runs a part of the forward again in its backward.

Such a part must run on the weights that it ran on first. At theta* these are not the model's own: read there, the
gradient would be that of neither theta* nor theta, and the model's own running statistics would move; nothing raises.
So every backward runs while the model holds what its forward was given
(:meth:`fastmeta.functional.network.Network.held`), in copies of the buffers that its forward began with. torch itself
stays as it is.

What re-enters autograd to do so (``use_reentrant=True``) is refused: its inner backward drops the terms that a second
derivative needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import checkpoint
from torch.utils._pytree import tree_map

from fastmeta.functional.network import Network
from fastmeta.functional.random_state import RandomState


def refuse_reentrant(network: Network, logits: Tensor, x: Any, random: RandomState) -> None:
    """RuntimeError if a part of the forward that gave `logits` is checkpointed by re-entering autograd.

    Its node in the graph tells. There is none where nothing that the part was called with requires a gradient, such as
    the first layers, which torch then leaves without one: so where a parameter is not reached, `x` gets one to see.
    """
    nodes = list(_nodes(logits))
    reached = {id(n.variable) for n in nodes if hasattr(n, "variable")}
    if not all(id(p) in reached for p in network.params.values()):
        with random.replay():
            # no leaf, which must not be written into
            seen = tree_map(lambda t: t.detach().requires_grad_().clone() if _differentiable(t) else t, x)
            nodes += _nodes(network(network.params, network.state(), seen))
    if any(map(_reenters, nodes)):
        raise RuntimeError(
            "the model uses reentrant activation checkpointing, whose meta-gradient is silently wrong; "
            "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


def is_reentrant(logits: Tensor) -> bool:
    """Whether a part of the forward that gave `logits` is seen to re-enter autograd."""
    return any(map(_reenters, _nodes(logits)))


def _reenters(node: Node) -> bool:
    return type(node).__name__ == "CheckpointFunctionBackward"  # torch's, and so do others call theirs


@contextmanager
def tangents_pass() -> Iterator[None]:
    """Inside of a dual level, a checkpointed part of a forward under no_grad hands tangents on.

    Before 2.14 torch keeps the inputs of such a part by a function that has no rule for tangents, also where it keeps
    nothing. It gets one for a while: the class is private, and there is no other place to say it.
    """
    keeper: Any = vars(checkpoint).get("_NoopSaveInputs")
    if keeper is None or "jvp" in vars(keeper):
        yield
        return
    keeper.jvp = staticmethod(lambda ctx, *tangents: torch.empty((0,)))
    try:
        yield
    finally:
        del keeper.jvp


def _differentiable(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()


def _nodes(output: Tensor) -> Iterator[Node]:
    """Every node of the autograd graph behind `output`."""
    seen: set[Node | None] = {None}
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)
