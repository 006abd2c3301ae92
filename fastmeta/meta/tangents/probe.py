"""Whether a tangent is the adjoint of the gradient of the same logits, tried with random covectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fastmeta._text import reason
from fastmeta.functional.chain import Chain
from fastmeta.functional.finite import stay_finite
from fastmeta.functional.network import Network, Tensors, is_out_of_memory, math_attention
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.state import State
from fastmeta.meta.tangents.difference import difference_tangent
from fastmeta.meta.tangents.double_vjp import reverse_tangent
from fastmeta.meta.tangents.dual import forward_tangent, forward_with_graph
from fastmeta.meta.tangents.plan import TangentKind, arithmetic_of

#: random covectors of the adjoint test
_PROBES = 4

#: relative, by the arithmetic: rounding, with room for the cancellation in sums; what is wrong errs by its whole share
BOUND = {torch.float64: 1e-6, torch.float32: 2e-2}


def normals() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)  # not the global one, which belongs to the model
    return lambda like: torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def noise(params: Tensors, normal: Callable[[Tensor], Tensor], share: float, where_zero: float) -> Tensors:
    """Of this share of each parameter's size."""
    sizes = {k: p.detach().float().square().mean().sqrt() for k, p in params.items()}
    return {
        k: normal(p) * torch.where(sizes[k] > 0, share * sizes[k], where_zero).to(p.dtype) for k, p in params.items()
    }


def other_gradient(
    names: Sequence[str], made: Sequence[Tensor | None], known: Sequence[Tensor | None], bound: float
) -> str | None:
    """The first parameter of which two gradients differ, and by how much, or None.

    One by one: a sum over all would not see a small one. But one that has only rounding for a gradient, such as that of
    a bias before BatchNorm, may differ by a share of all of it.
    """
    floor = 1e-3 * torch.tensor([float(g.norm()) for g in known if g is not None]).norm().item()
    for name, a, b in zip(names, made, known, strict=True):
        mine, own = (torch.zeros(()) if g is None else g for g in (a, b))
        gap, size = float((mine - own).norm()), max(float(own.norm()), floor)
        if gap > bound * size:
            return f"{name} another gradient (off by {gap / size:.0%})"
    return None


BENDS = (
    "the backward is not linear in its covector (twice the gradient of the logits does not give twice that of the "
    "parameters), mostly because of a hook that clamps or normalises gradients; clip in on_grad instead"
)


def bends(network: Network, x: Any, v: Tensor, random: RandomState) -> bool:
    """Whether the backward of the covector `v` is another than twice that of v/2."""
    with random.replay():
        logits = network(network.params, network.state(), x)
    grads, params = [], list(network.params.values())
    with network.held(network.params):
        for factor in (0.5, 1.0):
            grads.append(torch.autograd.grad(logits, params, factor * v.detach(), retain_graph=True, allow_unused=True))
    halves = [None if g is None else 2 * g for g in grads[0]]
    bound = BOUND.get(arithmetic_of(params[0]), 0.3)
    return other_gradient(list(network.params), halves, grads[1], bound) is not None


def _covector_size(logits: Tensor) -> float:
    """A sixteenth of what training gives to a row, (q - p) / n: a hook that never clips there must not clip here.

    In half precision it would vanish.
    """
    half = arithmetic_of(logits) == torch.float16
    return 1.0 if half else 1 / (16 * len(logits) * logits.shape[1] ** 0.5)


class Displaced(Network):
    """`network` at parameters that are moved by `offsets`, as a function of those that are not."""

    def __init__(self, network: Network, offsets: Tensors) -> None:
        self._network, self.params, self.offsets = network, network.params, offsets

    def state(self) -> State:
        return self._network.state()

    def at(self, params: Tensors) -> Tensors:
        return {name: p + self.offsets[name] if name in self.offsets else p for name, p in params.items()}

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        self._moved = self.at(params)
        return self._network(self._moved, state, x)

    def held(self, params: Tensors, state: State | None = None) -> AbstractContextManager[None]:
        """For the backward of the last forward, whose parameters these were."""
        return self._network.held(self._moved, state)


