"""The training loss of one batch as a step sees it: before and after the loss has moved.

A step asks four things: the loss and its derivative v at the logits (:meth:`Head.loss`), the meta-gradient of the
loss's own parameters (:meth:`Head.gradient`), one move along it (:meth:`Head.step`), and to have that move undone
(:meth:`Head.undo`). How a loss answers is its own business; nothing outside of this folder asks which loss it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastmeta.ops import LabelLoss

Tensors = dict[str, Tensor]
Rate = float | Tensor

#: a gradient whose norm is at most this moves nothing by a rate that is divided by it
NO_GRADIENT = 1e-30


class Collective(Protocol):
    """What heads ask of the ranks of a process group."""

    size: int

    def sum(self, tensor: Tensor) -> Tensor: ...
    def all(self, flag: Tensor) -> Tensor: ...
    def mean(self, tensors: list[Tensor]) -> list[Tensor]: ...
    def gather(self, tensor: Tensor) -> Tensor: ...


@dataclass
class Move:
    """How a loss moves: at which rate or by which optimizer, and among which ranks."""

    ranks: Collective
    label_lr: Rate | None = None  # of a loss that moves itself; of a normalised step its greatest length
    floor: Rate | None = None  # of a normalised step, the least norm that its length is divided by
    unique: bool = False  # a promise that no batch holds a row twice
    optimizer: torch.optim.Optimizer | None = None  # of a loss that does not
    own_rows: bool = False  # whether each rank's loss has rows of the training set that no other rank has

    def rate(self, norm: Tensor) -> Rate:
        """eta, of a loss that moves itself, where its gradient has this norm; 0 where that is NaN."""
        length, floor = self.label_lr, self.floor
        assert length is not None
        if floor is None:
            return length
        if norm.is_cuda or isinstance(floor, Tensor) or isinstance(length, Tensor):
            return torch.where(norm > NO_GRADIENT, length / norm.double().clamp(min=floor), 0.0)
        size = float(norm)
        return length / max(size, floor) if size > NO_GRADIENT else 0.0


class LabelMove(NamedTuple):
    """Numbers of one step of a label family."""

    scale: Rate
    label_lr: Rate
    weight: Tensor | None
    unique: bool
    counter: Tensor | None  # of stochastic rounding


class Moved(NamedTuple):
    """The loss after its move."""

    loss: Tensor  # (n,) under the moved parameters
    v: Tensor  # (n, C) its derivative, with the weights of the rows
    entropy: Tensor  # (n,) of the label distributions; NaN where the loss has none
    alignment: Tensor  # (n,) <v_i, u_i> before the move, without the weights
    skipped: Tensor  # 0-d int32
    grad_norm: Tensor  # 0-d
    finite: Tensor  # 0-d bool: whether the step may still count


class Head(ABC):
    """The loss on one batch."""

    #: whether the loss of a row depends on that row alone, so that pieces of the batch may be asked for
    separable = False

    @abstractmethod
    def loss(self, logits: Tensor, rows: slice | None = None) -> LabelLoss:
        """Loss, v and entropy at detached `logits`, under the parameters as they are."""

    @abstractmethod
    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        """dL_meta/dphi = -scale d/dphi sum_i <v_i(phi), u_i>, by name; of this rank's rows. After :meth:`loss`."""

    @abstractmethod
    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        """<dl_i/dz_i, u_i> (n,) before a move, without the weights of the rows. After :meth:`loss`."""

    @abstractmethod
    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        """One move along the gradient. Where `finite`, a 0-d bool, is False the parameters stay."""

    @abstractmethod
    def undo(self, keep: Tensor | None = None) -> None:
        """Put back what :meth:`step` has moved; given a 0-d bool, where that is False."""
