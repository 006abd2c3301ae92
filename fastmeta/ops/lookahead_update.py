"""The look-ahead theta* of many parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmeta.ops.arguments import finite, number
from fastmeta.ops.guard import guarded
from fastmeta.ops.shapes import FLOATING, check_device, check_scalar, fake, require, text_of

_lookahead_update = guarded("lookahead_update")


def lookahead_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    gain: float = 1.0,
    carry: float = 0.0,
    weight_decay: float = 0.0,
) -> list[Tensor]:
    """theta* of many parameters in one pass, on CUDA in one launch; nothing is written. Not differentiable.

        theta*_k = theta_k - lr (gain (G_k + weight_decay theta_k) + carry b_k)

    A step of torch.optim.SGD with momentum mu and no dampening, from a momentum buffer b, is gain 1 and carry mu; with
    Nesterov gain 1 + mu and carry mu^2. With lr = 0 theta* is theta, also where G holds a NaN or an infinity.

    Args:
        params: any shapes, one dtype T, one device.
        grads: one per parameter, of its shape, in T.
        buffers: likewise, or empty where `carry` is 0.
        lr: finite, or a 0-dim tensor; one on the GPU is read there, so that a captured graph follows a schedule.
        gain, carry, weight_decay: floats.

    Returns:
        theta*, one tensor per parameter, in its strides; contiguous where its elements leave gaps in memory.

    Operands whose strides equal their parameter's are walked as flat memory. Others are copied into its layout first,
    by torch: a gradient in channels_last of a weight that is not costs a pass. A launch takes up to 740 parameters,
    the table of which travels in the kernel's arguments (a captured graph needs no memory of the host); more take one
    launch for each 740.
    """
    for name, tensors in (("params", params), ("grads", grads), ("buffers", buffers)):
        for k, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}[{k}] must be a tensor, got {type(t).__name__}; use zeros where there is none")
            if t.device != params[0].device:
                raise ValueError(f"{name}[{k}] is on {t.device} but params on {params[0].device}; move one of them")
    rate = lr.detach() if isinstance(lr, Tensor) else number(lr, "lr")
    gain, carry, weight_decay = finite(gain, "gain"), finite(carry, "carry"), finite(weight_decay, "weight_decay")
    return _lookahead_update(params, grads, buffers, rate, gain, carry, weight_decay)


# ---------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------


@fake("lookahead_update")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    lr: Tensor,
    gain: float,
    carry: float,
    weight_decay: float,
) -> list[Tensor]:
    count = len(params)
    require(len(grads) == count, f"grads must hold one gradient per parameter, {count}, got {len(grads)}")
    require(
        len(buffers) == (0 if carry == 0 else count),
        f"buffers must hold {'none with carry = 0' if carry == 0 else 'one momentum per parameter'}, got "
        f"{len(buffers)} for {count} parameters",
    )
    if not params:
        return []
    first = params[0]
    require(
        first.dtype in FLOATING, f"params must be float64, float32, bfloat16 or float16, got {text_of(first.dtype)}"
    )
    check_scalar(lr, "lr", first, "params[0]")
    results = []
    for k, p in enumerate(params):
        require(
            p.dtype == first.dtype,
            f"params must have one dtype, got {text_of(first.dtype)} and {text_of(p.dtype)}; call once for each dtype",
        )
        check_device(p, f"params[{k}]", first, "params[0]")
        for name, operands in (("grads", grads), ("buffers", buffers)):
            if operands:
                _check_operand(operands[k], f"{name}[{k}]", p, f"params[{k}]")
        extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
        flat = p.numel() == 0 or extent == p.numel()
        results.append(p.new_empty_strided(p.shape, p.stride()) if flat else p.new_empty(p.shape))
    return results


def _check_operand(t: Tensor, name: str, param: Tensor, on: str) -> None:
    text = f"{name} must have the shape of {on}, {tuple(param.shape)}, got {tuple(t.shape)}"
    require(t.ndim == param.ndim, text)
    for size, expected in zip(t.shape, param.shape, strict=True):
        require(size == expected, text)
    require(t.dtype == param.dtype, f"{name} must be {text_of(param.dtype)} as {on}, got {text_of(t.dtype)}")
    check_device(t, name, param, on)
