"""Label families: the labels of a whole training set as parameters, and how a batch of them moves.

A family holds the given hard labels and its own label parameter as buffers, so that ``state_dict``, ``to`` and
``deepcopy`` work and no optimizer picks them up by accident. The meta step sees three calls and nothing else:
``batch_loss`` before the look-ahead, ``step_`` after the tangent, ``gradient`` for those who only want to look.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta._numbers import as_real, as_whole, shown


def check_targets(targets: Any, num_classes: Any) -> tuple[Tensor, int]:
    values = _vector(targets)
    whole = values is not None and not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if values is None or not whole or values.ndim != 1:
        got = type(targets).__name__ if values is None else f"shape {tuple(values.shape)} of {values.dtype}"
        raise ValueError(
            f"targets must be a vector of class numbers (N,) of an integer dtype, got {got}; "
            "pass the hard labels of the training set"
        )
    count = as_whole(num_classes)
    if count is None or count < 2:
        raise ValueError(f"num_classes must be a whole number of at least 2, got {shown(num_classes)}")
    values = values.to(torch.int64)  # first: torch has no smallest of uint16
    if values.numel():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"targets must lie in [0, {count - 1}] for num_classes={count}, got {low} to {high}; "
                "renumber the classes or raise num_classes"
            )
    return values.clone(), count


def _vector(values: Any) -> Tensor | None:
    """`values` as a tensor: of torch, NumPy, pandas or Python; None where they are no numbers."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        if hasattr(values, "__array__"):
            array = values.__array__()
            # pandas' integers that may be missing come as objects; torch takes no other byte order and no step back
            values = array.tolist() if array.dtype.kind == "O" else array.astype(array.dtype.newbyteorder("="))
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None


def check_dtype(dtype: torch.dtype, allowed: tuple[torch.dtype, ...]) -> None:
    if dtype not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(map(str, allowed))}, got {dtype!r}")


class Labels(nn.Module):
    """What both label families have: the given targets, and a default of their rate."""

    family: str
    targets: Tensor
    num_classes: int
    # eta * lambda / n, summed over the visits of a run, that a label parameter of this family wants
    _travel: float

    def __len__(self) -> int:
        return len(self.targets)

    def default_label_lr(self, lr: float, batch_size: int, visits: int = 100) -> float:
        """A label learning rate for look-ahead rate `lr` (lambda), `batch_size` (n) and `visits` (epochs) of a run.

        The label gradient carries the factor lambda / n (Eqs. (3), (4)) and a label moves once per visit, so the
        default is travel / visits * n / lambda: how far a label can get in a run then depends on none of the three. At
        lambda = 0.4, n = 128 and 165 visits it lies inside the paper's grids (class 0.01-3, instance 5-100). Raises
        ValueError unless all are positive.
        """
        numbers = [as_real(value) for value in (lr, batch_size, visits)]
        if not all(number is not None and 0 < number < math.inf for number in numbers):
            got = ", ".join(map(shown, (lr, batch_size, visits)))
            raise ValueError(f"default_label_lr needs positive lr, batch_size and visits, got {got}; pass label_lr")
        rate, n, epochs = (float(number or 0) for number in numbers)
        return self._travel / epochs * n / rate

    def given(self, index: Tensor) -> Tensor:
        """Given classes (n,) of the rows `index`."""
        if not index.is_cuda:
            return self.targets[index]
        # torch's gather would kill the context on a row out of range; class -1 is what the kernels skip and count
        inside = (index >= 0) & (index < len(self))
        return torch.where(inside, self.targets[index.clamp(0, len(self) - 1)], -1)

    def extra_repr(self) -> str:
        return f"N={len(self)}, num_classes={self.num_classes}"
