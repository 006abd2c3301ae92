"""Models under ``fully_shard`` beside the same models in whole, on the ranks of tests/support/ranks.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmeta
from tests.support import cases
from tests.support.meta import make_labels, optimizers

F64 = torch.float64


class Tied(nn.Module):
    """One embedding reads and writes; a block of it is checkpointed."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.table, self.body, self.out = nn.Embedding(c, 6), nn.Linear(6, 6), nn.Linear(6, c, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.utils.checkpoint.checkpoint(self._block, self.table(tokens).mean(1), use_reentrant=False)
        return self.out(h)

    def _block(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.body(h))


class Dropped(nn.Module):
    """Dropout, BatchNorm, a frozen layer and one that no optimizer has."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.frozen, self.alone = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.norm, self.head = nn.BatchNorm1d(9), nn.Linear(9, c)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.relu(self.norm(self.first(x))), 0.4, self.training)
        return self.head(torch.tanh(self.alone(self.frozen(h))))


cases.INPUTS.setdefault("tied", (Tied, lambda n: torch.randint(10, (n, 5))))
cases.INPUTS.setdefault("dropped", (Dropped, lambda n: torch.randn(n, 6)))


def shard(model: nn.Module, mesh: Any, how: str = "nested", **kw: Any) -> nn.Module:
    """fully_shard on each child and on the model ("nested"), on the model alone ("root"), or gathered for long."""
    from torch.distributed.fsdp import fully_shard

    kw = {"mesh": mesh, **kw}
    if how == "gathered":
        kw["reshard_after_forward"] = False
    for child in model.children() if how != "root" else ():
        if any(True for _ in child.parameters()):
            fully_shard(child, **kw)
    fully_shard(model, **kw)
    return model


def whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Plain tensors, gathered from all ranks."""
    return {k: t.full_tensor() if hasattr(t, "full_tensor") else t for k, t in tensors.items()}


def part(tensor: Tensor, rank: int, size: int) -> Tensor:
    return tensor.chunk(size)[rank]


def labelled(name: str, family: Any, *, dtype: Any = F64) -> tuple[cases.Case, Any]:
    case = cases.make(name, dtype=dtype)
    return case, make_labels(family, case) if dtype == F64 else family(case.targets, case.num_classes, 0.8, dtype=dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What the optimizer gets: all but the layers called `alone` and what is frozen."""
    return [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("alone")]


def built(case: cases.Case, labels: Any, optimizer: str = "plain", **kw: Any) -> fastmeta.MetaStep:
    sgd = optimizers(trained(case.model))[optimizer]
    return fastmeta.MetaStep(case.model, labels, sgd, **kw)
