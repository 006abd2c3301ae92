"""Enhanced meta label correction (Taraday, Baskin, 2023): a teacher network makes the labels that the model learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastmeta.data import InputError, at_least, positive
from fastmeta.data.seeds import derived_seed
from fastmeta.functional.finite import all_finite
from fastmeta.functional.optimizers import step_along
from fastmeta.functional.precision import without_autocast
from fastmeta.losses import LabelTeacher, LearnableLoss
from fastmeta.methods.base import Batch, Context, Outcome, Samples
from fastmeta.methods.corrected_labels import CorrectingLoss
from fastmeta.methods.kept import Kept
from fastmeta.rng import below_range, random_bits


class EMLC(CorrectingLoss):
    """:class:`fastmeta.LabelTeacher` moved by the meta-gradient and by its own loss on the clean batch, with SGD.

        phi <- phi - lr (dL_meta/dphi + grad D(phi)),     D of :meth:`fastmeta.LabelTeacher.clean_loss`

    Both gradients are those of phi before the step. The teacher's network is built as the model is, with initial
    weights of its own. Its labels of all training samples are read at the end of each epoch.
    """

    supports: ClassVar[frozenset[str]] = frozenset({"ranks"})  # by which labels the model moves, method.moves_by says

    @dataclass(frozen=True)
    class Config:
        """The teacher, and by which labels the model moves."""

        lr: float = 0.02
        """Learning rate of the teacher's SGD, constant."""
        injection: Literal["none", "adversarial", "random"] = "none"
        """Which other label every second clean row is shown with, to teach the retention net to tell."""
        moves_by: Literal["before", "after"] = "before"
        """By which labels the model moves: those of before the teacher's step, or of after its meta-gradient."""
        embedding: int = 128
        """Size of the embedding of the given label."""
        hidden: int = 128
        """Units of the retention net."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.network_input = context.network_input
        self.seed, self.ranks = derived_seed(context.config.seed, "emlc"), context.ranks
        self.kept = Kept(retained=None)

    def make_loss(self, context: Context) -> LabelTeacher:
        own, network = self.config, context.model("teacher")
        try:
            return LabelTeacher(
                context.targets, context.num_classes, network, embedding=own.embedding, hidden=own.hidden
            )
        except ValueError as error:
            raise InputError(f"method=emlc: {error}") from error

    def make_optimizer(self, loss: LearnableLoss) -> torch.optim.Optimizer:
        return torch.optim.SGD(loss.parameters(), lr=self.config.lr)

    def approximation(self, context: Context) -> str | None:
        return "delayed" if self.config.moves_by == "before" else None

    def stateful(self) -> Mapping[str, Any]:
        kept = dict(super().stateful())
        # the context has the teacher's network already
        return {**kept, "loss": self.teacher.retention, "emlc": self.kept}

    @property
    def teacher(self) -> LabelTeacher:
        assert isinstance(self.loss, LabelTeacher)
        return self.loss

    def step(self, batch: Batch) -> Outcome:
        assert batch.meta is not None
        assert self.loss_optimizer is not None
        buffers = list(self.teacher.network.buffers())
        before = [b.clone() for b in buffers]
        grads = self.clean_gradient(*batch.meta)
        outcome = super().step(batch)
        assert outcome.finite is not None
        # SGD without momentum: two steps in turn are one along the sum
        finite = outcome.finite & all_finite(grads.values())
        step_along(
            self.loss_optimizer, self.teacher.learned(), {k: torch.where(finite, g, 0) for k, g in grads.items()}
        )
        for b, old in zip(buffers, before, strict=True):
            b.copy_(torch.where(finite, b, old))
        return outcome

    def clean_gradient(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        """Of the teacher's own loss on the clean batch, by name, of the parameters that it reaches."""
        learned, injection, ranks = self.teacher.learned(), self.config.injection, self.ranks
        drawn, first = None, ranks.rank * len(y)  # place of the first row in the clean batch of all ranks
        if injection == "random":
            places = torch.arange(first, first + len(y), device=y.device)
            bits = random_bits(self.seed, self.meta_step.steps, places)[:, 0]
            drawn = below_range(bits, self.teacher.num_classes)
        with torch.enable_grad(), without_autocast():
            loss = self.teacher.clean_loss(self.network_input(x), y, injection, drawn, first)
            grads = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        found = {k: g for k, g in zip(learned, grads, strict=True) if g is not None}
        return dict(zip(found, ranks.mean(list(found.values())), strict=True))

    def corrected(self, x: Any, rows: Tensor) -> Tensor:
        with without_autocast():  # as in steps
            probs, kept = self.teacher.made(self.teacher.given(rows), self.teacher.see(x))
        self._kept.append(kept)
        return probs

    def end_epoch(self, samples: Samples) -> None:
        self._kept: list[Tensor] = []
        super().end_epoch(samples)
        self.kept.retained = self.ranks.row_mean(torch.cat(self._kept))

    def figures(self) -> Mapping[str, Any]:
        """The mean of c over the training rows."""
        return {"given_label_kept": self.kept.retained}

    @classmethod
    def default_lookahead(cls, usual: str) -> str:
        return "optimizer" if usual == "sgd" else usual

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        super().check(config, num_classes)
        own = config.options
        positive("method.lr", own.lr)
        at_least("method.embedding", own.embedding, 1)
        at_least("method.hidden", own.hidden, 1)
