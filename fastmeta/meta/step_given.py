"""What one step is made of, before anything is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastmeta.functional.network import Network
from fastmeta.meta.lookahead import Rate
from fastmeta.meta.tangents import TangentPlan


class Given(NamedTuple):
    """Model, rates and batches of one step."""

    network: Network
    plan: TangentPlan
    rates: tuple[Rate | None, Rate | None]  # of the labels: the rate or the greatest length, and the least norm
    train: tuple[Any, Tensor]  # x, index
    meta: tuple[Any, Tensor]  # x_meta, y_meta
    weight: Tensor | None
