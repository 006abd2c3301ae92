"""How a batch becomes network input inside the step, where the user wants it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class InputTransform(Protocol):
    """A function of x (x_meta) that is part of the step: of its graph, where it has one.

    Pure, and without a sync. What it reads besides x, such as a whole image set, it names in `tensors`: a captured
    graph reads these where they lie, while it copies x in every step.
    """

    @property
    def tensors(self) -> Sequence[Tensor]: ...

    def __call__(self, x: Any, tensors: Sequence[Tensor]) -> Any:
        """Network input of x; `tensors` stand for those of the attribute. No gradient flows through it."""
        ...


def tensors_of(transform: InputTransform | None) -> list[Tensor]:
    if transform is None:
        return []
    if not hasattr(transform, "tensors"):
        raise TypeError(
            "transform must be an InputTransform, with the tensors that it reads in `tensors` (none: tensors = ()) and "
            f"called as transform(x, tensors), got {type(transform).__name__}"
        )
    return list(transform.tensors)


def network_inputs(transform: InputTransform | None, tensors: Sequence[Tensor], *batches: Any) -> tuple[Any, ...]:
    """Each x as the network takes it."""
    if transform is None:
        return batches
    with torch.no_grad():
        return tuple(transform(x, tensors) for x in batches)
