"""Label families: the labels of a whole training set as parameters, and how a batch of them moves.

A family holds the given hard labels and its own label parameter as buffers, so that ``state_dict``, ``to`` and
``deepcopy`` work and no optimizer picks them up by accident. The meta step sees three calls and nothing else:
``batch_loss`` before the look-ahead, ``step_`` after the tangent, ``gradient`` for those who only want to look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta._arguments import seed_of
from fastmeta._numbers import as_real, as_whole, shown
from fastmeta.precision import without_autocast
from fastmeta.rounding import round_stochastically

__all__ = ["ClassLabels", "InstanceLabels"]


def _check_targets(targets: Any, num_classes: Any) -> tuple[Tensor, int]:
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


def _check_dtype(dtype: torch.dtype, allowed: tuple[torch.dtype, ...]) -> None:
    if dtype not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(map(str, allowed))}, got {dtype!r}")


def instance_gradient(rows: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None = None) -> Tensor:
    """d L_meta / d label logits `rows`, (n, C): scale * weight * p * (u - <p, u>).

    It is the logit-space Hessian-vector product of cross-entropy taken at the label distribution (Eq. 7).
    """
    grad = ops.soft_cross_entropy_hvp(rows.to(u.dtype), u) * scale
    return grad if weight is None else grad * weight.unsqueeze(1)


def class_gradient(
    targets: Tensor, num_classes: int, u: Tensor, scale: float | Tensor, weight: Tensor | None = None
) -> Tensor:
    """d L_meta / d alpha, (C,): scale * sum over the rows of class c of weight * (mean_{k != c} u_k - u_c)."""
    given = u.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)  # a row out of range has class -1 and no term
    term = (u.sum(-1) - given) / (num_classes - 1) - given
    if weight is not None:
        term = term * weight
    of_class = torch.arange(num_classes, device=u.device).unsqueeze(1) == targets
    with without_autocast():
        # a matrix product and not index_add_, whose float atomics differ from run to run on CUDA
        return scale * (of_class.to(u.dtype) @ term)


# torch's own indexing kills the CUDA context on a row out of range. These two read and write nothing there, and wait
# for nothing; the kernels skip such a row, because its labels are NaN, and count it.


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of `table`, (n, C); NaN where the index is out of range."""
    inside = (index >= 0) & (index < len(table))
    return torch.where(inside.unsqueeze(1), table[index.clamp(0, len(table) - 1)], torch.nan)


def put_rows_(table: Tensor, index: Tensor, rows: Tensor) -> None:
    """Replace the rows `index` of `table`, those in range; equal indices must come with equal rows."""
    inside = (index >= 0) & (index < len(table))
    # an entry out of range writes once more what some entry in range writes, or, where none is, what is there
    other = inside.to(torch.uint8).argmax().view(1)
    at = torch.where(inside, index, index.gather(0, other)).clamp(0, len(table) - 1)
    rows = torch.where(inside.unsqueeze(1), rows, rows.index_select(0, other))
    table[at] = torch.where(inside.any(), rows, table[at])


class _Labels(nn.Module):
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


