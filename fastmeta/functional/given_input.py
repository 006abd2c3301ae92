"""What a model is given as its input: that of the batch, or a copy of it where the model writes into it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class WrittenInput(ValueError):
    """A forward has spoiled the batch that other passes of the step read; nothing of model or loss was changed."""

    def __init__(self) -> None:
        super().__init__(
            "the forward has written into its input x, and did not in its first pass; a step runs the model on one x "
            "several times. Let the forward work on a copy (x = x.clone()), or write in every pass: then each is given "
            "a copy. This batch is spoiled, nothing else was changed, and later passes are given copies"
        )


class GivenInput:
    """A step runs the model on one batch several times, where a plain loop runs it once.

    So the first pass of all is given a copy, which tells whether the model writes into it (an in-place ReLU or a
    normalisation in front); if so, every pass is given one.
    """

    def __init__(self) -> None:
        self._writes: bool | None = None  # None before the first pass

    def of(self, x: Any) -> Any:
        """What to call the model with; :meth:`check` it after."""
        return x if self._writes is False else _copy(x)

    def check(self, given: Any, before: list[int]) -> None:
        """Raises WrittenInput for a batch that is written into without having been copied."""
        if self._writes:
            return
        written = versions(given) != before
        asked, self._writes = self._writes is not None, written
        if written and asked:
            raise WrittenInput


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, x)


def versions(x: Any) -> list[int]:
    """How often each tensor of `x` has been written into, as autograd counts; inference tensors count nothing."""
    tensors = [x] if isinstance(x, Tensor) else tree_leaves(x)
    return [t._version for t in tensors if isinstance(t, Tensor) and not t.is_inference()]