class Probe:
    """Tries ways by the adjoint identity <v, J d> = <J'v, d>, whose right side is the gradient that makes theta*.

    It holds to rounding, also for models that stop gradients on purpose, where a difference of the logits would not
    agree. (Differences were tried as the judge first: on deep BatchNorm nets with small batches their own error reached
    20% and condemned exact ways.)

    It is tried beside theta and not there, because the start of a training hides layers: behind a gain or a head of
    zeros a wrong rule does not show. At theta itself only where the gradient beside it is not finite.
    """

    def __init__(self, network: Network, beside: Displaced, x: Any, random: RandomState) -> None:
        self.x, self.random = x, random
        self._bends: bool | None = None
        normal = normals()
        self.direction = noise(network.params, normal, 1.0, 0.1)
        self.network: Network = beside
        self._take_gradients(normal)
        if not self.finite:
            self.network = network
            self._take_gradients(normal)
        self.bound = BOUND.get(arithmetic_of(next(iter(network.params.values()))), 0.3)

    def _take_gradients(self, normal: Callable[[Tensor], Tensor]) -> None:
        """<J'v, d> of some random covectors v, by autograd's plain backward."""
        params = list(self.network.params.values())
        logits = self._logits()
        #: those that the gradients belong to
        self.logits = logits.detach()
        self.vs = [normal(logits) * _covector_size(logits) for _ in range(_PROBES)]
        products: list[Any] = []
        self.one_backward = False
        for v in self.vs:
            with self.network.held(self.network.params):
                try:
                    #: J'v of the last one
                    self.grads = torch.autograd.grad(logits, params, v, retain_graph=True, allow_unused=True)
                except RuntimeError as error:
                    if is_out_of_memory(error) or not products:
                        raise
                    self.one_backward = True
            if self.one_backward:
                logits = self._logits()
                with self.network.held(self.network.params):
                    self.grads = torch.autograd.grad(logits, params, v, allow_unused=True)
            pairs = zip(self.grads, self.direction.values(), strict=True)
            products.append(sum((g * d).sum(dtype=torch.float64) for g, d in pairs if g is not None))
        self.truth = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in products])
        self.finite = self._sound and bool(self.truth.isfinite().all())

    def _logits(self) -> Tensor:
        before = self.network.state()
        after = before.clone()
        with self.random.replay():
            logits = self.network(self.network.params, after, self.x)
        #: a variance that overflows leaves logits and gradient finite, but no tangent
        self._sound = all(map(bool, stay_finite(before, after)))
        return logits

    def failure(self, kind: TangentKind, attention: bool, leaves_graph: bool = False) -> str | None:
        """None if this kind satisfies the identity, else what went wrong."""
        try:
            with math_attention(attention):
                if leaves_graph:
                    return self._graph_failure()
                u = self._tangent(kind).double()
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            return f"raises {reason(error, 200)}"
        return self._gap(u, max(self.bound, 0.05) if kind == "difference" else self.bound)

    def _gap(self, u: Tensor, bound: float) -> str | None:
        made = torch.stack([(v.double() * u).sum() for v in self.vs])
        scale = float(torch.maximum(made.norm(), self.truth.norm()))
        gap = float((made - self.truth).norm())
        if gap <= bound * scale or not self.finite:
            return None
        reason = "a layer's rule for it is wrong"
        if self._bends is None:
            self._bends = bends(self.network, self.x, self.vs[-1], self.random)
        if self._bends:
            reason = BENDS
        return f"is not the adjoint of the gradient (off by {gap / scale:.0%}): {reason}"

    def _graph_failure(self) -> str | None:
        """Activation checkpointing, for one, gives a right u and a graph that raises in its backward.

        A graph that does not raise must give the gradient of the plain one.
        """
        with self.random.replay():
            logits, u = forward_with_graph(self.network, self.network.state(), self.x, self.direction)
        with self.network.held(self.network.params):
            made = torch.autograd.grad(logits, list(self.network.params.values()), self.vs[-1], allow_unused=True)
        other = other_gradient(list(self.network.params), made, self.grads, self.bound)
        if other is not None:
            return f"gives {other}"
        return self._gap(u.double(), self.bound)

    def closed_failure(self, chain: Chain) -> str | None:
        """Of the products of a chain."""
        there = chain.forward(self.network.at(self.network.params), self.x)
        names = list(self.network.params)
        made = there.pull(self.vs[-1], names)
        if other := other_gradient(names, [made.get(name) for name in names], self.grads, self.bound):
            return f"gives {other}"
        return self._gap(there.push(self.direction).double(), self.bound)

    def _tangent(self, kind: TangentKind) -> Tensor:
        network, state = self.network, self.network.state()
        if kind == "difference":
            return difference_tangent(network, state, self.x, self.direction, self.random).u
        with self.random.replay():
            if kind == "forward":
                return forward_tangent(network, state, self.x, self.direction).u
            logits = network(network.params, state, self.x)
        v = torch.zeros_like(logits).requires_grad_()
        params = list(network.params.values())
        with network.held(network.params):
            grads = torch.autograd.grad(logits, params, v, create_graph=True, allow_unused=True)
            return reverse_tangent(grads, v, list(self.direction.values()))
