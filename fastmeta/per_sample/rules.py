"""What is known of each kind of layer: its output under other weights, and the terms of its per-sample gradients.

A layer that is linear in its parameters, y_i = layer(a_i; W), with g_i = dL_i/dy_i, has

    <dL_i/dW, G>  =  <g_i, layer(a_i; G)>                                  one forward of the layer with weights G
    dL_i/dW       =  sum_t g_it a_it^T                                     t: time steps, pixels, calls of the layer
    |dL_i/dW|^2   =  sum_{t,s} <a_it, a_is> <g_it, g_is>                   "ghost" norm: two T x T Gram matrices

The ghost norm costs T^2 (d + p) per sample, the sum itself T d p: whichever is less is taken, a few samples at a time.
Where it is the sum, a dot that is wanted beside the norm is taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastmeta import ops

# Elements of scratch memory that a norm may take: samples are worked off in chunks of this size.
_SCRATCH = 1 << 22


# Columns from which our kernel is the faster one on a CPU: below, its call costs more than a product in memory.
_LONG_ROW = 512


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i> over all dimensions but the first."""
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).sum(1) if a.is_cpu and a.shape[1] < _LONG_ROW else ops.row_dot(a, b)


def common(*tensors: Tensor | None) -> list[Any]:
    """The tensors in one dtype, at least float32 where sums over products follow."""
    dtype = torch.float32
    for t in tensors:
        if t is not None and t.is_floating_point():
            dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors]


