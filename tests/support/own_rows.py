"""Small problems whose training rows are divided among ranks: what a rank sees of them, and what one process sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.distributed as dist

from fastmeta.distributed import Ranks

ROWS, FEATURES, CLASSES = 21, 6, 5  # rows of two ranks: 11 and 10
EACH = 4  # rows of a train batch by rank


class Problem:
    """Training rows, batches of which rank r's rows are its own, and clean rows; the same in every process."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        draws = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, FEATURES, generator=draws, dtype=dtype)
        self.targets = torch.randint(CLASSES, (ROWS,), generator=draws)
        self.x_meta = torch.randn(8, FEATURES, generator=draws, dtype=dtype)
        self.y_meta = torch.randint(CLASSES, (8,), generator=draws)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            body = torch.nn.Linear(FEATURES, 12), torch.nn.Tanh(), torch.nn.Linear(12, CLASSES)
            self.model = torch.nn.Sequential(*body).to(dtype)

    def own(self, ranks: Ranks) -> tuple[int, int]:
        """First and last + 1 of the rows of this rank."""
        return ranks.share(ROWS)

    def batch(self, number: int, ranks: Ranks, size: int = 2) -> torch.Tensor:
        """Rows of the training set, of this rank's part of a batch; of all parts in order in one process."""
        parts = []
        for rank in range(size):
            each = -(-ROWS // size)
            rows = torch.arange(rank * each, min((rank + 1) * each, ROWS))
            draws = torch.Generator().manual_seed(10 * number + rank)
            parts.append(rows[torch.randperm(len(rows), generator=draws)[:EACH]])
        return parts[ranks.rank] if ranks.size > 1 else torch.cat(parts)

    def clean(self, ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x_meta.chunk(ranks.size)[ranks.rank], self.y_meta.chunk(ranks.size)[ranks.rank]


class Sent:
    """Bytes that this rank has given to collectives, by their name."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def total(self) -> int:
        return sum(self.bytes.values())


@contextmanager
def counted():
    """Inside, collectives are counted."""
    sent, kept = Sent(), {}

    def wrapped(name: str, function: Callable, tensor_at: int) -> Callable:
        def call(*args, **kw):
            tensor = args[tensor_at]
            sent.bytes[name] = sent.bytes.get(name, 0) + tensor.numel() * tensor.element_size()
            sent.calls[name] = sent.calls.get(name, 0) + 1
            return function(*args, **kw)

        return call

    try:
        for name, at in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
            kept[name] = getattr(dist, name)
            setattr(dist, name, wrapped(name, kept[name], at))
        yield sent
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
