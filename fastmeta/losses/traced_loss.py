"""A loss as a pure function of tensors, for engines that hold the step as one graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastmeta.losses.head import Head, Rate


class Unsupported(RuntimeError):
    """The loss, or the optimizer that moves it, has no form as a graph; the message says why."""


class TracedHead(Head):
    """A head of tensors, which writes nothing: it has new ones after its step."""

    @abstractmethod
    def new(self, keep: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """What :meth:`TracedLoss.write` takes; `keep` chooses between a new tensor and an old one."""

    def undo(self, keep: Tensor | None = None) -> None:
        """Nothing was written."""


class TracedLoss(ABC):
    """What a graph reads of a loss, its head made of that, and where new tensors go."""

    #: what makes another graph of the same shapes, such as which terms an optimizer has
    key: Any = None
    #: why what it reads and writes cannot be in a captured CUDA graph; "" where it can
    outside: str = ""

    @abstractmethod
    def read(self, index: Tensor) -> list[Tensor]:
        """The tensors that the graph reads in a step on the rows `index`."""

    @abstractmethod
    def head(self, tensors: Sequence[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> TracedHead: ...

    @abstractmethod
    def write(self, index: Tensor, new: Sequence[Tensor], finite: Tensor) -> None:
        """Make `new` the loss's own; where `finite` is False they are the old ones."""

    @abstractmethod
    def undo(self, index: Tensor) -> Callable[[], None]:
        """What puts back all that :meth:`write` writes."""

    @abstractmethod
    def state(self) -> list[Tensor]:
        """Every tensor that is read or written where it lies."""

    def stands(self) -> bool:
        """Whether the loss still is made of the tensors that it was made of."""
        return True

    def set_rates(self) -> None:
        """Read the optimizer's numbers into the tensors that the graph reads."""
        return

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Modules whose Python the graph depends on."""
        return []

    def try_forward(self, logits: Tensor, index: Tensor, x: Any) -> None:
        """Run the loss's Python once on a real batch; Unsupported for what a graph cannot repeat."""
        return


__all__ = ["Head", "Rate", "TracedHead", "TracedLoss", "Unsupported"]
