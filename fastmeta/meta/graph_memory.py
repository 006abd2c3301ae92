"""How much memory the graphs of a step take, counted without taking any, and an error that says so when it ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from fastmeta._text import reason
from fastmeta.functional.network import Network, Tensors, is_out_of_memory
from fastmeta.meta.micro import Cut, fits, pieces_of
from fastmeta.meta.rows import take


class OutOfMemory(torch.OutOfMemoryError):
    """A step did not fit; the message has the estimate and the ways out. Nothing of the caller's has changed."""


class Saved(saved_tensors_hooks):
    """Inside, counts what autograd keeps for a backward: the bytes of each storage once, but for those of `own`."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._own = {t.untyped_storage()._cdata for t in own}
        self._kept: dict[int, Tensor] = {}  # held, so that no address is given out twice
        super().__init__(self._pack, lambda t: t)

    def __enter__(self) -> Saved:  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, t: Tensor) -> Tensor:
        address = t.untyped_storage()._cdata
        if address not in self._own:
            self._kept[address] = t
        return t

    @property
    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self._kept.values())


def graph_bytes(network: Network, x: Any, count: int, max_rows: int | None, per_row: Any = None) -> int | None:
    """Bytes that one forward makes and keeps for its backward: of the largest piece of `max_rows` rows, of `count`.

    Counted on fake tensors: nothing is computed, drawn or allocated. None for a model that does not run on them.
    """
    if network.sharded:  # whose collectives would wait for ranks that have memory enough
        return None
    largest = max(pieces_of(count, max_rows), key=lambda rows: rows.stop - rows.start)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:

            def fake(t: Any) -> Any:
                return mode.from_tensor(t) if isinstance(t, Tensor) else t

            def copies(tensors: Tensors) -> Tensors:
                return {k: fake(t.detach()).requires_grad_(t.requires_grad) for k, t in tensors.items()}

            params = {**copies(network.params), **copies(network.frozen())}
            state = network.state()
            state = state.like(copies(state))
            piece = tree_map(fake, take(x, largest, count, per_row))
            there = [t for t in tree_leaves((params, dict(state), piece)) if isinstance(t, Tensor)]
            with torch.no_grad():  # the first pass of all is given a copy of its input, which is not the graph's
                network(params, state.clone(), piece)
            with torch.enable_grad(), Saved(there) as saved:
                network(params, state, piece)
            return saved.bytes
    except Exception:  # whatever a model's Python does under fake tensors; it is an estimate
        return None


@contextmanager
def explained(
    network: Network,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    cut: Cut,
    inputs: Callable[..., tuple[Any, ...]],
    both_graphs: Callable[[], bool],
    steps: int = 1,
) -> Iterator[None]:
    """Turn running out of memory into :class:`OutOfMemory`.

    `inputs` makes network inputs of batches; `both_graphs` says whether the step holds the graphs of both at once where
    `cut` lets it; `steps` are those of the look-ahead, whose train graphs are held together.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # the frames of the failed pass hold its graphs: without them a caller who catches this has the memory again
        cause = error.with_traceback(None)
        raise OutOfMemory(_message(network, train, meta, cut, inputs, both_graphs(), cause, steps)) from cause


def _message(
    network: Network,
    train: tuple[Any, Tensor],
    meta: tuple[Any, Tensor],
    cut: Cut,
    inputs: Callable[..., tuple[Any, ...]],
    both_graphs: bool,
    error: RuntimeError,
    steps: int,
) -> str:
    n, m, micro_batch = len(train[1]), len(meta[1]), cut.max_rows
    sizes: list[int | None] = [None]
    with suppress(RuntimeError):  # not even the inputs may fit
        x, x_meta = inputs(train[0], meta[0])
        sizes = [
            graph_bytes(network, x, n, micro_batch, cut.per_row),
            graph_bytes(network, x_meta, m, micro_batch, cut.per_row_meta),
        ]
    graphs = "could not be estimated for this model"
    if None not in sizes:
        each = "" if micro_batch is None else f", in pieces of at most {micro_batch} rows"
        graphs = f"are about {_mib(sizes[0])} (train) and {_mib(sizes[1])} (meta){each}"
    largest = min(micro_batch or max(n, m), max(n, m))
    # whole batches one after the other are exact for every model, so they are the first thing to try
    smaller = largest if both_graphs and fits(train, meta, micro_batch) else max(1, largest // 2)
    ways = (
        "smaller batches; activation checkpointing; fully_shard on smaller parts; bfloat16 autocast"
        if network.sharded
        else f"smaller batches; micro_batch={smaller}; approx='last:1', which keeps no graph of the trunk; "
        "bfloat16 autocast; compile='full'"
    )
    if steps > 1:
        graphs += f", and those of {steps} train batches are held together, each with its gradient's"
        ways = "a smaller lookahead_steps; smaller batches; activation checkpointing; bfloat16 autocast"
    return (
        f"out of memory in a step on {n} train and {m} meta rows, whose graphs {graphs}; nothing was changed. "
        f"Ways out: {ways}. ({reason(error, 200)})"
    )


def _mib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**20:,.1f} MiB"
