"""The logit tangent u = J g: how the train logits at theta move along a direction in parameter space.

| way          | how                                                        | exact |
|--------------|------------------------------------------------------------|-------|
| reverse      | double-vjp: u = d<J'v, g>/dv through the kept train graph  | yes   |
| forward      | dual numbers: one more forward with tangents, which makes  | yes   |
|              | the graph of the last backward too where it can (`joined`) |       |
| difference   | central difference of the logits, two more forwards        | no    |

Which one works and which is cheaper depends on the model's layers, and a layer without a rule can give *silent zeros*
instead of an error (custom operators do). So a way is never trusted unseen: before its first use it is held against the
gradient of the same logits, of which it must be the adjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from fastmeta._text import reason
from fastmeta.meta.culprit import first_failing_layer
from fastmeta.meta.draws import RandomState
from fastmeta.meta.finite import stay_finite
from fastmeta.meta.network import Network, Tensors, is_out_of_memory, math_attention
from fastmeta.meta.recompute import refuse_reentrant
from fastmeta.meta.state import State
from fastmeta.meta.turns import dual_level

Way = Literal["reverse", "forward", "difference"]
TangentChoice = Literal["auto", "reverse", "forward", "difference"]


@dataclass(frozen=True)
class TangentPlan:
    """The chosen way, whether attention runs as plain maths for it, and why, in words for people."""

    way: Way
    math_attention: bool
    reason: str
    joined: bool = False  # forward: its graph is good for a backward, see forward_with_graph
    once: bool = False  # a graph bears one backward (selective checkpointing), so that each one gets a graph of its own
    tried: bool = True  # False: the batch was not finite, which shows nothing; to be chosen anew with the next one
    inexact: str = ""  # the layers that leave nothing but differences, where an exact way was asked for

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a step by this plan does, without the reasons."""
        return self.way, self.math_attention, self.joined, self.once

    @property
    def warning(self) -> str:
        """What the user must know, or ""."""
        if not self.inexact:
            return ""
        return (
            "the label gradient is inexact: its tangent is a difference of logits, because no exact way leads through "
            f"{self.inexact}. Put another layer in its place; tangent='difference' takes it as it is, without a warning"
        )


class Tangent(NamedTuple):
    """u, and the logits of the forward that made it, which must be those of the train forward up to `spread`."""

    u: Tensor
    logits: Tensor
    spread: Tensor | float = 0.0


def forward_tangent(network: Network, state: State, x: Any, direction: Tensors) -> Tangent:
    """u by dual numbers; `state` is scratch."""
    with torch.no_grad(), dual_level():
        params: Tensors = {name: p.detach() for name, p in network.params.items()}
        for name, t in direction.items():
            params[name] = forward_ad.make_dual(params[name], t)
        logits, u = forward_ad.unpack_dual(network(params, state, x))
        return Tangent(torch.zeros_like(logits) if u is None else u, logits)


def forward_with_graph(network: Network, state: State, x: Any, direction: Tensors) -> tuple[Tensor, Tensor]:
    """Logits with their graph, and u, from one forward with dual numbers; `state` is scratch.

    So no train graph has to be held while the meta graph is there. Autograd records the arithmetic of the tangents too,
    which nobody differentiates: what only that would keep is dropped, half of it all (ResNet-20 on 32 images: 93 MiB
    and not 185, where the graph alone is 46 and the other half are tangents of what it keeps).
    """
    with dual_level(), saved_tensors_hooks(_keep, _kept):
        tangents = {k: direction[k] if k in direction else torch.zeros_like(p) for k, p in network.params.items()}
        params = {k: forward_ad.make_dual(p, tangents[k]) for k, p in network.params.items()}
        logits, u = forward_ad.unpack_dual(network(params, state, x))
        return logits, torch.zeros_like(logits) if u is None else u.detach()


def _keep(saved: Tensor) -> Tensor | None:
    """What hangs on the parameters has a tangent (all of them have one), unless it belongs to the tangents itself."""
    value, tangent = forward_ad.unpack_dual(saved)
    return None if tangent is None and saved.grad_fn is not None else value.detach()


def _kept(saved: Tensor | None) -> Tensor:
    if saved is None:
        raise RuntimeError("a layer whose output has no tangent kept it for its backward")
    return saved


