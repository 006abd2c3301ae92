"""The choice of the tangent, tried on a batch before its first use."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from fastmeta.functional.network import Network
from fastmeta.functional.recompute import refuse_reentrant
from fastmeta.meta.tangents.culprit import first_failing_layer
from fastmeta.meta.tangents.plan import TangentChoice, TangentKind, TangentPlan
from fastmeta.meta.tangents.probe import Displaced, Probe, noise, normals, other_gradient

_CONVOLUTIONAL = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def plan_tangent(network: Network, x: Any, choice: TangentChoice) -> TangentPlan:
    """Choose the kind for this model and try it on this batch. Nothing of the caller's changes, generators included.

    "auto" prefers the cheaper kind for the model's layers (forward for convolutions and BatchNorm, reverse otherwise),
    takes the other where that one raises or is not the adjoint of the gradient, repeats both with attention as plain
    maths, and ends at differences. A kind that was named by hand is tried likewise but never replaced.

    Raises:
        ValueError: an unknown choice.
        RuntimeError: a named kind that this model's layers cannot do, or do wrongly; reentrant checkpointing.
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
        beside = Displaced(network, noise(network.params, normals(), 0.1, 0.3))
        probe = Probe(network, beside, x, random)
        if probe.network is beside:
            _refuse_hidden_weights(network, beside, probe)
        return _plan(network, probe, choice)
    finally:
        random.restore()


def _plan(network: Network, probe: Probe, choice: TangentChoice) -> TangentPlan:
    if choice == "difference":
        return TangentPlan("difference", False, "asked for; inexact", one_backward=probe.one_backward)
    convolutional = any(isinstance(m, _CONVOLUTIONAL) for m in network.owners())
    order: list[TangentKind] = ["forward", "reverse"] if convolutional else ["reverse", "forward"]
    layers = "the model has convolutions or BatchNorm" if convolutional else "the model has no convolution or BatchNorm"
    preferred = f"{layers}, where {order[0]} is the cheaper exact way"
    if choice != "auto":
        order, preferred = [choice], "asked for"

    failures: list[str] = []
    for attention in (False, True):
        for kind in order:
            failure = probe.failure(kind, attention)
            if failure is None:
                notes = [preferred, *failures] if kind == order[0] and not attention else list(failures)
                # a trial of its own: a model may go another way where no gradient is asked for
                apart = probe.failure(kind, attention, leaves_graph=True) if kind == "forward" else None
                if apart is not None:
                    notes.append(f"the train graph is held, because that of the forward with tangents {apart}")
                if not probe.finite:
                    notes.append("not tried yet: the gradient of this batch is not finite")
                leaves_graph = kind == "forward" and apart is None
                closed = kind == "reverse" and choice == "auto" and not failures and _has_closed_form(network, probe)
                if closed:
                    notes[0] = "the model is a chain of linear layers, whose passes are products"
                return TangentPlan(
                    kind,
                    attention,
                    "; ".join(notes),
                    leaves_graph,
                    tried=probe.finite,
                    one_backward=probe.one_backward,
                    closed=closed,
                )
            failures.append(f"{kind}{' with math attention' if attention else ''} {failure}")
    if choice != "auto":
        raise RuntimeError(
            f"tangent={choice!r} does not work on this model: {'; '.join(failures)}. "
            'Use tangent="auto", or run fastmeta.check to see which layer is the reason'
        )
    if failure := probe.failure("difference", False):
        raise RuntimeError(f"no tangent works on this model: {'; '.join(failures)}; difference {failure}")
    found = (first_failing_layer(network, probe.x, kind, probe.random) for kind in order)
    blamed = "; ".join(dict.fromkeys(layer for layer in found if layer)) or "; ".join(failures)
    reason = "inexact, the last resort: " + "; ".join(failures)
    return TangentPlan("difference", False, reason, one_backward=probe.one_backward, inexact=blamed)


def _has_closed_form(network: Network, probe: Probe) -> bool:
    """Whether the model is a chain of linear layers, and the products give the gradient and its adjoint."""
    chain = network.chain()
    return chain is not None and chain.takes(probe.x) and probe.closed_failure(chain) is None


def _refuse_hidden_weights(network: Network, beside: Displaced, probe: Probe) -> None:
    """RuntimeError for a model that reads its own weights where others were given: at theta* it would read theta.

    The backward of a layer that runs a part again does (reversible networks, checkpointing by other libraries than
    torch), or a `logits_of` with weights in it. So logits and gradient at other weights, given from outside, are held
    against those with the model's own put there.
    """
    params = list(network.params.values())
    own = [p.data for p in params]
    try:
        for p, offset in zip(params, beside.offsets.values(), strict=True):
            p.data = p.data + offset
        with probe.random.replay():
            logits = network({}, network.state(), probe.x)
        with network.held({}):
            known_grads = torch.autograd.grad(logits, params, probe.vs[-1], allow_unused=True)
    finally:
        for p, data in zip(params, own, strict=True):
            p.data = data
    made, known, bound = probe.logits, logits.detach(), probe.bound
    if float((made - known).norm()) > bound * float(known.norm()):
        raise RuntimeError(
            "the model gives one batch other logits in a second call: it reads weights that it was not run on, or it "
            "keeps a state, or draws from a generator, that is out of sight"
        )
    if other := other_gradient(list(network.params), probe.grads, known_grads, bound):
        raise RuntimeError(
            f"the model's backward reads weights that it was not run on, and gives {other}; a layer does that runs a "
            "part of the forward again in its backward: switch that off (torch.utils.checkpoint is fine)"
        )
