"""Data parameters (Saxena et al., 2019): a learned temperature for each class and each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastmeta.data import InputError, positive, within
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.kept import Kept, table_dtype
from fastmeta.methods.plain_step import PlainStep


class DataParameters(Method):
    """The given classes, with logits over a temperature that the training loss itself moves.

        sigma_i = exp(c_y) + exp(s_i), or one of them alone            c (C,), s (N,), clamped to +-log largest
        loss = mean_i -log softmax(z_i / sigma_i)_y + decay/2 sum_i (s_i^2 + c_y^2)      rows i of the batch

    A sample that the network cannot fit gets a high temperature, and so a small gradient. c and s take steps of SGD at
    rates of their own, constant, with momentum; those that the batch has not met stay, and so does their momentum: a
    step costs O(n C), however many samples there are. The model predicts without temperatures.
    """

    @dataclass(frozen=True)
    class Config:
        parameters: Literal["instance", "class", "both"] = "instance"
        """Whose temperatures are learned: of each sample, of each class, or both, added up."""
        lr_instance: float = 0.2
        """Learning rate of the logarithms of samples' temperatures, above 0."""
        lr_class: float = 0.1
        """Learning rate of the logarithms of classes' temperatures, above 0."""
        momentum: float = 0.9
        """Momentum of both, in [0, 1)."""
        decay: float = 0.0
        """Weight decay of the logarithms, at least 0: it pulls temperatures to one."""
        start: float = 1.0
        """Each temperature at the start."""
        largest: float = 20.0
        """Temperatures stay between one over this and this, which is above 1."""

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch", "ranks"})

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        own = config.options
        positive("method.lr_instance", own.lr_instance)
        positive("method.lr_class", own.lr_class)
        within("method.momentum", own.momentum, 0, 1, high_open=True)
        within("method.decay", own.decay, 0, math.inf, high_open=True)
        within("method.largest", own.largest, 1, 1e6)
        if not 1 / own.largest <= own.start <= own.largest:
            raise InputError(
                f"method.start must lie between 1/method.largest and method.largest, {1 / own.largest:g} to "
                f"{own.largest:g}, got {own.start}"
            )
        for name, other in (("lr_instance", "class"), ("lr_class", "instance")):
            if own.parameters == other and getattr(own, name) != getattr(cls.Config, name):
                raise InputError(
                    f"method.{name}={getattr(own, name)} moves nothing where method.parameters={other}; leave it out"
                )

    def setup(self, context: Context) -> None:
        self.model, self.targets = context.model(), context.targets
        self.network_input = context.network_input
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch, context.ranks)
        like: dict[str, Any] = {"dtype": table_dtype(self.model), "device": context.device}
        start = math.log(self.config.start)
        self.tables: dict[str, float] = {}  # name -> rate
        values: dict[str, Tensor] = {}
        for name, size, lr in (
            ("instance", len(context.targets), self.config.lr_instance),
            ("class", context.num_classes, self.config.lr_class),
        ):
            if self.config.parameters in (name, "both"):
                self.tables[name] = lr
                values |= {name: torch.full((size,), start, **like), f"{name}_momentum": torch.zeros(size, **like)}
        self.ranks = context.ranks
        rows = {name: t for name, t in values.items() if name.startswith("instance")}
        self.kept = Kept(rows, **{name: t for name, t in values.items() if name not in rows})

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"data_parameters": self.kept}

    def step(self, batch: Batch) -> Outcome:
        n, targets, decay = len(batch.index), self.targets[batch.index], self.config.decay
        where = {"instance": batch.index, "class": targets}
        before = {name: getattr(self.kept, name)[where[name]] for name in self.tables}
        grads: dict[str, list[Tensor]] = {name: [] for name in self.tables}

        def backward(logits: Tensor, rows: slice) -> Tensor:
            logs = {name: t[rows].detach().requires_grad_() for name, t in before.items()}
            sigma = torch.stack([t.exp() for t in logs.values()]).sum(0)
            loss = cross_entropy(logits / sigma[:, None], targets[rows], reduction="sum") / n
            if decay:
                # a sum over the rows of all ranks, whose losses are averaged
                loss = loss + 0.5 * decay * self.ranks.size * torch.stack([(t**2).sum() for t in logs.values()]).sum()
            loss.backward()
            for name, t in logs.items():
                assert t.grad is not None
                grads[name].append(t.grad / self.ranks.size)
            return loss.detach()

        logits, loss, finite = self.plain_step(self.network_input(batch.x), n, backward)
        for name, parts in grads.items():
            self._move(name, where[name], torch.cat(parts), finite)
        return Outcome(logits, loss, finite)

    def _move(self, name: str, rows: Tensor, grad: Tensor, finite: Tensor) -> None:
        """A step of SGD in the entries `rows` (n,), where one may stand several times; `grad` (n,) is of each."""
        if name == "class":
            values = self.kept.state_dict()[name]
            summed = torch.zeros_like(values).index_add_(0, rows, grad)
            met = torch.zeros_like(values).index_fill_(0, rows, 1)
            summed, met = self.ranks.sum(torch.stack([summed, met]))  # of classes all ranks have one copy
            rows, grad = torch.arange(len(values), device=values.device), summed
            finite = finite & (met > 0)
        value, buffer = (getattr(self.kept, key)[rows] for key in (name, f"{name}_momentum"))
        buffer = self.config.momentum * buffer + grad
        bound = math.log(self.config.largest)
        moved = (value - self.tables[name] * buffer).clamp(-bound, bound)
        self.kept.write(f"{name}_momentum", rows, buffer, finite)
        self.kept.write(name, rows, moved, finite)

    def figures(self) -> Mapping[str, Any]:
        """Mean temperature, of each kind that is learned."""
        mean = {"instance": self.ranks.row_mean, "class": lambda values: float(values.mean())}
        return {f"temperature_{name}": mean[name](getattr(self.kept, name).exp()) for name in self.tables}

    def explain(self) -> str:
        who = {"instance": "each sample", "class": "each class", "both": "each sample and class"}
        return f"labels: fixed as given; a learned temperature of {who[self.config.parameters]} divides the logits"
