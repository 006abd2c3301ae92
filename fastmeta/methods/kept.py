"""What a method's steps move beside models and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.methods.base import Context


class Kept:
    """Tensors and numbers by name, as attributes: saved and resumed with a run, see :meth:`Method.stateful`.

    `rows` are tables with one row for each sample of the training set; of several ranks, each has its own.
    """

    __slots__ = ("__dict__", "row_state")
    row_state: frozenset[str]

    def __init__(self, rows: Mapping[str, Tensor] | None = None, /, **values: Any) -> None:
        vars(self).update(rows or {}, **values)
        object.__setattr__(self, "row_state", frozenset(rows or ()))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"nothing is kept as {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self):
            raise AttributeError(f"nothing is kept as {name!r}")
        vars(self)[name] = value

    def write(self, name: str, index: Tensor, rows: Tensor, finite: Tensor) -> None:
        """Rows of the table `name` at `index` (n,) become `rows` (n, ...); not in a step that was not `finite` (0-d),
        and not where an entry is not finite. It waits for no device."""
        table = vars(self)[name]
        table[index] = torch.where(finite & rows.isfinite(), rows, table[index])

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, Tensor):
                vars(self)[name].copy_(value)
            else:
                setattr(self, name, value)


def table_dtype(model: nn.Module) -> torch.dtype:
    """Of tables beside `model`: float64 for one in float64, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32


class OwnRows(NamedTuple):
    """Which rows of the training set a rank has: its first one, and how many there are in all."""

    first: int
    in_all: int


def rows_of(context: Context) -> OwnRows:
    """Those of the rank that asks; all ranks ask together."""
    sizes = context.ranks.each(len(context.targets))
    return OwnRows(sum(sizes[: context.ranks.rank]), sum(sizes))
