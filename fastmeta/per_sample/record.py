"""What a forward does with its parameters, seen operation by operation.

A rule is right for an operation (`F.linear(a, W, b)`, `F.conv2d(...)`, ...), whatever class or hook calls it, if the
weight or bias that the operation gets *is* the model's parameter. So operations are recorded, not layers: with the
arguments that they really get, after every hook, in whatever subclass. A parameter that goes through anything before (a
parametrization, a mask, a cast of its own, a sum with a low-rank term), or into any other operation, is found by its
further uses in the graph, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from fastmeta.per_sample.rules import (
    Conv2dRule,
    EmbeddingRule,
    EvalBatchNormRule,
    GroupNormRule,
    InstanceNormRule,
    LayerNormRule,
    LinearRule,
    RMSNormRule,
    Rule,
)


class Recorded(NamedTuple):
    rule: Rule
    a: Tensor  # the input, detached
    version: int  # of its memory: what changes it afterwards makes the gradient another one
    edge: GradientEdge  # of the output
    parameters: dict[str, int]  # "weight", "bias", the one or both: id of the parameter


class _Use(NamedTuple):
    make: Callable[[Any], Rule]
    options: dict[str, Any]  # what the rule reads
    a: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    shape: Sequence[int] | None = None  # of weight and bias where it is not the weight's own

    def fits(self) -> bool:
        """A weight or bias of another shape would be broadcast, and its gradient summed."""
        if self.weight is not None and self.shape is not None and tuple(self.weight.shape) != tuple(self.shape):
            return False
        out = self.weight.shape[:1] if self.shape is None and self.weight is not None else self.shape
        return self.bias is None or out is None or tuple(self.bias.shape) == tuple(out)


def _pair(x: Any) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (int(x[0]), int(x[-1]))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Use | None:
    if weight.dim() != 2:
        return None
    options = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return _Use(LinearRule, options, input, weight, bias)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Use:
    options = {
        "stride": _pair(stride),
        "padding": padding if isinstance(padding, str) else _pair(padding),
        "dilation": _pair(dilation),
        "groups": groups,
        "kernel_size": tuple(weight.shape[2:]),
        "padding_mode": "zeros",
    }
    return _Use(Conv2dRule, options, input, weight, bias)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> _Use | None:
    if max_norm is not None or scale_grad_by_freq:  # rows that move in the forward; counts of the whole batch
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return _Use(EmbeddingRule, {"padding_idx": padding_idx}, input, weight)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Use:
    options: dict[str, Any] = {"normalized_shape": tuple(normalized_shape), "eps": eps}
    return _Use(LayerNormRule, options, input, weight, bias, options["normalized_shape"])


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> _Use:
    options: dict[str, Any] = {"normalized_shape": tuple(normalized_shape), "eps": eps}
    return _Use(RMSNormRule, options, input, weight, None, options["normalized_shape"])


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> _Use:
    return _Use(GroupNormRule, {"num_groups": num_groups, "eps": eps}, input, weight, bias, input.shape[1:2])


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Use | None:
    if training or running_mean is None:
        return None
    options = {"running_mean": running_mean, "running_var": running_var, "eps": eps}
    return _Use(EvalBatchNormRule, options, input, weight, bias, input.shape[1:2])


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Use:
    options: dict[str, Any] = {"eps": eps, "training": use_input_stats, "track_running_stats": running_mean is not None}
    options |= {"running_mean": running_mean, "running_var": running_var, "_get_no_batch_dim": lambda: 1}
    return _Use(InstanceNormRule, options, input, weight, bias, input.shape[1:2])


_OPERATIONS: dict[Any, Callable[..., _Use | None]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
}


class Recorder(TorchFunctionMode):
    """Keeps the calls of known operations whose weight or bias is one of the `parameters` (by id)."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        self.parameters = parameters
        self.recorded: list[Recorded] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        describe = _OPERATIONS.get(func)
        if describe is not None and isinstance(output, Tensor) and output.requires_grad:
            use = describe(*args, **kwargs)
            if use is not None and use.fits():
                self._keep(use, output)
        return output

    def _keep(self, use: _Use, output: Tensor) -> None:
        given = {"weight": use.weight, "bias": use.bias}
        known = {name: id(p) for name, p in given.items() if id(p) in self.parameters}
        if not known or any(p is not None and p.is_complex() for p in given.values()):
            return
        rule = use.make(SimpleNamespace(**use.options, **given))
        # the edge, not the tensor: an in-place ReLU behind the layer would make the tensor stand for its result
        a = use.a.detach()
        self.recorded.append(Recorded(rule, a, a._version, get_gradient_edge(output), known))
