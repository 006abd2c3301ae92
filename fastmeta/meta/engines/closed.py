"""A step of a chain of linear layers: every pass a few products, and no graph at all.

Nothing of such a model moves in a forward or draws a number, so that it has no state and no generators either.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmeta.functional.chain import Chain
from fastmeta.functional.network import Network, Tensors
from fastmeta.functional.state import State
from fastmeta.losses.head import Head
from fastmeta.meta.algorithm import TrainGradient
from fastmeta.meta.meta_batch import check_meta_logits, cross_entropy
from fastmeta.meta.micro import check_logits


class Closed:
    """The forward of the train batch, held for all that the step asks."""

    def __init__(self, network: Network, chain: Chain, x: Tensor, index: Tensor, num_classes: int | None) -> None:
        self.network, self.state = network, State({})
        self._chain, self._x, self._n, self._num_classes = chain, x, index.shape[0], num_classes

    def gradient(self, head: Head, names: list[str], *, last: bool = False) -> TrainGradient:
        self._pass = there = self._chain.forward(self.network.params, self._x)
        check_logits(there.logits, self._n, self._num_classes)
        before = head.loss(there.logits)
        return TrainGradient(there.logits, before, there.pull(before.v / self._n, names), [])

    def meta_gradient(self, ahead: Tensors, names: list[str], x: Any, y: Tensor) -> tuple[Tensor, Tensors]:
        there = self._chain.forward(ahead, x)
        check_meta_logits(there.logits, y)
        loss, v = cross_entropy(there.logits, y, self._num_classes)
        return loss, there.pull(v, names)

    def tangent(self, direction: Tensors) -> Tensor:
        return self._pass.push(direction)

    def pull(self, v: Tensor) -> Tensors:
        return self._pass.pull(v, list(self.network.params))

    def same(self) -> Tensor | None:
        return None
