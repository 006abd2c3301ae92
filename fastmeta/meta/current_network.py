"""The model as a function, from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta.functional.fsdp_units import reshard
from fastmeta.functional.network import Network
from fastmeta.functional.sharded_network import network_of
from fastmeta.meta.demands import check_parameters


class CurrentNetwork:
    """Made anew when parameters were frozen, unfrozen or given to the optimizer, and when a module or a parameter was
    replaced.

    Attributes:
        last: what the last call gave; None before the first.
    """

    def __init__(self) -> None:
        self.last: Network | None = None
        self._key: tuple[tuple[int, bool], ...] = ()

    def __call__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, logits_of: Callable[[Any], Tensor] | None
    ) -> Network:
        network = self.last
        if network is not None and network.sharded:
            reshard(model)
        optimized = [p for group in optimizer.param_groups for p in group["params"]]
        key = tuple([(id(p), p.requires_grad) for p in optimized])  # a list: a generator is a call for each of them
        if network is None or self._key != key or not (network.whole and network.stands()):
            if network is not None:
                check_parameters(model, optimizer)
            network = self.last = network_of(model, optimized, logits_of)
            self._key = key
        return network
