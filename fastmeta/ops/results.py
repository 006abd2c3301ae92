"""What the operations of both label families return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def _skipped(loss: Tensor) -> Tensor:
    return loss.isnan().sum(dtype=torch.int32)


class LabelLoss(NamedTuple):
    """The training loss of a batch under its labels."""

    loss: Tensor  # (n,) acc(T): -sum_k p_k log q_k, unweighted
    v: Tensor  # (n, C) T: weight * (q - p) = d(weight * loss)/dz
    entropy: Tensor  # (n,) acc(T): -sum_k p_k log p_k

    @property
    def skipped(self) -> Tensor:  # () int32: rows that were skipped
        return _skipped(self.loss)


class LabelStep(NamedTuple):
    """The same under the labels after their step, and how well the old ones agreed with the meta gradient."""

    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor  # (n,) acc(T): <q - p_old, u> = <grad_theta L_i, g>

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)


class InstanceLabelStep(NamedTuple):
    """:class:`LabelStep` of a functional twin: the new label rows (n, C) come first."""

    new_rows: Tensor
    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)


class ClassLabelStep(NamedTuple):
    """:class:`LabelStep` of a functional twin: the new alpha (C,) comes first."""

    new_alpha: Tensor
    loss: Tensor
    v: Tensor
    entropy: Tensor
    alignment: Tensor

    @property
    def skipped(self) -> Tensor:
        return _skipped(self.loss)
