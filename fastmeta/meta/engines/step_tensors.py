"""Every tensor that a step as one graph reads and writes, where it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmeta.functional.network import Network, copy_all_
from fastmeta.functional.optimizers import steps_as_sgd
from fastmeta.functional.pure_optimizers import Scalars, refuse_hooks
from fastmeta.losses import LearnableLoss, Unsupported
from fastmeta.meta.engines.graph import Untraceable
from fastmeta.meta.engines.pure import GroupNumbers, StepInputs, Terms
from fastmeta.meta.inputs import InputTransform, tensors_of
from fastmeta.meta.lookahead import LookAhead, Rate
from fastmeta.meta.result import Totals


@dataclass
class Batch:
    """What is new in every step."""

    x: Any
    index: Tensor
    x_meta: Any
    y_meta: Tensor
    weight: list[Tensor]  # none or one

    def tree(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


class StepTensors:
    """Those of one (network, loss, optimizers)."""

    def __init__(
        self,
        network: Network,
        loss: LearnableLoss,
        loss_optimizer: torch.optim.Optimizer | None,
        optimizer: torch.optim.Optimizer,
        lookahead: LookAhead,
        totals: Totals | None,
        transform: InputTransform | None,
    ) -> None:
        self.network, self.optimizer, self.lookahead = network, optimizer, lookahead
        self.loss_module, self.loss_optimizer = loss, loss_optimizer
        self.totals, self.transform = totals, transform
        self._read_loss()
        self._scalars = Scalars()
        self.normalised = False  # whether label steps are; see fastmeta.meta.label_rate
        self._terms = self._read_terms()

    def _read_loss(self) -> None:
        """The loss as a pure function, of the tensors that it has by now."""
        try:
            self.loss = self.loss_module.traced(self.loss_optimizer)
        except Unsupported as error:
            raise Untraceable(str(error)) from None

    def _read_terms(self) -> list[Terms]:
        if not steps_as_sgd(self.optimizer):
            raise Untraceable(f"the graph holds torch.optim.SGD, not {type(self.optimizer).__name__}")
        try:
            refuse_hooks(self.optimizer, list(self.network.params.values()))
        except NotImplementedError as error:
            raise Untraceable(str(error)) from None
        by_id: dict[int, Terms] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            if group["dampening"] or group.get("maximize"):
                raise Untraceable("the graph holds SGD without dampening and maximize")
            rule = Terms(number, group["momentum"] != 0, bool(group["nesterov"]), group["weight_decay"] != 0)
            by_id.update((id(p), rule) for p in group["params"])
        return [by_id[id(p)] for p in self.network.params.values()]

    def _read(self, batch: Batch) -> StepInputs:
        network, index, scalars = self.network, batch.index, self._scalars
        return StepInputs(
            params=[p.detach() for p in network.params.values()],
            frozen=[p.detach() for p in network.frozen().values()],
            state=list(network.own_state().values()),
            momentum=self._momenta(),
            loss=self.loss.read(index),
            given=[] if self.totals is None else [self.loss_module.given(index)],
            index=index,
            x=batch.x,
            x_meta=batch.x_meta,
            y_meta=batch.y_meta,
            data=tensors_of(self.transform),
            numbers=[
                scalars[f"{key} of group {k}"]
                for k in range(len(self.optimizer.param_groups))
                for key in GroupNumbers._fields
            ],
            lookahead_lr=scalars["lookahead"],
            label_lr=scalars["label_lr"],
            floor=[scalars["floor"]] if self.normalised else [],
            weight=batch.weight,
            totals=[] if self.totals is None else [self.totals.values],
        )

    def _set_rates(self, label_lr: Rate | None, floor: Rate | None) -> None:
        """Rates and the like as 0-d tensors that stay where they are, by fills: a copy from the host would wait."""
        choice = self.lookahead.choice
        rates = {
            f"{key} of group {k}": group[key]
            for k, group in enumerate(self.optimizer.param_groups)
            for key in GroupNumbers._fields
        }
        rates |= {
            "lookahead": 0.0 if isinstance(choice, str) else choice,
            "label_lr": 0.0 if label_lr is None else label_lr,
            "floor": 0.0 if floor is None else floor,
        }
        self.normalised = floor is not None
        self._scalars.set(rates, next(iter(self.network.params.values())))
        self.loss.set_rates()

    def _momenta(self) -> list[Tensor]:
        """The optimizer's momentum buffers, of the parameters that have one; zeros where it has none yet."""
        momenta = []
        for p, rule in zip(self.network.params.values(), self._terms, strict=True):
            if rule.momentum:
                state = self.optimizer.state[p]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(p)
                momenta.append(state["momentum_buffer"])
        return momenta

    def _written(self) -> list[Tensor]:
        """What a step writes in place, besides labels."""
        params = [p.detach() for p in self.network.params.values()]
        totals = [] if self.totals is None else [self.totals.values]
        return [*params, *self._momenta(), *self.network.writable_state(), *totals]

    def _state(self) -> list[Tensor]:
        """Every tensor that a step reads or writes where it lies."""
        rates = self._scalars.tensors()
        read = [*self.loss.state(), *self.network.frozen().values(), *tensors_of(self.transform)]
        return [*self._written(), *read, *rates]

    def _undo(self, index: Tensor) -> Callable[[], None]:
        """Puts back what a step on the rows `index` writes."""
        written, undo_loss = self._written(), self.loss.undo(index)
        before = [t.clone() for t in written]

        def undo() -> None:
            copy_all_(written, before)
            undo_loss()

        return undo
