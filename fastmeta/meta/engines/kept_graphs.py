"""Graphs that were made, by shape, for the model in several states each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastmeta.functional.watch import Watch
from fastmeta.meta.engines.captured import Captured

Graph = Callable[..., Sequence[Tensor]]


class KeptGraph:
    """A graph, and what it was made of: the model's Python as it was."""

    def __init__(self, watch: Watch, graph: Graph) -> None:
        self.watch, self.graph = watch, graph
        self.captured: dict[Any, Captured] = {}  # by key of the batch


class KeptGraphs(dict[Any, list[KeptGraph]]):
    """Graphs by shape, for the model in several states each. A copy has none: what they watch is another model's."""

    def __deepcopy__(self, memo: Any) -> KeptGraphs:
        return KeptGraphs()

    def find(self, key: Any) -> KeptGraph | None:
        return next((kept for kept in self.get(key, ()) if kept.watch.holds()), None)

    def count(self) -> int:
        return sum(map(len, self.values()))
