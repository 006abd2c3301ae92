"""The two places (and the ordinary third) where a meta step talks to other ranks. No autograd through collectives.

With W ranks, each holding n rows of a train batch of W n and m rows of a meta batch of W m, the look-ahead gradient and
the meta gradient g are averaged; the tangent u = J g is then local to each rank's own rows. The update's gradient is
averaged as in any data-parallel training. BatchNorm keeps the statistics of its rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

if dist.is_available():
    # Its functions have group.WORLD of the moment of the import as a default argument. Torch imports it by itself with
    # the first optimizer; if that comes after init_process_group, the group and its threads live to the end of the
    # interpreter, which they can abort. Before any group the default is None. (2 ms.)
    import torch.distributed.nn.functional


class Ranks:
    """Collectives over `group`, or nothing at all for ``None`` and a group of one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def share(self, size: int) -> tuple[int, int]:
        """First and one past the last of `size` rows that this rank has: contiguous, as torch.chunk cuts them."""
        return self.shares(size)[self.rank]

    def shares(self, size: int) -> list[tuple[int, int]]:
        """The same of every rank."""
        each = -(-size // self.size)
        return [(min(rank * each, size), min((rank + 1) * each, size)) for rank in range(self.size)]

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """The average over ranks of each tensor, in one all-reduce per dtype."""
        if self.size == 1 or not tensors:
            return tensors
        out: list[Tensor] = list(tensors)
        for dtype in {t.dtype for t in tensors}:
            where = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            members = [tensors[i] for i in where]
            flat = _flatten_dense_tensors(members)
            dist.all_reduce(flat, group=self.group)
            flat /= self.size
            for i, t in zip(where, _unflatten_dense_tensors(flat, members), strict=True):
                out[i] = t
        return out

    def sum(self, tensor: Tensor) -> Tensor:
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all(self, flag: Tensor) -> Tensor:
        """Whether a 0-d bool holds on every rank."""
        if self.size == 1:
            return flag
        votes = flag.to(torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self.group)
        return votes.bool()

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's rows, in the order of the ranks; equal sizes."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts)


#: of a process by itself
ALONE = Ranks(None)
