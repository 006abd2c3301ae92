"""What is put off while a graph is made, which creates many objects and changes the graph in many passes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.fx._lazy_graph_module import _use_lazy_graph_module

#: collections of the middle generation before it looks at the oldest
_NEVER = 1_000_000


@contextmanager
def building(turn: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Inside, Python looks for garbage among young objects alone, and graphs write out their code when it is asked for.

    A full collection walks through all that torch's modules hold, and there would be one in about each second; garbage
    that is old by then waits for the first one after the build. A torch.fx graph would write its code anew after each
    pass, mostly for nobody. Both hold for the whole process, other threads included; graphs that are made inside stay
    so. `turn` is held meanwhile.
    """
    with turn or nullcontext():
        usual = gc.get_threshold()
        rare = (*usual[:2], max(usual[2], _NEVER))
        gc.set_threshold(*rare)
        try:
            with _use_lazy_graph_module(True):
                yield
        finally:
            if gc.get_threshold() == rare:  # and nobody has set it meanwhile
                gc.set_threshold(*usual)
