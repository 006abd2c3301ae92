"""Distillation (Hinton et al., 2015): soft targets from a trained network, or from learned labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, positive, within
from fastmeta.functional.call import call_model, pick_logits
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.plain_step import PlainStep

#: numbers that a teacher's predictions are kept up to: 256 MB in float32
MOST_LOGITS = 2**26


class Distill(Method):
    """The soft targets of a finished run, at a temperature T.

        t_i = softmax(z^teacher_i / T),  or  p_i^(1/T) over its sum, p the learned labels
        loss = (1 - hard) mean_i( -sum_k t_ik log q_ik ) + hard mean_i( -log q_iy )        q = softmax(z_i)

    With `both` the student has the temperature too, as in Hinton et al.: q = softmax(z_i / T) in the first term, which
    is multiplied by T^2. The teacher is in evaluation mode and sees the same augmented batch; without augmentation it
    is read once, at the first step.
    """

    @dataclass(frozen=True)
    class Config:
        teacher: str = ""
        """Directory of a finished run, whose model gives the targets."""
        labels: str = ""
        """Or directory of a finished run on the same training rows, whose learned labels are the targets."""
        temperature: float = 1.0
        """T, above 0: more than one makes targets softer."""
        both: bool = False
        """Whether the student's logits are divided by T as well, and the loss multiplied by T^2."""
        hard: float = 0.0
        """Weight of the loss of the given classes, in [0, 1]."""

    paths: ClassVar[tuple[str, ...]] = ("teacher", "labels")
    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch", "ranks"})

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        own = config.options
        positive("method.temperature", own.temperature)
        within("method.hard", own.hard, 0, 1)
        if own.teacher and own.labels:
            raise InputError("method=distill takes method.teacher or method.labels, and both are given; leave one out")
        # without data a config may still be on its way, flag by flag
        if num_classes is not None and not (own.teacher or own.labels):
            raise InputError(
                "method=distill needs the directory of a finished run: method.teacher, for its model's predictions, "
                "or method.labels, for its learned labels"
            )

    def setup(self, context: Context) -> None:
        own = self.config
        if own.labels and context.ranks.size > 1:
            raise InputError(
                "method.labels of method=distill are of all training rows, of which each rank has a part; take "
                "method.teacher, or run it in one process"
            )
        self.teacher = context.teacher(own.teacher) if own.teacher else None
        self.context = context
        self.soft = context.learned_labels(own.labels) if own.labels else None
        self.model, self.targets = context.model(), context.targets
        self.network_input = context.network_input
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch, context.ranks)

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor | None:
        """z (N, C) of the teacher, which each step would compute again, made at the first one; None where steps see
        other samples, or where it is large."""
        teacher, context = self.teacher, self.context
        if teacher is None:
            return None
        samples = context.fixed_samples()
        if samples is None or len(context.targets) * context.num_classes > MOST_LOGITS:
            return None
        with torch.autocast(context.device.type, torch.bfloat16, enabled=context.config.precision == "bf16"):
            return torch.cat([pick_logits(call_model(teacher, x)) for x, _ in samples])

    def predictor(self) -> nn.Module:
        return self.model

    @torch.no_grad()
    def soft_targets(self, x: Any, index: Tensor, dtype: torch.dtype) -> Tensor:
        """t (n, C) of rows with network input `x`."""
        if self.logits is not None:
            logits = self.logits[index].to(dtype)
        elif self.teacher is not None:
            logits = pick_logits(call_model(self.teacher, x)).to(dtype)
        else:
            assert self.soft is not None
            logits = self.soft.probs(index).to(dtype).log()
        return (logits / self.config.temperature).softmax(1)

    def step(self, batch: Batch) -> Outcome:
        n, own, x = len(batch.index), self.config, self.network_input(batch.x)
        targets = self.targets[batch.index]

        def backward(logits: Tensor, rows: slice) -> Tensor:
            part = x if len(logits) == n else x[rows]
            soft = self.soft_targets(part, batch.index[rows], logits.dtype)
            temperature = own.temperature if own.both else 1.0
            loss = temperature**2 * cross_entropy(logits / temperature, soft, reduction="sum")
            if own.hard:
                given = cross_entropy(logits, targets[rows], reduction="sum")
                loss = (1 - own.hard) * loss + own.hard * given
            loss = loss / n
            loss.backward()
            return loss.detach()

        return Outcome(*self.plain_step(x, n, backward))

    def explain(self) -> str:
        own = self.config
        source = f"predictions of {own.teacher}" if own.teacher else f"learned labels of {own.labels}"
        return f"labels: {source}, at temperature {own.temperature:g}"