def reverse_tangent(grads: Sequence[Tensor | None], v: Tensor, direction: Sequence[Tensor | None]) -> Tensor:
    """u by double-vjp: `grads` = J'v was made with create_graph from the leaf `v`, in which it is linear."""
    pairs = [(a, b) for a, b in zip(grads, direction, strict=True) if a is not None and b is not None]
    pairs = [(a, b) for a, b in pairs if a.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    # the train graph is needed once more, by the backward of the new labels
    (u,) = torch.autograd.grad([a for a, _ in pairs], v, [b for _, b in pairs], retain_graph=True, allow_unused=True)
    return torch.zeros_like(v) if u is None else u


def difference_tangent(network: Network, state: State, x: Any, direction: Tensors, random: RandomState) -> Tangent:
    """u by (z(theta + e d) - z(theta - e d)) / 2e, inexact.

    e moves the parameters by a fixed fraction of their norm, the cube root of the rounding error of the logits: there
    the truncation error e^2 and the rounding error / e meet. The logits between the two differ from those at theta by
    curvature, far less than the two from each other; in 16 bits e is too large to say so.
    """
    with torch.no_grad():
        names = list(direction)
        params = {name: p.detach() for name, p in network.params.items()}
        base = [params[name] for name in names]
        steps = [direction[name] for name in names]
        size = _norm(base)
        length = _norm(steps)
        e = (
            torch.finfo(arithmetic_of(base[0])).eps ** (1 / 3)
            * torch.where(size > 0, size, 1.0)
            / torch.where(length > 0, length, 1.0)
        )
        moved = torch._foreach_mul(steps, e)

        def logits_at(theta: tuple[Tensor, ...]) -> Tensor:
            scratch = state.clone()
            with random.replay():
                return network({**params, **dict(zip(names, theta, strict=True))}, scratch, x)

        ahead = logits_at(torch._foreach_add(base, moved))
        behind = logits_at(torch._foreach_sub(base, moved))
        coarse = torch.finfo(arithmetic_of(base[0])).bits < 32
        spread = torch.inf if coarse else (ahead - behind).norm() / 4
        return Tangent((ahead - behind) / (2 * e), (ahead + behind) / 2, spread)


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).norm()


