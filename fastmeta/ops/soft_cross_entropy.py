"""Soft cross-entropy, which autograd differentiates to any order, by kernels the first two; two maps of a direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.function import FunctionCtx

from fastmeta.ops.arguments import check, columns
from fastmeta.ops.guard import acc_dtype, guarded, plain, unguarded
from fastmeta.ops.row_dot import row_dot
from fastmeta.ops.shapes import Batch, fake

_soft_cross_entropy = guarded("soft_cross_entropy", inside=True)
_soft_cross_entropy_backward = guarded("soft_cross_entropy_backward", inside=True)
_soft_cross_entropy_hvp = guarded("soft_cross_entropy_hvp")
_soft_cross_entropy_label_grad = guarded("soft_cross_entropy_label_grad")
_soft_cross_entropy_of_plain = unguarded("soft_cross_entropy")
_soft_cross_entropy_with_grad = unguarded("soft_cross_entropy_with_grad")

#: elements of a gradient that the forward pass takes along in acc(T), where that is T and where it is wider: a larger
#: one is computed when it is asked for
KEPT, KEPT_WIDER = 2**18, 2**16


def soft_cross_entropy(logits: Tensor, probs: Tensor, *, reduction: str = "mean") -> Tensor:
    """L_i = -sum_k p_ik log q_ik; then ``"mean"`` or ``"sum"`` over the n rows, or ``"none"``.

    Differentiable in both arguments to any order: first and second derivatives are fused kernels, higher ones plain
    torch. Rows of `probs` need not sum to one:

        dL_i/dz_i = s_i q_i - p_i,  dL_i/dp_i = lse_i - z_i,  s_i = sum_k p_ik

    Args:
        logits: (n, C) T, C >= 2.
        probs: (n, C) T, acc(T) or bfloat16.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        () or (n,) in acc(T). The mean of an empty batch is NaN, as in torch. A row whose logits hold a NaN or an
        infinity has loss NaN.

    Raises:
        ValueError: an unknown reduction; tensors on different devices.
        RuntimeError: a wrong shape or dtype; a forward-AD tangent on an argument; torch.func.grad or vjp of it inside
            of torch.compile, which would leave its backward out.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
    if plain(logits, probs):
        logits, probs = columns(logits), columns(probs)
        if not torch.is_grad_enabled() or not (logits.requires_grad or probs.requires_grad):
            return _reduced(_soft_cross_entropy_of_plain(logits, probs)[0], reduction)
        kept = KEPT if acc_dtype(logits.dtype) == logits.dtype else KEPT_WIDER
        if not probs.requires_grad and logits.numel() <= kept:
            return SoftCrossEntropyOfLogits.apply(logits, probs, reduction)
    else:
        check(logits, probs=probs)
        logits, probs = columns(logits), columns(probs)
    return _reduced(SoftCrossEntropy.apply(logits, probs)[0], reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def soft_cross_entropy_hvp(logits: Tensor, v: Tensor, probs: Tensor | None = None) -> Tensor:
    """The logit-space Hessian-vector product s_i q_i (v_i - <q_i, v_i>), s_i = sum_k p_ik (1 without `probs`).

    At label logits it is the gradient of a table of instance labels (Eq. 7). Not differentiable.

    Args:
        logits: (n, C) T. v: (n, C) T or acc(T). probs: (n, C) T, acc(T) or bfloat16, or None.

    Returns:
        (n, C) in the dtype of `v`.
    """
    check(logits, v=v)
    if probs is not None:
        check(logits, probs=probs)
        probs = columns(probs)
    return _soft_cross_entropy_hvp(columns(logits), columns(v), probs)


def soft_cross_entropy_label_grad(logits: Tensor, u: Tensor) -> Tensor:
    """u_i - <q_i, u_i>: (n / lambda) dL_meta/dp_i, the label-gradient term of any label family. Not differentiable.

    Args:
        logits: (n, C) T. u: (n, C) T or acc(T).

    Returns:
        (n, C) in the dtype of `u`.
    """
    check(logits, u=u)
    return _soft_cross_entropy_label_grad(columns(logits), columns(u))


# ---------------------------------------------------------------------------------------------------------
# Derivatives
# ---------------------------------------------------------------------------------------------------------


class _Function(torch.autograd.Function):
    """torch's, which looks at the signature of `forward` in every call, for defaults: 17 us that these do not need."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


class SoftCrossEntropy(_Function):
    """L_i = -sum_k p_ik log q_ik (n,), and lse (n,), which is saved in place of the probabilities."""

    @staticmethod
    def forward(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        return _soft_cross_entropy(logits, probs)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        # lse is a function of the logits whose derivative the backward below takes in closed form
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None
        logits, probs, lse = ctx.saved_tensors
        # only where the gradient itself will be differentiated does it need a node of its own
        derive = _SoftCrossEntropyBackward.apply if torch.is_grad_enabled() else _soft_cross_entropy_backward
        need_logits, need_probs = ctx.needs_input_grad
        d_logits, d_probs = derive(logits, probs, lse, grad, need_logits, need_probs)
        return d_logits if need_logits else None, d_probs if need_probs else None


class SoftCrossEntropyOfLogits(_Function):
    """The reduced loss of small batches of `plain` tensors, differentiable in the logits alone.

    What F.cross_entropy takes there is calls, not arithmetic. The forward pass takes the gradient along, so that the
    backward pass is one product.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, reduction: str) -> Tensor:
        n = logits.shape[0]
        ctx.rows = n if reduction == "mean" else 0
        loss, lse, d_logits = _soft_cross_entropy_with_grad(logits, probs, 1 / n if ctx.rows else 1.0)
        ctx.save_for_backward(logits, probs, lse, d_logits)
        return _reduced(loss, reduction)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, probs, lse, d_logits = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            row_grad = (grad / ctx.rows if ctx.rows else grad).expand(logits.shape[0])
            return _SoftCrossEntropyBackward.apply(logits, probs, lse, row_grad, True, False)[0], None, None
        row_grad = grad if grad.ndim == 0 else grad.unsqueeze(1)
        if logits.dtype == d_logits.dtype:
            return d_logits * row_grad, None, None
        out = torch.empty_like(d_logits, dtype=logits.dtype)  # rounded once, and nothing beside it in acc(T)
        return torch.mul(d_logits, row_grad, out=out), None, None


