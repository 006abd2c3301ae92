"""Dots and norms of per-sample weight gradients, layer by layer, without a gradient per sample in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastmeta.per_sample.rules import (
    Call,
    Conv2dRule,
    EmbeddingRule,
    EvalBatchNormRule,
    GroupNormRule,
    InstanceNormRule,
    LayerNormRule,
    LinearRule,
    RMSNormRule,
    Rule,
    Terms,
    call_dot,
    common,
    dense_terms,
    total,
)

_RULES: dict[type[nn.Module], Callable[[Any], Rule]] = {
    nn.Linear: LinearRule,
    nn.Conv2d: Conv2dRule,
    nn.Embedding: EmbeddingRule,
    nn.LayerNorm: LayerNormRule,
    nn.RMSNorm: RMSNormRule,
    nn.GroupNorm: GroupNormRule,
    nn.BatchNorm1d: EvalBatchNormRule,
    nn.BatchNorm2d: EvalBatchNormRule,
    nn.BatchNorm3d: EvalBatchNormRule,
    nn.InstanceNorm1d: InstanceNormRule,
    nn.InstanceNorm2d: InstanceNormRule,
    nn.InstanceNorm3d: InstanceNormRule,
}
SUPPORTED = "Linear, Conv2d, Embedding, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, BatchNorm in eval mode"


def couples_samples(layer: nn.Module) -> bool:
    """Whether a layer normalises with the statistics of the batch, so that no sample has a gradient of its own."""
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return False
    return layer.training or layer.running_mean is None


def _computes_as(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Whether the layer computes what `base` does: no method of it replaced, by a subclass or on the instance, and its
    parameters those that it made, not others from which a hook or a parametrization derives them."""
    harmless = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__constants__", "__dict__"}
    harmless |= {"__weakref__", "extra_repr", "reset_parameters", "__static_attributes__", "__firstlineno__"}
    own = {name for kind in type(layer).__mro__[: type(layer).__mro__.index(base)] for name in vars(kind)}
    replaced = {name for name in own - harmless if hasattr(base, name)}
    replaced |= {name for name in vars(layer) if callable(getattr(base, name, None))}
    parameters = dict(layer.named_parameters(recurse=False))
    return (
        not replaced
        and parameters.keys() <= {"weight", "bias"}
        and all(getattr(layer, name) is parameters.get(name) for name in ("weight", "bias") if hasattr(layer, name))
    )


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule of a layer, or None: unknown type, another computation, or options that are not per-sample."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return None
    if couples_samples(layer):
        return None
    for base, make in _RULES.items():
        if isinstance(layer, base):
            return make(layer) if _computes_as(layer, base) else None
    return None


def joint_terms(calls: Sequence[Call], name: str, direction: Tensor | None = None) -> Terms:
    """For one parameter that all these calls share: its gradients' squared norms and dots."""
    if not len(calls[0].g):
        none = common(calls[0].g)[0].new_zeros(0)
        return none, None if direction is None else none
    with torch.autocast(calls[0].g.device.type, enabled=False):
        if name == "weight":
            return cast(Terms, calls[0].rule.weight_terms(calls, direction))
        return dense_terms(total([call.rule.bias_grads(*common(call.g)) for call in calls]), direction)


def check_batch(a: Tensor, g: Tensor, n: int, rule: Rule, what: str) -> None:
    if a.dim() < rule.min_dims or a.shape[0] != n or g.shape[0] != n:
        raise ValueError(
            f"{what} must have the batch of {n} samples as dimension 0 and at least {rule.min_dims} dimensions, "
            f"got an input of shape {tuple(a.shape)} and an output of shape {tuple(g.shape)}; permute it to batch first"
        )


# ---------------------------------------------------------------------------------------------------------
# Public functions for one layer
# ---------------------------------------------------------------------------------------------------------


def _single_call(activations: Tensor, grad_outputs: Tensor, layer: nn.Module | None, names: Iterable[str]) -> Call:
    if layer is None:
        layer = nn.Linear(activations.shape[-1], grad_outputs.shape[-1], bias=False, device="meta")
    rule = rule_for(layer)
    if rule is None:
        raise ValueError(
            f"layer must be one of {SUPPORTED}, with its own forward and the parameters weight and bias alone, got "
            f"{layer}"
        )
    for name in names:
        if getattr(layer, name, None) is None:
            raise ValueError(f"{type(layer).__name__} has no parameter {name!r}")
    check_batch(activations, grad_outputs, grad_outputs.shape[0], rule, "activations and grad_outputs")
    return Call(rule, activations.detach(), grad_outputs.detach())


def per_sample_grad_dot(
    activations: Tensor,
    grad_outputs: Tensor,
    direction: Tensor | Mapping[str, Tensor],
    *,
    layer: nn.Module | None = None,
) -> Tensor:
    """<dL_i/dW, G> for every sample i: how a step along -G changes each sample's loss, to first order.

    Computed as <g_i, layer(a_i; G)>; no gradient per sample is formed.

    Args:
        activations: (n, ..., d) input of the layer; (n, c, h, w) for Conv2d, (n, ...) int64 for Embedding.
        grad_outputs: dL_i/doutput, of the output's shape. L_i alone: the gradient of the *sum* of losses, not the mean.
        direction: G, of the weight's shape, or a mapping {"weight": ..., "bias": ...}, absent ones being zero.
        layer: the layer, which gives stride, padding, groups, eps; None stands for a Linear layer.

    Returns:
        (n,) in float32, or float64 where an argument is float64.

    Raises:
        ValueError: unsupported layer, a direction of another shape, a batch that is not dimension 0.
    """
    directions = {"weight": direction} if isinstance(direction, Tensor) else dict(direction)
    call = _single_call(activations, grad_outputs, layer, directions)
    for name, tensor in directions.items():
        expected = getattr(call.rule.layer, name).shape
        if tensor.shape != expected:
            raise ValueError(f"direction of {name!r} must have shape {tuple(expected)}, got {tuple(tensor.shape)}")
    return call_dot(call, directions)


def per_sample_grad_norm(
    activations: Tensor,
    grad_outputs: Tensor,
    *,
    layer: nn.Module | None = None,
    parameters: Sequence[str] = ("weight",),
) -> Tensor:
    """|dL_i/dW| for every sample i, by Gram matrices or by a few per-sample gradients at a time, whichever is cheaper.

    Arguments and errors as in :func:`per_sample_grad_dot`; `parameters` names those that count, jointly.

    Returns:
        (n,) in float32, or float64 where an argument is float64.
    """
    call = _single_call(activations, grad_outputs, layer, parameters)
    norm2 = total([joint_terms([call], name)[0] for name in parameters])
    return norm2.clamp_min(0).sqrt()  # a ghost norm near zero may round below it