def arithmetic_of(like: Tensor) -> torch.dtype:
    """The type that makes the logits."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


# ---------------------------------------------------------------------------------------------------------
# The choice
# ---------------------------------------------------------------------------------------------------------

#: random covectors of the adjoint test
_PROBES = 4

_CONVOLUTIONAL = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def plan_tangent(network: Network, x: Any, choice: TangentChoice) -> TangentPlan:
    """Choose the way for this model and try it on this batch. Nothing of the caller's changes, generators included.

    "auto" prefers the cheaper way for the model's layers (forward for convolutions and BatchNorm, reverse otherwise),
    takes the other where that one raises or is not the adjoint of the gradient, repeats both with attention as plain
    maths, and ends at differences. A way that was named by hand is tried likewise but never replaced.

    Raises:
        ValueError: an unknown choice.
        RuntimeError: a named way that this model's layers cannot do, or do wrongly; reentrant checkpointing.
    """
    if choice not in get_args(TangentChoice):
        raise ValueError(f"tangent must be one of {', '.join(get_args(TangentChoice))}, got {choice!r}")
    random = network.random_state(next(iter(network.params.values())).device)
    try:
        with random.replay():
            # errors of the model itself surface here, as they are
            logits = network(network.params, network.state(), x)
        if not logits.requires_grad:
            raise RuntimeError(
                "the logits hang on no parameter that moves: the model detaches them, runs under no_grad, "
                "or does not use the parameters that are trained"
            )
        refuse_reentrant(network, logits, x, random)
        beside = _Displaced(network, _noise(network.params, _normal(), 0.1, 0.3))
        _refuse_hidden_weights(network, beside, x, random)
        return _plan(network, beside, x, choice, random)
    finally:
        random.restore()


def _plan(network: Network, beside: _Displaced, x: Any, choice: TangentChoice, random: RandomState) -> TangentPlan:
    if choice == "difference":
        return TangentPlan("difference", False, "asked for; inexact", once=_Probe(network, beside, x, random).once)
    convolutional = any(isinstance(m, _CONVOLUTIONAL) for m in network.owners())
    order: list[Way] = ["forward", "reverse"] if convolutional else ["reverse", "forward"]
    kind = "the model has convolutions or BatchNorm" if convolutional else "the model has no convolution or BatchNorm"
    preferred = f"{kind}, where {order[0]} is the cheaper exact way"
    if choice != "auto":
        order, preferred = [choice], "asked for"

    failures: list[str] = []
    probe = _Probe(network, beside, x, random)
    for attention in (False, True):
        for way in order:
            failure = probe.failure(way, attention)
            if failure is None:
                notes = [preferred, *failures] if way == order[0] and not attention else list(failures)
                apart = probe.failure(way, attention, joined=True) if way == "forward" else None
                if apart is not None:
                    notes.append(f"the train graph is held, because that of the forward with tangents {apart}")
                if not probe.finite:
                    notes.append("not tried yet: the gradient of this batch is not finite")
                joined = way == "forward" and apart is None
                return TangentPlan(way, attention, "; ".join(notes), joined, tried=probe.finite, once=probe.once)
            failures.append(f"{way}{' with math attention' if attention else ''} {failure}")
    if choice != "auto":
        raise RuntimeError(
            f"tangent={choice!r} does not work on this model: {'; '.join(failures)}. "
            'Use tangent="auto", or run fastmeta.check to see which layer is the reason'
        )
    if failure := probe.failure("difference", False):
        raise RuntimeError(f"no tangent works on this model: {'; '.join(failures)}; difference {failure}")
    found = (first_failing_layer(network, x, way, random) for way in order)
    blamed = "; ".join(dict.fromkeys(layer for layer in found if layer)) or "; ".join(failures)
    reason = "inexact, the last resort: " + "; ".join(failures)
    return TangentPlan("difference", False, reason, once=probe.once, inexact=blamed)


#: relative, by the arithmetic: rounding, with room for the cancellation in sums; what is wrong errs by its whole share
_BOUND = {torch.float64: 1e-6, torch.float32: 2e-2}


def _normal() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)  # not the global one, which belongs to the model
    return lambda like: torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _noise(params: Tensors, normal: Callable[[Tensor], Tensor], share: float, where_zero: float) -> Tensors:
    """Of this share of each parameter's size."""
    sizes = {k: p.detach().float().square().mean().sqrt() for k, p in params.items()}
    return {
        k: normal(p) * torch.where(sizes[k] > 0, share * sizes[k], where_zero).to(p.dtype) for k, p in params.items()
    }