def total(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, without a copy of a single one."""
    return terms[0] if len(terms) == 1 else torch.stack(list(terms)).sum(0)


class Rule:
    """What is known of one layer. `a` is its input, `g` the gradient of its output, both with the batch first."""

    min_dims = 2  # of the layer's input

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def apply(self, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The layer's output with other parameters (None: zero); linear in them."""
        raise NotImplementedError

    def bias_grads(self, g: Tensor) -> Tensor:
        """(n, p): the gradient per sample, no larger than `g` itself."""
        raise NotImplementedError

    def weight_terms(self, calls: Sequence[Call], direction: Tensor | None) -> Terms:
        """Of the gradient summed over the calls, which all have a rule of this kind."""
        raise NotImplementedError

    def kind(self) -> str:
        """Rules of one kind have weight gradients that `weight_terms` can sum."""
        return type(self).__name__.removesuffix("Rule")


class Call(NamedTuple):
    rule: Any  # a Rule
    a: Tensor
    g: Tensor


# (n,) |gradient|^2 and (n,) <gradient, direction>, None without a direction
Terms = tuple[Tensor, Tensor | None]


def dense_terms(grads: Tensor, direction: Tensor | None) -> Terms:
    """`grads` (n, P) are there."""
    dot = None if direction is None else grads @ direction.flatten().to(grads.dtype)
    return row_dot(grads, grads), dot


def call_dot(call: Call, directions: Mapping[str, Tensor]) -> Tensor:
    """(n,): sum over the named parameters of <dL_i/dparameter, direction>."""
    a, g, weight, bias = common(call.a, call.g, directions.get("weight"), directions.get("bias"))
    with torch.autocast(g.device.type, enabled=False):
        return row_dot(call.rule.apply(a, weight, bias), g)


def _dot_by_apply(calls: Sequence[Call], direction: Tensor | None) -> Tensor | None:
    return None if direction is None else total([call_dot(call, {"weight": direction}) for call in calls])


class OuterRule(Rule):
    """Gradients that are sums of outer products: Linear and Conv2d."""

    def sizes(self, g: Tensor) -> tuple[int, int, int, int]:
        """groups, T, d (inputs of one output), p (outputs of a group)."""
        raise NotImplementedError

    def factors(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """(n, groups, T, d) and (n, groups, T, p)."""
        raise NotImplementedError

    def weight_grads(self, a: Tensor, g: Tensor) -> Tensor:
        """(n, weight elements): the gradients per sample, for a few samples."""
        raise NotImplementedError

    def weight_terms(self, calls: Sequence[Call], direction: Tensor | None) -> Terms:
        sizes = [call.rule.sizes(call.g) for call in calls]
        groups, _, d, p = sizes[0]
        T = sum(size[1] for size in sizes)
        ghost = T == 1 or T * (d + p) < d * p
        scratch = groups * (T * (d + p) + 2 * T * T if ghost else d * p)
        chunk, n = max(1, _SCRATCH // max(1, scratch)), len(calls[0].g)
        terms = _ghost_norm2 if ghost else _direct_terms
        out = [terms(calls, slice(i, i + chunk), direction) for i in range(0, n, chunk)]
        norm2 = torch.cat([part for part, _ in out])
        if ghost or direction is None:
            return norm2, _dot_by_apply(calls, direction)
        return norm2, torch.cat([part for _, part in out if part is not None])


def _chunk(calls: Sequence[Call], rows: slice) -> list[tuple[Any, Tensor, Tensor]]:
    return [(call.rule, *common(call.a[rows], call.g[rows])) for call in calls]


def _direct_terms(calls: Sequence[Call], rows: slice, direction: Tensor | None) -> Terms:
    grads = total([rule.weight_grads(a, g) for rule, a, g in _chunk(calls, rows)])
    return dense_terms(grads, direction)


def _ghost_norm2(calls: Sequence[Call], rows: slice, _: Tensor | None) -> Terms:
    factors = [rule.factors(a, g) for rule, a, g in _chunk(calls, rows)]
    a, b = (parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in zip(*factors, strict=True))
    n, groups, T = a.shape[:3]
    if T > 1:
        return row_dot(a @ a.mT, b @ b.mT), None
    a, b = a.flatten(0, 2), b.flatten(0, 2)
    return (row_dot(a, a) * row_dot(b, b)).view(n, groups).sum(1), None


class LinearRule(OuterRule):
    def apply(self, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if weight is None:
            return _shift(a.new_zeros(*a.shape[:-1], self.layer.out_features), bias, -1)
        return F.linear(a, weight, bias)

    def bias_grads(self, g: Tensor) -> Tensor:
        return g.reshape(g.shape[0], -1, g.shape[-1]).sum(1)

    def sizes(self, g: Tensor) -> tuple[int, int, int, int]:
        return 1, g.shape[1:-1].numel(), self.layer.in_features, self.layer.out_features

    def factors(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        n, T = a.shape[0], a.shape[1:-1].numel()
        return a.reshape(n, 1, T, a.shape[-1]), g.reshape(n, 1, T, g.shape[-1])

    def weight_grads(self, a: Tensor, g: Tensor) -> Tensor:
        a, g = (factor.squeeze(1) for factor in self.factors(a, g))
        return (g.mT @ a).flatten(1)


class Conv2dRule(OuterRule):
    min_dims = 4

    def kind(self) -> str:
        return f"Conv2d in {self.layer.groups} groups"

    def _padded(self, a: Tensor) -> Tensor:
        layer = self.layer
        pads: list[int] = []
        for dim in (1, 0):  # F.pad starts from the last dimension
            if layer.padding == "same":
                total = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
                pads += [total // 2, total - total // 2]
            else:
                pads += [0, 0] if layer.padding == "valid" else [layer.padding[dim]] * 2
        return F.pad(a, pads, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)

    def apply(self, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        layer = self.layer
        weight = a.new_zeros(layer.weight.shape) if weight is None else weight
        # zeros the convolution adds itself: a padded copy would be one more pass over the input
        own = layer.padding_mode == "zeros"
        a, padding = (a, layer.padding) if own else (self._padded(a), 0)
        return F.conv2d(a, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    def bias_grads(self, g: Tensor) -> Tensor:
        return g.flatten(2).sum(2)

    def sizes(self, g: Tensor) -> tuple[int, int, int, int]:
        groups, (p, *inputs) = self.layer.groups, self.layer.weight.shape
        return groups, g.shape[2:].numel(), torch.Size(inputs).numel(), p // groups

    def factors(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        layer, n = self.layer, a.shape[0]
        patches = F.unfold(self._padded(a), layer.kernel_size, layer.dilation, 0, layer.stride)
        T = patches.shape[-1]
        return patches.view(n, layer.groups, -1, T).mT, g.reshape(n, layer.groups, -1, T).mT

    def weight_grads(self, a: Tensor, g: Tensor) -> Tensor:
        # one convolution whose groups are the samples: up to 7 times faster than patches and a matrix product
        layer, n, (p, *inputs) = self.layer, a.shape[0], self.layer.weight.shape
        a = self._padded(a)
        a, g = a.reshape(1, -1, *a.shape[2:]), g.reshape(1, -1, *g.shape[2:])
        size = (n * p, *inputs)
        return conv2d_weight(a, size, g, layer.stride, 0, layer.dilation, n * layer.groups).reshape(n, -1)


class EmbeddingRule(Rule):
    """a (n, ...) of int64; the gradient of row w is the sum of g_it over the t with a_it = w."""

    min_dims = 1

    def apply(self, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        out = F.embedding(a, weight)
        padding = self.layer.padding_idx
        return out if padding is None else out.masked_fill((a == padding).unsqueeze(-1), 0)

    def weight_terms(self, calls: Sequence[Call], direction: Tensor | None) -> Terms:
        n, p = calls[0].g.shape[0], calls[0].g.shape[-1]
        rows, grads = [], []
        for rule, a, g in calls:
            (grad,) = common(g.reshape(n, -1, p))
            if rule.layer.padding_idx is not None:
                grad = grad.masked_fill((a.reshape(n, -1) == rule.layer.padding_idx).unsqueeze(-1), 0)
            rows.append(a.reshape(n, -1))
            grads.append(grad)
        row, grad = torch.cat(rows, 1), torch.cat(grads, 1)
        # equal words of a sample stand side by side after the sort: number the runs, sum each, no host sync
        row, order = row.sort(1)
        grad = grad.gather(1, order.unsqueeze(-1).expand_as(grad))
        run = (row[:, 1:] != row[:, :-1]).long().cumsum(1)
        run = F.pad(run, (1, 0)).unsqueeze(-1).expand_as(grad)
        summed = torch.zeros_like(grad).scatter_add_(1, run, grad)
        return row_dot(summed, summed), _dot_by_apply(calls, direction)


class ScaleRule(Rule):
    """y = weight * normalised(a) + bias, parameters along `axis`; gradients per sample are (n, p), no larger than a."""

    axis: int  # -1: trailing dimensions, 1: channels

    def normalised(self, a: Tensor) -> Tensor:
        raise NotImplementedError

    def apply(self, a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        out = torch.zeros_like(a) if weight is None else self.normalised(a) * _broadcast(weight, a, self.axis)
        return _shift(out, bias, self.axis)

    def bias_grads(self, g: Tensor) -> Tensor:
        if self.axis == 1:
            return g.flatten(2).sum(2) if g.dim() > 2 else g
        return g.reshape(g.shape[0], -1, self.layer.weight.numel()).sum(1)

    def weight_terms(self, calls: Sequence[Call], direction: Tensor | None) -> Terms:
        everything = _chunk(calls, slice(None))
        return dense_terms(total([rule.bias_grads(g * rule.normalised(a)) for rule, a, g in everything]), direction)


class LayerNormRule(ScaleRule):
    axis = -1

    def normalised(self, a: Tensor) -> Tensor:
        return F.layer_norm(a, self.layer.normalized_shape, eps=self.layer.eps)


class RMSNormRule(ScaleRule):
    axis = -1

    def normalised(self, a: Tensor) -> Tensor:
        return F.rms_norm(a, self.layer.normalized_shape, eps=self.layer.eps)


class GroupNormRule(ScaleRule):
    axis = 1

    def normalised(self, a: Tensor) -> Tensor:
        return F.group_norm(a, self.layer.num_groups, eps=self.layer.eps)


class EvalBatchNormRule(ScaleRule):
    axis = 1

    def normalised(self, a: Tensor) -> Tensor:
        mean, var = common(self.layer.running_mean, self.layer.running_var)
        return F.batch_norm(a, mean.to(a.dtype), var.to(a.dtype), training=False, eps=self.layer.eps)


class InstanceNormRule(ScaleRule):
    axis = 1

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.min_dims = layer._get_no_batch_dim() + 1  # it takes single samples too, which have a dimension less

    def normalised(self, a: Tensor) -> Tensor:
        layer = self.layer
        if layer.track_running_stats and not layer.training:
            return EvalBatchNormRule(layer).normalised(a)
        return F.instance_norm(a, eps=layer.eps)


def _broadcast(parameter: Tensor, like: Tensor, axis: int) -> Tensor:
    return parameter.view(-1, *[1] * (like.dim() - 2)) if axis == 1 else parameter


def _shift(x: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    return x if bias is None else x + _broadcast(bias, x, axis)
