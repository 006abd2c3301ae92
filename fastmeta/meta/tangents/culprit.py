"""Which layer stands in the way of an exact tangent: each is tried alone, on what it got in the model's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastmeta.functional.attention import PlainAttention
from fastmeta.functional.network import Network
from fastmeta.functional.random_state import RandomState
from fastmeta.functional.turns import dual_level


def first_failing_layer(network: Network, x: Any, kind: str, random: RandomState) -> str:
    """The first innermost module, in the order of the forward, that `kind` cannot differentiate; "" if none alone."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: calls.append(
                (name, m, *tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs)))
            ),
            with_kwargs=True,
        )
        for name, module in network.model.named_modules()
    ]
    try:
        with torch.no_grad(), random.replay():
            network(network.params, network.state(), x)
    finally:
        for handle in handles:
            handle.remove()
    failing = {}
    for name, module, args, kwargs in calls:
        if name in failing:
            continue
        with network.held(network.params):  # a layer that moves something moves a copy
            reason = _layer_failure(module, args, kwargs, kind, random)
        if reason:
            failing[name] = f"{name or 'the model itself'} ({type(module).__name__}): {reason}"
    inner = [n for n in failing if not any(o != n and o.startswith(n + "." if n else "") for o in failing)]
    return failing[inner[0]] if inner else ""


def _layer_failure(module: nn.Module, args: Any, kwargs: Any, kind: str, random: RandomState) -> str:
    """Why `kind` fails on one call of one module, or ""; the truth is a central difference in float64."""
    leaves, spec = tree_flatten((args, kwargs))
    where = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
    params = dict(module.named_parameters())
    point = [t.detach().double() for t in (*(leaves[i] for i in where), *params.values())]
    if not point:
        return ""
    generator = torch.Generator().manual_seed(0)
    step = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in point]

    def outputs(values: list[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for i, t in zip(where, values, strict=False):
            filled[i] = t.clone()  # in-place layers write into their input
        given, named = tree_unflatten(filled, spec)
        state = dict(zip(params, values[len(where) :], strict=True))
        wide = {k: torch.float64 if b.is_floating_point() else b.dtype for k, b in module.named_buffers()}
        buffers = {k: b.to(wide[k], copy=True) for k, b in module.named_buffers()}  # each call moves its own
        with random.replay():
            flat = tree_flatten(functional_call(module, (state, buffers), given, named))[0]
        return [t for t in flat if isinstance(t, Tensor) and t.is_floating_point()]

    with PlainAttention():
        try:
            with torch.no_grad():
                e = 1e-6
                ahead, behind = (outputs([t + s * e * d for t, d in zip(point, step, strict=True)]) for s in (1, -1))
                truth = torch.cat([((a - b) / (2 * e)).flatten() for a, b in zip(ahead, behind, strict=True)])
        except Exception:  # of a layer that does not run in float64, or not alone
            return ""
        try:
            made = torch.cat([t.flatten() for t in _layer_tangent(outputs, point, step, kind)])
        except RuntimeError as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160].rstrip('.')}"
    if float((made - truth).norm()) > 1e-3 * float(truth.norm()) + 1e-9:
        return "its derivative disagrees with a central difference: a wrong rule, or a gradient stopped on purpose"
    return ""


def _layer_tangent(
    outputs: Callable[[list[Tensor]], list[Tensor]], point: list[Tensor], step: list[Tensor], kind: str
) -> list[Tensor]:
    if kind == "forward":
        with torch.no_grad(), dual_level():
            duals = outputs([forward_ad.make_dual(t, d) for t, d in zip(point, step, strict=True)])
            pairs = [forward_ad.unpack_dual(t) for t in duals]
            return [torch.zeros_like(primal) if t is None else t for primal, t in pairs]
    leaves = [t.detach().clone().requires_grad_() for t in point]
    out = [t for t in outputs(leaves) if t.requires_grad]
    v = [torch.zeros_like(t).requires_grad_() for t in out]
    grads = torch.autograd.grad(out, leaves, v, create_graph=True, allow_unused=True)
    kept = [(g, d) for g, d in zip(grads, step, strict=True) if g is not None and g.requires_grad]
    u = torch.autograd.grad([g for g, _ in kept], v, [d for _, d in kept], allow_unused=True)
    return [torch.zeros_like(a) if b is None else b for a, b in zip(v, u, strict=True)]
