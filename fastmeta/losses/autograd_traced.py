"""Any learnable loss as a pure function of tensors: its parameters, what its optimizer keeps, and its buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.functional.finite import all_finite
from fastmeta.functional.optimizers import Snapshot
from fastmeta.functional.pure_optimizers import PureOptimizer, pure_optimizer
from fastmeta.functional.random_state import RandomState
from fastmeta.losses.autograd_head import Buffers, Evaluated, generators_of, norm_of
from fastmeta.losses.head import Move, Moved, Rate, Tensors
from fastmeta.losses.traced_loss import TracedHead, TracedLoss, Unsupported
from fastmeta.ops import LabelLoss

if TYPE_CHECKING:
    from fastmeta.losses.learnable_loss import LearnableLoss


class TracedAutograd(TracedLoss):
    """The graph reads parameters, the optimizer's state and numbers, and all other tensors of the loss."""

    def __init__(self, loss: LearnableLoss, optimizer: torch.optim.Optimizer | None) -> None:
        assert optimizer is not None
        self.loss, self.optimizer = loss, optimizer
        self.learned = self._learned_now()
        self.pure: PureOptimizer = self._pure()
        rest = [(n, p) for n, p in loss.named_parameters() if n not in self.learned]
        self._constant = dict([*rest, *loss.named_buffers()])

    def _learned_now(self) -> Tensors:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.loss.learned().items() if id(p) in held}

    def _pure(self) -> PureOptimizer:
        try:
            return pure_optimizer(self.optimizer, list(self.learned.values()))
        except NotImplementedError as error:
            raise Unsupported(f"of loss_optimizer, {error}") from None

    @property
    def key(self) -> Any:
        """Also looks whether the optimizer still has a form."""
        return self._pure().key

    def stands(self) -> bool:
        rest = [*self.loss.named_parameters(), *self.loss.named_buffers()]
        known = self.learned | self._constant
        if self._learned_now().keys() != self.learned.keys():
            return False
        return len(rest) == len(known) and all(known.get(name) is t for name, t in rest)

    def read(self, index: Tensor) -> list[Tensor]:
        return [*self._written(), *self.pure.numbers(), *(t.detach() for t in self._constant.values())]

    def _written(self) -> list[Tensor]:
        return [*(p.detach() for p in self.learned.values()), *self.pure.state()]

    def head(self, tensors: Sequence[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> TracedHead:
        return TracedAutogradHead(self, list(tensors), index, x, weight)

    def write(self, index: Tensor, new: Sequence[Tensor], finite: Tensor) -> None:
        for own, value in zip(self._written(), new, strict=True):
            if value is not own:
                own.copy_(value)

    def undo(self, index: Tensor) -> Callable[[], None]:
        return Snapshot(self.optimizer, list(self.learned.values())).restore

    def state(self) -> list[Tensor]:
        return self.read(torch.empty(0))

    def set_rates(self) -> None:
        self.pure.set_rates()

    def modules(self) -> list[tuple[str, nn.Module]]:
        return [(f"loss.{name}" if name else "loss", m) for name, m in self.loss.named_modules()]

    def try_forward(self, logits: Tensor, index: Tensor, x: Any) -> None:
        random = RandomState(logits.device, generators_of(self.loss))
        buffers = Buffers(self.loss)
        try:
            Evaluated(lambda z: self.loss(z, index, x), logits, None, type(self.loss).__name__)
            moved = buffers.settle()
            drawn = random.has_drawn()
        finally:
            buffers.restore()
            random.restore()
        if moved:
            raise Unsupported(f"the loss moves its buffer {min(moved)} in its forward")
        if drawn:
            raise Unsupported("the loss draws random numbers, and both of its calls must draw the same")


class TracedAutogradHead(TracedHead):
    """A loss on one batch, at given tensors."""

    def __init__(self, of: TracedAutograd, tensors: list[Tensor], index: Tensor, x: Any, weight: Tensor | None) -> None:
        self.of, self.index, self.x, self.weight = of, index, x, weight
        names, states, numbers = list(of.learned), len(of.pure.state()), len(of.pure.numbers())
        params, rest = tensors[: len(names)], tensors[len(names) :]
        self.state, self.numbers, constant = rest[:states], rest[states : states + numbers], rest[states + numbers :]
        self.learned: Tensors = {k: p.detach().requires_grad_() for k, p in zip(names, params, strict=True)}
        self.constant: Tensors = dict(zip(of._constant, constant, strict=True))
        self.name = type(of.loss).__name__
        self._old = [*params, *self.state]
        self._new = self._old

    def _evaluated(self, logits: Tensor, learned: Tensors) -> Evaluated:
        def function(z: Tensor) -> Tensor:
            result: Tensor = functional_call(self.of.loss, {**self.constant, **learned}, (z, self.index, self.x))
            return result

        return Evaluated(function, logits, self.weight, self.name)

    def loss(self, logits: Tensor, rows: slice | None = None) -> LabelLoss:
        self._before = self._evaluated(logits, self.learned)
        return self._before.terms()

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        return self._before.gradient(self.learned, u, scale, self.name)

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        return self._before.alignment(u)

    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        grads = self.gradient(logits, u, scale)
        grads = dict(zip(grads, move.ranks.mean(list(grads.values())), strict=True))
        finite = finite & all_finite(grads.values())
        alignment = self.alignment(logits, u)
        params = [p.detach() for p in self.learned.values()]
        new, state = self.of.pure.step(params, [grads.get(k) for k in self.learned], self.state, self.numbers)
        # where a gradient is not finite, the loss that stays
        self._new = [torch.where(finite, a, b) for a, b in zip([*new, *state], self._old, strict=True)]
        moved = {k: p.requires_grad_() for k, p in zip(self.learned, self._new, strict=False)}
        terms = self._evaluated(logits, moved).terms()
        self._new = [t.detach() for t in self._new]
        return Moved(*terms, alignment, terms.skipped, norm_of(grads), finite)

    def new(self, keep: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return [keep(a, b) for a, b in zip(self._new, self._old, strict=True)]
