"""The learning rate of label families: as it was given, or such that a step has a length that is said in advance.

By default eta follows the size of the label gradients. With the sizes x_t = (n / lambda_t) ||dL_meta/dl|| / reach(n),
which lambda and n have left, and the mean m_t of all before,

    eta_t = delta (lambda_t / lambda_max) (n / lambda_t) / max(m_t, x_t)

so that the rows of a batch move by at most delta lambda_t / lambda_max each, root mean square (instance labels), along
the exact gradient. The scale of the meta loss, lambda, n and the rates of parameter groups drop out. The mean lets a
step with a small gradient be small, and labels come to rest where gradients vanish; x_t itself bounds the first step
and every one that stands out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastmeta._numbers import as_real, shown
from fastmeta.distributed import ALONE, Ranks
from fastmeta.losses import LearnableLoss
from fastmeta.losses.head import NO_GRADIENT, Tensors
from fastmeta.meta.lookahead import LookAhead, Rate
from fastmeta.meta.result import StepResult

#: a look-ahead rate at most this (the start of a warm-up, the end of a cosine) moves no label by default
_NO_RATE = 1e-30
#: no norm that float32 holds is above; what overflowed must not stay in a mean
_LARGEST = 1e38


class LabelRate:
    """eta, of a loss that moves itself.

    Attributes:
        given: as the user gave it; None follows the size of gradients.
        step: delta, how far a visit moves a label then; None takes the loss's default.
        taken: the eta that the last step took by default; None before.
    """

    def __init__(
        self, given: Any, step: Any, loss: LearnableLoss, ranks: Ranks = ALONE, own_rows: bool = False
    ) -> None:
        for name, value in (("label_lr", given), ("label_step", step)):
            number = None if value is None else as_real(value)
            if value is not None and (number is None or not 0 <= number < float("inf")):
                raise ValueError(f"{name} must be None or a finite number >= 0, got {shown(value)}")
            if value is not None and loss.for_one_step:
                raise TypeError(f"{name} is a rate, and {type(loss).__name__} has none: leave it out")
            if value is not None and not loss.moves_itself:
                raise TypeError(
                    f"{name} is the rate of label families; {type(loss).__name__} moves by loss_optimizer, which has "
                    "its own"
                )
        if given is not None and step is not None:
            raise ValueError(
                "label_lr is the rate itself and label_step how far it moves a label, got both; leave one out"
            )
        self.loss, self._ranks, self._own_rows = loss, ranks, own_rows
        self.given = None if given is None else as_real(given)
        self.step = loss.default_step if step is None else as_real(step) or 0.0
        self.taken: Rate | None = None
        self.mean: Rate = 0.0  # m_t
        self.count: int | Tensor = 0  # of the steps in it
        self.largest: Rate = 0.0  # lambda_max
        self._unit: Rate = 0.0  # the norm of a gradient of size 1
        self._length: Rate = 0.0  # of the step, at most

    @property
    def adapts(self) -> bool:
        """Whether eta follows the size of gradients."""
        return self.given is None and self.loss.moves_itself and not self.loss.for_one_step

    @property
    def now(self) -> float | None:
        """As given, or what the last step took."""
        rate = self.taken if self.given is None else self.given
        return None if rate is None else float(rate)

    @cached_property
    def _rows(self) -> int | None:
        """Of the training set, in all."""
        rows = self.loss.row_count()
        if rows is None or not self._own_rows:
            return rows
        return int(self._ranks.sum(torch.tensor(rows, device=self.loss.device)))

    def of_step(
        self, lookahead: LookAhead, moving: Callable[[], Tensors], n: int, *others: int
    ) -> tuple[Rate | None, Rate | None]:
        """The rate as given, and None; where none is given the longest move of a step, and the least norm by which it
        is divided to be eta.

        For a step on `n` rows of this rank whose look-ahead moves the parameters that `moving` gives; `others` are the
        rows of its further steps, whose labels move together with these.
        """
        if not self.adapts:
            return self.given, None
        n = n * self._ranks.size
        rate, peak = lookahead.largest_rate(moving()), lookahead.announced_rate()
        reach = self.loss.reach(n + sum(others) * self._ranks.size, self._rows)
        if isinstance(rate, Tensor) or isinstance(self.largest, Tensor):
            rate = torch.as_tensor(rate, dtype=torch.float64)
            self.largest = torch.maximum(rate, torch.full_like(rate, peak)).clamp(min=self.largest)
            share: Rate = torch.where(rate > _NO_RATE, rate / self.largest, 0.0)
        else:
            self.largest = max(rate, peak, self.largest)
            share = rate / self.largest if rate > _NO_RATE else 0.0
        self._unit, self._length = rate * reach / n, self.step * share * reach
        return self._length, self.mean * self._unit

    def saw(self, result: StepResult) -> None:
        """Take a step's gradient into the mean; without waiting for the device."""
        if not self.adapts:
            return
        norm, mean, unit = result.label_grad_norm, self.mean, self._unit
        weight = 1 / (self.count + 1)
        if norm.is_cuda or isinstance(unit, Tensor):
            norm = norm.double()
            counts = result.finite & (norm > NO_GRADIENT) & (norm < _LARGEST)
            before = mean if isinstance(mean, Tensor) else torch.full_like(norm, mean)
            self.taken = torch.where(counts, self._length / norm.clamp(min=before * unit), 0.0)
            self.mean = torch.where(counts, before.lerp(norm / unit, torch.as_tensor(weight).to(norm)), before)
            self.count = self.count + counts
        else:
            size = float(norm)
            counted = bool(result.finite) and NO_GRADIENT < size < _LARGEST and unit > 0
            self.taken = self._length / max(size, mean * unit) if counted else 0.0
            if counted:
                self.mean = mean + weight * (size / unit - mean)
                self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """delta and the statistics; waits for the device."""
        return {
            "step": self.step,
            "mean": float(self.mean),
            "count": int(self.count),
            "largest": float(self.largest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.mean, self.count, self.largest = (state[key] for key in ("step", "mean", "count", "largest"))
