"""Label families: the labels of a whole training set as parameters, and how a batch of them moves.

A family holds the given hard labels and its own label parameter as buffers, so that ``state_dict``, ``to`` and
``deepcopy`` work and no optimizer picks them up by accident. It is a learnable loss, the cross-entropy of its label
distributions, with closed forms in the place of autograd and an SGD of its own in one fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fastmeta import ops
from fastmeta._numbers import as_real, as_whole, shown
from fastmeta.functional.finite import all_finite
from fastmeta.losses.head import Collective, Head, LabelMove, Tensors
from fastmeta.losses.label_heads import LabelHead, TracedLabels
from fastmeta.losses.learnable_loss import LearnableLoss
from fastmeta.losses.traced_loss import TracedLoss

#: probabilities up to which repr() looks at all of them
_SHOWN = 10**7


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


def check_prob(target_prob: Any) -> float:
    """p0 of a family that may start at one-hot labels."""
    p0 = as_real(target_prob)
    if p0 is None or not 0 <= p0 <= 1:
        raise ValueError(f"target_prob must lie in [0, 1], got {shown(target_prob)}")
    return p0


class Movement(NamedTuple):
    """How far labels have come from their start, on average, and how far one must come to change."""

    moved: float
    wanted: float
    what: str  # the parameters, for people


class Labels(LearnableLoss):
    """What both label families have: the given targets, their head, and a default of their rate."""

    moves_itself = True
    family: ClassVar[str]
    #: whether the label parameter has a row for each sample, which a rank may have for itself
    by_row: ClassVar[bool] = True
    #: how many times as probable as the given class another one must be to be read in its place
    margin: float = 1.0
    parameter: ClassVar[str]  # the name of the label parameter
    targets: Tensor
    num_classes: int
    # eta * lambda / n, summed over the visits of a run, that a label parameter of this family wants
    _travel: ClassVar[float]

    def __init__(
        self, targets: Tensor, num_classes: int, target_prob: float = 0.9, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        targets, self.num_classes = check_targets(targets, num_classes)
        self.register_buffer("targets", targets)

    @classmethod
    def shapes(cls, size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """Of the given targets and the label parameter, by name."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.targets)

    def forward(self, logits: Tensor, index: Tensor, x: Any = None) -> Tensor:
        """Cross-entropy of each row with its label distribution (n,), in plain torch."""
        return self.loss_of(self.value(index), logits, self.given(index))

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def title(self) -> str:
        return f"labels:     {self.family} ({self.extra_repr()})"

    def learned(self) -> Tensors:
        return {self.parameter: getattr(self, self.parameter)}

    def seen_by(self, index: Tensor, x: Any) -> tuple[Tensors, Callable[[Tensors, Tensor], Tensor]]:
        targets = self.given(index)
        return {self.parameter: self.value(index)}, lambda values, logits: self.loss_of(
            values[self.parameter], logits, targets
        )

    def head(self, index: Tensor, x: Any, weight: Tensor | None, learned: Tensors | None = None) -> Head:
        return LabelHead(self, index, weight)

    def traced(self, optimizer: torch.optim.Optimizer | None) -> TracedLoss:
        return TracedLabels(self)

    # What a family has: its label parameter as a batch sees it, and closed forms of that.

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all."""
        raise NotImplementedError

    def value(self, index: Tensor) -> Tensor:
        """The label parameter as the rows `index` see it."""
        raise NotImplementedError

    def put(self, index: Tensor, value: Tensor) -> None:
        """Replace what :meth:`value` gives."""
        raise NotImplementedError

    def loss_of(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss (n,) in plain torch, differentiable in all."""
        raise NotImplementedError

    def loss_at(self, value: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None) -> ops.LabelLoss:
        raise NotImplementedError

    def gradient_at(
        self, value: Tensor, targets: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def step_at(
        self, value: Tensor, index: Tensor, targets: Tensor, logits: Tensor, u: Tensor, step: LabelMove
    ) -> tuple[Tensor, ops.LabelStep]:
        """The new value, and the loss under it: nothing is written."""
        raise NotImplementedError

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        raise NotImplementedError

    def gradient(
        self, logits: Tensor, u: Tensor, index: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """dL_meta/d label parameter, as the rows `index` see it."""
        return self.gradient_at(self.value(index), self.given(index), u, scale, weight)

    def step_(
        self,
        logits: Tensor,
        u: Tensor,
        index: Tensor,
        *,
        scale: float | Tensor,
        label_lr: float | Tensor,
        weight: Tensor | None = None,
        unique: bool = False,
    ) -> ops.LabelStep:
        raise NotImplementedError

    def move_together(self, index: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> None:
        """Every rank's copy of the labels moves by every rank's rows, so that the copies stay equal."""
        raise NotImplementedError

    def moved_together(self, value: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> Tensor:
        """The new value of labels that all ranks have, by every rank's share of the gradient: nothing is written."""
        raise NotImplementedError

    def norm_of(self, grad: Tensor, ranks: Collective) -> Tensor:
        """Euclidean norm of a gradient of which every rank has its share: here, rows of its own."""
        norm = torch.linalg.vector_norm(grad)
        return norm if ranks.size == 1 else ranks.sum(norm.square()).sqrt()

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step on the rows `index` writes; given a 0-d bool, where that is False."""
        raise NotImplementedError

    def restart_(self, target_prob: float) -> None:
        """Every label as it is at a start of `target_prob`."""
        raise NotImplementedError

    # What a look at the labels tells; it waits for the device.

    def dense(self) -> Labels:
        """These labels, or the same ones in tensors alone; ValueError where memory does not hold them."""
        return self

    def finite(self) -> bool:
        """Whether no label holds a NaN or an infinity."""
        return bool(all_finite([getattr(self, self.parameter)]))

    def movement(self, target_prob: float) -> Movement:
        """From a start at `target_prob`."""
        raise NotImplementedError

    def stuck(self, target_prob: float, rate_name: str = "labels.label_lr") -> tuple[str, str] | None:
        """Why labels that started at `target_prob` move no more, as a kind and in words; None where they may.

        `rate_name` is what the caller calls the rate of the labels.
        """
        return None

    def run_away(self) -> float:
        """Share of labels that no gradient leads back to the other classes."""
        return 0.0

    def counters(self) -> list[Tensor]:
        """The number of label steps, where draws depend on it."""
        return []

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

    def __repr__(self) -> str:
        """The table and, where it costs little, how far the labels have moved."""
        lines = [f"{type(self).__name__}({self.extra_repr()})", f"  {self.parameter}: {self._place()}"]
        if self.device.type == "cpu" and 0 < len(self) * self.num_classes <= _SHOWN:
            probs = self.probs().detach()
            given = probs.gather(1, self.targets.unsqueeze(1)).squeeze(1)
            changed = int((probs.argmax(1) != self.targets).sum())
            lines.append(f"  changed: {changed:,} of {len(self):,}; probability of the given class: {given.mean():.3f}")
        return "\n".join(lines)

    def _place(self) -> str:
        """Form and place of the label parameter."""
        value = getattr(self, self.parameter)
        mib = value.nbytes / 2**20
        size = f"{mib:,.1f} MiB" if mib >= 0.1 else f"{value.nbytes:,} bytes"
        return f"{tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, {value.device}, {size}"
