"""Sparse over-parameterisation (Liu et al., 2022): parameters of each sample take up what is wrong of its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fastmeta.data import positive
from fastmeta.data.seeds import derived_seed
from fastmeta.methods.base import Batch, Context, Method, Outcome
from fastmeta.methods.kept import Kept, rows_of, table_dtype
from fastmeta.methods.plain_step import PlainStep

#: least probability, and what squares stay below one by, as published
_LEAST = 1e-4
#: deviation of u and v at the start, which is near zero and not at it: there no gradient moves them
_START = 1e-8


class SOP(Method):
    """The given classes, with what is wrong of a label in parameters u_i (1,), v_i (C,) of its sample.

        s_i = clamp(u_i^2) y_i - clamp(v_i^2) (1 - y_i)                   y_i one-hot, clamp to [0, 1 - 1e-4]
        p_i = max(softmax(z_i) + s_i, 1e-4), over its sum                 the clamped v_i held constant
        loss = mean_i( -log p_iy + | onehot(argmax z_i) + s_i - y_i |^2 ) the clamped u_i held constant in the second

    The network and u follow the first term, v the second: u, v take steps of plain SGD at rates of their own, constant,
    in the rows of the batch. They start from a normal distribution of deviation 1e-8.
    """

    @dataclass(frozen=True)
    class Config:
        lr_u: float = 1.0
        """Learning rate of u, above 0; 1 was published for symmetric noise, 0.1 for asymmetric noise."""
        lr_v: float = 10.0
        """Learning rate of v, above 0; 10 was published for symmetric noise, 100 for asymmetric noise."""

    supports: ClassVar[frozenset[str]] = frozenset({"micro_batch", "ranks"})

    @classmethod
    def check(cls, config: Any, num_classes: int | None = None) -> None:
        positive("method.lr_u", config.options.lr_u)
        positive("method.lr_v", config.options.lr_v)

    def setup(self, context: Context) -> None:
        self.model, self.targets, self.num_classes = context.model(), context.targets, context.num_classes
        self.network_input = context.network_input
        optimizer = context.optimizer(p for p in self.model.parameters() if p.requires_grad)
        self.plain_step = PlainStep(self.model, optimizer, context.config.micro_batch, context.ranks)
        draws = torch.Generator().manual_seed(derived_seed(context.config.seed, "sop"))
        self.ranks = context.ranks
        own = rows_of(context)

        def start(columns: int) -> Tensor:
            """Of a part of the rows, those that all rows together would have."""
            drawn = torch.randn(own.in_all, columns, generator=draws, dtype=torch.float32)
            return (_START * drawn[own.first : own.first + len(self.targets)]).to(
                context.device, table_dtype(self.model)
            )

        self.kept = Kept({"u": start(1), "v": start(context.num_classes)})

    def predictor(self) -> nn.Module:
        return self.model

    def stateful(self) -> Mapping[str, Any]:
        return {"sop": self.kept}

    def step(self, batch: Batch) -> Outcome:
        index, n = batch.index, len(batch.index)
        y = one_hot(self.targets[index], self.num_classes)
        u_before, v_before = self.kept.u[index], self.kept.v[index]
        moved_u: list[Tensor] = []
        moved_v: list[Tensor] = []

        def backward(logits: Tensor, rows: slice) -> Tensor:
            given = y[rows].to(logits.dtype)
            u, v = (t[rows].detach().requires_grad_() for t in (u_before, v_before))
            of_u = (u**2).clamp(0, 1 - _LEAST) * given
            of_v = (v**2).clamp(0, 1 - _LEAST) * (1 - given)
            p = (logits.softmax(1) + of_u - of_v.detach()).clamp_min(_LEAST)
            p = p / p.sum(1, keepdim=True)
            likelihood = -(given * p.clamp_min(_LEAST).log()).sum()
            said = one_hot(logits.detach().argmax(1), self.num_classes)
            distance = ((said + of_u.detach() - of_v - given) ** 2).sum()
            loss = (likelihood + distance) / n
            loss.backward()
            assert u.grad is not None
            assert v.grad is not None
            size = self.ranks.size  # the mean is over the rows of all of them
            moved_u.append(u.detach() - self.config.lr_u / size * u.grad)
            moved_v.append(v.detach() - self.config.lr_v / size * v.grad)
            return loss.detach()

        logits, loss, finite = self.plain_step(self.network_input(batch.x), n, backward)
        self.kept.write("u", index, torch.cat(moved_u), finite)
        self.kept.write("v", index, torch.cat(moved_v), finite)
        return Outcome(logits, loss, finite)

    def figures(self) -> Mapping[str, Any]:
        """Mean of what the parameters have taken off the given classes, and given to others."""
        u, v, y = self.kept.u, self.kept.v, self.targets[:, None]
        off = (v**2).clamp(0, 1 - _LEAST)
        return {
            "taken_up_given": self.ranks.row_mean((u**2).clamp(0, 1 - _LEAST).squeeze(1)),
            "taken_up_others": self.ranks.row_mean(off.sum(1) - off.gather(1, y).squeeze(1)),
        }

    def explain(self) -> str:
        return "labels: fixed as given; what is wrong of them is taken up by parameters of each sample"
