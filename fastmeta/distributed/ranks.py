"""The two places (and the ordinary third) where a meta step talks to other ranks.

With W ranks, each holding n rows of a train batch of W n and m rows of a meta batch of W m, the look-ahead gradient and
the meta gradient g are averaged; the tangent u = J g is then local to each rank's own rows. The update's gradient is
averaged as in any data-parallel training. BatchNorm keeps the statistics of its rank. No autograd goes through these;
a loss whose rows depend on each other may sum through ranks, for its own parameters.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

if dist.is_available():
    # Its functions have group.WORLD of the moment of the import as a default argument. Torch imports it by itself with
    # the first optimizer; if that comes after init_process_group, the group and its threads live to the end of the
    # interpreter, which they can abort. Before any group the default is None. (2 ms.)
    import torch.distributed.nn.functional

T = TypeVar("T")


class Ranks:
    """Collectives over `group`, or nothing at all for ``None`` and a group of one.

    Args:
        side: a group of the same ranks by gloo, for what lies on the host; by default `group`.
        local: number of this rank on its machine, by which it has its device; None where nobody has numbered them.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, side: dist.ProcessGroup | None = None, local: int | None = None
    ) -> None:
        self.group, self.side, self.local = group, group if side is None else side, local
        #: the same ranks, for whom everything lies on the host
        self.host: Ranks = self if side is None else Ranks(side)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # the group of a copy is the same

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

    def least_share(self, size: int) -> int:
        """How many of `size` rows the rank has that has fewest."""
        return max(0, size - (self.size - 1) * -(-size // self.size))

    # -- tensors, on the device ---------------------------------------------------------------------------

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """The average over ranks of each tensor, in one all-reduce per dtype."""
        if self.size == 1 or not tensors:
            return tensors
        out: list[Tensor] = list(tensors)
        for where in _by_dtype(tensors):
            members = [tensors[i] for i in where]
            flat = self._reduced(_flatten_dense_tensors(members), "sum") / self.size
            for i, t in zip(where, _unflatten_dense_tensors(flat, members), strict=True):
                out[i] = t
        return out

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor if self.size == 1 else self._reduced(tensor.clone(), "sum")

    def sum_through(self, tensor: Tensor) -> Tensor:
        """The sum, through which a gradient goes back: also a sum, to which all ranks must come."""
        made: Tensor = tensor if self.size == 1 else _Sum.apply(tensor, self)
        return made

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest over ranks of each number."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def all(self, flag: Tensor) -> Tensor:
        """Whether a 0-d bool holds on every rank."""
        if self.size == 1:
            return flag
        return self._reduced(flag.to(torch.int32), "min").bool()

    def _reduced(self, tensor: Tensor, how: Literal["sum", "min"]) -> Tensor:
        """Of all ranks, by writing into `tensor`; in a graph, by an operation that writes nothing."""
        if isinstance(tensor, FakeTensor):  # a graph is traced
            # torch has no public collective that is a pure function; inductor knows this one, and keeps its order
            from torch.distributed import _functional_collectives as functional

            assert self.group is not None
            made: Tensor = functional.all_reduce(tensor, how, self.group)  # waits, where a graph is traced
            return made
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MIN, group=self.group)
        return tensor

    def of_first(self, tensors: list[Tensor]) -> list[Tensor]:
        """The first rank's, in one broadcast per dtype."""
        if self.size == 1 or not tensors:
            return tensors
        out: list[Tensor] = list(tensors)
        for where in _by_dtype(tensors):
            members = [tensors[i] for i in where]
            flat = _flatten_dense_tensors(members)
            dist.broadcast(flat, group=self.group, group_src=0)
            for i, t in zip(where, _unflatten_dense_tensors(flat, members), strict=True):
                out[i] = t
        return out

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's rows, in the order of the ranks; equal sizes."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts)

    def row_mean(self, values: Tensor) -> float:
        """Mean in float64 over the rows (n,) of all ranks, however many each has. Waits for the device."""
        if self.size == 1:
            return float(values.double().mean())
        total = self.sum(torch.stack([values.double().sum(), values.new_tensor(len(values), dtype=torch.float64)]))
        return float(total[0] / total[1])

    def count(self, flags: Tensor) -> int:
        """How many of the flags (n,) of all ranks hold. Waits for the device."""
        return int(self.sum(flags.sum()))

    # -- what lies on the host ----------------------------------------------------------------------------

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest over ranks of each number."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.side)
        return found.tolist()

    def everywhere(self, flag: bool) -> bool:
        """Whether it holds on every rank."""
        return not self.most([not flag])[0]

    def told(self, value: T) -> T:
        """What rank 0 has."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, group=self.side, group_src=0)
        return box[0]

    def each(self, value: T) -> list[T]:
        """What every rank has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.side)
        return found

    def to_first(self, value: T) -> list[T]:
        """On rank 0 what every rank has, in their order; nothing on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, found, group=self.side, group_dst=0)
        return found or []

    def by_first(self, act: Callable[[], T]) -> T:
        """What `act` gives on rank 0, which alone does it; all raise what it raises."""
        if self.size == 1:
            return act()
        answer: tuple[Any, Exception | None] = (None, None)
        if self.first:
            try:
                answer = act(), None
            except Exception as error:
                answer = None, _sent(error)
                self.told(answer)
                raise
        value, failed = self.told(answer)
        if failed is not None:
            raise failed
        return value

    def together(self, act: Callable[[], T]) -> T:
        """What `act`, which asks nothing of other ranks, gives here; where it fails on any rank, it does so on all.

        All raise the same error: that of the first rank where it failed, which is named unless it failed so on all.
        """
        if self.size == 1:
            return act()
        value, own = None, None
        try:
            value = act()
        except Exception as error:
            own = error
        errors = self.each(None if own is None else _sent(own))
        failed = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return value  # type: ignore[return-value]
        rank, first = failed[0]
        if len({f"{type(e).__name__} {e}" for e in errors}) == 1:
            assert own is not None
            raise own
        raise _named(rank, first) from own

    def side_by_side(self, act: Callable[[Callable[[], None]], T]) -> T:
        """As :meth:`together`, of an `act` that asks the other ranks for something, and calls `agree` before it does.

        Where it has failed on any rank by then, `agree` raises that error: nobody waits for a rank that will not come.
        """
        agreed = True

        def agree(own: Exception | None = None) -> None:
            nonlocal agreed
            try:
                self.together(partial(_raise, own))
            except Exception:
                agreed = False
                raise

        try:
            value = act(agree)
        except Exception as error:
            if agreed and self.size > 1:
                agree(error)
            raise
        agree()
        return value

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Those of rank 0, on the host, in place of each rank's own."""
        if self.size > 1:
            for t in tensors:
                whole = t.contiguous()
                dist.broadcast(whole, group=self.side, group_src=0)
                t.copy_(whole)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _named(rank: int, error: Exception) -> Exception:
    try:
        if isinstance(error, OSError) and error.errno is not None:
            return type(error)(error.errno, f"{error.strerror} (rank {rank})", error.filename)
        return type(error)(f"rank {rank}: {error}")
    except Exception:  # of a class that wants more than a text
        return RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")


def _sent(error: Exception) -> Exception:
    """As it reaches another process."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # what a class of the user's makes of it
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.ranks), None


def _by_dtype(tensors: list[Tensor]) -> list[list[int]]:
    """Places of equal dtype, in one order on all ranks."""
    dtypes = dict.fromkeys(t.dtype for t in tensors)
    return [[i for i, t in enumerate(tensors) if t.dtype == dtype] for dtype in dtypes]


#: of a process by itself
ALONE = Ranks(None)