def _other_gradient(
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


def _refuse_hidden_weights(network: Network, beside: _Displaced, x: Any, random: RandomState) -> None:
    """RuntimeError for a model that reads its own weights where others were given: at theta* it would read theta.

    The backward of a layer that runs a part again does (reversible networks, checkpointing by other libraries than
    torch), or a `logits_of` with weights in it. So logits and gradient at other weights, given from outside, are held
    against those with the model's own put there.
    """
    params, bound = list(network.params.values()), _BOUND.get(arithmetic_of(next(iter(network.params.values()))), 0.3)

    def results(run: Network, given: Tensors) -> tuple[Tensor, Sequence[Tensor | None]]:
        with random.replay():
            logits = run(given, network.state(), x)
            with run.held(given):
                return logits.detach(), torch.autograd.grad(logits, params, _normal()(logits), allow_unused=True)

    made, grads = results(beside, network.params)
    own = [p.data for p in params]
    try:
        for p, offset in zip(params, beside.offsets.values(), strict=True):
            p.data = p.data + offset
        known, known_grads = results(network, {})
    finally:
        for p, data in zip(params, own, strict=True):
            p.data = data
    if not all(bool(t.isfinite().all()) for t in (known, *known_grads) if t is not None):
        return  # nothing to see beside theta; a batch that is not finite is for the step to skip
    if float((made - known).norm()) > bound * float(known.norm()):
        raise RuntimeError(
            "the model gives one batch other logits in a second call: it reads weights that it was not run on, or it "
            "keeps a state, or draws from a generator, that is out of sight"
        )
    if other := _other_gradient(list(network.params), grads, known_grads, bound):
        raise RuntimeError(
            f"the model's backward reads weights that it was not run on, and gives {other}; a layer does that runs a "
            "part of the forward again in its backward: switch that off (torch.utils.checkpoint is fine)"
        )


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
    bound = _BOUND.get(arithmetic_of(params[0]), 0.3)
    return _other_gradient(list(network.params), halves, grads[1], bound) is not None


def _covector_size(logits: Tensor) -> float:
    """A sixteenth of what training gives to a row, (q - p) / n: a hook that never clips there must not clip here.

    In half precision it would vanish.
    """
    half = arithmetic_of(logits) == torch.float16
    return 1.0 if half else 1 / (16 * len(logits) * logits.shape[1] ** 0.5)


class _Displaced(Network):
    """`network` at parameters that are moved by `offsets`, as a function of those that are not."""

    def __init__(self, network: Network, offsets: Tensors) -> None:
        self._network, self.params, self.offsets = network, network.params, offsets

    def state(self) -> State:
        return self._network.state()

    def __call__(self, params: Tensors, state: State, x: Any) -> Tensor:
        self._moved = {name: p + self.offsets[name] if name in self.offsets else p for name, p in params.items()}
        return self._network(self._moved, state, x)

    def held(self, params: Tensors, state: State | None = None) -> AbstractContextManager[None]:
        """For the backward of the last forward, whose parameters these were."""
        return self._network.held(self._moved, state)


class _Probe:
    """Tries ways by the adjoint identity <v, J d> = <J'v, d>, whose right side is the gradient that makes theta*.

    It holds to rounding, also for models that stop gradients on purpose, where a difference of the logits would not
    agree. (Differences were tried as the judge first: on deep BatchNorm nets with small batches their own error reached
    20% and condemned exact ways.)

    It is tried beside theta and not there, because the start of a training hides layers: behind a gain or a head of
    zeros a wrong rule does not show. At theta itself only where the gradient beside it is not finite.
    """

    def __init__(self, network: Network, beside: _Displaced, x: Any, random: RandomState) -> None:
        self.x, self.random = x, random
        self._bends: bool | None = None
        normal = _normal()
        self.direction = _noise(network.params, normal, 1.0, 0.1)
        self.network: Network = beside
        self._take_gradients(normal)
        if not self.finite:
            self.network = network
            self._take_gradients(normal)
        self.bound = _BOUND.get(arithmetic_of(next(iter(network.params.values()))), 0.3)

    def _take_gradients(self, normal: Callable[[Tensor], Tensor]) -> None:
        """<J'v, d> of some random covectors v, by autograd's plain backward."""
        params = list(self.network.params.values())
        logits = self._logits()
        self.vs = [normal(logits) * _covector_size(logits) for _ in range(_PROBES)]
        products: list[Any] = []
        self.once = False
        for v in self.vs:
            with self.network.held(self.network.params):
                try:
                    #: J'v of the last one
                    self.grads = torch.autograd.grad(logits, params, v, retain_graph=True, allow_unused=True)
                except RuntimeError as error:
                    if is_out_of_memory(error) or not products:
                        raise
                    self.once = True
            if self.once:
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

    def failure(self, way: Way, attention: bool, joined: bool = False) -> str | None:
        """None if `way` satisfies the identity, else what went wrong."""
        try:
            with math_attention(attention):
                if joined:
                    return self._joined_failure()
                u = self._tangent(way).double()
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            return f"raises {reason(error, 200)}"
        return self._gap(u, max(self.bound, 0.05) if way == "difference" else self.bound)

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

    def _joined_failure(self) -> str | None:
        """Activation checkpointing, for one, gives a right u and a graph that raises in its backward.

        A graph that does not raise must give the gradient of the plain one.
        """
        with self.random.replay():
            logits, u = forward_with_graph(self.network, self.network.state(), self.x, self.direction)
        with self.network.held(self.network.params):
            made = torch.autograd.grad(logits, list(self.network.params.values()), self.vs[-1], allow_unused=True)
        other = _other_gradient(list(self.network.params), made, self.grads, self.bound)
        if other is not None:
            return f"gives {other}"
        return self._gap(u.double(), self.bound)

    def _tangent(self, way: Way) -> Tensor:
        network, state = self.network, self.network.state()
        if way == "difference":
            return difference_tangent(network, state, self.x, self.direction, self.random).u
        with self.random.replay():
            if way == "forward":
                return forward_tangent(network, state, self.x, self.direction).u
            logits = network(network.params, state, self.x)
        v = torch.zeros_like(logits).requires_grad_()
        params = list(network.params.values())
        with network.held(network.params):
            grads = torch.autograd.grad(logits, params, v, create_graph=True, allow_unused=True)
            return reverse_tangent(grads, v, list(self.direction.values()))
