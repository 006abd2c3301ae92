"""One learned label distribution per training sample: a table of label logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import ops
from fastmeta._memory import check_room
from fastmeta._numbers import as_real, as_whole, shown
from fastmeta.functional.precision import without_autocast
from fastmeta.losses.epoch_moves import EpochMove, PassingMove, TableMove
from fastmeta.losses.head import Collective, Head, LabelMove, Move, Tensors
from fastmeta.losses.label_heads import FetchedHead, LabelHead, TracedLabels
from fastmeta.losses.labels import Labels, Movement, check_dtype
from fastmeta.losses.table import DenseTable, FewRows, LabelTable, Start
from fastmeta.losses.traced_loss import TracedLoss
from fastmeta.ops.arguments import seed_of
from fastmeta.rng import round_stochastically

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
#: label logits so far apart leave nothing of the smaller one, and no gradient
_RUN_AWAY = 100
#: the least mass of all classes together in assigned labels: a softmax cannot hold a zero
_LEAST_MASS = 1e-3


def instance_gradient(rows: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None = None) -> Tensor:
    """d L_meta / d label logits `rows`, (n, C): scale * weight * p * (u - <p, u>).

    It is the logit-space Hessian-vector product of cross-entropy taken at the label distribution (Eq. 7).
    """
    grad = ops.soft_cross_entropy_hvp(rows.to(u.dtype), u) * scale
    return grad if weight is None else grad * weight.unsqueeze(1)


class InstanceLabels(Labels):
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
        first_row: number of the first row among those of all ranks, where this process has a part of the training set:
            the draws of that rounding are those of the whole table.
        table: where the label logits lie: a subclass of :class:`fastmeta.LabelTable`, or a function from a
            :class:`~fastmeta.losses.Start` to one. None keeps them in a dense tensor, the buffer `label_logits`.

    Raises:
        ValueError: targets of a wrong shape, dtype or range; target_prob outside (0, 1); another dtype.
        TypeError: `table` makes no LabelTable.
    """

    family = "instance"
    parameter = "label_logits"
    row_state = frozenset({"targets", "label_logits"})
    default_eta = 0.3
    default_step = 0.3
    _travel = 30.0
    label_logits: Tensor
    label_step: Tensor
    table: LabelTable | None

    def __init__(
        self,
        targets: Tensor,
        num_classes: int,
        target_prob: float = 0.9,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int | None = 0,
        first_row: int = 0,
        table: Callable[[Start], LabelTable] | None = None,
    ) -> None:
        super().__init__(targets, num_classes)
        check_dtype(dtype, DTYPES)
        first = as_whole(first_row)
        if first is None or first < 0:
            raise ValueError(f"first_row must be a whole number from 0 on, got {shown(first_row)}")
        self.first_row = first
        p0 = as_real(target_prob)
        if p0 is None or not 0 < p0 < 1:
            raise ValueError(
                f"target_prob must lie strictly between 0 and 1 for instance labels, got {shown(target_prob)}: a "
                "softmax reaches 1 only with an infinite logit, from which no gradient leads back; take e.g. 0.9, "
                "or ClassLabels for a one-hot start"
            )
        self._start_at(Start(self, self._margin(p0), dtype), table)
        self._seed = seed_of(seed)
        self.seed: int | None = None
        self._round_stochastically()

    @classmethod
    def shapes(cls, size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {"targets": (size,), cls.parameter: (size, num_classes)}

    def _start_at(self, start: Start, make: Callable[[Start], LabelTable] | None) -> None:
        if make is None:
            self.table = None
            self.register_buffer("label_logits", start.rows(torch.arange(len(self), device=start.device)))
            return
        if not callable(make) or isinstance(make, nn.Module):
            raise TypeError(f"table must be a subclass of fastmeta.LabelTable, which is made here, got {shown(make)}")
        table = make(start)
        if not isinstance(table, LabelTable):
            raise TypeError(f"table must make a fastmeta.LabelTable with rows and write_, got {shown(table)}")
        if table.shape != start.shape:
            raise ValueError(f"{type(table).__name__} must have shape {start.shape}, got {table.shape}")
        check_dtype(table.dtype, DTYPES)
        self.table = table

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name == self.parameter:
                kind = type(self.table).__name__
                raise AttributeError(f"the label logits lie in a {kind}; read them by labels.rows(index)") from error
            raise

    @property
    def _rows(self) -> LabelTable | DenseTable:
        return DenseTable(self.label_logits) if self.table is None else self.table

    @property
    def _fetched(self) -> bool:
        """Whether a step moves copies of rows, because the kernel has no way to where they lie, or to their numbers."""
        return self.table is not None or (self.seed is not None and self.first_row > 0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the table."""
        return self._rows.dtype

    def learned(self) -> Tensors:
        if self.table is None:
            return {self.parameter: self.label_logits}
        # what lies elsewhere is there by its form
        return {self.parameter: torch.empty(self.table.shape, dtype=self.dtype, device="meta")}

    def copy_for(self, index: Tensor) -> InstanceLabels:
        if self.table is None:
            return copy.deepcopy(self)
        few = FewRows(self.table.start, self.table, index)
        copied = copy.deepcopy(self, {id(self.table): few})
        few.start = Start(copied, few.start.margin, few.start.dtype)
        return copied

    def dense(self) -> InstanceLabels:
        """These labels where their table is dense, else a copy that is. ValueError where memory does not hold one."""
        if self.table is None:
            return self
        check_room(len(self) * self.num_classes * self.dtype.itemsize, f"a dense table of {len(self):,} labels")
        dense = InstanceLabels(
            self.targets, self.num_classes, 0.5, dtype=self.dtype, seed=self._seed, first_row=self.first_row
        )
        for piece in self.table.start.pieces():
            dense.label_logits[piece] = self.rows(piece)
        if self.seed is not None:
            dense.label_step.copy_(self.label_step)
        return dense

    def finite(self) -> bool:
        return self._rows.finite()

    def head(self, index: Tensor, x: Any, weight: Tensor | None, learned: Tensors | None = None) -> Head:
        return FetchedHead(self, index, weight) if self._fetched else LabelHead(self, index, weight)

    def traced(self, optimizer: torch.optim.Optimizer | None) -> TracedLoss:
        own = self.table is not None
        return TracedLabels(self, f"{type(self.table).__name__} is read and written from the host" if own else "")

    def _round_stochastically(self) -> None:
        """Of a bfloat16 table."""
        if self.dtype == torch.bfloat16 and self.seed is None and self._seed is not None:
            self.seed = self._seed
            self.register_buffer("label_step", torch.zeros((), dtype=torch.int64, device=self.targets.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InstanceLabels:
        super()._apply(fn, recurse)
        self._round_stochastically()  # labels.to(torch.bfloat16) must not fall back to rounding to nearest
        return self

    def rows(self, index: Tensor) -> Tensor:
        """Label parameters of the rows `index`: (n, C)."""
        return self._rows.take(index)

    def write_(self, index: Tensor, rows: Tensor) -> None:
        """Replace the label parameters of the rows `index`."""
        self._rows.put_(index, rows)

    def add_(self, index: Tensor, change: Tensor) -> None:
        """Add `change` (n, C) to the rows `index`, none of which stands there twice; rounded as a step rounds them."""
        rows = self.rows(index).to(change.dtype) + change
        if self.seed is not None:
            rows = round_stochastically(rows, self.seed, self.label_step, index + self.first_row)
        self.write_(index, rows)

    def assign_(self, index: Tensor, probs: Tensor) -> None:
        """Make `probs` (n, C) the label distributions of the rows `index`; what is below 0.001 / C counts as that."""
        logits = probs.double().clamp_min(_LEAST_MASS / self.num_classes).log()
        self.write_(index, logits - logits.mean(1, keepdim=True))

    def restart_(self, target_prob: float) -> None:
        """Every label as it is at a start of `target_prob`."""
        start = Start(self, self._margin(target_prob), self.dtype)
        if self.table is not None and self.table.restart(start):
            return
        for index in start.pieces():
            self.write_(index, start.rows(index))

    def over_epoch(self, move: Move, learned: Tensors | None = None) -> EpochMove:
        return TableMove(move, self) if self.table is None else PassingMove(move, self)

    def probs(self, index: Tensor | None = None) -> Tensor:
        """Label distributions (n, C) of the rows `index`, or (N, C) of all; float32 of 16-bit tables."""
        if index is None and self.table is not None:
            pieces = [self.probs(piece) for piece in self.table.start.pieces()]
            return torch.cat(pieces) if pieces else self.probs(self.targets)
        rows = self.label_logits if index is None else self.rows(index)
        return (rows.float() if rows.element_size() < 4 else rows).softmax(-1)

    def value(self, index: Tensor) -> Tensor:
        return self.rows(index)

    def put(self, index: Tensor, value: Tensor) -> None:
        self.write_(index, value)

    def loss_of(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        wide = value if value.element_size() >= 4 else value.float()
        return -(wide.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    def batch_loss(self, logits: Tensor, index: Tensor, weight: Tensor | None = None) -> ops.LabelLoss:
        if self.table is not None:
            return self.loss_at(self.value(index), logits, self.given(index), weight)
        return ops.instance_loss(logits, self.label_logits, index, weight)

    def loss_at(self, value: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None) -> ops.LabelLoss:
        own = torch.arange(logits.shape[0], device=logits.device)
        return ops.instance_loss(logits, value, own, weight)

    def gradient(
        self, logits: Tensor, u: Tensor, index: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return instance_gradient(self.rows(index), u, scale, weight)

    def gradient_at(
        self, value: Tensor, targets: Tensor, u: Tensor, scale: float | Tensor, weight: Tensor | None
    ) -> Tensor:
        """d L_meta / d label logits (n, C), one row per entry of the batch: see :func:`instance_gradient`."""
        return instance_gradient(value, u, scale, weight)

    def step_at(
        self, value: Tensor, index: Tensor, targets: Tensor, logits: Tensor, u: Tensor, step: LabelMove
    ) -> tuple[Tensor, ops.LabelStep]:
        new, *rest = ops.instance_label_step(
            value,
            index + self.first_row if self.first_row else index,  # the number that a row's draws are of
            logits,
            u,
            step.scale,
            step.label_lr,
            step.weight,
            unique=step.unique,
            seed=self.seed,
            step=step.counter,
        )
        return new, ops.LabelStep(*rest)

    def move_together(self, index: Tensor, grad: Tensor, label_lr: float | Tensor, ranks: Collective) -> None:
        self.move_(ranks.gather(index), ranks.gather(grad), label_lr)

    def reach(self, n: int, rows: int | None = None) -> float:
        return math.sqrt(n)

    def _place(self) -> str:
        if self.table is None:
            return super()._place()
        return f"{self.table.shape}, {str(self.dtype).removeprefix('torch.')}, in a {type(self.table).__name__}"

    def movement(self, target_prob: float) -> Movement:
        """A label changes when the logit of another class has come up by the margin."""
        margin = self._margin(target_prob)
        rows = self.rows(sample := self._sample()).double()
        start = torch.zeros_like(rows).scatter_(1, self.targets[sample][:, None], margin)
        return Movement(float((rows - start).abs().amax(1).mean()), max(margin, 1.0), "label logits")

    def stuck(self, target_prob: float, rate_name: str = "labels.label_lr") -> tuple[str, str] | None:
        """Labels that started soft and have all become hard: the gradient of a softmax vanishes there."""
        if target_prob > 0.98:
            return None
        mean = float(torch.special.entr(self.probs(self._sample())).sum(1).double().mean())
        if mean < 0.01 * math.log(self.num_classes):
            return "entropy", (
                f"the labels' entropy has collapsed to {mean:.2g} nats (log C = {math.log(self.num_classes):.2f}): "
                f"hard labels have no gradient any more; lower {rate_name} or labels.target_prob"
            )
        return None

    def run_away(self) -> float:
        rows = self.rows(self._sample()).double()
        return float((~(rows.amax(1) - rows.amin(1) < _RUN_AWAY)).double().mean())

    def _margin(self, target_prob: float) -> float:
        return math.log(target_prob * (self.num_classes - 1) / (1 - target_prob))

    def _sample(self) -> Tensor:
        """At most 65,536 rows and about 128 MiB of float64, evenly spread: enough for a mean."""
        most = max(1, min(65536, 2**24 // self.num_classes))
        return torch.arange(0, len(self), max(1, len(self) // most), device=self.targets.device)

    def counters(self) -> list[Tensor]:
        return [] if self.seed is None else [self.label_step]

    def move_(self, index: Tensor, grad: Tensor, label_lr: float | Tensor) -> None:
        """Eq. (5) with a gradient (n, C) that is already there; repeated rows move by the sum."""
        if self.seed is None:
            self._rows.add_(index, grad * -label_lr)
            return
        # the same sum in every occurrence's row, by a product: float atomics differ from run to run
        with without_autocast():
            total = (index.unsqueeze(1) == index).to(grad.dtype) @ grad
        rows = self.rows(index).float() - label_lr * total
        self.write_(index, round_stochastically(rows, self.seed, self.label_step, index + self.first_row))
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
        """Eq. (5) in place for the rows of the batch, and the loss under the new labels: one fused kernel.

        Of a table of one's own the kernel runs on the rows that are fetched, which are written behind it.
        """
        counter = None if self.seed is None else self.label_step
        if self._fetched:
            move = LabelMove(scale, label_lr, weight, unique, counter)
            new, step = self.step_at(self.value(index), index, self.given(index), logits, u, move)
            self.put(index, new)
            self.count_step_()
            return step
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
            step=counter,
        )
        self.count_step_()
        return step
