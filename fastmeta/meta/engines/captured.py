"""A step captured whole in a CUDA graph: one launch from the host for all of its kernels.

What the step reads falls in two kinds. The *state* (parameters, momentum, buffers, label table, totals, rates) lives
where it is and is written in place, inside the graph. The *batch* comes at another address each time, so that the graph
reads copies of it. Results are copied out of the graph's memory, where the next replay would overwrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmeta.functional.network import copy_all_
from fastmeta.functional.random_state import RandomState

#: a function of no arguments to a captured form: its outputs' memory, and what runs it again into the same memory
Record = Callable[[Callable[[], Sequence[Tensor]]], tuple[Sequence[Tensor], Callable[[], None]]]

#: eager runs before the capture: lazily made handles, workspaces and autotuning must not be in the graph
WARM_UP = 2


def record_cuda(body: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
    """Capture `body` on a stream of its own. Raises RuntimeError for what a graph cannot hold (a sync, a host copy)."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    # All inside this context, because a capture that fails leaves its stream the current one, and the rest of the
    # process would run there.
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                body()
            # thread_local: a loader's thread may allocate pinned memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = body()
    finally:
        current.wait_stream(side)

    def replay() -> None:
        graph.replay()

    replay.reads = body  # type: ignore[attr-defined]  # memory that the graph reads lives as long as who made it
    return outputs, replay


class Captured:
    """`body(batch)`, which moves `state` in place, as one launch.

    Making it moves nothing: what the warm-up does is undone, by `undo` and for the generators. Random layers draw anew
    at each replay, because torch registers its generator with the graph.

    Args:
        body: runs the step on the given batch tensors and returns its results.
        batch: tensors of the shapes, dtypes and strides that later calls will have.
        state: all that `body` reads or writes besides the batch.
        undo: puts back what `body` writes.
    """

    def __init__(
        self,
        body: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        batch: Sequence[Tensor],
        state: Sequence[Tensor],
        undo: Callable[[], None],
        record: Record,
    ) -> None:
        random = RandomState(batch[0].device)
        if len({t.device for t in batch}) > 1:
            raise RuntimeError("a part of the batch is on the host, whose values a graph would keep for good")
        with torch.no_grad():
            self._batch = [t.detach().clone() for t in batch]
            self._addresses = _addresses(state)
            try:
                self._outputs, self._replay = record(lambda: body(self._batch))
            finally:
                undo()
                random.restore()

    def fits(self, state: Sequence[Tensor]) -> bool:
        """Whether the state still lies where the graph reads and writes it."""
        return self._addresses == _addresses(state)

    def __call__(self, batch: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            copy_all_(self._batch, batch)
            self._replay()
            results = [torch.empty_like(t) for t in self._outputs]
            copy_all_(results, self._outputs)
        return results


def _addresses(state: Sequence[Tensor]) -> list[int]:
    return [t.data_ptr() for t in state]
