"""The head of any learnable loss: v and the meta-gradient by autograd through the loss alone, never the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastmeta.functional.finite import all_finite
from fastmeta.functional.generators import Generators
from fastmeta.functional.optimizers import Snapshot, step_along
from fastmeta.functional.precision import without_autocast
from fastmeta.functional.random_state import RandomState
from fastmeta.losses.head import Head, Move, Moved, Rate, Tensors
from fastmeta.ops import LabelLoss, row_dot

if TYPE_CHECKING:
    from fastmeta.losses.learnable_loss import LearnableLoss


class Evaluated:
    """A loss at the logits of a batch, with the graph from its parameters to v."""

    def __init__(self, function: Callable[[Tensor], Tensor], logits: Tensor, weight: Tensor | None, name: str) -> None:
        self.logits, self.weight = logits.detach().requires_grad_(), weight
        with torch.enable_grad(), without_autocast():
            self.loss = loss = function(self.logits)
            check_loss(loss, logits, name)
            total = (loss if weight is None else loss * weight).sum()
            v = None
            if loss.requires_grad:
                (v,) = torch.autograd.grad(total, self.logits, create_graph=True, allow_unused=True)
            if v is None:
                raise ValueError(
                    f"{name}.forward must be differentiable in logits, but its result does not hang on them: do not "
                    "detach the logits, nor compute under no_grad"
                )
            self.v = v

    def terms(self) -> LabelLoss:
        loss = self.loss.detach()
        return LabelLoss(loss, self.v.detach().clone(), torch.full_like(loss, torch.nan))

    def gradient(self, learned: Tensors, u: Tensor, scale: Rate, name: str) -> Tensors:
        """-scale d/dphi sum <v, u>, of the parameters that v depends on."""
        if not self.v.requires_grad:
            raise ValueError(no_influence(name))
        with torch.enable_grad(), without_autocast():
            pull = (self.v * u.detach().to(self.v.dtype)).sum()
            grads = torch.autograd.grad(pull, list(learned.values()), allow_unused=True, retain_graph=True)
        if all(g is None for g in grads):
            raise ValueError(no_influence(name))
        found = [(k, g) for k, g in zip(learned, grads, strict=True) if g is not None]
        dense = [(k, g if g.layout == torch.strided else g.to_dense()) for k, g in found]
        return {k: g.detach() * -scale for k, g in dense}

    def alignment(self, u: Tensor) -> Tensor:
        """<d loss_i / dz_i, u_i>, without the weights of the rows."""
        v = self.v
        if self.weight is not None:
            with torch.enable_grad(), without_autocast():
                (v,) = torch.autograd.grad(self.loss.sum(), self.logits, retain_graph=True)
        return row_dot(v.detach().contiguous(), u)


def check_loss(loss: Any, logits: Tensor, name: str) -> None:
    """ValueError unless `loss` is one number per row, made of the logits."""
    if not isinstance(loss, Tensor) or loss.shape != logits.shape[:1] or not loss.is_floating_point():
        got = f"{tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"{name}.forward must give one loss per row, a floating vector ({len(logits)},), got {got}; "
            'reduce over classes and not over rows (reduction="none")'
        )


def no_influence(name: str) -> str:
    return (
        f"no parameter of {name} has an influence on v, the derivative of its loss in the logits, so that there is no "
        "meta-gradient; let the loss be a product or another mixture of parameters and logits, detach neither"
    )


class _Kept:
    """What is known of a loss from one step to the next."""

    def __init__(self) -> None:
        self.generators = Generators()
        self.moving: set[str] | None = None  # buffers that its forward moves; None before the first step


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def generators_of(loss: nn.Module) -> list[Any]:
    """Random generators that hang on a loss, beside the global ones."""
    return _KEPT.setdefault(loss, _Kept()).generators(list(loss.modules()), [])


class Buffers:
    """The buffers of a loss over one forward: what it moves, and how to put that back."""

    def __init__(self, loss: nn.Module) -> None:
        self._places = [
            (f"{path}.{key}" if path else key, module, key, b)
            for path, module in loss.named_modules()
            for key, b in module._buffers.items()
            if b is not None
        ]
        self._kept = _KEPT.setdefault(loss, _Kept())
        wanted = self._kept.moving
        self._start = {name: b.clone() for name, _, _, b in self._places if wanted is None or name in wanted}
        self._versions = [b._version for _, _, _, b in self._places]

    def settle(self) -> set[str]:
        """After a forward, the names of those that it has moved.

        Tensors that it has put in the place of buffers become values of these.
        """
        moved: set[str] = set()
        for (name, module, key, b), version in zip(self._places, self._versions, strict=True):
            now = module._buffers.get(key)
            if now is not b:
                if now is None or now.shape != b.shape or now.dtype != b.dtype or now.device != b.device:
                    raise RuntimeError(f"the loss gives its buffer {name} another form in its forward")
                b.detach().copy_(now.detach())
                module._buffers[key] = b
                moved.add(name)
            elif b._version != version:
                moved.add(name)
        self._kept.moving = moved | (self._kept.moving or set())
        return moved

    def restore(self, keep: Tensor | None = None) -> None:
        """As before the forward; given a 0-d bool, where that is False."""
        for name, module, key, b in self._places:
            module._buffers[key] = b
            if name in self._start and name in (self._kept.moving or ()):
                start = self._start[name]
                b.detach().copy_(start if keep is None else torch.where(keep, b, start))


class AutogradHead(Head):
    """Any :class:`~fastmeta.losses.LearnableLoss` on one batch."""

    def __init__(self, loss: LearnableLoss, learned: Tensors, index: Tensor, x: Any, weight: Tensor | None) -> None:
        self.module, self.learned, self.index, self.x, self.weight = loss, learned, index, x, weight
        self.name = type(loss).__name__
        self._before: Evaluated | None = None
        self._held: Buffers | None = None
        self._undo: Snapshot | None = None

    def _evaluated(self, logits: Tensor) -> Evaluated:
        try:
            made = Evaluated(lambda z: self.module(z, self.index, self.x), logits, self.weight, self.name)
            self._holding.settle()
        except BaseException:
            self._holding.restore()
            raise
        return made

    @property
    def _holding(self) -> Buffers:
        assert self._held is not None
        return self._held

    def loss(self, logits: Tensor, rows: slice | None = None) -> LabelLoss:
        if self._held is not None:  # the pass is taken again
            self._held.restore()
        self._random = RandomState(logits.device, generators_of(self.module))
        self._held = Buffers(self.module)
        self._before = self._evaluated(logits)
        return self._before.terms()

    def gradient(self, logits: Tensor, u: Tensor, scale: Rate) -> Tensors:
        assert self._before is not None
        return self._before.gradient(self.learned, u, scale, self.name)

    def alignment(self, logits: Tensor, u: Tensor) -> Tensor:
        assert self._before is not None
        return self._before.alignment(u)

    def step(self, logits: Tensor, u: Tensor, scale: Rate, finite: Tensor, move: Move) -> Moved:
        assert self._before is not None
        assert move.optimizer is not None
        grads = self.gradient(logits, u, scale)
        # over ranks, whose batches are parts of one, the gradient is the sum with a scale of all of their rows
        grads = dict(zip(grads, move.ranks.mean(list(grads.values())), strict=True))
        norm = norm_of(grads)
        finite = finite & all_finite(grads.values())
        alignment = self._before.alignment(u)
        after = self._before
        if finite.is_cuda or bool(finite):
            self._undo = Snapshot(move.optimizer, list(self.learned.values()))
            step_along(move.optimizer, self.learned, grads)
            self._holding.restore()
            with self._random.replay():
                after = self._evaluated(logits)
        terms = after.terms()
        return Moved(*terms, alignment, terms.skipped, norm, finite)

    def undo(self, keep: Tensor | None = None) -> None:
        if self._undo is not None:
            self._undo.restore(keep)
        if self._held is not None:
            self._held.restore(keep)


def norm_of(grads: Tensors) -> Tensor:
    """Euclidean norm over all parameters."""
    return torch.stack([torch.linalg.vector_norm(g) for g in grads.values()]).norm()