class InstanceLabels(_Labels):
    """One learned distribution per training sample: p_i = softmax(l_i), a table of label logits (N, C).

    The given class starts at probability `target_prob`, the others share the rest: a logit margin of
    log(p0 (C-1) / (1-p0)). The gradient of a row is (lambda/n) p * (u - <p, u>).

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        target_prob: p0 in (0, 1), above 1/C if the given class is to lead. The paper searches {0.3, 0.5, 0.7, 0.9}.
            1 is an error: its margin is infinite.
        dtype: of the table: float32, bfloat16, or float64 for logits of float64. The meta step computes in float32
            (float64 for float64). A bfloat16 table takes half the memory, and its rows are rounded stochastically: to
            nearest, all steps below half the distance of two numbers (2^-9 of a logit) would be lost. A table that is
            converted later, ``labels.to(torch.bfloat16)``, is rounded alike.
        seed: of that rounding. `label_step`, the number of label steps taken, is part of the state then, so that a
            resumed run draws the same. None rounds to nearest.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; target_prob outside (0, 1); another dtype.
    """

    family = "instance"
    _travel = 30.0
    label_logits: Tensor
    label_step: Tensor

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        target_prob: float = 0.9,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        targets, self.num_classes = _check_targets(targets, num_classes)
        _check_dtype(dtype, (torch.float32, torch.bfloat16, torch.float64))
        p0 = as_real(target_prob)
        if p0 is None or not 0 < p0 < 1:
            raise ValueError(
                f"target_prob must lie strictly between 0 and 1 for instance labels, got {shown(target_prob)}: a "
                "softmax reaches 1 only with an infinite logit, from which no gradient leads back; take e.g. 0.9, "
                "or ClassLabels for a one-hot start"
            )
        margin = math.log(p0 * (self.num_classes - 1) / (1 - p0))
        table = torch.zeros(len(targets), self.num_classes, dtype=dtype, device=targets.device)
        table.scatter_(1, targets.unsqueeze(1), margin)
        self.register_buffer("targets", targets)
        self.register_buffer("label_logits", table)
        self._seed = seed_of(seed)
        self.seed: int | None = None
        self._round_stochastically()

    def _round_stochastically(self) -> None:
        """Of a bfloat16 table."""
        if self.label_logits.dtype == torch.bfloat16 and self.seed is None and self._seed is not None:
            self.seed = self._seed
            self.register_buffer("label_step", torch.zeros((), dtype=torch.int64, device=self.targets.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InstanceLabels:
        super()._apply(fn, recurse)
        self._round_stochastically()  # labels.to(torch.bfloat16) must not fall back to rounding to nearest
        return self

    def rows(self, index: Tensor) -> Tensor:
        """Label parameters of the rows `index`: (n, C)."""
        return take_rows(self.label_logits, index) if index.is_cuda else self.label_logits[index]

    def write_(self, index: Tensor, rows: Tensor) -> None:
        """Replace the label parameters of the rows `index`."""
        rows = rows.to(self.label_logits.dtype)
        if index.is_cuda:
            put_rows_(self.label_logits, index, rows)
        else:
            self.label_logits[index] = rows

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all; float32 of 16-bit tables."""
        rows = self.label_logits if index is None else self.rows(index)
        return (rows.float() if rows.element_size() < 4 else rows).softmax(-1)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        return ops.instance_loss(logits, self.label_logits, index, weight)

    def gradient(
        self, logits: Tensor, u: Tensor, index: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """d L_meta / d label logits (n, C), one row per entry of the batch: see :func:`instance_gradient`."""
        return instance_gradient(self.rows(index), u, scale, weight)

    def move_(self, index: Tensor, grad: Tensor, label_lr: float | Tensor) -> None:
        """Eq. (5) with a gradient (n, C) that is already there; repeated rows move by the sum."""
        if self.seed is None:
            self.label_logits.index_put_((index,), (grad * -label_lr).to(self.label_logits.dtype), accumulate=True)
            return
        # the same sum in every occurrence's row, by a product: float atomics differ from run to run
        with without_autocast():
            total = (index.unsqueeze(1) == index).to(grad.dtype) @ grad
        rows = self.rows(index).float() - label_lr * total
        self.write_(index, round_stochastically(rows, self.seed, self.label_step, index))
        self.count_step_()

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step on the rows `index` writes; given a 0-d bool, where that is False."""
        rows, counter = self.rows(index), None if self.seed is None else self.label_step.clone()

        def undo(keep: Tensor | None = None) -> None:
            self.write_(index, rows if keep is None else torch.where(keep, self.rows(index), rows))
            if counter is not None:
                self.label_step.copy_(counter if keep is None else torch.where(keep, self.label_step, counter))

        return undo

    def count_step_(self) -> None:
        """One label step more: the next one draws anew."""
        if self.seed is not None:
            self.label_step += 1

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
        """Eq. (5) in place for the rows of the batch, and the loss under the new labels: one fused kernel."""
        step = ops.instance_label_step_(
            self.label_logits,
            index,
            logits,
            u,
            scale,
            label_lr,
            weight,
            unique=unique,
            seed=self.seed,
            step=None if self.seed is None else self.label_step,
        )
        self.count_step_()
        return step


class ClassLabels(_Labels):
    """One learned smoothing value per class: p_y = 1 - alpha_y, every other class alpha_y / (C-1).

    alpha starts at 1 - `target_prob` and is clamped to [0, 1] after each update; ``target_prob=1`` is the exact one-hot
    start of the paper's Algorithm 1. The gradient of alpha_c is (lambda/n) times the sum over the samples of class c of
    (mean of u over the other classes) - u_c.

    Args:
        targets: (N,) given hard labels, any integer dtype.
        num_classes: C >= 2.
        target_prob: p0 in [0, 1].
        dtype: of alpha; float32, or float64 for logits of float64.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; target_prob outside [0, 1]; another dtype.
    """

    family = "class"
    _travel = 0.2
    alpha: Tensor

    def __init__(
        self, targets: Tensor, num_classes: int, target_prob: float = 0.9, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        targets, self.num_classes = _check_targets(targets, num_classes)
        _check_dtype(dtype, (torch.float32, torch.float64))
        p0 = as_real(target_prob)
        if p0 is None or not 0 <= p0 <= 1:
            raise ValueError(f"target_prob must lie in [0, 1], got {shown(target_prob)}")
        self.register_buffer("targets", targets)
        self.register_buffer("alpha", torch.full((self.num_classes,), 1 - p0, dtype=dtype, device=targets.device))

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all."""
        targets = self.targets if index is None else self.targets[index]
        a = self.alpha[targets].unsqueeze(1)
        others = (a / (self.num_classes - 1)).expand(-1, self.num_classes)
        return others.scatter(1, targets.unsqueeze(1), 1 - a)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        return ops.class_loss(logits, self._alpha(logits), self.given(index), weight)

    def gradient(
        self, logits: Tensor, u: Tensor, index: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """d L_meta / d alpha (C,): see :func:`class_gradient`."""
        return class_gradient(self.given(index), self.num_classes, u, scale, weight)

    def undo(self, index: Tensor) -> Callable[..., None]:
        """What puts back all that a label step writes; given a 0-d bool, where that is False."""
        before = self.alpha.clone()

        def undo(keep: Tensor | None = None) -> None:
            self.alpha.copy_(before if keep is None else torch.where(keep, self.alpha, before))

        return undo

    def move_(self, grad: Tensor, label_lr: float | Tensor) -> None:
        """Eq. (5) with a gradient (C,) that is already there, then the clamp to [0, 1]."""
        self.alpha.sub_(grad * label_lr).clamp_(0, 1)

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
        """Eq. (5) in place for the classes of the batch, clamped, and the loss under the new labels."""
        return ops.class_label_step_(self._alpha(logits), self.given(index), logits, u, scale, label_lr, weight)

    def _alpha(self, logits: Tensor) -> Tensor:
        wanted = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if self.alpha.dtype != wanted:
            raise TypeError(
                f"alpha must be {wanted} for logits of {logits.dtype}, got {self.alpha.dtype}; "
                f"build the labels with dtype={wanted}, or call labels.to({wanted})"
            )
        return self.alpha
