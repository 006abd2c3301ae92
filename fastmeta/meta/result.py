"""What one step tells, and sums of it over steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Of an approximate step from the exact one, see :mod:`fastmeta.meta.distance`: 0-d float64 tensors on the device.

    NaN where e is zero; where a is zero and e is not, the cosine is 0. All ranks have the same.
    """

    cosine: Tensor  #: <a, e> / (|a| |e|)
    length: Tensor  #: |a| / |e|
    error: Tensor  #: |a - e| / |e|


@dataclass
class StepResult:
    """Device tensors of one step; reading one is what waits for the device, the step itself does not (CUDA)."""

    train_loss: Tensor  #: 0-d, mean training loss at theta under the old labels
    meta_loss: Tensor  #: 0-d, mean meta loss at theta*
    loss: Tensor  #: (n,) per row, at theta under the new labels
    logits: Tensor  #: (n, C) train logits at theta
    entropy: Tensor  #: (n,) of the new label distributions
    alignment: Tensor  #: (n,) <q_i - p_i, u_i> with the old labels: positive where the sample pulls with the meta set
    label_grad_norm: Tensor  #: 0-d, Euclidean norm of the label gradient of the batch
    skipped: Tensor  #: 0-d int32, rows with a NaN, an infinity or an index out of range, whose labels did not move
    finite: Tensor  #: 0-d bool; where False the step moved neither parameters, labels nor buffers
    #: of an approximate step from the exact one, where this one was watched (`watch_every`)
    distance: Distance | None = field(default=None, init=False)


class Totals(Protocol):
    """Sums over steps that live on the device and are part of the step: of its graph, where it has one."""

    values: Tensor  #: any one tensor, written after each step

    def added(self, values: Tensor, result: StepResult, targets: Tensor) -> Tensor:
        """`values` and one step more; `targets` (n,) are the given labels of the batch. Pure, and without a sync."""
        ...