class _SoftCrossEntropyBackward(_Function):
    """A = grad (s q - p), B = grad (lse - z), differentiable in logits, probs and grad.

    With cotangents a of A and b of B (n, C):
        d/dz     = grad (s q (a - <q, a>) + (sum_k b_k) q - b)
        d/dp     = -grad (a - <q, a>)
        d/dgrad  = <s q - p, a> + <lse - z, b>
    """

    @staticmethod
    def forward(
        logits: Tensor, probs: Tensor, lse: Tensor, grad: Tensor, need_logits: bool, need_probs: bool
    ) -> tuple[Tensor, Tensor]:
        return _soft_cross_entropy_backward(logits, probs, lse, grad, need_logits, need_probs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, need_logits, need_probs = inputs
        ctx.made = (need_logits, need_probs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(g for g, made in zip(output, ctx.made, strict=True) if not made))
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, probs, lse, grad = ctx.saved_tensors
        # Dynamo brings zeros of 0 rows for a result that was not made
        a, b = (cotangent if made else None for cotangent, made in zip((a, b), ctx.made, strict=True))
        needs = tuple(ctx.needs_input_grad[i] for i in (0, 1, 3))
        if torch.is_grad_enabled():  # someone differentiates a third time
            terms = _second_derivatives(logits, probs, grad, a, b)
        else:
            terms = _fused_second_derivatives(logits, probs, lse, grad, a, b, needs)
        d_logits, d_probs, d_grad = (t if need else None for t, need in zip(terms, needs, strict=True))
        return d_logits, d_probs, None, d_grad, None, None


def _fused_second_derivatives(
    logits: Tensor,
    probs: Tensor,
    lse: Tensor,
    grad: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    need_logits, need_probs, need_grad = needs
    d_logits = d_probs = d_grad = None
    weight = grad.unsqueeze(1)
    if a is not None:
        a = columns(a)
        if need_logits:
            d_logits = weight * _soft_cross_entropy_hvp(logits, a, probs)
        if need_probs:
            d_probs = -weight * _soft_cross_entropy_label_grad(logits, a)
        if need_grad:
            v, _ = _soft_cross_entropy_backward(logits, probs, lse, torch.ones_like(grad), True, False)
            d_grad = row_dot(v.to(a.dtype), a)
    if b is not None:
        b = columns(b)
        if need_logits:
            of_b, _ = _soft_cross_entropy_backward(logits, b, lse, grad, True, False)
            d_logits = of_b if d_logits is None else d_logits + of_b
        if need_grad:
            loss_of_b, _ = _soft_cross_entropy(logits, b)
            d_grad = loss_of_b if d_grad is None else d_grad + loss_of_b
    return (
        None if d_logits is None else d_logits.to(logits.dtype),
        None if d_probs is None else d_probs.to(probs.dtype),
        d_grad,
    )


def _second_derivatives(
    logits: Tensor, probs: Tensor, grad: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in plain torch, itself differentiable."""
    z = logits.to(grad.dtype)
    log_q, q, s = z.log_softmax(-1), z.softmax(-1), probs.to(grad.dtype).sum(-1, keepdim=True)
    weight = grad.unsqueeze(1)
    d_logits, d_probs, d_grad = torch.zeros_like(z), None, torch.zeros_like(grad)
    if a is not None:
        a = a.to(grad.dtype)
        centred = a - (q * a).sum(-1, keepdim=True)
        d_logits = d_logits + weight * s * q * centred
        d_probs = (-weight * centred).to(probs.dtype)
        d_grad = d_grad + ((s * q - probs) * a).sum(-1)
    if b is not None:
        b = b.to(grad.dtype)
        d_logits = d_logits + weight * (b.sum(-1, keepdim=True) * q - b)
        d_grad = d_grad - (log_q * b).sum(-1)
    return d_logits.to(logits.dtype), d_probs, d_grad


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("soft_cross_entropy")
def _(logits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    b = Batch(logits)
    b.labels(probs, "probs", "; pass soft labels")
    return b.values(), b.values()


@fake("soft_cross_entropy_backward")
def _(
    logits: Tensor, probs: Tensor, lse: Tensor, grad: Tensor, need_logits: bool, need_probs: bool
) -> tuple[Tensor, Tensor]:
    b = Batch(logits)
    b.labels(probs, "probs", "; pass soft labels")
    b.vector(lse, "lse", b.n)
    b.vector(grad, "grad", b.n)
    return b.rows(b.type, None if need_logits else 0), b.rows(probs.dtype, None if need_probs else 0)


@fake("soft_cross_entropy_hvp")
def _(logits: Tensor, v: Tensor, probs: Tensor | None) -> Tensor:
    b = Batch(logits)
    b.direction(v, "v")
    if probs is not None:
        b.labels(probs, "probs", "; pass soft labels")
    return b.rows(v.dtype)


@fake("soft_cross_entropy_label_grad")
def _(logits: Tensor, u: Tensor) -> Tensor:
    b = Batch(logits)
    b.direction(u, "u")
    return b.rows(u.dtype)
