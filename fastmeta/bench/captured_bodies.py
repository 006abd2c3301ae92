"""Bodies captured in a CUDA graph, so that the host does not show in a figure."""

from __future__ import annotations

from collections.abc import Sequence

from fastmeta.measure import Body
from fastmeta.meta.engines import record_cuda


def replayed(bodies: Sequence[Body]) -> tuple[Body, int]:
    """All bodies captured in one CUDA graph: a body that replays it, and how many calls a replay stands for.

    Takes the host out of the figure. Bodies must have static inputs and must not synchronise.
    """

    def once() -> tuple[()]:
        for body in bodies:
            body()
        return ()

    _, replay = record_cuda(once)
    return replay, len(bodies)
