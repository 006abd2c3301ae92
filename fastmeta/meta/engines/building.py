"""What is put off while a graph is made, which creates objects by the million and changes the graph in many passes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx._lazy_graph_module import _use_lazy_graph_module

#: objects that are made before Python looks at the youngest
_YOUNG = 50_000
#: collections of the middle generation before it looks at the oldest
_NEVER = 1_000_000


@contextmanager
def building() -> Iterator[None]:
    """Inside, Python looks for garbage among young objects alone, and graphs write out their code when it is asked for.

    A full collection walks through all that torch's modules hold, and there would be one every few hundred
    milliseconds; garbage that is old by then waits for the first one after the build. A torch.fx graph would write its
    code anew after each pass, of which one in ten is ever run or read. For the whole process, other threads included;
    graphs that are made inside stay so.
    """
    usual = gc.get_threshold()
    rare = (max(usual[0], _YOUNG) if usual[0] else 0, usual[1], max(usual[2], _NEVER))  # 0: none at all
    gc.set_threshold(*rare)
    try:
        with _use_lazy_graph_module(True):
            yield
    finally:
        if gc.get_threshold() == rare:  # and nobody has set it meanwhile
            gc.set_threshold(*usual)
